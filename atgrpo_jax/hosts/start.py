"""Compares the hosts before they make a run together: the same programs must come out on all."""

import hashlib
import importlib.metadata
import platform
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
            "libtpu": _version("libtpu"),
            "the package's files with digest": _package(),
            **settings(config),
        }

    check_alike(hosts, "start", facts)


def settings(config: str) -> dict[str, str]:
    """Returns values by name, of a config as gin writes it. A value may go on over several lines."""
    found: dict[str, str] = {}
    name = "a config that begins with"
    for line in config.splitlines():
        own, equals, value = line.partition(" = ")
        if equals:
            name = own
            line = value
        found[name] = found.get(name, "") + line.strip()
    return found


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "of no version"


def _package() -> str:
    digest = hashlib.sha256()
    root = Path(atgrpo_jax.__file__).parent
    for file in sorted(root.rglob("*.py")):
        digest.update(str(file.relative_to(root)).encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:12]
