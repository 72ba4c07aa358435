"""Computes attention over keys and values in pages, for sampling.

What a query sees is split into pages of one size. Each page is attended to alone, and the partial
results are merged in the order of the pages (a running softmax, 2205.14135). A page of which a
query sees nothing leaves the result as it was, to the last bit. So a query's result depends neither
on the pages that it visits because of other queries, nor on where its own pages are stored.

All samples of a prompt read its pages together: readers of W siblings, in blocks of readers. An answer
page belongs to one sample and is read where it lies, bank by bank, up to the last bank in use.

S samples (slots of a shard), F prompts computed at once, N query heads (before M: pages), M key
heads, H head size, R = N / M, X queries of a key head (after S: pages of an answer), p tokens of a
page, P pages of a prompt, n answer pages, E readers, b blocks, B = E / b, W siblings of a reader
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from atgrpo_jax.models.attention import HIDDEN, WIDE


class Pages(NamedTuple):
    """Holds keys and values of one layer, each in the order in which a query's products read it.

    With [.., position, head, ..], transposing took half of attention's time in decoding on a CPU.
    """

    keys: Any  # [N, M, H, p]
    values: Any  # [N, M, p, H]

    @classmethod
    def of(cls, k_NpMH: jax.Array, v_NpMH: jax.Array) -> "Pages":
        return cls(k_NpMH.transpose(0, 2, 3, 1), v_NpMH.transpose(0, 2, 1, 3))

    @classmethod
    def zeros(cls, shape: Sequence[int], dtype: Any) -> "Pages":
        """Returns zeros, with keys of ``shape`` [..., N, M, H, p]."""
        *outer, size, page = shape
        return cls(jnp.zeros(shape, dtype), jnp.zeros((*outer, page, size), dtype))

    def take(self, pages: jax.Array) -> "Pages":
        return Pages(self.keys[pages], self.values[pages])

    def put(self, pages_F: jax.Array, new: "Pages") -> "Pages":
        """Writes whole pages. Drops those with a number beyond the last page."""
        return jax.tree.map(lambda old, x: old.at[pages_F].set(x, mode="drop"), self, new)

    def put_offsets(
        self, pages_S: jax.Array, offsets_S: jax.Array, k_SMH: jax.Array, v_SMH: jax.Array
    ) -> "Pages":
        """Writes one place in each of the pages. Drops those with a number beyond the last page."""
        return Pages(
            self.keys.at[pages_S, :, :, offsets_S].set(k_SMH, mode="drop"),
            self.values.at[pages_S, :, offsets_S].set(v_SMH, mode="drop"),
        )


class Partial(NamedTuple):
    """Holds attention over a part of what a query sees.

    ``total`` is the sum of exp(score - best), ``out`` the sum of the values times that.
    """

    out: jax.Array  # [..., H]
    best: jax.Array  # [...]
    total: jax.Array  # [...]

    @classmethod
    def nothing(cls, shape: Sequence[int]) -> "Partial":
        """Returns attention over nothing, with ``out`` of ``shape`` [..., H]."""
        zeros = jnp.zeros(shape[:-1], jnp.float32)
        return cls(jnp.zeros(shape, jnp.float32), jnp.full_like(zeros, HIDDEN), zeros)

    def merge(self, other: "Partial") -> "Partial":
        best = jnp.maximum(self.best, other.best)
        mine = jnp.exp(self.best - best)
        its = jnp.exp(other.best - best)
        return Partial(
            self.out * mine[..., None] + other.out * its[..., None],
            best,
            self.total * mine + other.total * its,
        )

    def result(self) -> jax.Array:
        return self.out / jnp.maximum(self.total, 1e-30)[..., None]  # empty slots see nothing


def partial(q_NMXH: jax.Array, pages: Pages, sees: jax.Array) -> Partial:
    """Attends with X queries to each key head of each page.

    They see what ``sees`` (broadcast to [N, M, X, p]) says.
    """
    scores = jnp.einsum("nmxh,nmhp->nmxp", q_NMXH, pages.keys, **WIDE)
    scores = jnp.where(sees, scores, HIDDEN)
    best = scores.max(-1)
    probs = jnp.exp(scores - best[..., None])
    out = jnp.einsum("nmxp,nmph->nmxh", probs.astype(pages.values.dtype), pages.values, **WIDE)
    return Partial(out, best, probs.sum(-1))


class PageBlock(NamedTuple):
    """Holds a page of each of F prompts, to be computed after its earlier pages, as arrays."""

    rows: Any  # [F, p] where its tokens are in their block; a number beyond the last row: no token
    number: Any  # [F] index of the page in its prompt
    table: Any  # [F, P] pages of the prompt
    last: Any  # [F] row of its last token
    page: Any  # [F] where it is stored; a number beyond the last page: nowhere


def prefill_attention(
    q_FpNH: jax.Array,
    k_FpMH: jax.Array,
    v_FpMH: jax.Array,
    prompts: Pages,
    page_block: PageBlock,
    passes: jax.Array,
    window: int | None = None,
) -> tuple[jax.Array, Pages]:
    """Returns attention [F, p, N, H], and the prompt pages with the new ones written into them.

    A token sees the earlier pages of its prompt, and the tokens of its page up to itself; of these
    only the last ``window``, if that is given.
    ``passes`` is the most earlier pages of any prompt; a prompt that has fewer does not see the
    others.
    """
    F, p, N, H = q_FpNH.shape
    M = k_FpMH.shape[2]
    q = (q_FpNH * H**-0.5).reshape(F, p, M, N // M, H).transpose(0, 2, 3, 1, 4).reshape(F, M, -1, H)

    places = jnp.arange(p)
    ahead_Xp = jnp.tile(places[:, None] - places, (N // M, 1))  # of a token before the key at a place

    def near(pages_F11) -> Any:
        """Returns [F, X, p]: which tokens of pages so far back are in the window."""
        return True if window is None else ahead_Xp + pages_F11 * p < window

    def earlier(j, so_far):
        back_F11 = (page_block.number - j)[:, None, None]
        sees = ((back_F11 > 0) & near(back_F11))[:, None]
        return so_far.merge(partial(q, prompts.take(page_block.table[:, j]), sees))

    own = Pages.of(k_FpMH, v_FpMH)
    prompts = prompts.put(page_block.page, own)  # before the loop: after it, XLA would copy all
    so_far = jax.lax.fori_loop(0, passes, earlier, Partial.nothing(q.shape))
    out = so_far.merge(partial(q, own, (ahead_Xp >= 0) & near(0))).result()
    out = out.reshape(F, M, N // M, p, H).transpose(0, 3, 1, 2, 4).reshape(q_FpNH.shape)
    return out.astype(q_FpNH.dtype), prompts


class Readers(NamedTuple):
    """Says which slots read which prompt: E readers of W siblings, in blocks of equal size."""

    slots: Any  # [E, W]; a number beyond the last slot: none
    table: Any  # [E, P] pages of the prompt
    lengths: Any  # [E] of the prompts


class Owners(NamedTuple):
    """Says which slot's answer each page holds."""

    slots: Any  # [n]; 0 if no slot owns the page
    starts: Any  # [n] tokens of the answer before this page; large if no slot owns it


class Passes(NamedTuple):
    """Says how far the loops over pages go, in all shards alike, for the samples that are in."""

    prompt: Any  # [b] pages of the longest prompt of each block of readers; 0 if there is none
    banks: Any  # how many banks to read, up to the last one in use
    answer: Any  # pages of the longest answer


def answer_owners(table_SX: jax.Array, pages: int, page: int) -> Owners:
    """Returns the owners of all pages. Numbers in ``table_SX`` beyond the last page mean none."""
    S, X = table_SX.shape
    slots_SX = jnp.broadcast_to(jnp.arange(S, dtype=jnp.int32)[:, None], (S, X))
    starts_SX = jnp.broadcast_to(jnp.arange(X, dtype=jnp.int32) * page, (S, X))
    return Owners(
        jnp.zeros(pages, jnp.int32).at[table_SX].set(slots_SX, mode="drop"),
        jnp.full(pages, 1 << 30, jnp.int32).at[table_SX].set(starts_SX, mode="drop"),
    )


def decode_attention(
    q_SNH: jax.Array,
    count_S: jax.Array,
    prompts: Pages,
    answers: Sequence[Pages],
    readers: Readers,
    owners: Owners,
    table_SX: jax.Array,
    passes: Passes,
    window: int | None = None,
) -> jax.Array:
    """Returns [S, N, H]: attention of one query of each sample.

    The query sees its prompt, then its answer up to token number ``count``; of these only the last
    ``window`` tokens, if that is given.

    Args:
      answers: banks of equally many pages, numbered from the first bank's to the last bank's.
      table_SX: answer pages of each sample.
    """
    S, N, H = q_SNH.shape
    M = prompts.keys.shape[1]
    q_SMRH = (q_SNH * H**-0.5).reshape(S, M, N // M, H)
    seen = _prompts(q_SMRH, count_S, prompts, readers, passes.prompt, window)
    size = answers[0].keys.shape[-1]
    of_bank = jax.tree.map(lambda x: x.reshape(len(answers), -1), owners)
    parts = [
        jax.lax.cond(
            b < passes.banks,
            lambda q, pages, slots, starts: _answers(q, count_S, pages, slots, starts, window),
            lambda q, pages, slots, starts: Partial.nothing((len(slots), *q.shape[1:])),
            q_SMRH,
            pages,
            of_bank.slots[b],
            of_bank.starts[b],
        )
        for b, pages in enumerate(answers)
    ]
    by_page = jax.tree.map(lambda *x: jnp.concatenate(x), *parts)

    def read(j, so_far):
        mine = jax.tree.map(lambda x: x.at[table_SX[:, j]].get(mode="clip"), by_page)
        sees_S11 = (j * size <= count_S)[:, None, None]
        return so_far.merge(mine._replace(best=jnp.where(sees_S11, mine.best, HIDDEN)))

    out_SMRH = jax.lax.fori_loop(0, passes.answer, read, seen).result()
    return out_SMRH.reshape(q_SNH.shape).astype(q_SNH.dtype)


def _answers(q_SMRH, count_S, pages: Pages, slots_n, starts_n, window: int | None) -> Partial:
    """Returns the attention over every page of a bank, of the sample that owns the page."""
    positions_np = starts_n[:, None] + jnp.arange(pages.keys.shape[-1])
    sees_np = positions_np <= count_S[slots_n][:, None]
    if window is not None:
        sees_np &= positions_np > count_S[slots_n][:, None] - window
    return partial(q_SMRH[slots_n], pages, sees_np[:, None, None])


def _prompts(
    q_SMRH: jax.Array,
    count_S: jax.Array,
    prompts: Pages,
    readers: Readers,
    passes_b: jax.Array,
    window: int | None,
) -> Partial:
    """Returns the attention of each sample over its prompt."""
    _, M, R, H = q_SMRH.shape
    page = prompts.keys.shape[-1]
    E, W = readers.slots.shape
    blocks = len(passes_b)
    B = E // blocks
    used = jnp.sum(passes_b > 0)

    def block(b, so_far):
        mine = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, b * B, B), readers)
        q_BMXH = q_SMRH.at[mine.slots].get(mode="clip").swapaxes(1, 2).reshape(B, M, W * R, H)
        # A sibling's token number ``count`` comes right after those of the prompt.
        own_BW = mine.lengths[:, None] + count_S.at[mine.slots].get(mode="clip")
        own_BX = jnp.repeat(own_BW, R, axis=1)

        def visit(j, seen):
            places = j * page + jnp.arange(page)
            sees = (places < mine.lengths[:, None])[:, None, None]
            if window is not None:
                sees &= (places > own_BX[..., None] - window)[:, None]
            return seen.merge(partial(q_BMXH, prompts.take(mine.table[:, j]), sees))

        seen = jax.lax.fori_loop(0, passes_b[b], visit, Partial.nothing(q_BMXH.shape))
        by_slot = (x.reshape(B, M, W, R, *x.shape[3:]).swapaxes(1, 2) for x in seen)
        put = (old.at[mine.slots].set(new, mode="drop") for old, new in zip(so_far, by_slot, strict=True))
        return Partial(*put)

    return jax.lax.fori_loop(0, used, block, Partial.nothing(q_SMRH.shape))
