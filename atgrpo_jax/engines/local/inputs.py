"""Says what the programs of a lane read: prompt tokens to compute, and pages to attend to.

Axis letters: D shards, N prompt pages, E readers; ``d`` is a shard's number.
"""

import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from atgrpo_jax.engines.local.lane_arrays import Sizes, Work
from atgrpo_jax.engines.local.paged_attention import PageBlock, Passes, Readers
from atgrpo_jax.engines.local.shards import Item, Shard
from atgrpo_jax.engines.local.tickets import Ticket

BLOCKS = 8  # blocks of prompt tokens in a call of the program
ROUNDS = 4  # most rounds of attention in a block


class Block:
    """Holds prompt pages of one shard whose tokens are computed together."""

    def __init__(self, sizes: Sizes):
        self._sizes = sizes
        self.items: list[Item] = []
        self.tokens = 0

    def fits(self, tokens: int) -> bool:
        room = len(self.items) < ROUNDS * self._sizes.fill
        return room and self.tokens + tokens <= self._sizes.together

    def add(self, item: Item) -> None:
        self.items.append(item)
        self.tokens += len(item.tokens(self._sizes.page))


def missing_pages(shards: Sequence[Shard], sizes: Sizes) -> Iterator[Work]:
    """Yields the prompt pages to compute, each in a later block than the one before it.

    Takes them from the shards.
    """
    plans = [planned(shard.items, sizes) for shard in shards]
    for shard in shards:
        shard.items = []
    plan = list(itertools.zip_longest(*plans))
    for i in range(0, len(plan), BLOCKS):
        yield _work_of(plan[i : i + BLOCKS], sizes)


def planned(items: Sequence[Item], sizes: Sizes) -> list[Block]:
    """Returns the blocks in which these pages are computed."""
    blocks: list[Block] = []
    block_of: dict[int, int] = {}
    # Long ones first, and short ones where these leave room.
    for item in sorted(items, key=lambda item: (item.number, -len(item.tokens(sizes.page)))):
        tokens = len(item.tokens(sizes.page))
        b = block_of.get(item.pages[item.number - 1], -1) + 1 if item.number else 0
        while b < len(blocks) and not blocks[b].fits(tokens):
            b += 1
        while b >= len(blocks):
            blocks.append(Block(sizes))
        blocks[b].add(item)
        block_of[item.pages[item.number]] = b
    return blocks


def _work_of(plan: Sequence[Sequence[Block | None]], sizes: Sizes) -> Work:
    def full(value, *shape, dtype=np.int32):
        return np.full((sizes.shards, BLOCKS, *shape), value, dtype)

    rounds = ROUNDS, sizes.fill
    pages = PageBlock(
        full(sizes.together, *rounds, sizes.page),
        full(0, *rounds),
        full(0, *rounds, sizes.longest_prompt),
        full(0, *rounds),
        full(sizes.prompt_pages, *rounds),
    )
    work = Work(
        full(0, sizes.together),
        full(0, sizes.together),
        full(0, sizes.together, sizes.adapters, dtype=np.float32),
        pages,
        np.zeros((BLOCKS, ROUNDS), np.int32),
        np.zeros(BLOCKS, np.int32),
        np.int32(len(plan)),
    )
    for b, by_shard in enumerate(plan):
        for d, block in enumerate(by_shard):
            row = 0
            for i, item in enumerate(block.items if block else ()):
                ticket, own, number = item
                r, f = divmod(i, sizes.fill)
                at = d, b, r, f
                tokens = item.tokens(sizes.page)
                rows = np.arange(row, row + len(tokens))
                row += len(tokens)
                work.tokens[d, b, rows] = tokens
                work.positions[d, b, rows] = number * sizes.page + np.arange(len(tokens))
                if sizes.adapters:
                    work.scale[d, b, rows, ticket.adapter] = ticket.scale
                pages.rows[at][: len(tokens)] = rows
                pages.number[at] = number
                pages.last[at] = rows[-1]
                pages.page[at] = own[number]
                pages.table[at][: len(own)] = own
                work.passes[b, r] = max(work.passes[b, r], number)
                work.rounds[b] = max(work.rounds[b], r + 1)
    return work


def reading(shards: Sequence[Shard], sizes: Sizes) -> tuple[Readers, Passes]:
    """Returns which pages the live slots attend to, and how far the loops over pages go."""
    in_block = -(-sizes.slots // sizes.blocks)
    E = sizes.blocks * in_block  # at least one for each slot, which may be alone with its prompt
    readers = Readers(
        np.full((sizes.shards, E, sizes.siblings), sizes.slots, np.int32),
        np.zeros((sizes.shards, E, sizes.longest_prompt), np.int32),
        np.zeros((sizes.shards, E), np.int32),
    )
    passes = np.zeros((sizes.blocks, in_block), np.int32)
    highest = 0
    longest = 0
    for d, shard in enumerate(shards):
        by_ticket: dict[Ticket, list[int]] = {}
        for slot, branch in shard.branches.items():
            by_ticket.setdefault(branch.ticket, []).append(slot)
            highest = max(highest, *branch.pages)
            longest = max(longest, len(branch.pages))
        e = 0
        # Longest first, since a block visits as many pages as its longest prompt has.
        for ticket, members in sorted(by_ticket.items(), key=lambda item: -len(item[0].pages)):
            for i in range(0, len(members), sizes.siblings):
                siblings = members[i : i + sizes.siblings]
                readers.slots[d, e, : len(siblings)] = siblings
                readers.table[d, e, : len(ticket.pages)] = ticket.pages
                readers.lengths[d, e] = len(ticket.request.prompt_ids)
                passes.flat[e] = max(passes.flat[e], len(ticket.pages))
                e += 1
    bank = sizes.answer_pages // sizes.banks
    return readers, Passes(passes.max(axis=1), np.int32(highest // bank + 1), np.int32(longest))
