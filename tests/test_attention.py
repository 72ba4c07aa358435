"""Attention over tiles, and as fused kernels, against attention over a mask."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fakes import PARITY, credited

from atgrpo_jax.common.types import TILE
from atgrpo_jax.models.attention import masked_attention, prefix_mask, tiled_attention
from atgrpo_jax.models.attention_kernel import fused_attention, supports
from atgrpo_jax.update.batch import BatchConfig, pack


def rows(shape):
    rng = np.random.default_rng(0)
    batch = pack([credited(rng, *s) for s in shape], BatchConfig(row_tokens=4 * TILE, rows=2), "token", 1)
    assert batch.tokens.shape[0] == 1
    return batch.segments[0], batch.branches[0], batch.pairs[0]


SHAPES = {
    "long branches": [(20, [70, 30, 90])] * 2,
    "a long prompt": [(170, [5, 9, 1])] * 2,
    "many groups": [(9, [4, 2, 5])] * 20,
    "an empty row": [(100, [60, 60])],
}


def interpreted(platform, tile):
    return functools.partial(fused_attention, platform=platform, tile=tile, interpret=True)


WAYS = {
    "tiles": tiled_attention,
    "tpu kernels": interpreted("tpu", 128),
    "tpu kernels of small tiles": interpreted("tpu", 64),
    "gpu kernels": interpreted("gpu", 64),
}


@pytest.mark.thorough
@pytest.mark.parametrize("kv_heads", [1, 4])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("attend", WAYS.values(), ids=WAYS)
def test_tiled_equals_masked(attend, shape, kv_heads):
    segments, branches, pairs = rows(shape)
    B, T = segments.shape
    q, k, v, out = (
        jax.random.normal(jax.random.key(i), (B, T, heads, 8))
        for i, heads in enumerate((4, kv_heads, kv_heads, 4))
    )
    real = (segments > 0)[..., None, None]

    def masked(q, k, v):
        return masked_attention(q, k, v, prefix_mask(segments, branches)) * real

    def tiled(q, k, v):
        return attend(q, k, v, segments, branches, pairs) * real

    expected, pull = jax.vjp(masked, q, k, v)
    ours, our_pull = jax.vjp(jax.jit(tiled), q, k, v)
    np.testing.assert_allclose(ours, expected, **PARITY)
    for gradient, reference in zip(our_pull(out), pull(out), strict=True):
        np.testing.assert_allclose(gradient, reference, **PARITY)


def test_a_row_that_ends_within_a_tile_of_the_kernel():
    segments, branches, pairs = (x[:, : 3 * TILE] for x in rows(SHAPES["many groups"]))
    pairs = np.flatnonzero(np.tril(np.ones((3, 3), bool))).astype(np.int32)[None].repeat(2, 0)
    q, k, v = (jax.random.normal(jax.random.key(i), (2, 3 * TILE, 2, 8)) for i in range(3))
    ours = interpreted("tpu", 128)(q, k, v, segments, branches, pairs)
    expected = masked_attention(q, k, v, prefix_mask(segments, branches))
    real = (segments > 0)[..., None, None]
    np.testing.assert_allclose(ours * real, expected * real, **PARITY)


def test_where_there_are_kernels():
    assert supports("tpu", 96) and supports("gpu", 128)
    assert not supports("gpu", 96) and not supports("cpu", 128)


@pytest.mark.usefixtures("for_an_h100")
def test_the_kernels_lower_for_a_gpu():
    """To Triton's intermediate language, three kernels; whether a GPU runs them needs one."""

    def square(q, k, v, *where):
        return jnp.sum(fused_attention(q, k, v, *where, platform="gpu").astype(jnp.float32) ** 2)

    q, k = (jax.ShapeDtypeStruct((2, 256, heads, 64), jnp.bfloat16) for heads in (4, 2))
    whole, pairs = (jax.ShapeDtypeStruct((2, size), jnp.int32) for size in (256, 10))
    traced = jax.jit(jax.grad(square, (0, 1, 2))).trace(q, k, k, whole, whole, pairs)
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("custom_call @__gpu$xla") == 3


def test_memory_is_that_of_the_tokens():
    """What the backward pass keeps doubles with the tokens; a mask or scores would quadruple."""

    def kept(tiles):
        T = tiles * TILE
        segments = np.ones((1, T), np.int32)
        pairs = np.flatnonzero(np.tril(np.ones((tiles, tiles), bool))).astype(np.int32)[None]
        x = jnp.ones((1, T, 2, 8))
        _, pull = jax.vjp(lambda q: tiled_attention(q, x, x, segments, 0 * segments, pairs), x)
        return sum(leaf.nbytes for leaf in jax.tree.leaves(pull) if leaf.dtype == jnp.float32)

    assert kept(8) == 2 * kept(4)
