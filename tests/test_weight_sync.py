"""Pushes, and the gate: faults are put in by hand, and each has to be called by its name."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fakes import ScriptedEngine, small_model

from atgrpo_jax.arrays.finite_trees import not_finite
from atgrpo_jax.common.errors import RunError
from atgrpo_jax.common.finite import NotFinite
from atgrpo_jax.engines.gate import LAST, Gate, check_gap, push
from atgrpo_jax.engines.local.local import LocalEngine, LocalEngineConfig
from atgrpo_jax.engines.verdict import CHOSEN, KEPT, NO_NUMBERS, UNKNOWN, Draws, judge
from atgrpo_jax.models.lora import init_adapter
from atgrpo_jax.models.transformer import PolicyWeights, init_params

MODEL, STOP = small_model(), 3
CONFIG = LocalEngineConfig(slots=64, page=8, max_prompt=16, prompt_cache=256, prefill=16)


def params(seed):
    """Larger than fresh ones, so that the next token is neither certain nor anything at all."""
    return jax.tree.map(lambda x: 5 * x if x.ndim > 1 else x, init_params(MODEL, jax.random.key(seed)))


def nudged(tree, seed, size=1e-3):
    keys = iter(jax.random.split(jax.random.key(seed), len(jax.tree.leaves(tree))))
    return jax.tree.map(lambda x: x + size * jax.random.normal(next(keys), x.shape), tree)


BASE = params(0)
ONE = {"shared": PolicyWeights(BASE)}
ADAPTERS = {
    name: PolicyWeights(BASE, nudged(init_adapter(BASE, jax.random.key(i), 2, MODEL.family.adapted), i, 0.1))
    for i, name in enumerate("ab")
}


def gate(limit=1e-4):
    return Gate(dict.fromkeys(("shared", "a", "b"), MODEL), (STOP,), 1.0, limit, seed=0)


class Faulty(LocalEngine):
    """An engine in which ``change(policy, weights)`` is pushed, and ``ask(request)`` is asked for."""

    def __init__(self, change=lambda policy, weights: weights, ask=lambda request: request):
        super().__init__(MODEL, (STOP,), CONFIG, default_shape=(1, 8))
        self.change, self.ask = change, ask

    def push_weights(self, policy, weights, version):
        super().push_weights(policy, self.change(policy, weights), version)

    async def sample(self, request):
        return await super().sample(self.ask(request))


def pushed(engine, weights, proof, version):
    push(engine, weights, version)
    return proof.check(engine, weights, version)


def fails(engine, weights, proof, version, says):
    with pytest.raises(RunError, match=says):
        pushed(engine, weights, proof, version)


def test_a_push_sets_the_version_of_every_policy():
    engine = ScriptedEngine({})
    push(engine, {"a": {}, "b": {}}, 7)
    assert engine.version("a") == engine.version("b") == 7


def test_a_push_that_is_not_taken_is_an_error():
    class Deaf(ScriptedEngine):
        def push_weights(self, policy, params, version):
            pass

    with pytest.raises(RunError, match="reports version 0 of policy a after a push of version 7"):
        push(Deaf({}), {"a": {}}, 7)


@pytest.mark.parametrize("gap", [0.02, float("nan"), float("inf")])
def test_a_gap_above_the_limit_stops_the_run(gap):
    check_gap("a", 0.01, 0.01)
    with pytest.raises(RunError, match="policy a: sampler and learner logprobs of the same tokens differ by"):
        check_gap("a", gap, 0.01)


@pytest.mark.thorough
def test_an_honest_engine_passes_whatever_is_pushed():
    engine, proof = Faulty(), gate()
    for version, weights in enumerate([ONE, {"shared": PolicyWeights(nudged(BASE, 1))}, ONE, ONE]):
        found = pushed(engine, weights, proof, version)
        assert found["policy/shared/gate_gap"] < 1e-4 and found["policy/shared/gate_spread"] > 1e-3
        assert found["policy/shared/gate_corrected"] == 0
        assert (found["policy/shared/gate_margin"] > 100) == (version in (1, 2))  # nothing changed in 0 and 3
    engine, proof = Faulty(), gate()
    for version in range(2):
        found = pushed(engine, ADAPTERS, proof, version)
        assert min(found["policy/a/gate_margin"], found["policy/b/gate_margin"]) > 100


def test_a_skipped_push_is_named_even_below_the_limit():
    def skip(policy, weights):
        return ONE["shared"]

    for limit in (1e-4, 1.0):
        engine, proof = Faulty(skip), gate(limit)
        pushed(engine, ONE, proof, 0)
        fails(
            engine,
            {"shared": PolicyWeights(nudged(BASE, 1))},
            proof,
            1,
            "it draws from the weights before the push",
        )


def test_swapped_adapters_and_one_that_was_left_out_are_named():
    swapped = Faulty(lambda policy, weights: ADAPTERS["b" if policy == "a" else "a"])
    fails(swapped, ADAPTERS, gate(), 0, "policy a, version 0: .* it draws from the weights of b")
    bare = Faulty(
        lambda policy, weights: PolicyWeights(weights.params, jax.tree.map(np.zeros_like, weights.adapter))
    )
    fails(bare, ADAPTERS, gate(), 0, "it draws from its base, without the adapter")


def test_a_kept_cache_is_named():
    class Keeping(Faulty):
        def push_weights(self, policy, weights, version):
            lanes = dict(self._lanes)
            super().push_weights(policy, weights, version)
            self._lanes |= lanes

    engine, proof = Keeping(), gate()
    pushed(engine, ONE, proof, 0)
    fails(engine, {"shared": PolicyWeights(nudged(BASE, 1, 3e-2))}, proof, 1, KEPT)


def test_a_server_with_other_weights_is_refused_or_left_to_importance_weights():
    engine, proof = Faulty(lambda policy, weights: PolicyWeights(params(5))), gate()
    fails(engine, ONE, proof, 0, UNKNOWN)
    assert proof.check(engine, ONE, 0, correct=True)["policy/shared/gate_corrected"] == 1


@pytest.mark.parametrize(
    "change", [{"top_p": 0.95}, {"top_k": 12}, {"min_p": 0.5}, {"temperature": 0.6}], ids=str
)
def test_an_engine_that_does_not_draw_from_the_whole_distribution_is_refused(change):
    def ask(request):
        return dataclasses.replace(request, sampling=dataclasses.replace(request.sampling, **change))

    says = UNKNOWN if "temperature" in change else CHOSEN
    fails(Faulty(ask=ask), ONE, gate(), 0, says)


def test_coarse_logprobs_do_not_hide_that_the_weights_are_the_last_ones():
    """Noise like bfloat16's, a tenth of what the push has changed."""
    rng = np.random.default_rng(0)
    new = np.log(rng.dirichlet(np.ones(50), 9))
    change = 0.1 * rng.standard_normal(new.shape)
    tokens = np.stack([rng.choice(50, 64, p=np.exp(row) / np.exp(row).sum()) for row in new])
    noise = 0.01 * rng.standard_normal(new.shape)

    def drawn(from_, noisy):
        return Draws(tokens, np.take_along_axis(from_ + noisy, tokens, 1))

    def verdict(answer):
        return judge(answer, new, {"the weights before the push": (new - change)[:8]}, 0.5, 0)

    assert verdict(drawn(new, noise)).cause is None
    assert verdict(drawn(new - change, noise)).cause == "it draws from the weights before the push"


def test_noise_about_as_large_as_the_limit_is_not_taken_for_a_kept_cache():
    """Or a run whose importance weights should make up for it would stop."""
    rng = np.random.default_rng(3)
    new = np.log(rng.dirichlet(np.ones(50), 9))
    causes = []
    for sigma in np.linspace(0.2, 0.6, 41):
        tokens = np.stack([rng.choice(50, 64, p=np.exp(row)) for row in new])
        noisy = np.take_along_axis(new + sigma * rng.standard_normal(new.shape), tokens, 1)
        causes.append(judge(Draws(tokens, noisy), new, {}, 1.0, 0).cause)
    assert set(causes) == {None, UNKNOWN}


def test_noise_that_differs_between_prompts_is_not_taken_for_a_kept_cache():
    """As of TF32 on a GPU, which is a hundred times larger after some prompts than after others."""
    rng = np.random.default_rng(4)
    new = np.log(rng.dirichlet(np.ones(50), 9))
    causes = []
    for _ in range(200):
        sigma_P1 = 0.001 * 10 ** rng.uniform(-1, 1, (9, 1))
        tokens = np.stack([rng.choice(50, 64, p=np.exp(row)) for row in new])
        noisy = np.take_along_axis(new + sigma_P1 * rng.standard_normal(new.shape), tokens, 1)
        causes.append(judge(Draws(tokens, noisy), new, {}, 0.003, 0).cause)
    assert causes.count(KEPT) <= 2 and set(causes) <= {None, UNKNOWN, KEPT}


def test_honest_draws_are_spread_evenly_and_the_test_says_how_likely():
    rng = np.random.default_rng(1)
    new = np.log(rng.dirichlet(np.ones(50), 9))
    found = []
    for seed in range(200):
        tokens = np.stack([rng.choice(50, 64, p=np.exp(row)) for row in new])
        found.append(judge(Draws(tokens, np.take_along_axis(new, tokens, 1)), new, {}, 1e-6, seed).spread)
    assert min(found) > 1e-5
    # A share x of honest engines is at most as unlikely as x (Kolmogorov's bound is a cautious one).
    for x in (0.5, 0.1, 0.02):
        assert np.mean(np.array(found) <= x) < x + 3 * (x / 200) ** 0.5


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_answers_that_are_no_numbers_fail(value):
    new = np.log(np.full((9, 4), 0.25))
    tokens, logprobs = np.zeros((9, 64), int), np.log(np.full((9, 64), 0.25))
    logprobs[3, 5] = value
    assert judge(Draws(tokens, logprobs), new, {LAST: new[:8]}, 1.0, 0).cause == NO_NUMBERS


@pytest.mark.parametrize("correct", [False, True])
def test_logprobs_of_the_engine_alone_that_are_no_numbers_fail_with_a_correction_too(correct):
    class NoNumbers(Faulty):
        async def sample(self, request):
            samples = await super().sample(request)
            return [dataclasses.replace(sample, logprobs=(float("nan"),)) for sample in samples]

    engine, proof = NoNumbers(), gate()
    push(engine, ONE, 0)
    with pytest.raises(
        RunError, match=f"policy shared, version 0: the engine fails the gate .* {NO_NUMBERS}"
    ):
        proof.check(engine, ONE, 0, correct)
    engine.close()


@pytest.mark.parametrize("correct", [False, True])
def test_weights_of_the_learners_that_give_no_numbers_are_not_the_engines_fault(correct):
    """Those of one policy of two, finite themselves; the engine is not even asked."""
    too_large = jax.tree.map(lambda x: 1e16 * jnp.sign(x), BASE)
    weights = {"a": PolicyWeights(BASE), "b": PolicyWeights(too_large)}
    assert not not_finite(too_large)
    with pytest.raises(NotFinite, match="^policy b, version 3: the policy's own weights give") as raised:
        gate().check(ScriptedEngine({}), weights, 3, correct)
    assert "engine" not in str(raised.value)
