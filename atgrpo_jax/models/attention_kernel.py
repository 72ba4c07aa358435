"""Computes ``attention.tiled_attention`` with Pallas kernels for TPU (Mosaic) and GPU (Triton).

A program holds one tile of queries (or of keys) of one head, and visits the tiles that it meets.
Scores never leave the core. There is a kernel for the output, one for the gradient of queries, and
one for the gradients of keys and values.

Axis letters: B rows, T tokens of a row (in the kernels padded to whole tiles), N query heads, M key
heads, H head size, X pairs of tiles, n tiles of a row, t tokens of a tile.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from atgrpo_jax.models.attention import HIDDEN, tiles_of
from atgrpo_jax.models.kernel_launch import How, Platform, Specs, launch

# Tokens to a side of a tile: the width of a TPU's vector registers; what a GPU's registers hold.
TILES: dict[Platform, int] = {"tpu": 128, "gpu": 64}


def supports(platform: str, head_size: int) -> bool:
    """Returns whether there is a kernel for this head size. Triton's blocks are powers of two."""
    return platform == "tpu" or (platform == "gpu" and head_size >= 16 and head_size & (head_size - 1) == 0)


def fused_attention(
    q_BTNH: jax.Array,
    k_BTMH: jax.Array,
    v_BTMH: jax.Array,
    segments_BT: jax.Array,
    branches_BT: jax.Array,
    pairs_BX: jax.Array,
    *,
    platform: Platform,
    tile: int | None = None,
    interpret: bool = False,
) -> jax.Array:
    """Returns softmax attention [B, T, N, H] where ``prefix_mask`` is true, on some pairs of tiles.

    It is differentiable in q, k and v. Scores and sums are in float32 (2205.14135, 2307.08691).
    What the backward pass keeps grows with the tokens. On a TPU, all keys and values of a row and
    head lie in its vector memory.

    Args:
      pairs_BX: see ``types.Batch``.
      tile: tokens to a side of the kernel's own tiles, which are derived from the pairs; a multiple
        of the pairs' tile, and for Mosaic of 128. That of ``TILES`` if not given.
      interpret: runs on any device, slowly, for tests.
    """
    T = q_BTNH.shape[1]
    tile = tile or TILES[platform]
    beyond = -T % tile
    q, k, v = (_heads_first(x, beyond) for x in (q_BTNH, k_BTMH, v_BTMH))
    meet_Bnn = _meeting(pairs_BX, T, tile)
    # The code of a token's own branch, and that of its prompt: less than 2^15 branches a segment.
    prompt_BT = jnp.pad(segments_BT << 15, ((0, 0), (0, beyond)))
    codes = (prompt_BT + jnp.pad(branches_BT, ((0, 0), (0, beyond))), prompt_BT)
    own, prompt = (x[:, None, None].astype(jnp.int32) for x in codes)
    out = _fused(How(platform, tile, interpret), q, k, v, own, prompt, meet_Bnn)
    return out.transpose(0, 2, 1, 3)[:, :T]


def _heads_first(x_BTNH: jax.Array, beyond: int) -> jax.Array:
    return jnp.pad(x_BTNH, ((0, 0), (0, beyond), (0, 0), (0, 0))).transpose(0, 2, 1, 3)


def _meeting(pairs_BX: jax.Array, tokens: int, tile: int) -> jax.Array:
    """Returns [B, n, n]: whether a token of query tile i sees one of key tile j."""
    given = tiles_of(pairs_BX)
    n = -(-tokens // tile)
    wide = tile // (tokens // given)
    assert wide * tokens == tile * given, f"kernel tiles of {tile} on {given} tiles of {tokens} tokens"
    i_BX = pairs_BX // given // wide
    j_BX = pairs_BX % given // wide
    rows_B1 = jnp.arange(len(pairs_BX))[:, None]
    meet = jnp.zeros((len(pairs_BX), n, n), bool)
    return meet.at[rows_B1, i_BX, j_BX].max(pairs_BX >= 0, mode="drop")


def _listed(meet_Bnn: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns how many tiles each meets [B, n], and which: the first of [B, n, n], in order."""
    return jnp.sum(meet_Bnn, -1, dtype=jnp.int32), jnp.argsort(~meet_Bnn, axis=-1).astype(jnp.int32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _fused(how: How, q, k, v, own, prompt, meet_Bnn):
    return _forward(how, q, k, v, own, prompt, meet_Bnn)[0]


def _forward(how, q, k, v, own, prompt, meet_Bnn):
    B, N, T, H = q.shape
    spec = Specs(how.tile, q.shape[1] // k.shape[1])
    out, log_total = launch(
        how,
        functools.partial(_output_kernel, scale=H**-0.5),
        _listed(meet_Bnn),
        (own, prompt, own, q, k, v),
        (spec.code, spec.code, spec.codes, spec.tile, spec.all_shared, spec.all_shared),
        [jax.ShapeDtypeStruct(q.shape, q.dtype), jax.ShapeDtypeStruct((B, N, 1, T), jnp.float32)],
    )
    return out, (q, k, v, own, prompt, meet_Bnn, out, log_total)


def _backward(how, kept, d_out):
    q, k, v, own, prompt, meet_Bnn, out, log_total = kept
    B, N, T, H = q.shape
    M = k.shape[1]
    spec = Specs(how.tile, N // M)
    scale = H**-0.5
    inner = jnp.sum(d_out.astype(jnp.float32) * out.astype(jnp.float32), axis=-1)[:, :, None]
    (dq,) = launch(
        how,
        functools.partial(_queries_kernel, scale=scale),
        _listed(meet_Bnn),
        (own, prompt, own, q, k, v, d_out, log_total, inner),
        (spec.code, spec.code, spec.codes, spec.tile, spec.all_shared, spec.all_shared) + (spec.tile,) * 3,
        [jax.ShapeDtypeStruct(q.shape, q.dtype)],
    )
    # For each query head, so that no two programs add to the same place.
    dk, dv = launch(
        how,
        functools.partial(_keys_kernel, scale=scale),
        _listed(meet_Bnn.swapaxes(1, 2)),
        (own, prompt, own, q, k, v, d_out, log_total, inner),
        (spec.codes, spec.codes, spec.code, spec.all, spec.shared, spec.shared) + (spec.all,) * 3,
        [jax.ShapeDtypeStruct(q.shape, jnp.float32)] * 2,
    )
    dk, dv = (x.reshape(B, M, N // M, T, H).sum(2).astype(k.dtype) for x in (dk, dv))
    return dq, dk, dv, None, None, None


_fused.defvjp(_forward, _backward)


def _output_kernel(counts, lists, own_i, prompt_i, own, q, k, v, out, log_total, *, scale):
    b = pl.program_id(0)
    i = pl.program_id(2)
    t = q.shape[0]
    own_column = _column(own_i[...])
    prompt_column = _column(prompt_i[...])

    def visit(x, carry):
        acc, best, total = carry
        j = lists[b, i, x]
        at = _at(j, t)
        scores = dot(q[...], k[at, :].T) * scale
        scores = jnp.where(_sees(own_column, prompt_column, own[:, at], _order(t, i, j)), scores, HIDDEN)
        now = jnp.maximum(best, jnp.max(scores, axis=1, keepdims=True))
        kept = jnp.exp(best - now)
        probs = jnp.exp(scores - now)
        acc = acc * kept + dot(probs.astype(v.dtype), v[at, :])
        return acc, now, total * kept + jnp.sum(probs, axis=1, keepdims=True)

    start = jnp.zeros(q.shape, jnp.float32), jnp.full((t, 1), HIDDEN), jnp.zeros((t, 1), jnp.float32)
    acc, best, total = jax.lax.fori_loop(0, counts[b, i], visit, start)
    total = jnp.maximum(total, 1e-30)  # 0 in tiles of padding, which meet none
    out[...] = (acc / total).astype(out.dtype)
    log_total[...] = _row(best + jnp.log(total))


def _queries_kernel(counts, lists, own_i, prompt_i, own, q, k, v, d_out, log_total, inner, dq, *, scale):
    b = pl.program_id(0)
    i = pl.program_id(2)
    t = q.shape[0]
    columns = (_column(x[...]) for x in (own_i, prompt_i, log_total, inner))
    own_column, prompt_column, log_column, inner_column = columns

    def visit(x, acc):
        j = lists[b, i, x]
        at = _at(j, t)
        scores = dot(q[...], k[at, :].T) * scale
        scores = jnp.where(_sees(own_column, prompt_column, own[:, at], _order(t, i, j)), scores, HIDDEN)
        d_probs = dot(d_out[...], v[at, :].T)
        d_scores = jnp.exp(scores - log_column) * (d_probs - inner_column)
        return acc + dot(d_scores.astype(k.dtype), k[at, :])

    acc = jax.lax.fori_loop(0, counts[b, i], visit, jnp.zeros(q.shape, jnp.float32))
    dq[...] = (acc * scale).astype(dq.dtype)


def _keys_kernel(counts, lists, own, prompt, own_j, q, k, v, d_out, log_total, inner, dk, dv, *, scale):
    """Computes scores as [key, query], so that no product needs a transposed first factor."""
    b = pl.program_id(0)
    j = pl.program_id(2)
    t = k.shape[0]
    own_column = _column(own_j[...])

    def visit(x, carry):
        dk, dv = carry
        i = lists[b, j, x]
        at = _at(i, t)
        scores = dot(k[...], q[at, :].T) * scale
        # A row of the scores is a key here, so ``_order`` has the other sign.
        scores = jnp.where(_sees(own[:, at], prompt[:, at], own_column, -_order(t, j, i)), scores, HIDDEN)
        probs = jnp.exp(scores - log_total[:, at])
        dv += dot(probs.astype(v.dtype), d_out[at, :])
        d_probs = dot(v[...], d_out[at, :].T)
        d_scores = probs * (d_probs - inner[:, at])
        return dk + dot(d_scores.astype(q.dtype), q[at, :]), dv

    zeros = jnp.zeros(k.shape, jnp.float32)
    acc_k, acc_v = jax.lax.fori_loop(0, counts[b, j], visit, (zeros, zeros))
    dk[...] = acc_k * scale
    dv[...] = acc_v


def _sees(own_query, prompt_query, own_key, order):
    return ((own_key == own_query) | (own_key == prompt_query)) & (order >= 0)


def _order(t: int, i: jax.Array, j: jax.Array) -> jax.Array:
    """Returns [t, t]: how many tokens a row of tile i comes after a column of tile j."""
    rows, columns = (jax.lax.broadcasted_iota(jnp.int32, (t, t), axis) for axis in (0, 1))
    return (i - j) * t + rows - columns


def _at(tile: jax.Array, t: int) -> Any:
    return pl.ds(pl.multiple_of(tile * t, t), t)


def _column(row: jax.Array) -> jax.Array:
    """Turns [1, t] into [t, 1], by a sum over the diagonal: exact, and both compilers can do it."""
    return jnp.sum(jnp.where(_diagonal(row.shape[1]), row, jnp.zeros_like(row)), axis=1, keepdims=True)


def _row(column: jax.Array) -> jax.Array:
    return jnp.sum(jnp.where(_diagonal(len(column)), column, jnp.zeros_like(column)), axis=0, keepdims=True)


def _diagonal(t: int) -> jax.Array:
    return _order(t, jnp.int32(0), jnp.int32(0)) == 0


def dot(x: jax.Array, y: jax.Array) -> jax.Array:
    """Multiplies two matrices inside a kernel, with sums in float32."""
    precision = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
    return jnp.dot(x, y, precision=precision, preferred_element_type=jnp.float32)
