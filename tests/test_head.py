"""The chunked head against all logits at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fakes import PARITY

from atgrpo_jax.arrays.mesh import MeshConfig
from atgrpo_jax.common.types import Trained
from atgrpo_jax.models.head import CHUNK_BYTES, Head, token_logprobs, token_loss

B, T, D, V = 4, 192, 16, 24


def inputs(tied):
    rng = np.random.default_rng(0)
    table = rng.standard_normal((V, D) if tied else (D, V)).astype(np.float32)
    hidden = rng.standard_normal((B, T, D)).astype(np.float32)
    weights = (rng.random((B, T)) / 10).astype(np.float32)  # gradients of size one
    for row, used in zip(weights, (0, 3, 70, T), strict=True):  # trained tokens come first
        row[used:] = 0
    ints = (rng.integers(0, high, (B, T)).astype(np.int32) for high in (T, V))
    floats = (rng.standard_normal((B, T)).astype(np.float32) for _ in range(2))
    temperatures = np.where(weights > 0, rng.choice((0.7, 1.0, 1.5), (B, T)), 0).astype(np.float32)
    trained = Trained(*ints, *floats, weights, temperatures, np.zeros((B, T), np.int32))
    return table, hidden, trained, rng.standard_normal((B, T)).astype(np.float32)


def objective(logprobs_BX, entropy_BX, reference_BX, trained):
    value = jnp.sin(logprobs_BX - trained.old_logprobs) * trained.advantages + jnp.cos(entropy_BX)
    if reference_BX is not None:
        value += (logprobs_BX - reference_BX) ** 2
    return jnp.sum(trained.weights * value), {"entropy": jnp.sum(trained.weights * entropy_BX)}


def whole(tied, table, hidden, trained):
    h_BTD = jnp.take_along_axis(hidden, trained.sources[..., None], axis=1)
    temperatures = jnp.where(trained.weights > 0, trained.temperatures, 1.0)[..., None]
    logp = jax.nn.log_softmax(h_BTD @ (table.T if tied else table) / temperatures)
    return jnp.take_along_axis(logp, trained.targets[..., None], -1)[..., 0], -jnp.sum(
        jnp.exp(logp) * logp, -1
    )


ALONE, TOGETHER = MeshConfig(), MeshConfig(2, 2, 2)
MESHES = [ALONE, MeshConfig(data=2), MeshConfig(fsdp=4), MeshConfig(tensor=4), TOGETHER]
# A tile a chunk on every mesh; all tiles as one where meshes are simplest and hardest.
PLACES = [(mesh, 1) for mesh in MESHES] + [(mesh, CHUNK_BYTES) for mesh in (ALONE, TOGETHER)]


@pytest.mark.parametrize(("mesh", "chunk_bytes"), PLACES, ids=str)
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_equals_the_whole_one(tied, mesh, chunk_bytes):
    table, hidden, trained, _ = inputs(tied)
    found = jax.jit(token_logprobs, static_argnums=0)(
        Head(mesh.build(), tied, chunk_bytes=chunk_bytes), table, hidden, trained
    )
    for ours, reference in zip(found, whole(tied, table, hidden, trained), strict=True):
        ours, reference = (np.where(trained.weights > 0, x, 0) for x in (ours, reference))
        np.testing.assert_allclose(ours, reference, **PARITY)


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("mesh", "chunk_bytes", "reference"),
    [(*place, True) for place in PLACES] + [(mesh, 1, False) for mesh in (ALONE, TOGETHER)],
    ids=str,
)
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_loss_and_gradient_equal_those_of_the_whole_one(tied, mesh, reference, chunk_bytes):
    table, hidden, trained, others = inputs(tied)
    others = others if reference else None

    def expected(table, hidden):
        return objective(*whole(tied, table, hidden, trained), others, trained)

    def ours(table, hidden):
        head = Head(mesh.build(), tied, chunk_bytes=chunk_bytes)
        return token_loss(head, objective, table, hidden, trained, others)

    (loss, metrics), gradients = jax.jit(jax.value_and_grad(expected, (0, 1), has_aux=True))(table, hidden)
    (our_loss, our_metrics), ours_ = jax.jit(jax.value_and_grad(ours, (0, 1), has_aux=True))(table, hidden)
    np.testing.assert_allclose(our_loss, loss, **PARITY)
    np.testing.assert_allclose(our_metrics["entropy"], metrics["entropy"], **PARITY)
    gap = np.abs(whole(tied, table, hidden, trained)[0] - trained.old_logprobs)[trained.weights > 0].max()
    np.testing.assert_allclose(our_metrics["logprob_gap"], gap, **PARITY)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **PARITY), ours_, gradients)


def test_a_table_that_is_not_trained_gets_no_gradient():
    table, hidden, trained, _ = inputs(True)

    def loss(table, hidden, trains):
        head = Head(MeshConfig().build(), True, trains)
        return token_loss(head, objective, table, hidden, trained, None)[0]

    frozen, d_hidden = jax.grad(loss, (0, 1))(table, hidden, False)
    assert not frozen.any()
    np.testing.assert_array_equal(d_hidden, jax.grad(loss, 1)(table, hidden, True))
