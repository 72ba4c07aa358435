"""What the in-process engine draws: by the rules of each request, from the model's distribution."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import shared_local
from fakes import PARITY
from shared_local import CONFIG, MODEL, STOP, batch_logprobs, draw, many, next_logits, request

from atgrpo_jax.common.errors import RunError
from atgrpo_jax.common.types import Candidate, Group, Origin, Outcome, Sampling
from atgrpo_jax.credit.groups import Credited
from atgrpo_jax.engines.local.local import LocalEngine, LocalEngineConfig
from atgrpo_jax.models.transformer import PolicyWeights
from atgrpo_jax.update.batch import BatchConfig, pack

# Fixtures
params = shared_local.params
engine = shared_local.engine


def test_siblings_differ_and_so_does_the_next_step(engine):
    (samples,), (later,) = draw(engine, request([1, 2])), draw(engine, request([1, 2], step=2))
    tokens = [s.tokens for s in (*samples, *later)]
    assert len(set(tokens)) == len(tokens)
    assert draw(engine, request([1, 2], seed=1))[0] != samples


def test_every_sample_carries_the_version(engine, params):
    assert {s.version for s in draw(engine, request([1]))[0]} == {7}
    engine.push_weights("shared", PolicyWeights(params), 8)
    assert engine.version("shared") == 8
    assert {s.version for s in draw(engine, request([1]))[0]} == {8}


def test_policies_are_kept_apart(engine, params):
    other = jax.tree.map(lambda x: x * 1.5, params)
    engine.push_weights("other", PolicyWeights(other), 1)
    both = draw(engine, request([1, 2, 3]), request([1, 2, 3], policy="other"))
    assert both[0] == draw(engine, request([1, 2, 3]))[0]
    assert both[0] != both[1]


def test_the_stop_id_is_returned_with_its_logprob_and_ends_the_sample(engine):
    found = set()
    for step in range(30):
        for sample in draw(engine, request([1, 2], step=step, max_tokens=8))[0]:
            assert len(sample.tokens) == len(sample.logprobs) <= 8
            assert STOP not in sample.tokens[:-1]
            assert (sample.tokens[-1] == STOP) == (sample.finish == "stop")
            assert sample.finish == "stop" or len(sample.tokens) == 8
            found.add(sample.finish)
    assert found == {"stop", "length"}


def test_logprobs_are_the_learners_at_the_sampling_temperature(engine, params):
    cooler = request([4, 5], 9, temperature=0.6), request([4, 6], 9, temperature=0.6, top_k=5)
    sampled = draw(engine, *many(5), *cooler)
    for one, samples in zip([*many(5), *cooler], sampled, strict=True):
        key = one.addresses[0].group
        origin = Origin(key, one.prompt_ids, "", "shared", 7, one.sampling)
        members = tuple(Candidate(origin, s, "", Outcome.OK, None) for s in samples)
        item = Credited(Group(members, 0), np.ones(3, np.float32), np.ones(3, bool))
        batch = pack([item], BatchConfig(row_tokens=64, rows=1), "token", 1)
        micro = jax.tree.map(lambda x: x[0], batch)
        logprobs, _ = batch_logprobs(PolicyWeights(params), micro)
        trained = micro.trained.weights > 0
        np.testing.assert_allclose(
            np.asarray(logprobs)[trained], micro.trained.old_logprobs[trained], **PARITY
        )


def test_usage_counts_what_was_computed_and_what_was_asked_for(engine):
    """Twelve rows are computed, each step of the longest sample; three were asked for."""
    calls = []

    def noted(name, call):
        return lambda *args: calls.append(name) or call(*args)

    (samples,) = draw(engine, request([1] * 10))
    lengths = [len(sample.tokens) for sample in samples]
    first = engine.usage
    assert first.programs >= 3  # one makes an empty cache
    (lane,) = engine._lanes.values()
    named = lane._programs._asdict().items()
    lane._programs = lane._programs._replace(**{name: noted(name, call) for name, call in named})
    assert first.tokens == sum(lengths) and first.slot_steps == 12 * max(lengths)
    assert (first.prompt_tokens, first.known_tokens) == (10, 0)
    draw(engine, request([1] * 10), request([1] * 8 + [2] * 3, 1))
    used = engine.usage - first
    assert (used.prompt_tokens, used.known_tokens) == (21, 18)  # a whole prompt; a page of eight
    assert used.seconds == used.prefill_s + used.decode_s > 0
    assert used.programs == len(calls) and set(calls) == {"prefill", "decode"}


@pytest.mark.thorough
def test_a_pattern_holds_and_both_logprobs_are_told(params):
    """Over ids 0..25 as letters, 26 as "ab"; beside a request that is free, on the same weights."""

    def decode(ids):
        return "".join(chr(97 + i) if i < 26 else "ab" if i == 26 else "" for i in ids if i != STOP)

    def built(chunk, decode=decode):
        engine = LocalEngine(MODEL, (STOP,), dataclasses.replace(CONFIG, chunk=chunk), decode=decode)
        engine.push_weights("shared", PolicyWeights(params), version=7)
        return engine

    pattern = "(ab|c[x-z])+e"
    for chunk in (1, 16):
        engine = built(chunk)
        ruled = request([1, 2], k=12, max_tokens=12, pattern=pattern)
        samples, free = draw(engine, ruled, request([1, 2], k=12, max_tokens=12))
        assert samples == draw(engine, ruled)[0] and free != samples
        ended = [s for s in samples if s.finish == "stop"]
        assert len(ended) > 3 and all(re.fullmatch(pattern, decode(s.tokens)) for s in ended)
        for sample in samples[:4]:
            for n, token in enumerate(sample.tokens):
                said = jax.nn.log_softmax(next_logits(params, [1, 2, *sample.tokens[:n]]))
                np.testing.assert_allclose(sample.logprobs[n], said[token], **PARITY)
                if n == 0:  # a, "ab" or c
                    left = jax.nn.log_softmax(said[jnp.array([0, 26, 2])])
                    drawn = left[[0, 26, 2].index(token)]
                    np.testing.assert_allclose(sample.drawn_logprobs[0], drawn, **PARITY)
    with pytest.raises(RunError, match="'a~': The vocabulary provided is incompatible"):
        draw(engine, request([1], pattern="a~"))

    def decode_apart(ids):
        return decode(ids).replace("ab", "a b") if len(ids) > 1 else decode(ids)

    with pytest.raises(RunError, match="have another text alone than among others"):
        draw(built(16, decode_apart), ruled)
    with pytest.raises(ValueError, match=r"Sampling.pattern = '\(': not a regular expression"):
        Sampling(pattern="(")


@pytest.mark.thorough
def test_a_stop_string_ends_a_sample_at_the_token_that_completes_it(params):
    """A decoder that writes ids as "<id>": whatever the chunks, the same first place."""

    def decode(ids):
        return "".join(f"<{i}>" for i in ids)

    plain = LocalEngine(MODEL, (), CONFIG, decode=decode)
    plain.push_weights("shared", PolicyWeights(params), version=7)
    (whole,) = draw(plain, request([1], max_tokens=16))
    wanted = whole[0].tokens[4:6]
    stop = decode(wanted)[1:-1]
    for chunk in (1, 5, 16):
        engine = LocalEngine(MODEL, (), dataclasses.replace(CONFIG, chunk=chunk), decode=decode)
        engine.push_weights("shared", PolicyWeights(params), version=7)
        (samples,) = draw(engine, request([1], max_tokens=16, stop=(stop, "no such thing")))
        assert samples[0].tokens == whole[0].tokens[:6] and samples[0].finish == "stop"
        assert samples[0].logprobs == whole[0].logprobs[:6]
        same = dataclasses.replace(samples[1], receipt=whole[1].receipt)  # of another request
        assert same == whole[1] and same.finish == "length"
    engine = LocalEngine(MODEL, (), CONFIG)
    engine.push_weights("shared", PolicyWeights(params), version=7)
    with pytest.raises(RunError, match="this engine was given no decoder"):
        draw(engine, request([1], stop=("x",)))


def test_rules_of_sampling_are_kept_in_any_company(engine):
    """Ten tokens at least, three never, of the five most likely; beside a request without rules."""
    ruled = request([1, 2, 3], 5, k=16, max_tokens=16, min_tokens=10, banned=(7, 8, 9), top_k=5)
    plain = request([1, 2, 3], 6, k=16, max_tokens=16)
    (samples, others), (alone,) = draw(engine, ruled, plain), draw(engine, ruled)
    assert samples == alone and others == draw(engine, plain)[0]
    for sample in samples:
        assert len(sample.tokens) >= 10 and not {7, 8, 9} & set(sample.tokens)
        assert len(sample.drawn_logprobs) == len(sample.tokens)
        pairs = list(zip(sample.drawn_logprobs, sample.logprobs, strict=True))
        assert all(drawn > whole for drawn, whole in pairs)
    assert any(len(other.tokens) < 10 for other in others)
    (patient,) = draw(engine, request([1, 2, 3], 6, k=16, max_tokens=16, min_tokens=10))
    assert all(len(sample.tokens) >= 10 for sample in patient)
    assert all(other.drawn_logprobs is None for other in others)
    with pytest.raises(RunError, match=r"Sampling.banned = \(64,\): the vocabulary has 64 ids"):
        draw(engine, request([1], banned=(64,)))


def test_greedy_takes_the_most_likely_token(engine, params):
    samples = draw(engine, request([1, 2, 3], temperature=0.0))[0]
    assert len({s.tokens for s in samples}) == 1
    tokens = [1, 2, 3]
    for token in samples[0].tokens:
        assert int(jnp.argmax(next_logits(params, tokens))) == token
        tokens.append(token)


@pytest.mark.thorough
def test_sampling_follows_the_distribution(engine, params):
    """The first token's frequencies against the model's probabilities."""
    probs = np.asarray(jax.nn.softmax(next_logits(params, [1, 2, 3]) / 0.5))
    counts = np.zeros(64)
    for step in range(8):
        one = request([1, 2, 3], k=256, step=step, max_tokens=1, temperature=0.5)
        for sample in draw(engine, one)[0]:
            counts[sample.tokens[0]] += 1
    assert chi_square(counts, probs) < 63 + 5 * (2 * 63) ** 0.5


@pytest.mark.thorough
def test_the_second_token_follows_its_distribution_given_the_first(engine, params):
    """A sampler that uses a token's random numbers again is right for first tokens alone. The first is one of
    three here, so that each is met often."""
    pairs = np.zeros((64, 64))
    banned = tuple(set(range(64)) - {10, 11, 12, STOP})
    for step in range(8):
        ruled = request([1, 2, 3], k=256, step=step, max_tokens=2, temperature=0.5, banned=banned)
        for sample in draw(engine, ruled)[0]:
            if len(sample.tokens) == 2:
                pairs[sample.tokens] += 1
    for first in (10, 11, 12):
        allowed = [10, 11, 12, STOP]
        probs = np.asarray(jax.nn.softmax(next_logits(params, [1, 2, 3, first])[np.array(allowed)] / 0.5))
        assert pairs[first].sum() > 200
        assert chi_square(pairs[first, allowed], probs) < 3 + 5 * (2 * 3) ** 0.5


def chi_square(counts, probs):
    n = counts.sum()
    return ((counts - n * probs) ** 2 / (n * probs)).sum()


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (request([1] * 33), r"a prompt of 33 tokens at 1/train/0/0/0/0/a: .*max_prompt = 32"),
        (request([]), "a prompt of 0 tokens"),
        (request([1, 64]), "token id 64 at 1/train/0/0/0/0/a: the vocabulary has 64"),
        (request([1, -2]), "token id -2"),
        (request([1], policy="ghost"), "no weights were pushed for policy 'ghost'"),
    ],
)
def test_requests_it_cannot_serve_are_refused(engine, bad, says):
    with pytest.raises(RunError, match=says):
        draw(engine, bad)


@pytest.mark.parametrize(
    "wrong", [{"slots": 0}, {"page": 0}, {"prompt_cache": 1023}, {"answer_cache": -1}, {"deadline_s": -1.0}]
)
def test_config_refuses(wrong):
    with pytest.raises(ValueError, match=r"LocalEngineConfig\."):
        LocalEngineConfig(**wrong)
