"""The same update comes out, however its batch is laid out and its program is compiled."""

import dataclasses

import jax
import numpy as np
import pytest
from fakes import PARITY
from shared_learner import (
    MODEL,
    assert_same,
    at_temperature,
    batch_logprobs,
    items,
    learner,
    loss_and_gradient,
    micro_loss,
    packed,
    separate_rows,
)

from atgrpo_jax.arrays.mesh import MeshConfig
from atgrpo_jax.common.types import Group
from atgrpo_jax.credit.groups import Credited
from atgrpo_jax.models.config import Compute
from atgrpo_jax.models.families.table import transformer
from atgrpo_jax.models.packed import Packed
from atgrpo_jax.models.transformer import PolicyWeights, init_params
from atgrpo_jax.run.metrics import CompileCounter
from atgrpo_jax.update.batch import BatchConfig, each
from atgrpo_jax.update.learner import UpdateInputs
from atgrpo_jax.update.objectives import cloning


def test_float32_is_multiplied_in_float32_backward_too():
    batch = packed(items())
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batch)
    (update,) = learner().lower(UpdateInputs(shapes, None))
    text = update.as_text()
    products = [line for line in text.splitlines() if "stablehlo.dot_general" in line]
    assert products and all("precision = [HIGHEST, HIGHEST]" in product for product in products)


@pytest.mark.thorough
def test_prefix_shared_equals_separate_rows():
    """Loss and gradient to 1e-5. Separate rows are one candidate a group, three times as many groups, so
    the paper's mean over groups of equal size is the same number."""
    shared = packed(items())
    separate = packed(separate_rows(items()), BatchConfig(row_tokens=32, rows=4))
    assert (separate.segments > 0).sum() > (shared.segments > 0).sum()
    assert_same(loss_and_gradient(shared), loss_and_gradient(separate))


@pytest.mark.thorough
def test_logprobs_of_a_branch_equal_those_of_its_plain_row():
    group = items()[2]
    batch = at_temperature(packed([group], BatchConfig(row_tokens=64, rows=1)), 0.7)
    params = learner().init(jax.random.key(0)).params
    micro = jax.tree.map(lambda x: x[0], batch)
    logprobs, entropy = batch_logprobs(PolicyWeights(params), micro)
    start = 0
    for candidate in group.group.candidates:
        alone = Credited(Group((candidate,), 0), group.advantages_K[:1], np.ones(1, bool))
        plain = at_temperature(packed([alone], BatchConfig(row_tokens=32, rows=1)), 0.7)
        row = jax.tree.map(lambda x: x[0], plain)
        expected, expected_entropy = batch_logprobs(PolicyWeights(params), row)
        n = len(candidate.sample.tokens)
        mine = slice(start, start + n)
        np.testing.assert_allclose(logprobs[0, mine], expected[0, :n], **PARITY)
        np.testing.assert_allclose(entropy[0, mine], expected_entropy[0, :n], **PARITY)
        start += n


@pytest.mark.thorough
@pytest.mark.parametrize(
    "config",
    [
        BatchConfig(row_tokens=128, rows=4),
        BatchConfig(row_tokens=48, rows=1),
        BatchConfig(row_tokens=31, rows=2),
    ],
    ids=["longer rows", "a row at a time", "a group a row"],
)
def test_padding_packing_and_micro_batches_change_nothing(config):
    state, metrics = learner().update(learner().init(jax.random.key(0)), UpdateInputs(packed(items())))
    other, other_metrics = learner().update(
        learner().init(jax.random.key(0)), UpdateInputs(packed(items(), config))
    )
    assert_same(state.params, other.params)
    assert_same(metrics, other_metrics)


@pytest.mark.thorough
def test_computing_again_changes_nothing_but_the_memory():
    model = transformer(MODEL.architecture, 64, Compute(remat="block"))
    state, _ = learner().update(learner().init(jax.random.key(0)), UpdateInputs(packed(items())))
    again = learner(model=model)
    other, _ = again.update(again.init(jax.random.key(0)), UpdateInputs(packed(items())))
    assert_same(state.params, other.params)

    def kept(model):  # bytes that the backward pass finds ready
        params = init_params(model, jax.random.key(0))
        micro = jax.tree.map(lambda x: x[0], packed(items()))
        rows = Packed(model, MeshConfig().build())

        def loss(params):
            return micro_loss(cloning, params, micro, packed=rows)

        _, backward = jax.vjp(loss, params)
        return sum(leaf.nbytes for leaf in jax.tree.leaves(backward))

    assert kept(model) < kept(MODEL)


@pytest.mark.thorough
@pytest.mark.parametrize("remat", ["none", "dots", "block"])
def test_one_block_for_all_layers_changes_nothing_but_the_program(remat):
    def model(scan, layers=2):
        architecture = dataclasses.replace(MODEL.architecture, layers=layers)
        return transformer(architecture, 64, Compute(remat=remat, scan=scan))

    def update(scan):
        ours = learner(model=model(scan))
        return ours.update(ours.init(jax.random.key(0)), UpdateInputs(packed(items())))[0].params

    assert_same(update(False), update(True))

    def program(scan, layers):
        made = model(scan, layers)
        params = jax.eval_shape(lambda: init_params(made, jax.random.key(0)))
        micro = jax.tree.map(lambda x: x[0], packed(items()))
        logprobs = jax.jit(Packed(made, MeshConfig().build()).logprobs)
        return len(logprobs.lower(PolicyWeights(params), micro).as_text().splitlines())

    # A layer more is a parameter of each kind more to stack, and not a block's worth of operations.
    assert program(True, 4) - program(True, 2) < (program(False, 4) - program(False, 2)) / 3


def test_only_filled_micro_batches_are_run():
    batch = packed(items(), BatchConfig(row_tokens=48, rows=1))
    empty = each(lambda a: np.concatenate([a, np.zeros_like(a)]), batch)
    one, _ = learner().update(learner().init(jax.random.key(0)), UpdateInputs(batch))
    other, _ = learner().update(learner().init(jax.random.key(0)), UpdateInputs(empty))
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_permuting_candidates_changes_nothing():
    order = [2, 0, 1]
    permuted = [
        Credited(
            Group(tuple(i.group.candidates[k] for k in order), 0),
            i.advantages_K[order],
            i.mask_K[order],
        )
        for i in items()
    ]
    assert_same(loss_and_gradient(packed(items())), loss_and_gradient(packed(permuted)))


def test_an_update_takes_its_old_states_memory():
    """Two copies of parameters and moments would not fit where one does."""
    state = learner().init(jax.random.key(0))
    learner().update(state, UpdateInputs(packed(items())))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))


def test_nothing_recompiles_for_another_temperature_or_fill():
    ours = learner()
    config = BatchConfig(row_tokens=48, rows=1)
    state, _ = ours.update(ours.init(jax.random.key(0)), UpdateInputs(packed(items(), config)))
    counter = CompileCounter()
    lengths = ((7, 7), (1, 1, 1), (2, 9), (3, 3, 3))
    for seed, temperature, groups in ((1, 0.7, 4), (2, 1.3, 3), (3, 1.0, 1)):
        batch = at_temperature(packed(items(seed, lengths[:groups]), config), temperature)
        state, _ = ours.update(state, UpdateInputs(batch))
    assert counter.count == 0
