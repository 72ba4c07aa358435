"""Names the levels of protection, and says which ones this machine may have."""

import shutil
import sys
from typing import Literal

from atgrpo_jax.sandbox import kernel, system_calls

Level = Literal["limits", "kernel", "namespaces"]
LEVELS: tuple[Level, ...] = ("limits", "kernel", "namespaces")  # weakest first


def missing(level: Level) -> str | None:
    """Returns what this machine lacks for a level, or None, without trying to start a worker."""
    if not sys.platform.startswith("linux"):
        return "programs are run on Linux only"
    if level != "limits" and not system_calls.seccomp_known():
        return "no table of system calls for this processor"
    if level == "kernel" and not kernel.landlock_version():
        return "this kernel has no Landlock (Linux 5.13 has it)"
    if level == "namespaces" and shutil.which("bwrap") is None:
        return "bubblewrap (bwrap) is not installed"
    return None
