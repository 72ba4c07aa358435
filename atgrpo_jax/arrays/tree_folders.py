"""Keeps saved trees on a disk.

A tree is written beside its place and then renamed, so it is there whole or not at all, also after
kill -9. A digest is the SHA-256 of a file's bytes. In a tree that was copied from a bucket it is the
bucket's CRC32C.
"""

import base64
import concurrent.futures
import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar

from atgrpo_jax.common.errors import RunError
from atgrpo_jax.common.files import Place, naming, sync_folder

ABOUT = "saved.json"
STATE = "state"
PATTERN = frozenset("[]*?\\")
_PARTIAL = ".partial"

T = TypeVar("T")


class Damaged(RunError):
    """Raised if the files of a tree are not the ones that were saved."""


class TreeFolder:
    """A tree in the folder ``place``."""

    def __init__(self, place: Path):
        self.place = place
        self.file = place / ABOUT

    def exists(self) -> bool:
        return self.file.is_file()

    def about(self) -> bytes:
        return _reading(self.file, self.file.read_bytes)

    @contextlib.contextmanager
    def writing(self, size: int, by_others: bool = False) -> Iterator["Draft"]:
        """Yields a new folder beside the place. Removes it at the end, if it is still there.

        Its path means the same to other processes, if ``by_others``.

        Raises RunError if that path cannot be used, and OSError if the disk has no room for ``size``
        bytes: TensorStore's own errors are long.
        """
        with _partial_folder(self.place) as (partial, descriptor):
            if shutil.disk_usage(self.place.parent).free < size:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.place))
            if by_others:
                check_no_pattern(partial)
            path = partial.absolute() if by_others else _plain(partial, descriptor)
            yield Draft(self.place, partial, path / STATE)

    @contextlib.contextmanager
    def reading(self, files: Mapping[str, Any]) -> Iterator[Path]:
        """Yields the path that Orbax reads."""
        descriptor = os.open(self.place, os.O_RDONLY | os.O_DIRECTORY)
        try:
            yield _plain(self.place, descriptor) / state_in(files)
        finally:
            os.close(descriptor)

    def check(self, files: Mapping[str, Any]) -> None:
        """Raises Damaged if a file is not what was saved."""
        with concurrent.futures.ThreadPoolExecutor() as threads:
            paths = [self.place / name for name in files]
            kinds = [digest for _, digest in files.values()]
            found = threads.map(
                lambda path, kind: _reading(path, lambda: size_and_digest(path, kind)), paths, kinds
            )
            for path, now, saved in zip(paths, found, files.values(), strict=True):
                if now != saved:
                    raise Damaged(f"{path} is not what was saved")

    def remove(self) -> None:
        aside = _aside(self.place)
        os.rename(self.place, aside)
        shutil.rmtree(aside)

    def move(self, target: Place) -> None:
        self.place.rename(target)


class Draft(NamedTuple):
    """A tree that is being written in the folder ``partial``. Orbax writes in ``state``."""

    place: Path
    partial: Path
    state: Path

    def files(self) -> dict[str, list[Any]]:
        """Returns size and digest of all files, after they were written to disk (fsync)."""
        files = sorted(path for path in self.partial.rglob("*") if path.is_file())
        with concurrent.futures.ThreadPoolExecutor() as threads:
            found = threads.map(lambda file: size_and_digest(file, sync=True), files)
            names = [str(file.relative_to(self.partial)) for file in files]
            return dict(zip(names, found, strict=True))

    def put(self, about: bytes, stays: Callable[[], bool]) -> None:
        """Renames the folder to its place. What is there is replaced, unless it ``stays``."""
        with naming(self.place / ABOUT), open(self.partial / ABOUT, "wb") as file:
            file.write(about)
            file.flush()
            os.fsync(file.fileno())
        for folder in (self.partial, *(path for path in self.partial.rglob("*") if path.is_dir())):
            sync_folder(folder)
        self._rename(stays)
        sync_folder(self.place.parent)

    def _rename(self, stays: Callable[[], bool]) -> None:
        while True:
            with contextlib.suppress(OSError):
                os.rename(self.partial, self.place)
                return
            if stays():
                return
            if not self.place.exists():
                os.rename(self.partial, self.place)  # raises the error that was suppressed above
                return
            TreeFolder(self.place).remove()


def names_of_trees(folder: Path) -> set[str]:
    """Returns the names of all folders in a folder. One without ``saved.json`` is damaged."""
    try:
        return {found.name for found in folder.iterdir() if found.is_dir()}
    except FileNotFoundError:
        return set()


def check_no_pattern(path: Path) -> None:
    """Raises RunError for signs that Orbax reads as a pattern. See ``_plain`` for runs on one host."""
    found = PATTERN & set(str(path.absolute()))
    if found:
        raise RunError(
            f"{path}: on several hosts no {' '.join(sorted(found))} may be in the path; give another folder"
        )


def clean(folder: Path) -> None:
    """Removes trees that ended processes left half written or half removed in ``folder``."""
    for left in folder.glob(f".*{_PARTIAL}"):
        with contextlib.suppress(OSError):  # it belongs to a live process, or to another user
            descriptor = os.open(left, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(left)
            finally:
                os.close(descriptor)


def _aside(place: Path) -> Path:
    return place.with_name(f".{place.name}.{uuid.uuid4().hex[:12]}{_PARTIAL}")


@contextlib.contextmanager
def _partial_folder(place: Path) -> Iterator[tuple[Path, int]]:
    """Yields a new folder beside ``place``, and its descriptor. Removes the folder at the end.

    The folder is locked while this process lives, so that ``clean`` of other processes keeps it.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    while True:
        partial = _aside(place)
        partial.mkdir()
        descriptor = os.open(partial, os.O_RDONLY | os.O_DIRECTORY)
        # Where folders cannot be locked, ``clean`` cannot lock them either, and so removes none.
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if partial.exists():
            break
        os.close(descriptor)  # ``clean`` of another process was faster than the lock
    try:
        yield partial, descriptor
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        os.close(descriptor)


def _reading(file: Path, read: Callable[[], T]) -> T:
    try:
        return read()
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EIO):
            raise  # this is no damage: another user may read it, or it can be read later
        raise Damaged(f"{file} cannot be read ({error.strerror})") from error


def state_in(files: Mapping[str, Any]) -> str:
    """Returns the name of the folder that Orbax wrote, in a tree with these files."""
    return next(iter(files)).split("/")[0]


def is_sha256(digest: str) -> bool:
    """Returns whether a digest is a SHA-256. Else it is a CRC32C, as stores write it."""
    return len(digest) == 64


def size_and_digest(file: Path, kind: str = "0" * 64, sync: bool = False) -> list[Any]:
    """Returns the size of a file, and its digest of the same kind as the digest ``kind``."""
    with naming(file), open(file, "rb") as opened:
        if sync:
            os.fsync(opened.fileno())
        if is_sha256(kind):
            digest = hashlib.file_digest(opened, "sha256").hexdigest()
        else:
            digest = _crc32c(opened, file)
        return [opened.tell(), digest]


def _crc32c(opened: BinaryIO, file: Path) -> str:
    try:
        import google_crc32c
    except ImportError as error:
        raise RunError(
            f"{file} was copied from a bucket, and its checksum needs a package of the extra gcs: "
            'pip install "atgrpo_jax[gcs]"'
        ) from error
    found = google_crc32c.Checksum()
    while block := opened.read(1 << 20):
        found.update(block)
    return base64.b64encode(found.digest()).decode()


def _plain(path: Path, descriptor: int) -> Path:
    """Returns a path to the open folder through /proc, or ``path`` itself where there is no /proc.

    Orbax treats brackets and backslashes in a path as patterns; the new path has none.
    """
    plain = Path(f"/proc/self/fd/{descriptor}")
    return plain if plain.is_dir() else path
