"""Writes weights to folders that servers read. A folder has its name only when it is complete."""

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
    """Holds a folder of this run in ``parent``, with a folder for each set of weights.

    Without ``parent``, it is in this host's memory (/dev/shm), or in the folder for temporary files
    if there is no such file system. First it removes what killed runs of this host left there. A
    run that lives is recognized by the lock that it holds in its folder.
    """

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
            # If the user chose the parent, other users' servers may read here what they may there.
            self.root.chmod(0o700 | (self.parent.stat().st_mode & 0o755 if parent else 0))
            self._lock = _locked(self.root)
        except OSError as error:
            raise RunError(f"cannot make a folder for weights in {self.parent}: {error.strerror}") from error

    def check_room(self, size: float) -> None:
        """Raises RunError if fewer than ``size`` bytes are free."""
        free = shutil.disk_usage(self.root).free
        if free < size:
            raise RunError(
                f"{self.parent} has {free / 1e9:.1f} GB left, and weights on their way to servers take "
                f"{size / 1e9:.1f} GB; give a folder with room as SGLangConfig.folder"
            )

    def write(self, name: str, write: Callable[[str], None]) -> Path:
        """Calls ``write`` on a new folder, which gets its name when it is complete.

        Returns the folder. Raises RunError if it cannot be written.
        """
        partial = self.root / f"{name}.partial"
        whole = self.root / name
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
    """Returns the descriptor of a lock on ``root``, which ends with this process.

    The lock's file gets its name only after the lock is held. On a file system without locks it
    never does, and then no other run takes the folder for abandoned.
    """
    descriptor = os.open(root / "unlocked", os.O_CREAT | os.O_RDWR, 0o644)
    with contextlib.suppress(OSError):  # this file system has no locks
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.rename(root / "unlocked", root / _LOCK)
    return descriptor


def _abandoned(root: Path) -> bool:
    """Returns whether the run that made the folder has ended."""
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
