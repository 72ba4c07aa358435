"""Files that are whole or not there, errors that name their file, and JSON lines read with care."""

import contextlib
import errno
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from atgrpo_jax.common.errors import RunError


def folder_path(text: str | os.PathLike) -> Path:
    """Absolute, with ~ resolved. Raises ValueError, in words, if no folder can have that name."""
    text = os.fspath(text)
    if "\0" in text:
        raise ValueError("has a NUL in it")
    try:
        text.encode()
        return Path(text).expanduser().absolute()
    except UnicodeEncodeError as error:
        raise ValueError("is not UTF-8") from error
    except RuntimeError as error:
        raise ValueError("names a home that is not known") from error


def make_folder(path: Path) -> None:
    """Makes it with its parents. Raises OSError, or RunError if something else is in its place."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        there = "a link to nothing" if Path(error.filename).is_symlink() else "no folder"
        raise RunError(f"{path} cannot be made: {error.filename} is {there}") from error


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Gives an OSError of ``path`` its name: a failed write has none of its own."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def partial_of(path: Path) -> Path:
    """Where the file that will be ``path`` is written."""
    return path.with_name(f".{path.name}.partial")


def write_atomically(path: Path, data: bytes) -> None:
    """The file has either its old content or all of ``data``, even after a crash.

    Raises OSError, with the file's name.
    """
    temporary = partial_of(path)
    try:
        with naming(path), open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):  # what went wrong first is what to tell
            temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Puts the names in ``folder`` on the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def append_json_line(path: Path, record: Mapping[str, Any]) -> None:
    """On disk when it returns. A line for which there is no room leaves nothing; raises OSError then."""
    data = json.dumps(record).encode() + b"\n"
    with naming(path), open(path, "ab", buffering=0) as file:
        before = file.tell()
        try:
            if file.write(data) < len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(file.fileno())
        except OSError:
            file.truncate(before)
            raise


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The object of every line; none if there is no file. A last line that a crash cut short is left out; any
    other bad line is a RunError that names it."""
    try:
        data = path.read_bytes()
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
