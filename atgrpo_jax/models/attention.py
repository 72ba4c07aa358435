"""Computes grouped-query attention for training in plain XLA: with a mask, or on tiles of rows.

Tiles are visited only where some token sees another. For sampling, see
engines/local/paged_attention.py.

Axis letters: B rows, T tokens of a row (queries), S keys, N query heads, M key heads, H head size,
R = N / M, n tiles of a row, t tokens of a tile, X queries of a key head (R T or R t), but in
``pairs_BX`` pairs of tiles.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

HIDDEN = -1e30  # finite, so that a query that sees nothing has a finite result
WIDE = {"preferred_element_type": jnp.float32}  # of products


class Window(NamedTuple):
    """Says that a token sees only the last ``size`` tokens before and with itself, by position."""

    size: Any
    positions: Any  # [..., T]


def narrower(size: int | None, tokens: int) -> int | None:
    """Returns the window's size; None if it is not narrower than positions that are below ``tokens``."""
    return None if size is None or size >= tokens else size


def causal_mask(positions_T: jax.Array, size: int | None = None) -> jax.Array:
    """Returns [..., T, T], true where a token sees another: itself, and earlier ones in its window."""
    ahead = positions_T[..., :, None] - positions_T[..., None, :]
    return (ahead >= 0) if size is None else (ahead >= 0) & (ahead < size)


def _grouped(q: jax.Array, kv_heads: int) -> jax.Array:
    """Groups query heads by their key head: [..., N, H] -> [..., M, N / M, H]."""
    return q.reshape(*q.shape[:-2], kv_heads, q.shape[-2] // kv_heads, q.shape[-1])


def masked_attention(
    q_BTNH: jax.Array, k_BSMH: jax.Array, v_BSMH: jax.Array, mask_BTS: jax.Array
) -> jax.Array:
    """Returns softmax attention [B, T, N, H] where ``mask_BTS`` is true.

    Scores and softmax are in float32.
    """
    B, T, N, H = q_BTNH.shape
    S, M = k_BSMH.shape[1:3]
    # Heads first, query heads of a key head side by side: this gives plain batched matrix products.
    q_BMXH = _grouped(q_BTNH * H**-0.5, M).transpose(0, 2, 3, 1, 4).reshape(B, M, -1, H)
    k_BMSH = k_BSMH.transpose(0, 2, 1, 3)
    v_BMSH = v_BSMH.transpose(0, 2, 1, 3)
    scores = jnp.einsum("bmxh,bmsh->bmxs", q_BMXH, k_BMSH, preferred_element_type=jnp.float32)
    scores = jnp.where(mask_BTS[:, None, None], scores.reshape(B, M, -1, T, S), HIDDEN)
    probs = jax.nn.softmax(scores, axis=-1).reshape(B, M, -1, S)
    out = jnp.einsum("bmxs,bmsh->bmxh", probs.astype(v_BMSH.dtype), v_BMSH)
    return out.reshape(B, M, -1, T, H).transpose(0, 3, 1, 2, 4).reshape(B, T, N, H)


def prefix_mask(segments_T: jax.Array, branches_T: jax.Array, window: Window | None = None) -> jax.Array:
    """Returns [..., T, T], true where a token sees another.

    It sees itself, and the earlier tokens of its segment's prompt and of its own branch, as far as
    they are in its ``window``.
    """
    size = segments_T.shape[-1]
    seen = _sees(segments_T, branches_T, segments_T, branches_T) & jnp.tril(jnp.ones((size, size), bool))
    return seen if window is None else seen & _near(window.positions, window.positions, window.size)


def _sees(segments_T, branches_T, segments_S, branches_S) -> jax.Array:
    """Returns [..., T, S]: ``prefix_mask`` without the conditions on order and window."""
    seen = branches_S[..., None, :]
    own = (seen == 0) | (seen == branches_T[..., :, None])
    return own & (segments_T[..., :, None] == segments_S[..., None, :])


def _near(positions_T, positions_S, size) -> jax.Array:
    """Returns [..., T, S]: whether a token is less than ``size`` positions after another."""
    return positions_T[..., :, None] - positions_S[..., None, :] < size


@jax.custom_vjp
def tiled_attention(
    q_BTNH: jax.Array,
    k_BTMH: jax.Array,
    v_BTMH: jax.Array,
    segments_BT: jax.Array,
    branches_BT: jax.Array,
    pairs_BX: jax.Array,
    window: Window | None = None,
) -> jax.Array:
    """Returns softmax attention [B, T, N, H] where ``prefix_mask`` is true, on some pairs of tiles.

    Time grows with the pairs and memory with the tokens: tiles are visited one by one with a
    running softmax (2205.14135), forward and backward. Scores and sums are in float32. For rows of
    one tile, which have nothing to leave out, use ``masked_attention``.

    Args:
      pairs_BX: see ``types.Batch``.
    """
    return _tiled_forward(q_BTNH, k_BTMH, v_BTMH, segments_BT, branches_BT, pairs_BX, window)[0]


def _tiled_forward(q_BTNH, k_BTMH, v_BTMH, segments_BT, branches_BT, pairs_BX, window):
    rows = _TiledRows(q_BTNH, k_BTMH, segments_BT, branches_BT, pairs_BX, window)

    def row(b, carry):
        out_BTNH, log_total_BnMX = carry
        q = rows.queries(q_BTNH, b)
        k = rows.keys(k_BTMH, b)
        v = rows.keys(v_BTMH, b)

        def visit(i, j, carry):
            out, best, total = carry
            scores = rows.scores(_at(q, i), _at(k, j), b, i, j)
            before = _at(best, i)
            now = jnp.maximum(before, scores.max(-1))
            kept = jnp.exp(before - now)
            probs = jnp.exp(scores - now[..., None])
            new = jnp.einsum("mxs,msh->mxh", probs.astype(v.dtype), _at(v, j), **WIDE)
            out = _put(out, i, _at(out, i) * kept[..., None] + new)
            return out, _put(best, i, now), _put(total, i, _at(total, i) * kept + probs.sum(-1))

        zeros = jnp.zeros(q.shape[:-1], jnp.float32)
        empty = jnp.zeros(q.shape, jnp.float32), jnp.full_like(zeros, HIDDEN), zeros
        out, best, total = rows.visit_pairs(b, visit, empty)
        total = jnp.maximum(total, 1e-30)  # 0 in tiles of padding, which no pair visits
        out = rows.together(out / total[..., None]).astype(q_BTNH.dtype)
        return _put(out_BTNH, b, out), _put(log_total_BnMX, b, best + jnp.log(total))

    empty = jnp.zeros_like(q_BTNH), jnp.zeros((rows.B, rows.n, rows.M, rows.R * rows.t), jnp.float32)
    out_BTNH, log_total_BnMX = rows.visit_rows(row, empty)
    kept = q_BTNH, k_BTMH, v_BTMH, out_BTNH, log_total_BnMX, segments_BT, branches_BT, pairs_BX, window
    return out_BTNH, kept


def _tiled_backward(kept, d_out_BTNH):
    q_BTNH, k_BTMH, v_BTMH, out_BTNH, log_total_BnMX, segments_BT, branches_BT, pairs_BX, window = kept
    rows = _TiledRows(q_BTNH, k_BTMH, segments_BT, branches_BT, pairs_BX, window)

    def row(b, carry):
        q = rows.queries(q_BTNH, b)
        k = rows.keys(k_BTMH, b)
        v = rows.keys(v_BTMH, b)
        d_out = rows.queries(d_out_BTNH, b, scale=1.0)
        log_total = _at(log_total_BnMX, b)
        out = rows.queries(out_BTNH, b, scale=1.0)
        inner = jnp.sum(d_out.astype(jnp.float32) * out.astype(jnp.float32), axis=-1)

        def visit(i, j, carry):
            dq, dk, dv = carry
            q_i = _at(q, i)
            k_j = _at(k, j)
            d_out_i = _at(d_out, i)
            probs = jnp.exp(rows.scores(q_i, k_j, b, i, j) - _at(log_total, i)[..., None])
            new_v = jnp.einsum("mxs,mxh->msh", probs.astype(v.dtype), d_out_i, **WIDE)
            d_probs = jnp.einsum("mxh,msh->mxs", d_out_i, _at(v, j), **WIDE)
            d_scores = (probs * (d_probs - _at(inner, i)[..., None])).astype(q.dtype)
            new_q = jnp.einsum("mxs,msh->mxh", d_scores, k_j, **WIDE)
            new_k = jnp.einsum("mxs,mxh->msh", d_scores, q_i, **WIDE)
            return (
                _put(dq, i, _at(dq, i) + new_q),
                _put(dk, j, _at(dk, j) + new_k),
                _put(dv, j, _at(dv, j) + new_v),
            )

        empty = tuple(jnp.zeros(x.shape, jnp.float32) for x in (q, k, v))
        dq, dk, dv = rows.visit_pairs(b, visit, empty)
        gradients = rows.together(dq * rows.scale), rows.together(dk), rows.together(dv)
        return tuple(
            _put(all_, b, one.astype(all_.dtype)) for all_, one in zip(carry, gradients, strict=True)
        )

    empty = jnp.zeros_like(q_BTNH), jnp.zeros_like(k_BTMH), jnp.zeros_like(v_BTMH)
    return *rows.visit_rows(row, empty), None, None, None, None


tiled_attention.defvjp(_tiled_forward, _tiled_backward)


def tiles_of(pairs_BX: jax.Array) -> int:
    """Returns n, the tiles of a row: it has n (n + 1) / 2 pairs of a tile and one not after it."""
    return (math.isqrt(8 * pairs_BX.shape[1] + 1) - 1) // 2


def _at(x: jax.Array, i: jax.Array) -> jax.Array:
    return jax.lax.dynamic_index_in_dim(x, i, keepdims=False, allow_negative_indices=False)


def _put(x: jax.Array, i: jax.Array, value: jax.Array) -> jax.Array:
    return jax.lax.dynamic_update_index_in_dim(x, value, i, 0, allow_negative_indices=False)


class _TiledRows:
    """Presents packed rows one by one, each as n tiles of t tokens.

    Queries are [n, M, R t, H], with the R = N / M query heads of a key head side by side. Keys and
    values are [n, M, t, H].
    """

    def __init__(self, q_BTNH, k_BTMH, segments_BT, branches_BT, pairs_BX, window):
        self.B, self.T, N, self.H = q_BTNH.shape
        self.M = k_BTMH.shape[2]
        self.R = N // self.M
        self.scale = self.H**-0.5
        self.n = tiles_of(pairs_BX)
        self.t = self.T // self.n
        tiles = self.B, self.n, self.t
        self.segments_Bnt = segments_BT.reshape(tiles)
        self.branches_Bnt = branches_BT.reshape(tiles)
        self.pairs_BX = jnp.asarray(pairs_BX)
        self.window = None if window is None else window._replace(positions=window.positions.reshape(tiles))

    def queries(self, x_BTNH: jax.Array, b: jax.Array, scale: float | None = None) -> jax.Array:
        x = _at(x_BTNH, b) * jnp.asarray(self.scale if scale is None else scale, x_BTNH.dtype)
        x = x.reshape(self.n, self.t, self.M, self.R, self.H).transpose(0, 2, 3, 1, 4)
        return x.reshape(self.n, self.M, self.R * self.t, self.H)

    def keys(self, x_BTMH: jax.Array, b: jax.Array) -> jax.Array:
        return _at(x_BTMH, b).reshape(self.n, self.t, self.M, self.H).transpose(0, 2, 1, 3)

    def together(self, tiles: jax.Array) -> jax.Array:
        """Joins tiles of queries or keys to [T, heads, H]."""
        x = tiles.reshape(self.n, self.M, -1, self.t, self.H).transpose(0, 3, 1, 2, 4)
        return x.reshape(self.T, -1, self.H)

    def scores(self, q_MXH, k_MtH, b, i, j) -> jax.Array:
        """Returns the masked scores [M, R t, t] of a pair of tiles."""
        read = (_at(_at(x, b), tile) for tile in (i, j) for x in (self.segments_Bnt, self.branches_Bnt))
        order = jnp.arange(self.t)
        mask = _sees(*read) & (order[:, None] + (i - j) * self.t >= order)
        if self.window is not None:
            positions = _at(self.window.positions, b)
            mask &= _near(_at(positions, i), _at(positions, j), self.window.size)
        scores = jnp.einsum("mxh,msh->mxs", q_MXH, k_MtH, **WIDE)
        scores = jnp.where(mask, scores.reshape(self.M, self.R, self.t, self.t), HIDDEN)
        return scores.reshape(self.M, -1, self.t)

    def visit_rows(self, visit, carry):
        """Calls ``visit(b, carry)`` for all rows up to the last that holds anything."""
        used = jnp.max(jnp.where(self.pairs_BX[:, 0] >= 0, jnp.arange(1, self.B + 1), 0))
        return jax.lax.fori_loop(0, used, visit, carry)

    def visit_pairs(self, b, visit, carry):
        """Calls ``visit(query tile, key tile, carry)`` for all pairs of a row, in order."""

        def pair(x, carry):
            # Without the barrier, XLA repeats the division for every score.
            i, j = jax.lax.optimization_barrier(jnp.divmod(self.pairs_BX[b, x], self.n))
            return visit(i, j, carry)

        return jax.lax.fori_loop(0, jnp.sum(self.pairs_BX[b] >= 0), pair, carry)
