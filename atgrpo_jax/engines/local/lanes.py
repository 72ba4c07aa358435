"""Decides which sample draws in which slot, and where its keys and values are: the host's side.

A lane holds requests that the same programs can draw together. A slot draws one sample at a time.
Samples enter free slots at any time, one by one, and leave them when they end. The pages of their
prompt are computed once, and all of them read these. A sample whose answer finds no free page
starts again later; its address gives the same tokens.

Axis letters: T pattern states, V vocabulary, D shards, N prompt pages, w model width; ``d`` is a
shard's number.
"""

import heapq
import itertools
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from atgrpo_jax.arrays.mesh import replicated
from atgrpo_jax.engines.local.decoding import programs
from atgrpo_jax.engines.local.inputs import missing_pages, planned, reading
from atgrpo_jax.engines.local.lane_arrays import Cache, Drawn, Sizes, Slots
from atgrpo_jax.engines.local.shards import Item, Shard
from atgrpo_jax.engines.local.tickets import Branch, Ticket
from atgrpo_jax.engines.protocol import Usage
from atgrpo_jax.models.transformer import Transformer

ENDED = 4  # a chunk is over when one in so many samples has ended, so that others get their slots


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

    @property
    def asked(self) -> bool:
        """Returns whether there are requests that no shard has yet."""
        return bool(self._queue)

    def drop(self, ticket: Ticket) -> None:
        """Removes a ticket that nobody waits for any more."""
        if ticket in self._queue:
            self._queue.remove(ticket)
        for d, shard in enumerate(self._shards):
            if ticket in shard.tickets:
                for slot in [slot for slot, branch in shard.branches.items() if branch.ticket is ticket]:
                    self._leave(d, slot)
                self._release(shard, ticket)

    # On the host, before a chunk: which samples enter.

    def admit(self) -> None:
        """Puts waiting samples into free slots, and gives all slots pages for the next chunk."""
        begun = [
            (ticket, d) for d, shard in enumerate(self._shards) for ticket in shard.tickets if ticket.waiting
        ]
        begun.sort(key=lambda one: one[0].asked)
        while self._queue:
            while begun and begun[0][0].asked <= self._queue[0].asked:
                ticket, d = begun.pop(0)
                self._enter(d, ticket)
            d = max(range(len(self._shards)), key=lambda d: len(self._shards[d].free))
            if not self._shards[d].free or not self._begin(d, self._queue[0]):
                break
            self._queue.popleft()
        for ticket, d in begun:
            self._enter(d, ticket)
        for d in range(len(self._shards)):
            self._look_ahead(d)
            self._provide(d)

    def _look_ahead(self, d: int) -> None:
        """Begins tickets that get no slot yet, if their prompts fit into rows that are else empty."""
        shard = self._shards[d]
        blocks = planned(shard.items, self._sizes) if self._queue else []
        for ticket in list(self._queue):
            length = len(ticket.request.prompt_ids)
            block = next((block for block in blocks if block.fits(length)), None)
            if length > self._sizes.page or block is None:
                continue
            if not self._begin(d, ticket):
                break
            self._queue.remove(ticket)
            if shard.items[-1].ticket is ticket:
                block.add(shard.items[-1])

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

    # On the devices.

    def draw(self, params: Any, adapters: Any) -> tuple[Drawn, Usage]:
        """Computes missing prompt pages, then draws a chunk of tokens in all slots. Blocks."""
        began = time.monotonic()
        cache = self._programs.empty() if self._cache is None else self._cache
        issued = 1 + (self._cache is None)  # programs: the chunk, and the one that makes an empty cache
        for work in missing_pages(self._shards, self._sizes):
            issued += 1
            cache = self._programs.prefill(cache, params, adapters, work)
        jax.block_until_ready(cache.last_DNw)
        prefilled = time.monotonic()
        cache, drawn = self._programs.decode(cache, params, adapters, *self._inputs())
        drawn = jax.tree.map(np.asarray, drawn)
        self._cache = cache
        asked = self._asked
        self._asked = Usage()
        slot_steps = int(drawn.steps) * self._sizes.shards * self._sizes.slots
        times = Usage(
            prefill_s=prefilled - began,
            decode_s=time.monotonic() - prefilled,
            slot_steps=slot_steps,
            programs=issued,
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
        readers, passes = reading(self._shards, self._sizes)
        ended = max(int(self._slots.live.sum()) // ENDED, 1)
        return self._slots, readers, passes, self._stop_ids, self._pattern, np.int32(ended)

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
