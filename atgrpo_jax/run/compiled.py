"""Keeps what XLA compiles in a folder, so that the next start of a config loads it.

JAX does the work: it finds programs again by their text, options, versions, devices and features of
the CPU, and deletes those that were not used for longest. A lock of the folder lets several processes
use it at once.
"""

import os
import platform
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from filelock import FileLock
from jax.experimental.compilation_cache import compilation_cache

from atgrpo_jax.common.cores import cores
from atgrpo_jax.common.errors import ConfigError, RunError
from atgrpo_jax.common.files import folder_path, make_folder
from atgrpo_jax.common.progress import say
from atgrpo_jax.common.types import hash_bytes

FOLDER = "~/.cache/atgrpo_jax/compiled"  # beside the warm starts
OFF = "off"
BYTES = 2 * 2**30  # a folder's limit; JAX deletes the programs that were not used for longest
PROCESSOR = (
    "vendor_id", "cpu family", "model", "flags",
    "CPU implementer", "CPU architecture", "CPU variant", "CPU part", "Features",
)  # fmt: skip
_PROGRAM, _USED = "-cache", "-atime"  # how JAX ends the names of a program, and of the time of its last use
_LOCK, _LOCK_S = ".lockfile", 10.0  # JAX's own, and how long it waits for it
_WARNING = re.compile(r"Error (reading|writing) persistent compilation cache entry for '([^']+)': (.*)", re.S)


def keep_compiled(given: str | None, writes: bool = True) -> None:
    """Has JAX load programs from a folder, and keep there what it compiles.

    A folder that cannot be used costs time, but ends no run: a line says it.

    Args:
      given: the folder on this disk, or "off". If it is None, what the person told JAX counts
        (JAX_COMPILATION_CACHE_DIR, JAX_ENABLE_COMPILATION_CACHE), and ``FOLDER`` if that is nothing.
      writes: whether this process is one whose programs JAX keeps: that of host 0.

    Raises ConfigError if ``given`` is no folder of a disk.
    """
    if given == OFF:
        _turn_off()
        return
    values = jax.config.values
    told = values["jax_compilation_cache_dir"] is not None or not values["jax_enable_compilation_cache"]
    if given is None and told:
        return
    try:
        folder = _folder(given) / machine()
        is_new = not folder.exists()
        make_folder(folder)
        _mend(folder)
    except (OSError, RunError) as error:
        say(f"{_reason(error)}, so what is compiled is not kept; --compiled=FOLDER names another folder")
        return
    settings = {
        "jax_compilation_cache_dir": str(folder),
        "jax_compilation_cache_max_size": BYTES,
        "jax_persistent_cache_min_compile_time_secs": 0.0,  # a run has few programs, most of them small
    }
    for name, value in settings.items():
        if name.upper() not in os.environ or name == "jax_compilation_cache_dir":
            jax.config.update(name, value)
    warnings.showwarning = _Warned(folder, warnings.showwarning)
    if is_new and writes:
        say(
            f"what is compiled is kept in {folder}, at most {BYTES >> 30} GB, and later starts are faster; "
            "--compiled=off keeps nothing"
        )


def _folder(given: str | None) -> Path:
    """Returns the folder that is ``given``, or else the default. Raises RunError if that has no home."""
    try:
        folder = folder_path(given or FOLDER)
    except ValueError as error:
        if given is None:
            raise RunError(f"{FOLDER} {error}") from error
        raise ConfigError(f"--compiled={given} {error}") from error
    if not isinstance(folder, Path):
        raise ConfigError(f"--compiled={given}: give a folder of a disk")
    return folder


def machine() -> str:
    """Returns a digest of what XLA's code for CPUs depends on: the processor, and how many may be used.

    JAX knows the features, but not the number. XLA divides loops by it, so what was compiled on one core
    would stay on one.
    """
    about = Path("/proc/cpuinfo")  # of Linux
    first = about.read_text().partition("\n\n")[0].splitlines() if about.exists() else []
    lines = [line for line in first if line.partition(":")[0].strip() in PROCESSOR]
    name = platform.machine(), platform.processor(), *lines, str(len(cores()))
    return hash_bytes("\n".join(name)).hex()[:12]


class _Warned:
    """Shows warnings as before, but for JAX's about its folder, which come for each program.

    A damaged program is deleted, and compiled anew. If the folder cannot be used any more, one line says
    so, and the rest of the process does without.
    """

    def __init__(self, folder: Path, show: Callable[..., None]):
        self._folder = folder
        self._show = show

    def __call__(self, message: Any, *about: Any, **more: Any) -> None:
        found = _WARNING.match(str(message))
        if found is None:
            self._show(message, *about, **more)
            return
        what, program, why = found.groups()
        try:
            _mend(self._folder, without=program if what == "reading" else None)
        except (OSError, RunError) as error:
            what, why = "using", _reason(error)
        if what == "reading":
            say(f"{program} of {self._folder} is damaged ({why}); it is compiled anew")
            return
        _turn_off()
        say(f"what is compiled from here on is not kept in {self._folder} ({why})")


def _mend(folder: Path, without: str | None = None) -> None:
    """Deletes programs that were not written to their end, and those called ``without``.

    JAX writes the time of the first use last. It can delete nothing while one lacks it.

    Raises OSError if the folder cannot be written or locked.
    """
    with FileLock(folder / _LOCK, timeout=_LOCK_S):
        for path in folder.glob(f"*{_PROGRAM}"):
            name = path.name.removesuffix(_PROGRAM)
            used = path.with_name(name + _USED)
            if name.rpartition("-")[0] == without or not used.exists():
                path.unlink()
                used.unlink(missing_ok=True)


def _turn_off() -> None:
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()


def _reason(error: OSError | RunError) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return str(error)
