"""Makes the fleets of a team: which servers serve which model, and how ours are started."""

import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp

from atgrpo_jax.common.errors import RunError
from atgrpo_jax.common.progress import say
from atgrpo_jax.engines.protocol import Served
from atgrpo_jax.engines.sglang.fleet import Fleet
from atgrpo_jax.engines.sglang.processes import ServerProcess, free_port
from atgrpo_jax.engines.sglang.servers import Server
from atgrpo_jax.models.lora import LoraConfig


def make_fleets(
    served: Served,
    urls: tuple[str, ...] | Mapping[str, tuple[str, ...]],
    session: aiohttp.ClientSession,
    start_s: float,
    launch: Callable[[Fleet, Server], ServerProcess] | None,
) -> dict[str, Fleet]:
    """Returns a fleet for each model. Raises RunError if ``urls`` names other models.

    Args:
      start_s: seconds that a server may take to start, or to take weights.
      launch: starts a server of ours; None if they run already.
    """
    names = sorted(set(served.initial_names.values()))
    if isinstance(urls, tuple):
        if urls and len(names) > 1:
            raise RunError(
                f"SGLangConfig.urls: name the servers of each of the models {', '.join(names)}, "
                f'e.g. {{"{names[0]}": ("http://127.0.0.1:30000",), ...}}'
            )
        urls = dict.fromkeys(names, urls)
    elif set(urls) != set(names):
        raise RunError(
            f"SGLangConfig.urls names {', '.join(sorted(urls))}; the models are {', '.join(names)}"
        )
    fleets = {}
    for name in names:
        policies = [policy for policy, initial in served.initial_names.items() if initial == name]
        adapted = policies != [name]
        if adapted and name in policies:
            raise RunError(f"policy {name} is trained in full, and adapters are on it: not on servers")
        fleets[name] = Fleet(
            name,
            [Server(url, session) for url in urls[name] or [f"http://127.0.0.1:{free_port()}"]],
            served.models[policies[0]],
            adapted,
            served.stop_ids,
            served.decode,
            served.longest_answer,
            start_s,
            launch,
            aborts=served.hosts.count == 1,
        )
    return fleets


def start_server(command: str, lora: LoraConfig, logs: Path, fleet: Fleet, server: Server) -> ServerProcess:
    """Starts a server's process on the fleet's folder, with its log in the folder ``logs``."""
    parts = urlsplit(server.url)
    words = shlex.split(command)
    flags = ["--model-path", str(fleet.folder), "--weight-version", fleet.state]
    flags += ["--host", str(parts.hostname), "--port", str(parts.port)]
    flags += ["--dtype", fleet.model.compute.dtype]
    if fleet.adapted:
        flags += ["--enable-lora", "--max-lora-rank", str(lora.rank)]
        flags += ["--lora-target-modules", *fleet.model.family.target_modules()]
    say(f"starting {' '.join(words)} on {server.url}")
    return ServerProcess([*words, *flags], logs / f"server-{parts.port}.log")
