"""Compares the hosts before they make a run together: the same programs must come out on all."""

import hashlib
import platform
from collections.abc import Iterator
from pathlib import Path

import jax
import jaxlib

import atgrpo_jax
from atgrpo_jax.common.hosts import Hosts, check_alike


def check_same_start(hosts: Hosts, config: str) -> None:
    """Raises RunError if a host has another Python, JAX, package or config than host 0."""
    if hosts.count == 1:
        return

    def facts() -> dict[str, str]:
        return {
            "Python": platform.python_version(),
            "jax": jax.__version__,
            "jaxlib": jaxlib.__version__,
            "the package's files with digest": _package(),
            **dict(_settings(config)),
        }

    check_alike(hosts, "start", facts)


def _settings(config: str) -> Iterator[tuple[str, str]]:
    """Yields names and values of a config, as gin writes it."""
    name = "a config that begins with"
    for line in config.splitlines():
        own, equals, value = line.partition(" = ")
        if equals:
            name = own
        yield (name, value) if equals else (f"{name}, line", line)


def _package() -> str:
    digest = hashlib.sha256()
    root = Path(atgrpo_jax.__file__).parent
    for file in sorted(root.rglob("*.py")):
        digest.update(str(file.relative_to(root)).encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:12]
