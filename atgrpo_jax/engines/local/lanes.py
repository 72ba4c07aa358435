"""Decides which sample draws in which row, and where its keys and values are: the host's side.

A lane holds requests that the same programs can draw together. In the engine, a row is a place in
which one sample draws. Samples enter free rows at any time, one by one, and leave them when they
end. The pages of their prompt are computed once, and all of them read these. A sample whose answer
finds no free page starts again later; its address gives the same tokens. Axis letters: T pattern
states, V vocabulary, D shards, N prompt pages, w model width, E tiles; ``d`` is a shard's number.
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
from atgrpo_jax.engines.local.decoding import Drawn, Rows, Sizes, State, Work, programs
from atgrpo_jax.engines.local.paged_attention import Chunk, Tiles, Turns
from atgrpo_jax.engines.local.prompt_pages import PromptPages
from atgrpo_jax.engines.protocol import Request, Usage
from atgrpo_jax.models.transformer import Transformer

BLOCKS = 8  # blocks of prompt pages in a call of the program
ENDED = 4  # a chunk is over when one in so many samples has ended, so that others get their rows


@dataclasses.dataclass(eq=False)
class Branch:
    """Holds what is drawn so far of one sample of a ticket."""

    ticket: "Ticket"
    k: int
    age: int  # counts entries into rows: the eldest has the lowest
    pages: list[int] = dataclasses.field(default_factory=list)  # pages of its answer
    tokens: list[int] = dataclasses.field(default_factory=list)
    logprobs: list[float] = dataclasses.field(default_factory=list)
    drawn_logprobs: list[float] = dataclasses.field(default_factory=list)
    stopped: bool = False

    def shorten(self, length: int) -> None:
        """Keeps the first ``length`` tokens, the last of which stopped the sample."""
        self.tokens, self.logprobs = self.tokens[:length], self.logprobs[:length]
        self.drawn_logprobs, self.stopped = self.drawn_logprobs[:length], True


@dataclasses.dataclass(eq=False)
class Ticket:
    """Holds a request on its way through a lane."""

    request: Request
    future: Any
    asked: float  # time.monotonic() when the request came
    adapter: int = 0  # number in its family
    scale: float = 1.0
    done: dict[int, Branch] = dataclasses.field(default_factory=dict)  # complete ones by k
    waiting: deque[int] = dataclasses.field(default_factory=deque)  # k of samples that have no row
    pages: list[int] = dataclasses.field(default_factory=list)  # of its prompt, once it has a shard

    def enter(self, adapter: int, scale: float) -> None:
        """Resets the ticket for a lane in which nothing of it is drawn."""
        self.adapter, self.scale = adapter, scale
        self.done, self.pages = {}, []
        self.waiting = deque(range(len(self.request.addresses)))


class Item(NamedTuple):
    """Names a prompt page to compute."""

    ticket: Ticket
    pages: list[int]  # of the whole prompt
    number: int  # index of this page in ``pages``


class Shard:
    """Keeps the rows and pages of one part of a mesh."""

    def __init__(self, z: Sizes):
        self.free = list(range(z.rows))  # rows; a heap, the lowest first
        self.answer_pages = list(range(z.answer_pages))  # free ones; a heap
        self.prompts = PromptPages(z.prompt_pages, z.page)
        self.branches: dict[int, Branch] = {}  # by row
        self.tickets: list[Ticket] = []
        self.items: list[Item] = []

    def leave(self, row: int) -> Branch:
        branch = self.branches.pop(row)
        heapq.heappush(self.free, row)
        for page in branch.pages:
            heapq.heappush(self.answer_pages, page)
        return branch


class Lane:
    """Draws requests with programs compiled for ``z``; see patterns.py for ``pattern_TV``."""

    def __init__(
        self, model: Transformer, z: Sizes, mesh: Mesh | None, stop_ids: np.ndarray, pattern_TV: np.ndarray
    ):
        self._programs = programs(model, z, mesh)
        self._sharding = None if mesh is None else group_sharding(mesh)
        self._stop_ids = stop_ids
        self._pattern_TV = pattern_TV
        self._pattern = pattern_TV if mesh is None else jax.device_put(pattern_TV, replicated(mesh))
        self._z = z
        self._state: State | None = None
        self._rows = Rows.empty(z)
        self._shards = [Shard(z) for _ in range(z.shards)]
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
        """Returns whether rows will stay empty because too few samples wait."""
        waiting = sum(len(ticket.waiting) for ticket in self.tickets)
        return waiting < sum(len(shard.free) for shard in self._shards)

    def drop(self, ticket: Ticket) -> None:
        """Removes a ticket that nobody waits for any more."""
        if ticket in self._queue:
            self._queue.remove(ticket)
        for d, shard in enumerate(self._shards):
            if ticket in shard.tickets:
                for row in [row for row, branch in shard.branches.items() if branch.ticket is ticket]:
                    self._leave(d, row)
                self._release(shard, ticket)

    # On the host, before a chunk: which samples enter, and what the programs read.

    def admit(self) -> None:
        """Puts waiting samples into free rows, and gives all rows pages for the next chunk."""
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
        shard, prompt = self._shards[d], ticket.request.prompt_ids
        taken = shard.prompts.take(ticket.request.policy, prompt)
        if taken is None:
            return False
        ticket.pages, known = taken
        shard.tickets.append(ticket)
        shard.items += [Item(ticket, ticket.pages, i) for i in range(known, len(ticket.pages))]
        self._asked += Usage(prompt_tokens=len(prompt), known_tokens=min(known * self._z.page, len(prompt)))
        self._enter(d, ticket)
        return True

    def _enter(self, d: int, ticket: Ticket) -> None:
        shard, rows = self._shards[d], self._rows
        while ticket.waiting and shard.free:
            k, at = ticket.waiting.popleft(), (d, heapq.heappop(shard.free))
            shard.branches[at[1]] = Branch(ticket, k, next(self._ages))
            sampling = ticket.request.sampling
            rows.live[at], rows.start[at], rows.have[at] = True, ticket.pages[-1], 0
            rows.state[at] = 0
            rows.prompt[at] = len(ticket.request.prompt_ids)
            rows.limit[at], rows.least[at] = sampling.max_tokens, sampling.min_tokens
            rows.key[at] = ticket.request.addresses[k].key_words()
            rows.scale[at] = 0.0
            if self._z.adapters:
                rows.scale[at][ticket.adapter] = ticket.scale
            rows.rules.temperature[at], rows.rules.top_k[at] = sampling.temperature, sampling.top_k
            rows.rules.top_p[at], rows.rules.min_p[at] = sampling.top_p, sampling.min_p
            rows.rules.never[at] = -1
            rows.rules.never[at][: len(sampling.banned)] = sampling.banned
            rows.answer[at] = self._z.answer_pages

    def _provide(self, d: int) -> None:
        """Gives each row, eldest first, pages for what it may draw in a chunk.

        If there are no free pages, the youngest rows lose theirs and wait to start again.
        """
        shard, z = self._shards[d], self._z
        for row, branch in sorted(shard.branches.items(), key=lambda item: item[1].age):
            if shard.branches.get(row) is not branch:
                continue
            end = min(len(branch.tokens) + z.chunk, branch.ticket.request.sampling.max_tokens)
            while len(branch.pages) * z.place < end and row in shard.branches:
                if shard.answer_pages:
                    page = heapq.heappop(shard.answer_pages)
                    self._rows.answer[d, row, len(branch.pages)] = page
                    branch.pages.append(page)
                else:
                    youngest = max(shard.branches, key=lambda row: shard.branches[row].age)
                    back = self._leave(d, youngest)
                    back.ticket.waiting.appendleft(back.k)

    def _leave(self, d: int, row: int) -> Branch:
        self._rows.live[d, row] = False
        self._rows.answer[d, row] = self._z.answer_pages
        return self._shards[d].leave(row)

    def _release(self, shard: Shard, ticket: Ticket) -> None:
        shard.tickets.remove(ticket)
        shard.prompts.leave(ticket.pages)

    def _work(self) -> Iterator[Work]:
        """Yields the prompt pages to compute, each in a later block than the one before it."""
        z = self._z
        plan: list[list[list[Item]]] = []  # items by block and shard
        for d, shard in enumerate(self._shards):
            block_of: dict[int, int] = {}
            for item in sorted(shard.items, key=lambda item: item.number):
                b = block_of.get(item.pages[item.number - 1], -1) + 1 if item.number else 0
                while b < len(plan) and len(plan[b][d]) == z.fill:
                    b += 1
                while b >= len(plan):
                    plan.append([[] for _ in self._shards])
                plan[b][d].append(item)
                block_of[item.pages[item.number]] = b
            shard.items = []
        for i in range(0, len(plan), BLOCKS):
            yield self._work_of(plan[i : i + BLOCKS])

    def _work_of(self, plan: Sequence[Sequence[Sequence[Item]]]) -> Work:
        z = self._z

        def zeros(*sizes, dtype=np.int32):
            return np.zeros((z.shards, BLOCKS, z.fill, *sizes), dtype)

        chunks = Chunk(zeros(z.page), zeros(), zeros(z.longest_prompt), zeros(), zeros() + z.prompt_pages)
        work = Work(
            chunks, zeros(z.adapters, dtype=np.float32), np.zeros(BLOCKS, np.int32), np.int32(len(plan))
        )
        for b, by_shard in enumerate(plan):
            for d, items in enumerate(by_shard):
                for f, (ticket, pages, number) in enumerate(items):
                    at = d, b, f
                    tokens = ticket.request.prompt_ids[number * z.page : (number + 1) * z.page]
                    chunks.tokens[at][: len(tokens)] = tokens
                    chunks.number[at], chunks.last[at] = number, len(tokens) - 1
                    chunks.page[at] = pages[number]
                    chunks.table[at][: len(pages)] = pages
                    if z.adapters:
                        work.scale[at][ticket.adapter] = ticket.scale
                    work.turns[b] = max(work.turns[b], number)
        return work

    def _reading(self) -> tuple[Tiles, Turns]:
        """Returns which pages the live rows attend to, and how far the loops over pages go."""
        z = self._z
        in_block = -(-z.rows // z.blocks)
        E = z.blocks * in_block  # at least one for each row, which may be alone with its prompt
        tiles = Tiles(
            np.full((z.shards, E, z.tile), z.rows, np.int32),
            np.zeros((z.shards, E, z.longest_prompt), np.int32),
            np.zeros((z.shards, E), np.int32),
        )
        turns = np.zeros((z.blocks, in_block), np.int32)
        highest, longest = 0, 0
        for d, shard in enumerate(self._shards):
            by_ticket: dict[Ticket, list[int]] = {}
            for row, branch in shard.branches.items():
                by_ticket.setdefault(branch.ticket, []).append(row)
                highest = max(highest, *branch.pages)
                longest = max(longest, len(branch.pages))
            e = 0
            # Longest first, since a block visits as many pages as its longest prompt has.
            for ticket, members in sorted(by_ticket.items(), key=lambda item: -len(item[0].pages)):
                for i in range(0, len(members), z.tile):
                    tile = members[i : i + z.tile]
                    tiles.rows[d, e, : len(tile)] = tile
                    tiles.table[d, e, : len(ticket.pages)] = ticket.pages
                    tiles.lengths[d, e] = len(ticket.request.prompt_ids)
                    turns.flat[e] = max(turns.flat[e], len(ticket.pages))
                    e += 1
        bank = z.answer_pages // z.banks
        return tiles, Turns(turns.max(axis=1), np.int32(highest // bank + 1), np.int32(longest))

    # On the devices.

    def draw(self, params: Any, adapters: Any) -> tuple[Drawn, Usage]:
        """Computes missing prompt pages, then draws a chunk of tokens in all rows. Blocks."""
        began = time.monotonic()
        state = self._programs.empty() if self._state is None else self._state
        for work in self._work():
            state = self._programs.prefill(state, params, adapters, self._place(work))
        jax.block_until_ready(state.last_DNw)
        prefilled = time.monotonic()
        state, drawn = self._programs.decode(state, params, adapters, *self._inputs())
        drawn = jax.tree.map(np.asarray, drawn)
        self._state = state
        asked, self._asked = self._asked, Usage()
        places = int(drawn.steps) * self._z.shards * self._z.rows
        times = Usage(prefill_s=prefilled - began, decode_s=time.monotonic() - prefilled, places=places)
        return drawn, asked + times

    @property
    def busy(self) -> bool:
        """Returns whether a ticket waits, or a row holds a sample."""
        return bool(self.tickets) or any(shard.branches for shard in self._shards)

    def lowered(self, params: Any, adapters: Any) -> Any:
        """Returns the program that draws as JAX lowers it, for inspection."""
        return self._programs.decode.lower(self._state, params, adapters, *self._inputs())

    def _inputs(self) -> tuple:
        tiles, turns = self._reading()
        ended = max(int(self._rows.live.sum()) // ENDED, 1)
        rows, tiles = self._place((self._rows, tiles))
        return rows, tiles, turns, self._stop_ids, self._pattern, np.int32(ended)

    def _place(self, tree: Any) -> Any:
        if self._sharding is None:
            return tree
        return jax.tree.map(lambda x: jax.device_put(x, self._sharding) if np.ndim(x) > 1 else x, tree)

    # On the host, after a chunk.

    def collect(self, drawn: Drawn, cut: Callable[[Branch], bool]) -> tuple[list[Ticket], Usage]:
        """Takes what was drawn. Returns the complete tickets, and the tokens of ended samples.

        ``cut`` shortens a branch that ends earlier, and returns whether it did.
        """
        complete, tokens = [], 0
        self._rows.start[:] = -1
        for d, shard in enumerate(self._shards):
            for row, branch in list(shard.branches.items()):
                at = d, row
                new = int(drawn.have[at]) - len(branch.tokens)
                fresh = drawn.tokens[at][:new].tolist()
                branch.tokens += fresh
                branch.logprobs += drawn.logprobs[at][:new].tolist()
                branch.drawn_logprobs += drawn.drawn_logprobs[at][:new].tolist()
                branch.stopped = bool(drawn.stopped[at])
                self._rows.have[at] = drawn.have[at]
                if self._z.states:
                    for token in fresh:
                        self._rows.state[at] = self._pattern_TV[self._rows.state[at], token]
                if not cut(branch) and drawn.live[at]:
                    continue
                tokens += len(branch.tokens)
                self._leave(d, row)
                ticket = branch.ticket
                ticket.done[branch.k] = branch
                if len(ticket.done) == len(ticket.request.addresses):
                    self._release(shard, ticket)
                    complete.append(ticket)
        return complete, Usage(tokens=tokens)
