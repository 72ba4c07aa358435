import asyncio
import dataclasses
import random
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fakes import PARITY, small_model

from atgrpo_jax.arrays.mesh import MeshConfig, parameter_shardings
from atgrpo_jax.common.errors import RunError
from atgrpo_jax.common.types import Address, Candidate, Group, GroupKey, Origin, Outcome, Sampling
from atgrpo_jax.credit.groups import Credited
from atgrpo_jax.engines.local.lanes import Lane
from atgrpo_jax.engines.local.local import LocalEngine, LocalEngineConfig
from atgrpo_jax.engines.protocol import Request
from atgrpo_jax.models.attention import masked_attention
from atgrpo_jax.models.packed import Packed
from atgrpo_jax.models.transformer import PolicyWeights, Transformer, init_params, logits
from atgrpo_jax.run.metrics import CompileCounter
from atgrpo_jax.update.batch import BatchConfig, pack

MODEL = small_model()
STOP = 3
batch_logprobs = jax.jit(Packed(MODEL, MeshConfig().build()).logprobs)
CONFIG = LocalEngineConfig(slots=12, page=8, max_prompt=32, prompt_cache=256, prefill=16)


@pytest.fixture(scope="module")
def params():
    return init_params(MODEL, jax.random.key(0))


@pytest.fixture
def engine(params):
    engine = LocalEngine(MODEL, (STOP,), CONFIG)
    engine.push_weights("shared", PolicyWeights(params), version=7)
    return engine


def request(prompt, instance=0, k=3, step=1, seed=0, policy="shared", **sampling):
    key = GroupKey(step, "train", instance, 0, 0, "a")
    addresses = tuple(Address(seed, key, i) for i in range(k))
    return Request(policy, tuple(prompt), addresses, Sampling(**({"max_tokens": 8} | sampling)))


def draw(engine, *requests):
    async def everything():
        return await asyncio.gather(*map(engine.sample, requests))

    return asyncio.run(everything())


@jax.jit
def _forward(params, ids, positions):
    def causal(q, k, v, _):
        size = q.shape[1]
        return masked_attention(q, k, v, jnp.tril(jnp.ones((1, size, size), bool))), None

    hidden, _ = MODEL.apply({"params": params}, ids, positions, causal)
    return logits(params, hidden)


def next_logits(params, tokens):
    """After ``tokens``, by one plain forward pass."""
    ids = np.zeros((1, 16), np.int32)  # one shape for all lengths
    ids[0, : len(tokens)] = tokens
    positions = np.arange(16, dtype=np.int32)[None]
    return _forward(params, ids, positions)[0, len(tokens) - 1]


def many(n=11):
    rng = random.Random(0)
    return [request([rng.randrange(64) for _ in range(rng.randint(1, 20))], i) for i in range(n)]


@pytest.mark.thorough
def test_a_request_gives_the_same_samples_whatever_the_company(engine, params):
    """Alone, together, in another order, and among requests of other lengths: tokens, logprobs, bytes."""
    requests = many()
    together = draw(engine, *requests)
    alone = [draw(engine, one)[0] for one in requests]
    assert together == alone
    order = list(range(len(requests)))
    random.Random(1).shuffle(order)
    shuffled = draw(engine, *(requests[i] for i in order))
    assert [shuffled[order.index(i)] for i in range(len(order))] == together


@pytest.mark.thorough
def test_a_second_copy_arranged_for_decoding_changes_no_token(engine, params):
    plain = LocalEngine(MODEL, (STOP,), dataclasses.replace(CONFIG, joined_mb=0.0))
    plain.push_weights("shared", PolicyWeights(params), version=7)
    assert plain._family("shared").params is params is not engine._family("shared").params
    for ours, expected in zip(draw(plain, *many(5)), draw(engine, *many(5)), strict=True):
        for sample, same in zip(ours, expected, strict=True):
            assert sample.tokens == same.tokens
            np.testing.assert_allclose(sample.logprobs, same.logprobs, **PARITY)


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
        temperature = jnp.float32(one.sampling.temperature)
        logprobs, _ = batch_logprobs(PolicyWeights(params), micro, temperature)
        trained = micro.trained.weights > 0
        np.testing.assert_allclose(
            np.asarray(logprobs)[trained], micro.trained.old_logprobs[trained], **PARITY
        )


def test_usage_counts_what_was_computed_and_what_was_asked_for(engine):
    """Twelve rows are computed, each step of the longest sample; three were asked for."""
    (samples,) = draw(engine, request([1] * 10))
    lengths = [len(sample.tokens) for sample in samples]
    first = engine.usage
    assert first.tokens == sum(lengths) and first.slot_steps == 12 * max(lengths)
    assert (first.prompt_tokens, first.known_tokens) == (10, 0)
    draw(engine, request([1] * 10), request([1] * 8 + [2] * 3, 1))
    used = engine.usage - first
    assert (used.prompt_tokens, used.known_tokens) == (21, 18)  # a whole prompt; a page of eight
    assert used.seconds == used.prefill_s + used.decode_s > 0


def test_rows_are_free_for_others_as_soon_as_a_sample_ends(params):
    """Nine samples of 16 tokens and 24 of 9, in four rows that are never empty before the end."""
    engine = LocalEngine(MODEL, (), dataclasses.replace(CONFIG, slots=4))
    engine.push_weights("shared", PolicyWeights(params), version=7)
    lengths = [16, 9, 9, 9] * 8 + [16]
    draw(engine, *(request([i], i, k=1, max_tokens=n) for i, n in enumerate(lengths)))
    assert engine.usage.tokens == sum(lengths) == 360
    assert 360 <= engine.usage.slot_steps <= 360 + 3 * 16


@pytest.mark.thorough
def test_a_pattern_holds_and_both_logprobs_are_told(params):
    """Over ids 0..25 as letters, 26 as "ab"; beside a request that is free, on the same weights."""

    def decode(ids):
        return "".join(chr(97 + i) if i < 26 else "ab" if i == 26 else "" for i in ids if i != STOP)

    engine = LocalEngine(MODEL, (STOP,), CONFIG, decode=decode)
    engine.push_weights("shared", PolicyWeights(params), version=7)
    pattern = "(ab|c[x-z])+e"
    for chunk in (1, 16):
        engine._config = dataclasses.replace(CONFIG, chunk=chunk)
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
    engine._decode = lambda ids: decode(ids).replace("ab", "a b") if len(ids) > 1 else decode(ids)
    with pytest.raises(RunError, match="have another text alone than among others"):
        draw(engine, ruled)
    with pytest.raises(ValueError, match=r"Sampling.pattern = '\(': not a regular expression"):
        Sampling(pattern="(")


@pytest.mark.thorough
def test_the_number_of_rows_changes_no_token(engine, params):
    requests = many(7)
    wanted = draw(engine, *requests)
    for rows, others in (
        (3, {}),
        (32, {"chunk": 3, "prefill": 64, "page": 4}),
        (12, {"page": 6}),
        (12, {"page": 1}),
    ):
        other = LocalEngine(MODEL, (STOP,), dataclasses.replace(CONFIG, slots=rows, **others))
        other.push_weights("shared", PolicyWeights(params), version=7)
        for ours, expected in zip(draw(other, *requests), wanted, strict=True):
            for sample, same in zip(ours, expected, strict=True):
                assert sample.tokens == same.tokens
                np.testing.assert_allclose(sample.logprobs, same.logprobs, **PARITY)


@pytest.mark.thorough
@pytest.mark.parametrize("tight", [{"answer_cache": 24}, {"prompt_cache": 32}], ids=str)
def test_too_little_memory_takes_longer_and_gives_the_same_bytes(engine, params, tight):
    """Answers of 16 tokens in pages of 8, of which there are three; a cache of a single longest prompt."""
    requests = [dataclasses.replace(r, sampling=Sampling(max_tokens=16)) for r in many(9)]
    poor = LocalEngine(MODEL, (STOP,), dataclasses.replace(CONFIG, **tight))
    poor.push_weights("shared", PolicyWeights(params), version=7)
    assert draw(poor, *requests) == draw(engine, *requests)
    assert poor.usage.slot_steps > engine.usage.slot_steps


def test_requests_that_come_while_others_draw_give_the_same_bytes(engine):
    """Each asks after a random number of turns of the event loop, and some ask again in between."""
    requests = many(9)

    async def late(one, turns):
        for _ in range(turns):
            await asyncio.sleep(0.002)
        return await engine.sample(one)

    async def everything():
        return await asyncio.gather(*(late(r, i * 7 % 11) for i, r in enumerate(requests)))

    assert asyncio.run(everything()) == draw(engine, *requests)


def test_a_push_in_between_leaves_no_mixture(engine, params):
    """What was being drawn begins again: all samples are those of one version's weights."""
    requests = [request([i], i, max_tokens=200) for i in range(6)]
    other = jax.tree.map(lambda x: x * 1.5, params)

    async def everything():
        answers = asyncio.gather(*map(engine.sample, requests))
        await asyncio.sleep(0.05)
        engine.push_weights("shared", PolicyWeights(other), 8)
        return await answers

    mixed = asyncio.run(everything())
    of_8 = draw(engine, *requests)
    engine.push_weights("shared", PolicyWeights(params), 7)
    of_7 = draw(engine, *requests)
    for samples, new, old in zip(mixed, of_8, of_7, strict=True):
        assert samples == (new if samples[0].version == 8 else old)
    assert any(samples[0].version == 8 for samples in mixed)


def test_what_nobody_waits_for_makes_room(engine):
    """Cancelled requests, also those that never got a row, leave nothing behind."""
    requests = many()

    async def everything():
        tasks = [
            asyncio.create_task(engine.sample(dataclasses.replace(r, sampling=Sampling(max_tokens=200))))
            for r in many()
        ]
        await asyncio.sleep(0.05)
        for task in tasks:
            task.cancel()
        return await asyncio.gather(*map(engine.sample, requests))

    assert asyncio.run(everything()) == draw(engine, *requests)
    assert not engine._running
    assert not any(
        lane.tickets or any(shard.branches for shard in lane._shards) for lane in engine._lanes.values()
    )


def test_a_deadline_ends_a_request_with_errors_for_what_is_not_complete(params):
    engine = LocalEngine(MODEL, (), dataclasses.replace(CONFIG, deadline_s=0.001))
    engine.push_weights("shared", PolicyWeights(params), version=7)
    (samples,) = draw(engine, request([1], max_tokens=500))
    assert {s.finish for s in samples} == {"error"} and {s.tokens for s in samples} == {()}


def test_an_error_while_drawing_reaches_whoever_waits(engine, monkeypatch):
    monkeypatch.setattr(Lane, "draw", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        draw(engine, request([1]), request([2], 1))
    monkeypatch.undo()
    assert draw(engine, request([1]))[0][0].version == 7


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
        assert samples[1] == whole[1] and samples[1].finish == "length"
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
    assert all(other.drawn_logprobs is None for other in others)
    with pytest.raises(RunError, match=r"Sampling.banned = \(64,\): the vocabulary has 64 ids"):
        draw(engine, request([1], banned=(64,)))


@pytest.mark.thorough
@pytest.mark.parametrize("mesh", [MeshConfig(data=4), MeshConfig(data=2, fsdp=2, tensor=2)], ids=str)
def test_a_mesh_gives_the_same(engine, params, mesh):
    on_mesh = mesh.build()
    spread = LocalEngine(MODEL, (STOP,), CONFIG, on_mesh)
    placed = jax.device_put(params, parameter_shardings(params, on_mesh))
    spread.push_weights("shared", PolicyWeights(placed), version=7)
    for ours, expected in zip(draw(spread, *many(6)), draw(engine, *many(6)), strict=True):
        for sample, other in zip(ours, expected, strict=True):
            assert (sample.tokens, sample.finish) == (other.tokens, other.finish)
            np.testing.assert_allclose(sample.logprobs, other.logprobs, **PARITY)


@pytest.mark.thorough
def test_the_kernel_gives_the_same():
    """Interpreted; whole answers of two pages, on prompts of up to two."""
    config = LocalEngineConfig(slots=12, page=16, max_prompt=32, prompt_cache=256, prefill=16)
    mesh = MeshConfig(data=2, fsdp=2, tensor=2).build()
    drawn = []
    for attention, on_mesh in (("tiles", None), ("fused", None), ("fused", mesh)):
        model = Transformer(dataclasses.replace(MODEL.config, head_size=16, attention=attention), 64)
        engine = LocalEngine(model, (STOP,), config, on_mesh)
        engine.push_weights("shared", PolicyWeights(init_params(model, jax.random.key(0))), 0)
        requests = (request(list(range(4, 4 + n)), n, max_tokens=32) for n in (3, 9, 20))
        drawn.append([sample for group in draw(engine, *requests) for sample in group])
        (lane,) = engine._lanes.values()
        assert lane._sizes.fused == (attention == "fused")
    for expected, *fused in zip(*drawn, strict=True):
        for sample in fused:
            assert sample.tokens == expected.tokens
            np.testing.assert_allclose(sample.logprobs, expected.logprobs, **PARITY)


def test_float32_is_multiplied_in_float32(params, engine):
    """On every device: what JAX lowers asks for it."""
    draw(engine, request([5]))
    (lane,) = engine._lanes.values()
    text = lane.lowered(engine._family("shared").params, None).as_text()
    assert "module @jit_decode" in text  # by its name in profiles
    products = re.findall(r"stablehlo.dot_general.*", text)
    assert products and all("precision = [HIGHEST, HIGHEST]" in product for product in products)


def test_shards_exchange_who_is_done_and_nothing_else(params):
    """Four of them on four devices: of what decoding computes, no float crosses devices."""
    mesh = MeshConfig(data=4).build()
    engine = LocalEngine(MODEL, (STOP,), CONFIG, mesh)
    placed = jax.device_put(params, parameter_shardings(params, mesh))
    engine.push_weights("shared", PolicyWeights(placed), version=7)
    draw(engine, *many(6))
    (lane,) = engine._lanes.values()
    text = lane.lowered(engine._family("shared").params, None).compile().as_text()
    exchanged = re.findall(r"= (\S+) (?:all-gather|all-reduce|all-to-all|collective-permute)\(", text)
    assert exchanged and not any(shape.startswith(("f32", "bf16", "(")) for shape in exchanged)


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


def test_nothing_recompiles_for_another_length_temperature_or_number_of_requests(engine):
    draw(engine, *many())
    counter = CompileCounter()
    draw(engine, *many(3))
    draw(engine, request([1] * 17, temperature=0.3, max_tokens=5), request([2] * 4))
    draw(engine, request([1], temperature=0.0, max_tokens=7))
    assert counter.count == 0


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (request([1] * 33), r"a prompt of 33 tokens at 1/train/0/0/0/a: .*max_prompt = 32"),
        (request([]), "a prompt of 0 tokens"),
        (request([1, 64]), "token id 64 at 1/train/0/0/0/a: the vocabulary has 64"),
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
