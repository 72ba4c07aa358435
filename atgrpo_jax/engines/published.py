"""Weights on their way to servers: in a folder that they read, whole or not at all."""

import os
import shutil
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path

from atgrpo_jax.errors import RunError

IN_MEMORY = Path("/dev/shm")


class Published:
    """Folders under one of our own in ``parent``; without one, in this host's memory where it has such a
    file system. What runs that were killed left there goes first."""

    def __init__(self, parent: str = ""):
        """Raises RunError if the folder cannot be made."""
        default = IN_MEMORY if os.access(IN_MEMORY, os.W_OK) else Path(tempfile.gettempdir())
        self.parent = Path(parent).expanduser().absolute() if parent else default
        prefix = f"atgrpo-{socket.gethostname()}-"
        try:
            self.parent.mkdir(parents=True, exist_ok=True)
            for left in self.parent.glob(f"{prefix}*"):
                if not _runs(left.name.removeprefix(prefix).split("-")[0]):
                    shutil.rmtree(left, ignore_errors=True)
            self.root = Path(tempfile.mkdtemp(prefix=f"{prefix}{os.getpid()}-", dir=self.parent))
        except OSError as error:
            raise RunError(f"cannot make a folder for weights in {self.parent}: {error.strerror}") from error
        self.root.chmod(0o755)  # servers may be another user's

    def check_room(self, size: float) -> None:
        """Raises RunError if there is less than ``size`` bytes."""
        free = shutil.disk_usage(self.root).free
        if free < size:
            raise RunError(
                f"{self.parent} has {free / 1e9:.1f} GB left, and weights on their way to servers take "
                f"{size / 1e9:.1f} GB; give a folder with room as SGLangConfig.folder"
            )

    def write(self, name: str, write: Callable[[str], None]) -> Path:
        """``write``s a folder, which gets its name when it is complete.

        Raises RunError if there is no room.
        """
        partial, whole = self.root / f"{name}.partial", self.root / name
        try:
            write(str(partial))
        except OSError as error:
            raise RunError(f"cannot write weights for the servers to {partial}: {error.strerror}") from error
        partial.rename(whole)
        return whole

    def forget(self, folder: Path | None) -> None:
        if folder is not None:
            shutil.rmtree(folder)

    def close(self) -> None:
        shutil.rmtree(self.root, ignore_errors=True)


def _runs(pid: str) -> bool:
    """Whether a process of this number is there; what is no number is not ours to judge."""
    if not pid.isdigit():
        return True
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def folder_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())
