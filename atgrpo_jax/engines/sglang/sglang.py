"""Draws samples from SGLang servers that run already, or that it starts. See docs/sglang.md.

All samples of a group come from one server, and from the weights that it was given last. Every
answer names its weights; a group from other weights is drawn again. Weights reach the servers
through a folder.
"""

import asyncio
import contextlib
import dataclasses
import functools
import shlex
import sys
import time
from collections.abc import Mapping, Sequence

import aiohttp
import jax
import jax.numpy as jnp

from atgrpo_jax.common.checks import check_types, require
from atgrpo_jax.common.errors import ConfigError, PromptTooLong, RunError
from atgrpo_jax.common.types import Sample
from atgrpo_jax.engines.protocol import EngineConfig, Request, Served, Usage, check_prompt_ids, check_pushed
from atgrpo_jax.engines.sglang.addresses import parsed, texts
from atgrpo_jax.engines.sglang.background import Background
from atgrpo_jax.engines.sglang.draws import Drawer
from atgrpo_jax.engines.sglang.fleet import Fleet
from atgrpo_jax.engines.sglang.fleets import make_fleets, start_server
from atgrpo_jax.engines.sglang.processes import check_command
from atgrpo_jax.engines.sglang.published import Published
from atgrpo_jax.engines.sglang.pushes import Pushes
from atgrpo_jax.engines.sglang.secrets import api_key, kept
from atgrpo_jax.engines.sglang.servers import HERE, Server
from atgrpo_jax.models.transformer import PolicyWeights, shapes_of

_HANG_UP_S = 1.0  # seconds, at the end, to tell servers that nobody waits for samples any more


@dataclasses.dataclass(frozen=True)
class SGLangConfig(EngineConfig):
    """Says which SGLang servers draw, and how they are used. No field changes what is learned."""

    # Addresses of servers that run already: a tuple if there is one model, else a mapping from each
    # policy (or "base" under adapters) to a tuple. If empty, one server for each model is started
    # on this host.
    urls: tuple[str, ...] | Mapping[str, tuple[str, ...]] = ()
    # Address of a router that takes the requests for samples and passes them to ``urls``; for one
    # model only.
    router: str = ""
    # Command line that starts a server. Arguments for model, address and adapters are added to it.
    command: str = f"{shlex.quote(sys.executable)} -m sglang.launch_server"
    # Folder where servers read new weights. If empty, it is in this host's memory. Servers on other
    # hosts need a folder that they share with this one, or with the first of several hosts.
    folder: str = ""
    groups: int = 64  # groups that all hosts draw at the same time, for each server of a model
    deadline_s: float = 600.0  # seconds for a group, all tries together
    # Failed tries at a group before the run stops. Tries that reached no server do not count.
    attempts: int = 4
    start_timeout_s: float = 600.0  # seconds that a server may take to start, or to take weights
    # A file with the API key, or the environment variable that holds it. The key is never written.
    api_key_file: str = ""
    api_key_variable: str = ""  # see api_key_file

    def __post_init__(self):
        if any(mark in text for text in texts((self.urls, self.router)) for mark in "@?#"):
            raise ValueError(  # does not show the address: there may be a secret in it
                "SGLangConfig.urls or router: an address with a user, password or query in it; give "
                "http://host:port alone, and the server's API key as api_key_file or api_key_variable"
            )
        check_types(self)
        if isinstance(self.urls, Mapping):
            object.__setattr__(self, "urls", {name: tuple(urls) for name, urls in self.urls.items()})
        else:
            object.__setattr__(self, "urls", tuple(self.urls))
        for name in ("groups", "attempts"):
            require(self, name, getattr(self, name) >= 1, "must be at least 1")
        for name in ("deadline_s", "start_timeout_s"):
            require(self, name, getattr(self, name) > 0, "must be positive")
        parts = [parsed(url) for url in self._all()]
        require(self, "urls", all(parts), "must look like http://host:30000")
        named = not isinstance(self.urls, Mapping) or all(self.urls.values())
        require(self, "urls", named, "a policy without a server")
        near = all(part is not None and part.hostname in HERE for part in parts)
        rule = "servers on other hosts read weights from a folder that they share with this one"
        require(self, "folder", bool(self.folder) or near, rule)
        rule = "needs the urls of the servers behind it, of one model: weights do not go through a router"
        require(self, "router", not self.router or (bool(self.urls) and isinstance(self.urls, tuple)), rule)
        rule = "the key is in a file or in a variable, not in both"
        require(self, "api_key_file", not (self.api_key_file and self.api_key_variable), rule)

    def _all(self) -> list[str]:
        lists = self.urls.values() if isinstance(self.urls, Mapping) else [self.urls]
        return [url for urls in lists for url in urls] + ([self.router] if self.router else [])

    def same_samples(self) -> "SGLangConfig":
        return SGLangConfig()  # other servers draw the same

    def build(self, served: Served) -> "SGLangEngine":
        """Builds the engine. Raises ConfigError if several hosts would each start servers."""
        if served.hosts.count > 1 and not self._all():
            raise ConfigError(
                "SGLangConfig.urls is empty: for a run on several hosts start servers yourself, and give "
                "their addresses (docs/sglang.md)"
            )
        return SGLangEngine(served, self)


class SGLangEngine:
    """Draws groups from SGLang servers, which it gives the weights that are pushed."""

    def __init__(self, served: Served, config: SGLangConfig):
        """Raises RunError if the servers do not fit the team, or a folder or key is missing."""
        self._served = served
        self._config = config
        self.usage = Usage()
        self._versions: dict[str, int] = {}
        key = api_key(config.api_key_file, config.api_key_variable)
        with contextlib.ExitStack() as stack:
            stack.enter_context(kept(key))
            published = None
            if served.hosts.index == 0:  # for all hosts
                published = Published(config.folder)
                stack.callback(published.close)
                published.check_room(_bytes_on_their_way(served))
            self._loop = Background()
            stack.callback(self._loop.close)
            self._session = self._loop.wait(_session(key))
            self._router = Server(config.router, self._session) if config.router else None
            self._drawer = Drawer(served, self._router, config.deadline_s, config.attempts)
            self.fleets: dict[str, Fleet] = {}
            stack.callback(lambda: self._loop.wait(self._hang_up()))
            launch = None
            if not config._all():
                assert published is not None
                launch = functools.partial(start_server, config.command, served.lora, published.root)
            self.fleets = make_fleets(served, config.urls, self._session, config.start_timeout_s, launch)
            self._pushes = Pushes(served, self.fleets, published, self._loop.wait)
            stack.callback(self._stop_servers)
            self._rooms = {
                name: asyncio.Semaphore(-(-config.groups * len(fleet.servers) // served.hosts.count))
                for name, fleet in self.fleets.items()
            }
            if config._all():
                for fleet in self.fleets.values():
                    self._loop.wait(fleet.greet(self._router))
            else:
                check_command(config.command)
            self._opened = stack.pop_all()

    def close(self) -> None:
        self._opened.close()

    async def _hang_up(self) -> None:
        """Cancels all that is still being done, tells the servers, and closes the connections."""
        for fleet in self.fleets.values():
            for server in fleet.servers:
                if server.mending is not None:
                    server.mending.cancel()
        await self._drawer.hang_up(_HANG_UP_S)
        await self._session.close()

    def _stop_servers(self) -> None:
        for fleet in self.fleets.values():
            for server in fleet.servers:
                if server.process is not None:
                    server.process.stop()

    @property
    def closed(self) -> bool:
        return self._loop.closed

    @property
    def retries(self) -> int:
        """Returns how many tries at groups failed."""
        return self._drawer.retries

    def version(self, policy: str) -> int:
        return self._versions[policy]

    def release(self) -> None:
        """Does nothing: servers have copies of their own."""

    def push_weights(self, policy: str, weights: PolicyWeights, version: int) -> None:
        """Writes the weights to a folder, and makes every server take them and empty its cache.

        The first push starts the servers, if they are ours. Raises RunError if a server refuses the
        weights, or if none is reached in time.
        """
        began = time.monotonic()
        size = self._pushes.push(policy, weights, version)
        self._versions[policy] = version
        self.usage += Usage(push_s=time.monotonic() - began, push_bytes=size)

    async def sample(self, request: Request) -> Sequence[Sample]:
        """Draws the samples of one group, all from the same prompt.

        Past the deadline every sample is an error, if a server was drawing and one still answers.
        Raises RunError if a server refuses the request, if none can be reached, or if all hang or
        give wrong answers. Raises PromptTooLong for a prompt that leaves no room for an answer.
        """
        self._check(request)
        work = asyncio.run_coroutine_threadsafe(self._sample(request), self._loop.loop)
        return await asyncio.wrap_future(work)

    def _check(self, request: Request) -> None:
        """Raises RunError for a request that servers cannot serve, and PromptTooLong.

        It is checked here because one id outside the vocabulary would end a server.
        """
        check_pushed(request, self._versions)
        check_prompt_ids(request, self._served.models[request.policy].vocab_size)
        place = request.addresses[0].group.path()
        fleet = self.fleets[self._served.initial_names[request.policy]]
        length = len(request.prompt_ids)
        new = request.sampling.max_tokens
        if length + new >= fleet.context:
            raise PromptTooLong(
                f"a prompt of {length} tokens at {place}, and {new} to draw: the servers of {fleet.name} "
                f"have room for {fleet.context}"
            )
        if request.sampling.stop and not fleet.texts:
            raise RunError("Sampling.stop: the servers were started with --skip-tokenizer-init")

    async def _sample(self, request: Request) -> Sequence[Sample]:
        name = self._served.initial_names[request.policy]
        async with self._rooms[name]:
            drawer = self._drawer
            version = self._versions[request.policy]
            samples, used = await drawer.draw(request, self.fleets[name], version)
        self.usage += used
        return samples


def _bytes_on_their_way(served: Served) -> int:
    """Returns the bytes of two versions of all models: so many there are during a push."""
    sizes = {}
    for policy, initial in served.initial_names.items():
        model = served.models[policy]
        count = sum(leaf.size for leaf in jax.tree.leaves(shapes_of(model)))
        sizes[initial] = 2 * count * jnp.dtype(model.compute.dtype).itemsize
    return sum(sizes.values())


async def _session(key: str) -> aiohttp.ClientSession:
    """Opens a session for all requests.

    It asks for answers that are not compressed, and unpacks none, so that limits of size hold.
    """
    return aiohttp.ClientSession(
        headers={"Accept-Encoding": "identity"} | ({"Authorization": f"Bearer {key}"} if key else {}),
        connector=aiohttp.TCPConnector(limit=0),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
    )
