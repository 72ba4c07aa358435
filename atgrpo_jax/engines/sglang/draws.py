"""Draws groups from the servers of a fleet: another server is asked if one fails or takes long."""

import asyncio
import contextlib
import dataclasses
import itertools
import random
import time
import uuid
from collections.abc import Sequence
from typing import Any

from atgrpo_jax.common.errors import RunError
from atgrpo_jax.common.progress import say
from atgrpo_jax.common.types import Sample, receipts
from atgrpo_jax.engines.protocol import Request, Served, Usage
from atgrpo_jax.engines.sglang.fleet import HEALTH, Fleet
from atgrpo_jax.engines.sglang.secrets import shown
from atgrpo_jax.engines.sglang.servers import (
    ASK_S,
    Refused,
    Server,
    ServerError,
    Stale,
    Unreachable,
    cached_tokens,
    read_sample,
    sampling_params,
)


class _Try:
    """Holds the state of one try to draw a group.

    ``servers`` has one server; if there is a router, it has all, because the router chooses one.

    ``ready`` says that the servers hold the right weights and that one of them draws. ``due`` is
    the time (time.monotonic) at which another server is asked too. That is soon while these are
    not ready. Later it is each time after half of the time that is left.
    """

    def __init__(self, servers: Sequence[Server], end: float):
        self.servers = servers
        self._end = end
        self.ready = False
        self.due = time.monotonic() + min(ASK_S, (end - time.monotonic()) / 2)

    def draws(self) -> None:
        self.ready = True
        self.put_off()

    def put_off(self) -> None:
        now = time.monotonic()
        self.due = now + max((self._end - now) / 2, 1.0)


Drawn = tuple[Sequence[Sample], Usage]
_Running = dict[asyncio.Task[Drawn], _Try]


class Drawer:
    """Draws groups. ``retries`` counts the tries that failed."""

    def __init__(self, served: Served, router: Server | None, deadline_s: float, attempts: int):
        """
        Args:
          deadline_s: seconds for a group, all tries together.
          attempts: failed tries at a group before it is given up. Tries that reached no server do
            not count.
        """
        self._served = served
        self._router = router
        self._deadline_s = deadline_s
        self._attempts = attempts
        self._drawing: set[asyncio.Future] = set()
        self._aborts: set[asyncio.Future] = set()
        self.retries = 0

    async def draw(self, request: Request, fleet: Fleet, version: int) -> Drawn:
        """Draws a group, and returns its samples and what they cost.

        Past the deadline every sample is an error, if a server was drawing and one still answers.
        Raises RunError if a server refuses the request, if none can be reached, or if all hang or
        give wrong answers.
        """
        own = asyncio.current_task()
        assert own is not None
        self._drawing.add(own)
        own.add_done_callback(self._drawing.discard)
        running: _Running = {}
        try:
            return await self._first(request, fleet, version, running)
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    async def hang_up(self, seconds: float) -> None:
        """Cancels all that is being drawn and tells the servers, for at most ``seconds``."""
        for drawing in self._drawing:
            drawing.cancel()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while left := self._drawing | self._aborts:
                    await asyncio.wait(left)

    async def _first(self, request: Request, fleet: Fleet, version: int, running: _Running) -> Drawn:
        """Returns the group from the server that is the first to draw it.

        A server that takes long may hang. So after half of the time that is left another one is
        asked too, while the first may go on.
        """
        key = request.addresses[0].group
        end = time.monotonic() + self._deadline_s
        nonsense = 0
        for attempt in itertools.count():
            self._start(request, fleet, version, attempt, running, end)
            done = await self._wait(fleet, running, end)
            if not done and time.monotonic() >= end:
                return await self._missed(request, fleet, version, running)
            for task in sorted(done, key=lambda task: task.exception() is not None):
                tried = running.pop(task)
                failure = task.exception()
                if failure is None:
                    fleet.in_time(tried.servers)
                    return task.result()
                if not isinstance(failure, ServerError):
                    raise failure
                for server in tried.servers:
                    server.state = None
                self.retries += 1
                nonsense += not isinstance(failure, Unreachable)
                pause = min(0.2 * 2 ** min(attempt, 5), 5.0) * (0.5 + random.random())
                late = time.monotonic() + pause > end and not running  # one that runs may end in time
                if nonsense >= self._attempts or late:
                    raise RunError(
                        f"no sample at {key.path()} after {attempt + 1} tries; the last: {failure}"
                    ) from failure
                if attempt == 0:
                    say(f"{failure}; the group at {key.path()} is drawn again")
                await asyncio.sleep(min(pause, max(end - time.monotonic(), 0.0)))
        raise AssertionError

    def _start(
        self, request: Request, fleet: Fleet, version: int, attempt: int, running: _Running, end: float
    ) -> None:
        """Starts one more try, if a server is left that is not busy with the group."""
        busy = _servers(running)
        if self._router:  # it does not say to which of its servers it sends a request
            servers = [] if busy else fleet.servers
        else:
            chosen = fleet.choose(request.addresses[0].group, attempt, busy)
            servers = [] if chosen is None else [chosen]
        if servers:
            new = _Try(servers, end)
            running[asyncio.create_task(self._try(new, fleet, request, version))] = new

    async def _wait(self, fleet: Fleet, running: _Running, end: float) -> set[asyncio.Task[Drawn]]:
        """Returns the tries that have ended, as soon as one has.

        Returns an empty set when it is time to ask another server, or at ``end``.
        """
        alone = self._router is not None or len(fleet.servers) == 1
        while True:
            now = time.monotonic()
            due = end if alone else min(end, max(t.due for t in running.values()))
            done, _ = await asyncio.wait(
                running, timeout=max(0.0, due - now), return_when=asyncio.FIRST_COMPLETED
            )
            if done or now >= due:
                break
        for tried in () if done or alone else running.values():
            if tried.ready and fleet.spare(_servers(running)):
                fleet.late(tried.servers[0])
            tried.put_off()
        return done

    async def _missed(self, request: Request, fleet: Fleet, version: int, running: _Running) -> Drawn:
        """Returns a group of errors, for a group whose deadline has passed.

        Raises RunError if no server was ready to draw, or if none answers any more.
        """
        place = request.addresses[0].group.path()
        limit = f"SGLangConfig.deadline_s = {self._deadline_s:g} s"
        if not any(tried.ready for tried in running.values()):
            first = _servers(running)[0].url
            raise RunError(f"no sample at {place}: {first} was not ready to draw within {limit}")
        front, path = ([self._router], "/readiness") if self._router else (fleet.servers, HEALTH)
        if not await fleet.any_answers(front, path, min(4 * ASK_S, self._deadline_s)):
            urls = ", ".join(server.url for server in front)
            raise RunError(f"no sample at {place} within {limit}; {urls}: no answer any more, it hangs")
        return [Sample((), (), "error", version)] * len(request.addresses), Usage()

    async def _try(self, tried: _Try, fleet: Fleet, request: Request, version: int) -> Drawn:
        """Draws the group from one server.

        The prompt is sent alone first, so that the samples find it in the cache. If this coroutine
        is cancelled, the server is told to stop.
        """
        await fleet.heal_any(tried.servers)
        tried.draws()
        state = fleet.state
        count = len(request.addresses)
        prompt, group = self._bodies(request, fleet)
        # A request has more time than the group: ``_wait`` ends first.
        front = self._router or tried.servers[0]
        patience = 2 * self._deadline_s
        try:
            known = await front.post("/generate", prompt, patience)
            most = count * request.sampling.max_tokens
            answers = await front.post("/generate", group, patience, most)
        except asyncio.CancelledError:
            self._abort(tried.servers, [f"{group['rid']}_{what}" for what in ("prompt", *range(count))])
            raise
        except Refused as refused:
            for server in tried.servers:
                if await server.weights() != state:
                    raise Stale(f"{server.url} has lost its weights ({refused})") from refused
            raise RunError(f"{refused} (at {request.addresses[0].group.path()})") from refused
        if not isinstance(answers, list) or len(answers) != count:
            raise ServerError(f"{front.url}: {shown(answers)} for {count} samples")
        size = self._served.models[request.policy].vocab_size
        stops = frozenset(self._served.stop_ids)
        sent = receipts(request.policy, prompt["input_ids"], request.sampling, request.addresses)
        samples = []
        for answer, receipt in zip(answers, sent, strict=True):
            sample = read_sample(answer, request.sampling, stops, size, state, version)
            samples.append(dataclasses.replace(sample, receipt=receipt))
        used = Usage(
            tokens=sum(len(sample.tokens) for sample in samples),
            prompt_tokens=len(request.prompt_ids),
            known_tokens=cached_tokens(known, len(request.prompt_ids)),
        )
        return samples, used

    def _bodies(self, request: Request, fleet: Fleet) -> tuple[dict[str, Any], dict[str, Any]]:
        """Returns the bodies of two requests: for the prompt, and for the group."""
        params = sampling_params(request.sampling, self._served.stop_ids)
        name = uuid.uuid4().hex
        count = len(request.addresses)
        each: dict[str, Any] | list[dict[str, Any]] = params
        if fleet.seeds and not self._router:  # a router takes one setting for a whole request
            each = [params | {"sampling_seed": address.key_words()[0] >> 1} for address in request.addresses]
        adapter = fleet.adapters.get(request.policy)
        lora = {"lora_path": adapter[0]} if adapter else {}
        prompt = {
            "input_ids": list(request.prompt_ids),
            "sampling_params": params | {"max_new_tokens": 0},
            "rid": f"{name}_prompt",
        }
        group = {
            "input_ids": [list(request.prompt_ids)] * count,
            "sampling_params": each,
            "return_logprob": True,
            "rid": name,  # the server makes NAME_0, NAME_1, ... of it
        }
        return prompt | lora, group | lora

    def _abort(self, servers: Sequence[Server], names: Sequence[str]) -> None:
        stop = asyncio.gather(*(server.abort(names) for server in servers))
        self._aborts.add(stop)
        stop.add_done_callback(self._aborts.discard)


def _servers(running: _Running) -> list[Server]:
    return [server for tried in running.values() for server in tried.servers]
