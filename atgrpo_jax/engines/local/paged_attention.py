"""Attention over keys and values in pages, for sampling.

What a query sees is split into pages of one size, each attended to alone: partial results are merged in the
order of the pages (a running softmax, 2205.14135). A page of which a query sees nothing leaves the result as
it was, to the last bit, so a query's result does not depend on which pages other queries have it visit, nor
on where its own are stored.

Prompt pages are read by all samples of the prompt at once: tiles of W samples, in blocks of tiles. Answer
pages belong to one sample each and are read where they lie, a bank at a time, up to the last bank in use.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

_HIDDEN = -1e30  # finite: what nobody sees must not make a NaN of what is merged with it
_WIDE = {"preferred_element_type": jnp.float32}


class Pages(NamedTuple):
    """Keys and values of one layer, each so that a query's products read it in order: half of attention's
    time in decoding on a CPU was spent turning what is [.., position, head, ..]."""

    keys: Any  # [N, M, H, p]
    values: Any  # [N, M, p, H]

    @classmethod
    def of(cls, k_NpMH: jax.Array, v_NpMH: jax.Array) -> "Pages":
        return cls(k_NpMH.transpose(0, 2, 3, 1), v_NpMH.transpose(0, 2, 1, 3))

    @classmethod
    def zeros(cls, shape: Sequence[int], dtype: Any) -> "Pages":
        """Of ``shape`` [..., N, M, H, p]."""
        *outer, size, page = shape
        return cls(jnp.zeros(shape, dtype), jnp.zeros((*outer, page, size), dtype))

    def take(self, pages: jax.Array) -> "Pages":
        return Pages(self.keys[pages], self.values[pages])

    def put(self, pages_F: jax.Array, new: "Pages") -> "Pages":
        """With whole pages; a number beyond the last one stands for nowhere."""
        return jax.tree.map(lambda old, x: old.at[pages_F].set(x, mode="drop"), self, new)

    def put_places(
        self, pages_S: jax.Array, places_S: jax.Array, k_SMH: jax.Array, v_SMH: jax.Array
    ) -> "Pages":
        """With one place in each of those pages; a number beyond the last one stands for nowhere."""
        return Pages(
            self.keys.at[pages_S, :, :, places_S].set(k_SMH, mode="drop"),
            self.values.at[pages_S, :, places_S].set(v_SMH, mode="drop"),
        )


class Partial(NamedTuple):
    """Attention over some of what a query sees: sums of exp(score - best), and of values times that."""

    out: jax.Array  # [..., H]
    best: jax.Array  # [...]
    total: jax.Array  # [...]

    @classmethod
    def nothing(cls, shape: Sequence[int]) -> "Partial":
        """Of ``shape`` [..., H]."""
        zeros = jnp.zeros(shape[:-1], jnp.float32)
        return cls(jnp.zeros(shape, jnp.float32), jnp.full_like(zeros, _HIDDEN), zeros)

    def merge(self, other: "Partial") -> "Partial":
        best = jnp.maximum(self.best, other.best)
        mine, its = jnp.exp(self.best - best), jnp.exp(other.best - best)
        return Partial(
            self.out * mine[..., None] + other.out * its[..., None],
            best,
            self.total * mine + other.total * its,
        )

    def result(self) -> jax.Array:
        return self.out / jnp.maximum(self.total, 1e-30)[..., None]  # rows that nobody is in see nothing


def partial(q_NMXH: jax.Array, pages: Pages, sees: jax.Array) -> Partial:
    """X queries to a key head of each page, where ``sees`` (broadcast to [N, M, X, p]) is true."""
    scores = jnp.einsum("nmxh,nmhp->nmxp", q_NMXH, pages.keys, **_WIDE)
    scores = jnp.where(sees, scores, _HIDDEN)
    best = scores.max(-1)
    probs = jnp.exp(scores - best[..., None])
    out = jnp.einsum("nmxp,nmph->nmxh", probs.astype(pages.values.dtype), pages.values, **_WIDE)
    return Partial(out, best, probs.sum(-1))


class Chunk(NamedTuple):
    """A page of each of F prompts, to be computed after its earlier ones. Arrays."""

    tokens: Any  # [F, p]
    number: Any  # [F] of the page within its prompt
    table: Any  # [F, P] pages of the prompt
    last: Any  # [F] place of its last token
    page: Any  # [F] where it is stored; beyond the last one: nowhere


def prefill_attention(
    q_FpNH: jax.Array, k_FpMH: jax.Array, v_FpMH: jax.Array, prompts: Pages, chunk: Chunk, turns: jax.Array
) -> tuple[jax.Array, Pages]:
    """Over the earlier pages of the prompt (the first ``turns``, of which some may be too many) and the own
    page's tokens so far. [F, p, N, H], and the pages with the new ones in them."""
    (F, p, N, H), M = q_FpNH.shape, k_FpMH.shape[2]
    q = (q_FpNH * H**-0.5).reshape(F, p, M, N // M, H).transpose(0, 2, 3, 1, 4).reshape(F, M, -1, H)

    def earlier(j, so_far):
        sees_F = (j < chunk.number)[:, None, None, None]
        return so_far.merge(partial(q, prompts.take(chunk.table[:, j]), sees_F))

    own = Pages.of(k_FpMH, v_FpMH)
    prompts = prompts.put(chunk.page, own)  # after the loop XLA would copy them all
    causal_Xp = jnp.tile(jnp.tril(jnp.ones((p, p), bool)), (N // M, 1))
    so_far = jax.lax.fori_loop(0, turns, earlier, Partial.nothing(q.shape))
    out = so_far.merge(partial(q, own, causal_Xp)).result()
    out = out.reshape(F, M, N // M, p, H).transpose(0, 3, 1, 2, 4).reshape(q_FpNH.shape)
    return out.astype(q_FpNH.dtype), prompts


class Tiles(NamedTuple):
    """Who reads which prompt: E tiles of W samples each, in blocks; E is a multiple of their number."""

    rows: Any  # [E, W]; beyond the last one: nobody
    table: Any  # [E, P] pages of the prompt
    lengths: Any  # [E] of the prompts


class Owners(NamedTuple):
    """Whose answer each page holds."""

    rows: Any  # [n]
    starts: Any  # [n] count of the sample's tokens before its first place; large where it is nobody's


class Turns(NamedTuple):
    """How far the loops over pages go, in all shards alike. Numbers that depend on who is in."""

    prompt: Any  # [blocks] pages of the longest prompt of each block of tiles; 0 where there is none
    banks: Any  # of answer pages that hold any in use
    answer: Any  # pages of the longest answer


def answer_owners(table_SX: jax.Array, pages: int, page: int) -> Owners:
    """From each row's answer pages; numbers beyond the last page stand for none."""
    S, X = table_SX.shape
    rows_SX = jnp.broadcast_to(jnp.arange(S, dtype=jnp.int32)[:, None], (S, X))
    starts_SX = jnp.broadcast_to(jnp.arange(X, dtype=jnp.int32) * page, (S, X))
    return Owners(
        jnp.zeros(pages, jnp.int32).at[table_SX].set(rows_SX, mode="drop"),
        jnp.full(pages, 1 << 30, jnp.int32).at[table_SX].set(starts_SX, mode="drop"),
    )


def decode_attention(
    q_SNH: jax.Array,
    count_S: jax.Array,
    prompts: Pages,
    answers: Sequence[Pages],
    tiles: Tiles,
    owners: Owners,
    table_SX: jax.Array,
    turns: Turns,
) -> jax.Array:
    """One query a sample: over its prompt, then over its answer up to token number ``count``. [S, N, H].

    Args:
      answers: banks of equally many pages, numbered through.
      table_SX: answer pages of each sample.
    """
    (S, N, H), M = q_SNH.shape, prompts.keys.shape[1]
    q_SMRH = (q_SNH * H**-0.5).reshape(S, M, N // M, H)
    seen = _prompts(q_SMRH, prompts, tiles, turns.prompt)
    size = answers[0].keys.shape[-1]
    banks = len(answers)
    parts = [
        jax.lax.cond(
            b < turns.banks,
            lambda q, pages, rows, starts: _answers(q, count_S, pages, rows, starts),
            lambda q, pages, rows, starts: Partial.nothing((len(rows), *q.shape[1:])),
            q_SMRH,
            pages,
            *(x.reshape(banks, -1)[b] for x in owners),
        )
        for b, pages in enumerate(answers)
    ]
    by_page = jax.tree.map(lambda *x: jnp.concatenate(x), *parts)

    def read(j, so_far):
        mine = jax.tree.map(lambda x: x.at[table_SX[:, j]].get(mode="clip"), by_page)
        sees_S11 = (j * size <= count_S)[:, None, None]
        return so_far.merge(mine._replace(best=jnp.where(sees_S11, mine.best, _HIDDEN)))

    out_SMRH = jax.lax.fori_loop(0, turns.answer, read, seen).result()
    return out_SMRH.reshape(q_SNH.shape).astype(q_SNH.dtype)


def _answers(q_SMRH, count_S, pages: Pages, rows_n, starts_n) -> Partial:
    """Of each page of a bank, for the sample whose it is."""
    places_np = starts_n[:, None] + jnp.arange(pages.keys.shape[-1])
    sees_np = places_np <= count_S[rows_n][:, None]
    return partial(q_SMRH[rows_n], pages, sees_np[:, None, None])


def _prompts(q_SMRH: jax.Array, prompts: Pages, tiles: Tiles, turns_b: jax.Array) -> Partial:
    """Of each sample."""
    (_, M, R, H), page = q_SMRH.shape, prompts.keys.shape[-1]
    (E, W), blocks = tiles.rows.shape, len(turns_b)
    B = E // blocks
    used = jnp.sum(turns_b > 0)

    def block(b, so_far):
        mine = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, b * B, B), tiles)
        q_BMXH = q_SMRH.at[mine.rows].get(mode="clip").swapaxes(1, 2).reshape(B, M, W * R, H)

        def visit(j, seen):
            places = j * page + jnp.arange(page)
            sees_B11p = (places < mine.lengths[:, None])[:, None, None]
            return seen.merge(partial(q_BMXH, prompts.take(mine.table[:, j]), sees_B11p))

        seen = jax.lax.fori_loop(0, turns_b[b], visit, Partial.nothing(q_BMXH.shape))
        by_row = (x.reshape(B, M, W, R, *x.shape[3:]).swapaxes(1, 2) for x in seen)
        put = (old.at[mine.rows].set(new, mode="drop") for old, new in zip(so_far, by_row, strict=True))
        return Partial(*put)

    return jax.lax.fori_loop(0, used, block, Partial.nothing(q_SMRH.shape))
