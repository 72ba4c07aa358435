"""Decides which sample draws in which slot, and where its keys and values are: the host's side.

A lane holds requests that the same programs can draw together. A slot draws one sample at a time.
Samples enter free slots at any time, one by one, and leave them when they end. The pages of their
prompt are computed once, and all of them read these. A sample whose answer finds no free page
starts again later; its address gives the same tokens.

Axis letters: T pattern states, V vocabulary, D shards, N prompt pages, w model width, E readers;
``d`` is a shard's number.
"""

import dataclasses
import heapq
import itertools
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from atgrpo_jax.arrays.mesh import group_sharding, replicated
from atgrpo_jax.engines.local.decoding import Cache, Drawn, Sizes, Slots, Work, programs
from atgrpo_jax.engines.local.paged_attention import PageBlock, Passes, Readers
from atgrpo_jax.engines.local.prompt_pages import PromptPages
from atgrpo_jax.engines.protocol import Request, Usage
from atgrpo_jax.models.transformer import Transformer

BLOCKS = 8  # blocks of prompt pages in a call of the program
ENDED = 4  # a chunk is over when one in so many samples has ended, so that others get their slots


@dataclasses.dataclass(eq=False)
class Branch:
    """Holds what is drawn so far of one sample of a ticket."""

    ticket: "Ticket"
    k: int
    age: int  # counts entries into slots: the eldest has the lowest
    pages: list[int] = dataclasses.field(default_factory=list)  # pages of its answer
    tokens: list[int] = dataclasses.field(default_factory=list)
    logprobs: list[float] = dataclasses.field(default_factory=list)
    drawn_logprobs: list[float] = dataclasses.field(default_factory=list)
    stopped: bool = False

    def shorten(self, length: int) -> None:
        """Keeps the first ``length`` tokens, the last of which stopped the sample."""
        self.tokens = self.tokens[:length]
        self.logprobs = self.logprobs[:length]
        self.drawn_logprobs = self.drawn_logprobs[:length]
        self.stopped = True


@dataclasses.dataclass(eq=False)
class Ticket:
    """Holds a request on its way through a lane."""

    request: Request
    future: Any
    asked: float  # time.monotonic() when the request came
    adapter: int = 0  # number in its company
    scale: float = 1.0
    done: dict[int, Branch] = dataclasses.field(default_factory=dict)  # complete ones by k
    waiting: deque[int] = dataclasses.field(default_factory=deque)  # k of samples that have no slot
    pages: list[int] = dataclasses.field(default_factory=list)  # of its prompt, once it has a shard

    def enter(self, adapter: int, scale: float) -> None:
        """Resets the ticket for a lane in which nothing of it is drawn."""
        self.adapter = adapter
        self.scale = scale
        self.done = {}
        self.pages = []
        self.waiting = deque(range(len(self.request.addresses)))


class Item(NamedTuple):
    """Names a prompt page to compute."""

    ticket: Ticket
    pages: list[int]  # of the whole prompt
    number: int  # index of this page in ``pages``


class Shard:
    """Keeps the slots and pages of one part of a mesh."""

    def __init__(self, sizes: Sizes):
        self.free = list(range(sizes.slots))  # slots; a heap, the lowest first
        self.answer_pages = list(range(sizes.answer_pages))  # free ones; a heap
        self.prompts = PromptPages(sizes.prompt_pages, sizes.page)
        self.branches: dict[int, Branch] = {}  # by slot
        self.tickets: list[Ticket] = []
        self.items: list[Item] = []

    def leave(self, slot: int) -> Branch:
        branch = self.branches.pop(slot)
        heapq.heappush(self.free, slot)
        for page in branch.pages:
            heapq.heappush(self.answer_pages, page)
        return branch


class Lane:
    """Draws requests with programs compiled for ``sizes``; see patterns.py for ``pattern_TV``."""

    def __init__(
        self,
        model: Transformer,
        sizes: Sizes,
        mesh: Mesh | None,
        stop_ids: np.ndarray,
        pattern_TV: np.ndarray,
    ):
        self._programs = programs(model, sizes, mesh)
        self._sharding = None if mesh is None else group_sharding(mesh)
        self._stop_ids = stop_ids
        self._pattern_TV = pattern_TV
        self._pattern = pattern_TV if mesh is None else jax.device_put(pattern_TV, replicated(mesh))
        self._sizes = sizes
        self._cache: Cache | None = None
        self._slots = Slots.empty(sizes)
        self._shards = [Shard(sizes) for _ in range(sizes.shards)]
        self._queue: deque[Ticket] = deque()
        self._ages = itertools.count()
        self._asked = Usage()  # prompt tokens since the last chunk

    def add(self, ticket: Ticket) -> None:
        self._queue.append(ticket)

    @property
    def tickets(self) -> list[Ticket]:
        return [*(t for shard in self._shards for t in shard.tickets), *self._queue]

    @property
    def hungry(self) -> bool:
        """Returns whether slots will stay empty because too few samples wait."""
        waiting = sum(len(ticket.waiting) for ticket in self.tickets)
        return waiting < sum(len(shard.free) for shard in self._shards)

    def drop(self, ticket: Ticket) -> None:
        """Removes a ticket that nobody waits for any more."""
        if ticket in self._queue:
            self._queue.remove(ticket)
        for d, shard in enumerate(self._shards):
            if ticket in shard.tickets:
                for slot in [slot for slot, branch in shard.branches.items() if branch.ticket is ticket]:
                    self._leave(d, slot)
                self._release(shard, ticket)

    # On the host, before a chunk: which samples enter, and what the programs read.

    def admit(self) -> None:
        """Puts waiting samples into free slots, and gives all slots pages for the next chunk."""
        for d, shard in enumerate(self._shards):
            for ticket in shard.tickets:
                self._enter(d, ticket)
        while self._queue:
            d = max(range(len(self._shards)), key=lambda d: len(self._shards[d].free))
            if not self._shards[d].free or not self._begin(d, self._queue[0]):
                break
            self._queue.popleft()
        for d in range(len(self._shards)):
            self._provide(d)

    def _begin(self, d: int, ticket: Ticket) -> bool:
        """Puts a ticket into a shard. Returns whether there was room for its prompt."""
        shard = self._shards[d]
        prompt = ticket.request.prompt_ids
        taken = shard.prompts.take(ticket.request.policy, prompt)
        if taken is None:
            return False
        ticket.pages, known = taken
        shard.tickets.append(ticket)
        shard.items += [Item(ticket, ticket.pages, i) for i in range(known, len(ticket.pages))]
        self._asked += Usage(
            prompt_tokens=len(prompt), known_tokens=min(known * self._sizes.page, len(prompt))
        )
        self._enter(d, ticket)
        return True

    def _enter(self, d: int, ticket: Ticket) -> None:
        shard = self._shards[d]
        slots = self._slots
        while ticket.waiting and shard.free:
            k = ticket.waiting.popleft()
            at = (d, heapq.heappop(shard.free))
            shard.branches[at[1]] = Branch(ticket, k, next(self._ages))
            sampling = ticket.request.sampling
            slots.live[at] = True
            slots.prompt_page[at] = ticket.pages[-1]
            slots.have[at] = 0
            slots.pattern_state[at] = 0
            slots.prompt[at] = len(ticket.request.prompt_ids)
            slots.limit[at] = sampling.max_tokens
            slots.least[at] = sampling.min_tokens
            slots.key[at] = ticket.request.addresses[k].key_words()
            slots.scale[at] = 0.0
            if self._sizes.adapters:
                slots.scale[at][ticket.adapter] = ticket.scale
            slots.rules.temperature[at] = sampling.temperature
            slots.rules.top_k[at] = sampling.top_k
            slots.rules.top_p[at] = sampling.top_p
            slots.rules.min_p[at] = sampling.min_p
            slots.rules.never[at] = -1
            slots.rules.never[at][: len(sampling.banned)] = sampling.banned
            slots.answer[at] = self._sizes.answer_pages

    def _provide(self, d: int) -> None:
        """Gives each slot, eldest first, pages for what it may draw in a chunk.

        If there are no free pages, the youngest slots lose theirs and wait to start again.
        """
        shard = self._shards[d]
        sizes = self._sizes
        for slot, branch in sorted(shard.branches.items(), key=lambda item: item[1].age):
            if shard.branches.get(slot) is not branch:
                continue
            end = min(len(branch.tokens) + sizes.chunk, branch.ticket.request.sampling.max_tokens)
            while len(branch.pages) * sizes.answer_page < end and slot in shard.branches:
                if shard.answer_pages:
                    page = heapq.heappop(shard.answer_pages)
                    self._slots.answer[d, slot, len(branch.pages)] = page
                    branch.pages.append(page)
                else:
                    youngest = max(shard.branches, key=lambda slot: shard.branches[slot].age)
                    back = self._leave(d, youngest)
                    back.ticket.waiting.appendleft(back.k)

    def _leave(self, d: int, slot: int) -> Branch:
        self._slots.live[d, slot] = False
        self._slots.answer[d, slot] = self._sizes.answer_pages
        return self._shards[d].leave(slot)

    def _release(self, shard: Shard, ticket: Ticket) -> None:
        shard.tickets.remove(ticket)
        shard.prompts.leave(ticket.pages)

    def _work(self) -> Iterator[Work]:
        """Yields the prompt pages to compute, each in a later block than the one before it."""
        sizes = self._sizes
        plan: list[list[list[Item]]] = []  # items by block and shard
        for d, shard in enumerate(self._shards):
            block_of: dict[int, int] = {}
            for item in sorted(shard.items, key=lambda item: item.number):
                b = block_of.get(item.pages[item.number - 1], -1) + 1 if item.number else 0
                while b < len(plan) and len(plan[b][d]) == sizes.fill:
                    b += 1
                while b >= len(plan):
                    plan.append([[] for _ in self._shards])
                plan[b][d].append(item)
                block_of[item.pages[item.number]] = b
            shard.items = []
        for i in range(0, len(plan), BLOCKS):
            yield self._work_of(plan[i : i + BLOCKS])

    def _work_of(self, plan: Sequence[Sequence[Sequence[Item]]]) -> Work:
        sizes = self._sizes

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

    def _reading(self) -> tuple[Readers, Passes]:
        """Returns which pages the live slots attend to, and how far the loops over pages go."""
        sizes = self._sizes
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
        for d, shard in enumerate(self._shards):
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

    # On the devices.

    def draw(self, params: Any, adapters: Any) -> tuple[Drawn, Usage]:
        """Computes missing prompt pages, then draws a chunk of tokens in all slots. Blocks."""
        began = time.monotonic()
        cache = self._programs.empty() if self._cache is None else self._cache
        for work in self._work():
            cache = self._programs.prefill(cache, params, adapters, self._on_devices(work))
        jax.block_until_ready(cache.last_DNw)
        prefilled = time.monotonic()
        cache, drawn = self._programs.decode(cache, params, adapters, *self._inputs())
        drawn = jax.tree.map(np.asarray, drawn)
        self._cache = cache
        asked = self._asked
        self._asked = Usage()
        slot_steps = int(drawn.steps) * self._sizes.shards * self._sizes.slots
        times = Usage(
            prefill_s=prefilled - began, decode_s=time.monotonic() - prefilled, slot_steps=slot_steps
        )
        return drawn, asked + times

    @property
    def busy(self) -> bool:
        """Returns whether a ticket waits, or a slot holds a sample."""
        return bool(self.tickets) or any(shard.branches for shard in self._shards)

    def lowered(self, params: Any, adapters: Any) -> Any:
        """Returns the program that draws as JAX lowers it, for inspection."""
        return self._programs.decode.lower(self._cache, params, adapters, *self._inputs())

    def _inputs(self) -> tuple:
        readers, passes = self._reading()
        ended = max(int(self._slots.live.sum()) // ENDED, 1)
        slots, readers = self._on_devices((self._slots, readers))
        return slots, readers, passes, self._stop_ids, self._pattern, np.int32(ended)

    def _on_devices(self, tree: Any) -> Any:
        if self._sharding is None:
            return tree
        return jax.tree.map(lambda x: jax.device_put(x, self._sharding) if np.ndim(x) > 1 else x, tree)

    # On the host, after a chunk.

    def collect(self, drawn: Drawn, cut: Callable[[Branch], bool]) -> tuple[list[Ticket], Usage]:
        """Takes what was drawn. Returns the complete tickets, and the tokens of ended samples.

        ``cut`` shortens a branch that ends earlier, and returns whether it did.
        """
        complete = []
        tokens = 0
        self._slots.prompt_page[:] = -1
        for d, shard in enumerate(self._shards):
            for slot, branch in list(shard.branches.items()):
                at = d, slot
                new = int(drawn.have[at]) - len(branch.tokens)
                fresh = drawn.tokens[at][:new].tolist()
                branch.tokens += fresh
                branch.logprobs += drawn.logprobs[at][:new].tolist()
                branch.drawn_logprobs += drawn.drawn_logprobs[at][:new].tolist()
                branch.stopped = bool(drawn.stopped[at])
                self._slots.have[at] = drawn.have[at]
                if self._sizes.pattern_states:
                    for token in fresh:
                        self._slots.pattern_state[at] = self._pattern_TV[self._slots.pattern_state[at], token]
                if not cut(branch) and drawn.live[at]:
                    continue
                tokens += len(branch.tokens)
                self._leave(d, slot)
                ticket = branch.ticket
                ticket.done[branch.k] = branch
                if len(ticket.done) == len(ticket.request.addresses):
                    self._release(shard, ticket)
                    complete.append(ticket)
        return complete, Usage(tokens=tokens)
