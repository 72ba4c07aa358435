"""Looks after the servers of one model: starts and checks them, and gives them weights."""

import asyncio
import dataclasses
import sys
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from atgrpo_jax.common.errors import RunError
from atgrpo_jax.common.progress import say
from atgrpo_jax.common.types import GroupKey, seed_of
from atgrpo_jax.engines.sglang.giving import give
from atgrpo_jax.engines.sglang.processes import ServerProcess
from atgrpo_jax.engines.sglang.replies import Unusable, get
from atgrpo_jax.engines.sglang.same_model import check_model, check_tokenizer, has_config
from atgrpo_jax.engines.sglang.servers import ASK_S, NobodyListens, Refused, Server, ServerError, Unreachable
from atgrpo_jax.models.transformer import Transformer

_POLL_S = 0.5  # seconds between two tries to reach a server that is waited for
REST_S = 5.0  # seconds before a server that was not reached is asked again
_LONGEST_REST_S = 300.0  # the same, at most, for a server that is late again and again
HEALTH = "/health_generate"  # here sglang answers only after it has drawn a token


@dataclasses.dataclass
class Fleet:
    """Holds all servers of one model, and makes them hold the same weights.

    ``state``, ``folder`` and ``adapters`` say what every server must hold before it draws.
    """

    name: str  # the policy whose weights they hold, or "base" under adapters
    servers: list[Server]
    model: Transformer
    adapted: bool  # policies are adapters on these weights
    stop_ids: tuple[int, ...]
    decode: Callable[[Sequence[int]], str]
    longest_answer: int  # tokens
    start_s: float  # seconds that a server may take to start, or to take weights
    # Starts a server's process on ``folder``; None if the servers are not ours.
    launch: "Callable[[Fleet, Server], ServerProcess] | None" = None
    # Whether what a server draws is cut off when it is given weights. Several hosts may give a server
    # the same weights, one after the other; then each lets it end what others have asked for.
    aborts: bool = True
    state: str = ""  # name of the weights
    folder: Path | None = None  # where servers read the weights
    # From a policy to its adapter's name on the servers, and folder.
    adapters: dict[str, tuple[str, Path]] = dataclasses.field(default_factory=dict)
    # What all of the servers can do.
    context: int = sys.maxsize  # tokens of a prompt and its answer
    texts: bool = True  # they have a tokenizer, and so know stop strings
    seeds: bool = True  # the same seed draws the same sample

    async def greet(self, router: Server | None) -> None:
        """Waits for servers that are not ours, and checks them.

        Raises RunError for one that cannot serve.
        """
        try:
            for server in self.servers:
                await self._ready(server, self.start_s)
                await self._check(server)
            if router is not None:
                await self._ready(router, self.start_s, "/readiness")
        except Refused as error:
            raise RunError(f"{error}: this does not answer as sglang or sglang-router does") from error
        except NobodyListens as error:
            raise RunError(
                f"no server of {self.name}: {error}; start it first, or leave SGLangConfig.urls empty, "
                "and the run starts one"
            ) from error
        except Unreachable as error:
            raise RunError(f"no server of {self.name} for {self.start_s:g} s: {error}") from error
        except ServerError as error:
            raise RunError(f"{error}: this does not answer as sglang or sglang-router does") from error

    async def update(self) -> None:
        """Gives the weights to all servers at once. One that cannot be reached gets them later.

        Raises RunError if one does not take them, or if none is reached in time.
        """
        end = time.monotonic() + self.start_s
        while True:
            try:
                return await self.heal_any(self.servers)
            except ServerError as error:
                if not isinstance(error, Unreachable) or time.monotonic() > end:
                    raise RunError(f"the weights of {self.name} did not reach a server: {error}") from error
            await asyncio.sleep(_POLL_S)

    async def heal(self, server: Server) -> None:
        """Makes the server hold the right weights, and starts it first if it is ours and has ended.

        All callers wait for the same task, which goes on if they are cancelled. Raises Unreachable
        or ServerError if this try fails, and RunError if no later one could succeed.
        """
        while not self.holds(server):
            if server.mending is None:
                until, why = server.down
                if time.monotonic() < until:
                    raise Unreachable(why)  # it was silent a moment ago: it rests first
                server.mending = asyncio.create_task(self._mend(server))
                server.mending.add_done_callback(lambda done: _mended(server, done))
            await asyncio.shield(server.mending)

    async def _mend(self, server: Server) -> None:
        try:
            if self.launch is not None and (server.process is None or not server.process.alive):
                self._start(server)
            if server.state is None:
                await self._ready(server, 0.0 if self.launch is None else self.start_s)
                if server.late and not await server.answers(HEALTH, 4 * ASK_S):
                    raise Unreachable(f"{server.url}{HEALTH}: no answer: it draws nothing")
                await self._check(server)
            wanted = dict(self.adapters.values())
            await give(server, self.state, self.folder, wanted, self.start_s, self.aborts)
        except Refused as error:
            raise ServerError(str(error)) from error
        except Unreachable as error:
            self._leave_out(server, str(error), REST_S)
            raise
        server.down = 0.0, ""

    def _leave_out(self, server: Server, why: str, seconds: float) -> None:
        server.state = None
        if len(self.servers) > 1 and not server.down[1]:
            say(f"{why}; {self.name} goes on without this server until it answers again")
        server.down = time.monotonic() + seconds, why

    def late(self, server: Server) -> None:
        """Leaves a server out because it drew no group in its share of the time.

        It is used again after a rest, if its health check draws a token. The rest is longer each
        time.
        """
        if not server.down[1]:
            server.late += 1
            rest = min(REST_S * 2 ** (server.late - 1), _LONGEST_REST_S)
            self._leave_out(server, f"{server.url} has drawn no group in its time", rest)

    def in_time(self, servers: Sequence[Server]) -> None:
        """Notes that one of these servers has drawn a group, and so those of them work that may have."""
        for server in servers:
            if len(servers) == 1 or self.holds(server):  # behind a router, one that is down stays so
                server.late = 0
                server.down = 0.0, ""

    async def any_answers(self, servers: Sequence[Server], path: str, seconds: float) -> bool:
        return any(await asyncio.gather(*(server.answers(path, seconds) for server in servers)))

    async def heal_any(self, servers: Sequence[Server]) -> None:
        """Makes all of these servers that can be reached hold the right weights.

        Raises Unreachable if none can, and another error if one fails otherwise.
        """
        found = await asyncio.gather(*map(self.heal, servers), return_exceptions=True)
        failures = [failure for failure in found if failure is not None]
        for failure in failures:
            if not isinstance(failure, Unreachable) or len(failures) == len(servers):
                raise failure

    def holds(self, server: Server) -> bool:
        """Returns whether the server holds all that it must, as far as is known here."""
        return server.state == self.state and server.adapters == {name for name, _ in self.adapters.values()}

    def _start(self, server: Server) -> None:
        assert self.launch is not None
        if server.process is not None:
            say(f"the server {server.url} of {self.name} has ended and is started again")
            server.process.stop()  # processes that it had started may still run
        server.adapters = set()
        server.process = self.launch(self, server)

    async def _ready(self, server: Server, patience: float, path: str = "/model_info") -> None:
        """Waits at most ``patience`` seconds until a server answers at ``path``, and reports it.

        Raises Unreachable if it does not answer, and RunError if a process of ours ended before it
        ever served.
        """
        began = said = time.monotonic()
        while True:
            try:
                await server.get(path, ASK_S)
                return
            except Unreachable as error:
                now = time.monotonic()
                process = server.process
                if isinstance(error, NobodyListens) and self.launch is None:
                    raise  # the run did not start one here, so waiting would not help
                if process is not None and not process.alive:
                    if server.known:  # it has served before, so another start may succeed
                        raise Unreachable(f"{server.url} ended while it started again") from error
                    raise RunError(
                        f"the server of {self.name} ended while it started; {process.last_words()}"
                    ) from error
                if now - began > patience:
                    words = "" if process is None else f"; {process.last_words()}"
                    raise Unreachable(f"{error}{words}") from error
                if now - said > 10:
                    said = now
                    say(f"waiting for the server of {self.name}: {now - began:.0f} s; {error}")
            await asyncio.sleep(_POLL_S)

    async def _check(self, server: Server) -> None:
        """Raises RunError if the server's model, context or abilities are not what we need.

        Also notes whether it already holds the right weights.
        """
        try:
            about = await server.get("/server_info", 4 * ASK_S)
            info = await server.get("/model_info", ASK_S)
            version = get(info, "weight_version", str)
            self._check_abilities(server, about, info)
            if not get(about, "skip_tokenizer_init", bool):
                await check_tokenizer(server, self.model.vocab_size, self.decode, self.stop_ids)
        except (Refused, Unusable) as error:
            raise RunError(f"{server.url} ({error}) does not answer as sglang 0.5 does") from error
        if version == self.state:
            server.state = self.state
        else:
            server.adapters = set()

    def _check_abilities(self, server: Server, about: Any, info: Any) -> None:
        """Raises RunError if the server cannot serve us, and notes what it can do.

        Raises Unusable if its answers are not those of sglang.
        """
        texts = not get(about, "skip_tokenizer_init", bool)
        seeds = get(about, "enable_deterministic_inference", bool)
        adapters = get(about, "enable_lora", bool, type(None))
        room = get(about, "max_req_input_len", int)
        # model_path changes with every push, and may be a folder of a run that has ended.
        # tokenizer_path stays.
        paths = get(info, "model_path", str), get(info, "tokenizer_path", str)
        readable = [path for path in paths if has_config(path)]
        if readable or not server.known:
            check_model(server.url, (readable or paths)[0], self.name, self.model, self.stop_ids)
        server.known = True
        self.context = min(self.context, room)
        if self.context <= self.longest_answer:
            raise RunError(
                f"{server.url} has room for {self.context} tokens, and answers alone may be "
                f"{self.longest_answer} (RolloutConfig.max_tokens); its --context-length, --max-total-tokens "
                "and memory decide"
            )
        if self.adapted and not adapters:
            raise RunError(f"{server.url} takes no adapters; start it with --enable-lora (docs/sglang.md)")
        self.texts &= texts
        self.seeds &= seeds

    def choose(self, key: GroupKey, attempt: int, busy: Collection[Server] = ()) -> Server | None:
        """Returns the server for a try at a group; None if all are ``busy`` with it.

        All groups of an instance prefer the same server, where later turns find earlier prompts in
        the cache. The next server is taken after a failed attempt, or if that one is down or busy.
        """
        first = seed_of(key.split, key.instance) % len(self.servers) + attempt
        order = [self.servers[(first + i) % len(self.servers)] for i in range(len(self.servers))]
        free = [server for server in order if server not in busy]
        return next((server for server in free if self._open(server)), free[0] if free else None)

    def spare(self, busy: Collection[Server]) -> bool:
        """Returns whether a server that is not ``busy`` could draw."""
        return any(self._open(server) for server in self.servers if server not in busy)

    def _open(self, server: Server) -> bool:
        """Returns whether the server is up, or has rested long enough for one group to try it."""
        until, why = server.down
        return not why or (server.mending is None and until <= time.monotonic())


def _mended(server: Server, done: asyncio.Task[None]) -> None:
    server.mending = None
    if not done.cancelled():
        done.exception()  # read, so that asyncio does not log it; callers that waited raise it
