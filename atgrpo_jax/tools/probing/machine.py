"""Says what this machine is: its host, its devices, and how far its sandbox keeps programs apart."""

import contextlib
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import jax

import atgrpo_jax
from atgrpo_jax.common.cores import cores
from atgrpo_jax.sandbox.levels import LEVELS
from atgrpo_jax.sandbox.pool import SandboxConfig
from atgrpo_jax.tools.probing.parts import Found

_PACKAGES = ("jax", "jaxlib", "libtpu", "flax", "numpy", "orbax-checkpoint")
# What the environment may say that changes what is measured.
_VARIABLES = ("JAX_PLATFORMS", "XLA_FLAGS", "LIBTPU_INIT_ARGS", "JAX_COMPILATION_CACHE_DIR")


def host() -> Found:
    """Returns versions, cores, their load, and memory. It does not ask JAX for its devices."""
    versions = {name: _version(name) for name in _PACKAGES}
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    values = {
        "atgrpo_jax": atgrpo_jax.__version__,
        "commit": commit(Path(atgrpo_jax.__file__).parent),
        "python": platform.python_version(),
        "system": platform.platform(),
        "processor": _processor(),
        "cores": len(cores()),
        "memory_gb": round(memory / 1e9, 1),
        "load": round(os.getloadavg()[0], 1),  # processes that want a core, before the probe's own
        "packages": {name: version for name, version in versions.items() if version},
        "environment": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
    }
    line = (
        f"{values['cores']} cores ({values['processor']}), load {values['load']}, {memory / 1e9:.0f} GB, "
        f"{values['system']}"
    )
    return Found(line, values)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    """Returns the name of the processor; Linux knows more than ``platform``."""
    about = Path("/proc/cpuinfo")
    lines = about.read_text().splitlines() if about.exists() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def commit(folder: Path) -> str | None:
    """Returns the commit of a checkout, with a + if files differ from it. None if it is no checkout."""
    if not (folder.parent / ".git").exists():
        return None
    git = ["git", "-C", str(folder.parent)]
    try:
        head = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True)
        changed = subprocess.run([*git, "status", "--porcelain", folder], capture_output=True, text=True)
    except FileNotFoundError:
        return None  # without git
    if head.returncode or changed.returncode:
        return None
    return head.stdout.strip() + ("+" if changed.stdout else "")


def devices() -> Found:
    """Returns what JAX finds. The first use of devices is here, so a fault of theirs is here, too."""
    found = jax.local_devices()
    first = found[0]
    memory = (first.memory_stats() or {}).get("bytes_limit")
    values: dict[str, Any] = {
        "platform": first.platform,
        "kind": first.device_kind,
        "count": len(found),
        "memory_gb": memory and round(memory / 1e9, 2),
        "processes": jax.process_count(),
    }
    each = f", {memory / 1e9:.1f} GB each" if memory else ""
    return Found(f"{len(found)} x {first.device_kind} ({first.platform}){each}", values)


def sandbox() -> Found:
    """Returns the level at which programs of models can run here. Weak levels are no fault.

    Raises RunError if there is none.
    """
    asked = SandboxConfig().level
    with contextlib.closing(SandboxConfig(level="limits").build()) as box:
        level = box.level
        line = box.about().removeprefix("sandbox: ")
    if LEVELS.index(level) < LEVELS.index(asked):
        line += f"; tasks with programs ask for SandboxConfig.level = {asked!r}"
    return Found(line, {"level": level, "about": line})
