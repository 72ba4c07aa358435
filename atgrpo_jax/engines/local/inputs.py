"""Says what the programs of a lane read: prompt pages to compute, and pages to attend to.

Axis letters: D shards, N prompt pages, E readers; ``d`` is a shard's number.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from atgrpo_jax.engines.local.lane_arrays import Sizes, Work
from atgrpo_jax.engines.local.paged_attention import PageBlock, Passes, Readers
from atgrpo_jax.engines.local.shards import Item, Shard
from atgrpo_jax.engines.local.tickets import Ticket

BLOCKS = 8  # blocks of prompt pages in a call of the program


def missing_pages(shards: Sequence[Shard], sizes: Sizes) -> Iterator[Work]:
    """Yields the prompt pages to compute, each in a later block than the one before it.

    Takes them from the shards.
    """
    plan: list[list[list[Item]]] = []  # items by block and shard
    for d, shard in enumerate(shards):
        block_of: dict[int, int] = {}
        for item in sorted(shard.items, key=lambda item: item.number):
            b = block_of.get(item.pages[item.number - 1], -1) + 1 if item.number else 0
            while b < len(plan) and len(plan[b][d]) == sizes.fill:
                b += 1
            while b >= len(plan):
                plan.append([[] for _ in shards])
            plan[b][d].append(item)
            block_of[item.pages[item.number]] = b
        shard.items = []
    for i in range(0, len(plan), BLOCKS):
        yield _work_of(plan[i : i + BLOCKS], sizes)


def _work_of(plan: Sequence[Sequence[Sequence[Item]]], sizes: Sizes) -> Work:
    def zeros(*shape, dtype=np.int32):
        return np.zeros((sizes.shards, BLOCKS, sizes.fill, *shape), dtype)

    page_blocks = PageBlock(
        zeros(sizes.page), zeros(), zeros(sizes.longest_prompt), zeros(), zeros() + sizes.prompt_pages
    )
    work = Work(
        page_blocks,
        zeros(sizes.adapters, dtype=np.float32),
        np.zeros(BLOCKS, np.int32),
        np.int32(len(plan)),
    )
    for b, by_shard in enumerate(plan):
        for d, items in enumerate(by_shard):
            for f, (ticket, pages, number) in enumerate(items):
                at = d, b, f
                tokens = ticket.request.prompt_ids[number * sizes.page : (number + 1) * sizes.page]
                page_blocks.tokens[at][: len(tokens)] = tokens
                page_blocks.number[at] = number
                page_blocks.last[at] = len(tokens) - 1
                page_blocks.page[at] = pages[number]
                page_blocks.table[at][: len(pages)] = pages
                if sizes.adapters:
                    work.scale[at][ticket.adapter] = ticket.scale
                work.passes[b] = max(work.passes[b], number)
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
