"""What an update computes: its formula, each of its options, and its metrics."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fakes import PARITY
from shared_learner import (
    MODEL,
    ROWS,
    assert_same,
    at_temperature,
    batch_logprobs,
    items,
    learner,
    loss_and_gradient,
    own_logprobs,
    packed,
    train,
    with_old_logprobs,
)

from atgrpo_jax.arrays.mesh import MeshConfig
from atgrpo_jax.common.types import Group, Trained
from atgrpo_jax.credit.groups import Credited
from atgrpo_jax.models.transformer import PolicyWeights
from atgrpo_jax.update.batch import minibatches
from atgrpo_jax.update.learner import Learner, UpdateInputs
from atgrpo_jax.update.objectives import LossConfig, cloning
from atgrpo_jax.update.optimizer import OptimizerConfig


def test_the_loss_is_that_of_the_formula():
    """Per-candidate mean of the clipped terms, from the logprobs of plain rows."""
    groups = items()
    params = learner().init(jax.random.key(0)).params
    expected = 0.0
    for item in groups:
        for k, candidate in enumerate(item.group.candidates):
            one = Credited(Group((candidate,), 0), item.advantages_K[k : k + 1], np.ones(1, bool))
            row = jax.tree.map(lambda x: x[0], packed([one]))
            logprobs, _ = batch_logprobs(PolicyWeights(params), row)
            new = np.asarray(logprobs)[row.trained.weights > 0]
            ratio = np.exp(new - np.array(candidate.sample.logprobs))
            a = float(item.advantages_K[k])
            term = np.minimum(ratio * a, np.clip(ratio, 0.8, 1.2) * a)
            term = np.maximum(term, 3 * a) if a < 0 else term
            expected -= term.mean() / 3 / len(groups)
    value, _ = loss_and_gradient(packed(groups))
    np.testing.assert_allclose(value, expected, rtol=1e-5)


@pytest.mark.thorough
@pytest.mark.parametrize(
    "change",
    [
        {"clip_low": 0.45},
        {"clip_high": 0.5},
        {"dual_clip": None},
        {"aggregate": "token"},
        {"aggregate": "constant"},
        {"entropy": 0.1},
        {"kl": 0.1},
        {"epochs": 2},
        {"minibatches": 3},
        {"correction": 2.0},
    ],
    ids=str,
)
def test_every_option_changes_the_result(change):
    def near_the_policy(batch, params, seed):
        """Old logprobs such that ratios lie around all the bounds: between 0.5 and 5."""
        own = [
            batch_logprobs(PolicyWeights(params), jax.tree.map(lambda x, a=a: x[a], batch))[0]
            for a in range(len(batch.tokens))
        ]
        noise = np.random.default_rng(seed).uniform(-1.6, 0.7, batch.tokens.shape)
        return with_old_logprobs(batch, np.asarray(own) + noise.astype(np.float32))

    def after(loss):
        ours = learner(loss)
        state = ours.init(jax.random.key(0))
        reference = ours.init(jax.random.key(1)).params if loss.kl else None
        batches = minibatches(
            items(), ROWS, count=loss.minibatches, epochs=loss.epochs, seed=0,
            aggregate=loss.aggregate, constant=16,
        )  # fmt: skip
        near = [near_the_policy(batch, state.params, i) for i, batch in enumerate(batches)]
        return train(ours, state, near, reference, loss.correction)[0].params

    base = LossConfig(minibatches=2)
    changed = dataclasses.replace(base, **change)
    gaps = jax.tree.map(lambda a, b: jnp.abs(a - b).max(), after(base), after(changed))
    assert max(jax.tree.leaves(gaps)) > 1e-5


def test_metrics_of_a_policy_that_sampled_its_own_tokens():
    """Old logprobs are the learner's own: ratio 1, nothing clipped, gap 0 in the first update only."""
    ours, batch = learner(), packed(items())
    state = ours.init(jax.random.key(0))
    micro = jax.tree.map(lambda x: x[0], batch)
    logprobs, _ = batch_logprobs(PolicyWeights(state.params), micro)
    own = with_old_logprobs(batch, np.asarray(logprobs)[None])
    metrics = jax.device_get(train(ours, state, [own, own])[1]).metrics()
    assert metrics["logprob_gap"] < 1e-5
    assert metrics["updates"] == 2
    assert metrics["trained_tokens"] == 2 * (batch.segments > 0).sum()
    state = ours.init(jax.random.key(0))
    _, metrics = ours.update(state, UpdateInputs(own))
    np.testing.assert_allclose(metrics["ratio"], 1.0, rtol=1e-5)
    assert metrics["clip_fraction"] == 0
    off = with_old_logprobs(batch, own.trained.old_logprobs - 0.25)
    _, far = ours.update(ours.init(jax.random.key(0)), UpdateInputs(off))
    np.testing.assert_allclose(far["logprob_gap"], 0.25, rtol=1e-4)


def test_the_objective_by_hand():
    """Two tokens of ratio 1, so the surrogate is their advantages; entropy is wanted, distance is not."""
    logprobs_BT = old_BT = jnp.array([[-1.0, -2.0]])
    weights_BT, entropy_BT = jnp.array([[0.5, 0.25]]), jnp.array([[3.0, 2.0]])
    reference_BT = logprobs_BT + jnp.log(jnp.array([[2.0, 0.5]]))
    ints = jnp.zeros((1, 2), jnp.int32)
    ones = jnp.ones((1, 2))
    trained = Trained(ints, ints, old_BT, jnp.array([[1.0, -4.0]]), weights_BT, ones, ints)
    distance = 0.5 * (2 - 1 - np.log(2)) + 0.25 * (0.5 - 1 - np.log(0.5))
    for entropy, kl in ((0.0, 0.0), (0.1, 0.0), (0.1, 0.3)):
        objective = LossConfig(entropy=entropy, kl=kl).objective()
        loss, metrics = objective.tokens(logprobs_BT, entropy_BT, reference_BT if kl else None, trained)
        np.testing.assert_allclose(loss, 0.5 - entropy * 2.0 + kl * distance, rtol=1e-5)
        np.testing.assert_allclose(metrics["entropy"], 2.0, rtol=1e-6)
        if kl:
            np.testing.assert_allclose(metrics["kl_start"], distance, rtol=1e-5)


@pytest.mark.parametrize("correction", [None, 2.0])
def test_an_update_is_at_the_temperature_of_the_samples(correction):
    ours, batch = learner(), packed(items())
    state = ours.init(jax.random.key(0))
    cooler = at_temperature(batch, 0.7)
    sampled = with_old_logprobs(cooler, own_logprobs(state.params, cooler))
    _, updates = train(ours, state, [sampled], correction=correction)
    metrics = jax.device_get(updates).metrics()
    assert metrics["logprob_gap"] < 1e-5
    np.testing.assert_allclose(metrics["ratio"], 1.0, rtol=1e-5)
    warmer = at_temperature(sampled, 1.0)
    _, updates = train(ours, ours.init(jax.random.key(0)), [warmer], correction=correction)
    assert jax.device_get(updates).metrics()["logprob_gap"] > 0.1


def test_importance_weights_are_truncated_and_change_nothing_for_the_policys_own_tokens():
    ours, batch = learner(), packed(items())
    state = ours.init(jax.random.key(0))
    micro = jax.tree.map(lambda x: x[0], batch)
    own = np.asarray(batch_logprobs(PolicyWeights(state.params), micro)[0])[None]
    trained = batch.trained.weights > 0
    off = np.where(trained, np.random.default_rng(0).uniform(-1, 1, own.shape), 0).astype(np.float32)
    inputs = UpdateInputs(with_old_logprobs(batch, own - off))
    (corrected, *_), found = ours.corrected(state.params, inputs, most=1.5)
    factor = np.minimum(np.exp(off), 1.5)
    assert factor.max() == 1.5 and factor.min() < 0.5
    np.testing.assert_allclose(corrected.trained.old_logprobs[trained], own[trained], **PARITY)
    expected = batch.trained.advantages * factor
    np.testing.assert_allclose(corrected.trained.advantages[trained], expected[trained], **PARITY)
    np.testing.assert_allclose(found["logprob_gap"], np.abs(off).max(), **PARITY)
    np.testing.assert_allclose(
        found["correction"], np.average(factor, weights=batch.trained.weights), **PARITY
    )

    mine = with_old_logprobs(batch, own)
    plain, _ = train(ours, state, [mine, mine])
    again, metrics = train(ours, ours.init(jax.random.key(0)), [mine, mine], correction=2.0)
    assert_same(plain.params, again.params)
    np.testing.assert_allclose(jax.device_get(metrics).metrics()["correction"], 1.0, **PARITY)


@pytest.mark.thorough
def test_cloning_learns_its_demonstrations():
    ours = Learner(MODEL, OptimizerConfig(learning_rate=1e-2), cloning, MeshConfig().build())
    state, batch = ours.init(jax.random.key(0)), packed(items(), aggregate="token")
    losses = []
    for _ in range(30):
        state, metrics = ours.update(state, UpdateInputs(batch))
        losses.append(float(metrics["loss"]))
    assert losses[0] > 3.5 and losses[-1] < 1.0


@pytest.mark.thorough
def test_advantages_move_logprobs_their_way():
    groups = items()
    ours, batch = learner(optimizer=OptimizerConfig(learning_rate=1e-3)), packed(groups)
    state = ours.init(jax.random.key(0))
    micro = jax.tree.map(lambda x: x[0], batch)
    before, _ = batch_logprobs(PolicyWeights(state.params), micro)
    batch = with_old_logprobs(batch, np.asarray(before)[None])
    state, _ = ours.update(state, UpdateInputs(batch))
    after, _ = batch_logprobs(PolicyWeights(state.params), micro)
    trained = micro.trained.weights > 0
    moved = np.asarray(after - before)[trained] * micro.trained.advantages[trained]
    assert moved.mean() > 0


@pytest.mark.parametrize(
    "wrong",
    [
        {"clip_low": 1.0},
        {"clip_high": 0.0},
        {"dual_clip": 1.0},
        {"kl": -1.0},
        {"epochs": 0},
        {"correction": 0.5},
    ],
)
def test_loss_config_refuses(wrong):
    with pytest.raises(ValueError, match=f"LossConfig.{next(iter(wrong))}"):
        LossConfig(**wrong)
