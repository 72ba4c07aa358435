"""Writes files that are whole or not there, names files in errors, and reads JSON lines.

A ``Place`` is a path on a disk, or in a bucket (``gs://...``). All that a run does with its files works
with both, and goes through here.
"""

import contextlib
import errno
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from etils import epath

from atgrpo_jax.common import buckets
from atgrpo_jax.common.errors import RunError

Place: TypeAlias = Path | epath.Path


def folder_path(text: str | os.PathLike) -> Place:
    """Returns the absolute path, with ~ resolved, or the path in a bucket.

    Raises ValueError with a readable message if no folder can have that name.
    """
    text = os.fspath(text)
    if buckets.is_url(text):
        return buckets.bucket_path(text)
    if "\0" in text:
        raise ValueError("has a NUL in it")
    try:
        text.encode()
        return Path(text).expanduser().absolute()
    except UnicodeEncodeError as error:
        raise ValueError("is not UTF-8") from error
    except RuntimeError as error:
        raise ValueError("names a home that is not known") from error


def make_folder(path: Place) -> None:
    """Makes a folder and its parents. Raises OSError, or RunError if something else is there.

    Buckets have no folders, so nothing is made there.
    """
    if not isinstance(path, Path):
        return
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        there = "a link to nothing" if Path(error.filename).is_symlink() else "no folder"
        raise RunError(f"{path} cannot be made: {error.filename} is {there}") from error


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Adds the name ``path`` to an OSError without a file name, as a failed write raises it."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def names_in(folder: Place) -> set[str]:
    """Returns the names of all that is directly in a folder; none if it is not there."""
    if not isinstance(folder, Path):
        return {name.split("/")[0] for name in buckets.found(folder)}
    try:
        return {path.name for path in folder.iterdir()}
    except FileNotFoundError:
        return set()


def is_file(path: Place) -> bool:
    return path.is_file() if isinstance(path, Path) else buckets.is_object(path)


def read_file(path: Place) -> bytes:
    """Returns a file's content. Raises OSError, or RunError if a bucket does not give it."""
    return path.read_bytes() if isinstance(path, Path) else buckets.read(path)


def remove_file(path: Place) -> None:
    """Removes a file, if it is there."""
    if isinstance(path, Path):
        path.unlink(missing_ok=True)
    else:
        buckets.remove(path)


def partial_of(path: Place) -> Place:
    """Returns the path at which a file is written before it is renamed to ``path``."""
    return path.with_name(f".{path.name}.partial")


def write_atomically(path: Place, data: bytes) -> None:
    """Writes a file that has either its old content or all of ``data``, even after a crash.

    Raises OSError with the file's name, or RunError if a bucket does not take it.
    """
    if not isinstance(path, Path):
        buckets.write(path, data)
        return
    temporary = partial_of(path)
    try:
        with naming(path), open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):  # the first error is the one to report
            temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Writes the names of the files in ``folder`` to the disk (fsync)."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def append(path: Place, data: bytes, check: Callable[[], None] = lambda: None) -> None:
    """Appends to a file, or makes one. The data is on the disk when the function returns.

    ``check`` is called before each try; it raises if this process may not write any more.

    Raises OSError if it cannot be written, for example if the disk is full. Then no part of it is
    left in the file. Raises RunError if a bucket does not take it.
    """
    if not isinstance(path, Path):
        buckets.append(path, data, check)
        return
    check()
    with naming(path), open(path, "ab", buffering=0) as file:
        before = file.tell()
        try:
            if file.write(data) < len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(file.fileno())
        except OSError:
            file.truncate(before)
            raise


def append_json_line(
    path: Place, record: Mapping[str, Any], check: Callable[[], None] = lambda: None
) -> None:
    """Appends a record as a JSON line, as ``append`` does."""
    append(path, json.dumps(record).encode() + b"\n", check)


def read_json_lines(path: Place) -> list[dict[str, Any]]:
    """Returns the object of every line; an empty list if there is no file.

    A last line that a crash cut short is left out. Raises RunError that names any other bad line.
    """
    try:
        data = read_file(path)
    except FileNotFoundError:
        return []
    return [
        _object(line, f"{path}, line {number}") for number, line in enumerate(data.split(b"\n")[:-1], start=1)
    ]


def _object(line: bytes, where: str) -> dict[str, Any]:
    try:
        found = json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise RunError(f"{where}: not UTF-8 ({error.reason} at byte {error.start})") from error
    except (ValueError, RecursionError) as error:
        raise RunError(f"{where}: not JSON ({error})") from error
    if not isinstance(found, dict):
        raise RunError(f"{where}: not a JSON object but {str(found)[:40]!r}")
    return found
