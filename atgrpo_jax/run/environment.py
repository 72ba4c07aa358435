"""Records with what, and on which machine, a run began and went on: a line of environment.jsonl each time."""

import datetime
import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax

import atgrpo_jax
from atgrpo_jax.common.files import append_json_line
from atgrpo_jax.run.folder import RunFolder

PACKAGES = (
    "jax", "jaxlib", "libtpu", "flax", "optax", "orbax-checkpoint", "numpy", "transformers", "tokenizers",
)  # fmt: skip


def record_environment(folder: RunFolder, done: int, hosts: int) -> None:
    """Appends a line. The devices must be there by now.

    Args:
      done: the last complete step; -1 before the first one.
    """
    kinds = [device.device_kind for device in jax.local_devices()]
    line = {
        "after_step": done,
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
        "folder": os.getcwd(),
        "package": atgrpo_jax.__version__,
        "commits": _commits(),
        "python": platform.python_version(),
        "versions": {name: version for name in PACKAGES if (version := _version(name))},
        "machine": {
            "name": platform.node(),
            "system": platform.platform(),
            "processors": os.cpu_count(),
            "devices": {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)},
            "hosts": hosts,
        },
    }
    append_json_line(folder.environment, line)


def _commits() -> dict[str, Any]:
    """Returns the commit of the package's checkout and of the working directory's, if there are some.

    A package that is installed inside the checkout of something else has none.
    """
    package = Path(atgrpo_jax.__file__).resolve().parents[1]
    found: dict[str, Any] = {}
    for name, place in (("package", package), ("folder", Path.cwd())):
        top = _git(place, "rev-parse", "--show-toplevel")
        commit = _git(place, "rev-parse", "HEAD")
        if top and commit and (name == "folder" or Path(top.strip()).resolve() == package):
            clean = _git(place, "status", "--porcelain") == ""
            found[name] = {"commit": commit.strip(), "clean": clean}
    return found


def _git(place: Path, *words: str) -> str | None:
    """Returns what git prints; None where there is no checkout or no git."""
    try:
        ran = subprocess.run(["git", "-C", place, *words], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return ran.stdout if ran.returncode == 0 else None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
