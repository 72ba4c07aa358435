import asyncio
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fakes import PARITY, small_model

from atgrpo_jax.batch import BatchConfig, pack
from atgrpo_jax.engines.base import Request
from atgrpo_jax.engines.local import LocalEngine, LocalEngineConfig
from atgrpo_jax.errors import RunError
from atgrpo_jax.groups import Credited
from atgrpo_jax.mesh import MeshConfig, parameter_shardings
from atgrpo_jax.metrics import CompileCounter
from atgrpo_jax.models.attention import masked_attention
from atgrpo_jax.models.packed import Packed
from atgrpo_jax.models.transformer import Weights, init_params, logits
from atgrpo_jax.types import Address, Candidate, Group, GroupKey, Origin, Outcome, Sampling

MODEL = small_model()
STOP = 3
batch_logprobs = jax.jit(Packed(MODEL, MeshConfig().build()).logprobs)
CONFIG = LocalEngineConfig(rows=12, page=8, max_prompt=32, prompt_cache=256, prefill=16)


@pytest.fixture(scope="module")
def params():
    return init_params(MODEL, jax.random.key(0))


@pytest.fixture
def engine(params):
    engine = LocalEngine(MODEL, (STOP,), CONFIG)
    engine.push_weights("shared", Weights(params), version=7)
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


def test_siblings_differ_and_so_does_the_next_step(engine):
    (samples,), (later,) = draw(engine, request([1, 2])), draw(engine, request([1, 2], step=2))
    tokens = [s.tokens for s in (*samples, *later)]
    assert len(set(tokens)) == len(tokens)
    assert draw(engine, request([1, 2], seed=1))[0] != samples


def test_every_sample_carries_the_version(engine, params):
    assert {s.version for s in draw(engine, request([1]))[0]} == {7}
    engine.push_weights("shared", Weights(params), 8)
    assert engine.version("shared") == 8
    assert {s.version for s in draw(engine, request([1]))[0]} == {8}


def test_policies_are_kept_apart(engine, params):
    other = jax.tree.map(lambda x: x * 1.5, params)
    engine.push_weights("other", Weights(other), 1)
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
    sampled = draw(engine, *(r for r in many(5)), request([4, 5], 9, temperature=0.6))
    for one, samples in zip([*many(5), request([4, 5], 9, temperature=0.6)], sampled, strict=True):
        key = one.addresses[0].group
        origin = Origin(key, one.prompt_ids, "", "shared", 7, one.sampling)
        members = tuple(Candidate(origin, s, "", Outcome.OK, None) for s in samples)
        item = Credited(Group(members, 0), np.ones(3, np.float32), np.ones(3, bool))
        batch = pack([item], BatchConfig(row_tokens=64, rows=1), "token", 1)
        micro = jax.tree.map(lambda x: x[0], batch)
        temperature = jnp.float32(one.sampling.temperature)
        logprobs, _ = batch_logprobs(Weights(params), micro, temperature)
        trained = micro.trained.weights > 0
        np.testing.assert_allclose(
            np.asarray(logprobs)[trained], micro.trained.old_logprobs[trained], **PARITY
        )


def test_usage_counts_what_was_computed_and_what_was_asked_for(engine):
    """Four groups of three rows are computed, each step of the longest sample; one was asked for."""
    (samples,) = draw(engine, request([1, 2]))
    lengths = [len(sample.tokens) for sample in samples]
    assert engine.usage.tokens == sum(lengths) and engine.usage.places == 12 * max(lengths)
    before = engine.usage
    draw(engine, request([1, 2]))
    used = engine.usage - before
    assert (used.tokens, used.places) == (before.tokens, before.places) and used.seconds > 0


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


@pytest.mark.parametrize("mesh", [MeshConfig(data=4), MeshConfig(data=2, fsdp=2, tensor=2)], ids=str)
def test_a_mesh_gives_the_same(engine, params, mesh):
    on_mesh = mesh.build()
    spread = LocalEngine(MODEL, (STOP,), CONFIG, on_mesh)
    placed = jax.device_put(params, parameter_shardings(params, on_mesh))
    spread.push_weights("shared", Weights(placed), version=7)
    for ours, expected in zip(draw(spread, *many(6)), draw(engine, *many(6)), strict=True):
        for sample, other in zip(ours, expected, strict=True):
            assert (sample.tokens, sample.finish) == (other.tokens, other.finish)
            np.testing.assert_allclose(sample.logprobs, other.logprobs, **PARITY)


def test_greedy_takes_the_most_likely_token(engine, params):
    samples = draw(engine, request([1, 2, 3], temperature=0.0))[0]
    assert len({s.tokens for s in samples}) == 1
    tokens = [1, 2, 3]
    for token in samples[0].tokens:
        assert int(jnp.argmax(next_logits(params, tokens))) == token
        tokens.append(token)


def test_sampling_follows_the_distribution(engine, params):
    """The first token's frequencies against the model's probabilities."""
    probs = np.asarray(jax.nn.softmax(next_logits(params, [1, 2, 3]) / 0.5))
    counts = np.zeros(64)
    for step in range(8):
        one = request([1, 2, 3], k=256, step=step, max_tokens=1, temperature=0.5)
        for sample in draw(engine, one)[0]:
            counts[sample.tokens[0]] += 1
    n = counts.sum()
    chi_square = ((counts - n * probs) ** 2 / (n * probs)).sum()
    assert chi_square < 63 + 5 * (2 * 63) ** 0.5


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


@pytest.mark.parametrize("wrong", [{"groups": 0}, {"prompt_bucket": 0}, {"max_prompt": 0}])
def test_config_refuses(wrong):
    with pytest.raises(ValueError, match=r"LocalEngineConfig\."):
        LocalEngineConfig(**wrong)
