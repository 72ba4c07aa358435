"""Holds requests on their way through a lane, and turns what was drawn of them into samples."""

import dataclasses
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from atgrpo_jax.common.types import Sample, receipts
from atgrpo_jax.engines.local.patterns import check_match
from atgrpo_jax.engines.protocol import Request, stopped_length


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


def cut(branch: Branch, decode: Callable[[Sequence[int]], str] | None) -> bool:
    """Ends a branch at the first token with which its text holds a stop string.

    Returns whether it did. Raises RunError if a stopped sample does not match its pattern.
    """
    sampling = branch.ticket.request.sampling
    if decode is None:
        return False
    if sampling.pattern and branch.stopped:
        check_match(sampling.pattern, decode(branch.tokens))
    length = stopped_length(branch.tokens, sampling.stop, decode)
    if length is None:
        return False
    branch.shorten(length)
    return True


def answer(ticket: Ticket, version: int) -> None:
    """Answers a ticket with what was drawn. Incomplete samples finish with "error"."""
    request = ticket.request
    restricted = request.sampling.restricted

    def sample(branch: Branch | None, receipt: str) -> Sample:
        if branch is None:
            return Sample((), (), "error", version)
        return Sample(
            tokens=tuple(branch.tokens),
            logprobs=tuple(branch.logprobs),
            finish="stop" if branch.stopped else "length",
            version=version,
            drawn_logprobs=tuple(branch.drawn_logprobs) if restricted else None,
            receipt=receipt,
        )

    if not ticket.future.done():
        asked = receipts(request.policy, request.prompt_ids, request.sampling, request.addresses)
        ticket.future.set_result([sample(ticket.done.get(k), receipt) for k, receipt in enumerate(asked)])
