"""Pushes weights to servers. Of several hosts, host 0 writes and gives them; the others hear of it."""

import asyncio
import collections
import itertools
import uuid
from collections.abc import Callable, Coroutine, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from atgrpo_jax.arrays.spread import whole_leaves
from atgrpo_jax.common.hosts import told_json
from atgrpo_jax.engines.protocol import Served
from atgrpo_jax.engines.sglang.fleet import Fleet
from atgrpo_jax.engines.sglang.published import Published, folder_bytes
from atgrpo_jax.models.hf import hf
from atgrpo_jax.models.hf.adapters import save_adapter
from atgrpo_jax.models.transformer import PolicyWeights


class Pushes:
    """Writes weights to folders, and makes the fleets hold them. All hosts push at the same time."""

    def __init__(
        self,
        served: Served,
        fleets: Mapping[str, Fleet],
        published: Published | None,
        wait: Callable[[Coroutine[Any, Any, None]], None],
    ):
        """
        Args:
          published: where host 0 writes; None on the other hosts.
          wait: runs a coroutine in the event loop of the fleets.
        """
        self._served = served
        self._fleets = fleets
        self._published = published
        self._wait = wait
        self._base: Any = None  # the base parameters that servers hold, under adapters
        self._run = uuid.uuid4().hex[:8]  # in names of weights: each run has its own
        self._count = itertools.count()

    def push(self, policy: str, weights: PolicyWeights, version: int) -> int:
        """Makes every server hold the weights. Returns how many bytes were written for that.

        Raises RunError if they cannot be written, if a server refuses them, or if none is reached
        in time.
        """
        fleet = self._fleets[self._served.initial_names[policy]]
        name = f"{policy}-{version}-{next(self._count)}"
        folder = adapter = None
        if weights.adapter is None or weights.params is not self._base:
            folder = self._model(f"{name}-model", policy, weights.params)
        if weights.adapter is not None:
            self._base = weights.params
            adapter = self._adapter(f"{name}-adapter", policy, weights.adapter, folder or fleet.folder)
        told = told_json(
            self._served.hosts,
            f"weights of {policy}, version {version}",
            lambda: self._give(fleet, policy, name, folder, adapter),
        )
        if self._published is None:
            self._wait(_hear(fleet, told))
        return told["bytes"]

    def _give(
        self, fleet: Fleet, policy: str, name: str, folder: Path | None, adapter: Path | None
    ) -> dict[str, Any]:
        """Gives the servers what was written, and removes what it replaces. Only host 0 does this.

        Returns what the other hosts must know of it.
        """
        assert self._published is not None
        old = []
        if folder is not None:
            old.append(fleet.folder)
            fleet.folder = folder
            fleet.state = f"{self._run}/{name}"
        if adapter is not None:
            if policy in fleet.adapters:
                old.append(fleet.adapters[policy][1])
            fleet.adapters[policy] = (f"{self._run}-{name}", adapter)  # a new name for every version
        self._wait(fleet.update())
        for each in old:
            self._published.forget(each)
        return {
            "state": fleet.state,
            "folder": str(fleet.folder),
            "adapters": {own: (known, str(path)) for own, (known, path) in fleet.adapters.items()},
            "holds": [fleet.holds(server) for server in fleet.servers],
            "bytes": sum(folder_bytes(path) for path in (folder, adapter) if path is not None),
        }

    def _model(self, name: str, policy: str, params: Any) -> Path | None:
        source = self._served.sources[policy]
        dtype = self._served.models[policy].compute.dtype
        stop_ids = self._served.stop_ids
        leaves = whole_leaves(params)
        return self._write(name, leaves, lambda f: hf.save(f, params, source, dtype, stop_ids, whole=leaves))

    def _adapter(self, name: str, policy: str, adapter: Any, base: Path | None) -> Path | None:
        served = self._served
        family = served.models[policy].family
        structure = jax.tree.structure(adapter)
        leaves = whole_leaves(adapter)

        def write(folder: str) -> None:
            save_adapter(folder, jax.tree.unflatten(structure, leaves), served.lora, family, str(base))

        return self._write(name, leaves, write)

    def _write(self, name: str, leaves: Iterator[jax.Array], write: Callable[[str], None]) -> Path | None:
        """Writes a folder on host 0, and returns it there. ``write`` takes the ``leaves``."""
        try:
            return None if self._published is None else self._published.write(name, write)
        finally:  # the hosts gather the leaves together, also if host 0 cannot write them
            collections.deque(leaves, maxlen=0)


async def _hear(fleet: Fleet, told: Mapping[str, Any]) -> None:
    """Notes what host 0 gave to the servers. Those that it did not reach may be given it from here."""
    mending = [server.mending for server in fleet.servers if server.mending is not None]
    for task in mending:  # these give older weights
        task.cancel()
    await asyncio.gather(*mending, return_exceptions=True)
    fleet.state = told["state"]
    fleet.folder = Path(told["folder"])
    fleet.adapters = {policy: (name, Path(path)) for policy, (name, path) in told["adapters"].items()}
    for server, holds in zip(fleet.servers, told["holds"], strict=True):
        server.state = fleet.state if holds else None
        if holds:
            server.adapters = {name for name, _ in fleet.adapters.values()}
            server.down = 0.0, ""
