"""Weights on their way to servers: in a folder that they read, whole or not at all."""

import contextlib
import fcntl
import os
import shutil
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError

from atgrpo_jax.common.errors import RunError

IN_MEMORY = Path("/dev/shm")
_LOCK = "lock"


class Published:
    """Folders under one of our own in ``parent``; without one, in this host's memory where it has such a
    file system. What killed runs of this host left there goes first: a living one holds a lock in its own."""

    def __init__(self, parent: str = ""):
        """Raises RunError if the folder cannot be made."""
        default = IN_MEMORY if os.access(IN_MEMORY, os.W_OK) else Path(tempfile.gettempdir())
        self.parent = Path(parent).expanduser().absolute() if parent else default
        host = f"atgrpo-{socket.gethostname()}"
        try:
            self.parent.mkdir(parents=True, exist_ok=True)
            for left in self.parent.glob(f"{host}-*"):
                if left.name.rpartition("-")[0] == host and _abandoned(left):
                    shutil.rmtree(left, ignore_errors=True)
            self.root = Path(tempfile.mkdtemp(prefix=f"{host}-", dir=self.parent))
            # In a folder of the user's own choice servers of other users read what they may read there.
            self.root.chmod(0o700 | (self.parent.stat().st_mode & 0o755 if parent else 0))
            self._lock = _locked(self.root)
        except OSError as error:
            raise RunError(f"cannot make a folder for weights in {self.parent}: {error.strerror}") from error

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
        except (OSError, SafetensorError) as error:
            why = getattr(error, "strerror", None) or error
            raise RunError(f"cannot write weights for the servers to {partial}: {why}") from error
        partial.rename(whole)
        return whole

    def forget(self, folder: Path | None) -> None:
        if folder is not None:
            shutil.rmtree(folder)

    def close(self) -> None:
        shutil.rmtree(self.root, ignore_errors=True)
        os.close(self._lock)


def _locked(root: Path) -> int:
    """The descriptor of a lock that ends with this process. Its file is there only when it is held."""
    descriptor = os.open(root / "unlocked", os.O_CREAT | os.O_RDWR, 0o644)
    with contextlib.suppress(OSError):  # no locks on this file system: then nobody takes it for abandoned
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.rename(root / "unlocked", root / _LOCK)
    return descriptor


def _abandoned(root: Path) -> bool:
    """Whether whoever made it has ended."""
    try:
        descriptor = os.open(root / _LOCK, os.O_RDWR)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


def folder_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())
