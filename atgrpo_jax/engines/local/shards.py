"""Keeps the slots and pages of one part of a mesh, and the requests that are in them."""

import heapq
from collections.abc import Sequence
from typing import NamedTuple

from atgrpo_jax.engines.local.lane_arrays import Sizes
from atgrpo_jax.engines.local.prompt_pages import PromptPages
from atgrpo_jax.engines.local.tickets import Branch, Ticket


class Item(NamedTuple):
    """Names a prompt page to compute."""

    ticket: Ticket
    pages: list[int]  # of the whole prompt
    number: int  # index of this page in ``pages``

    def tokens(self, page: int) -> Sequence[int]:
        """Returns the tokens in it, if a page holds so many."""
        return self.ticket.request.prompt_ids[self.number * page : (self.number + 1) * page]


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
