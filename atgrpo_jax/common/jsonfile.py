"""Reads JSON files that others wrote, with a limit on their size. Every error names the file."""

import json
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from atgrpo_jax.common.errors import RunError, one_line

MOST_BYTES = 256 * 2**20  # the largest published tokenizer.json has 40 MB
_POINTER = b"version https://git-lfs.github.com/spec/"


def read_bytes(path: Path, most: int = MOST_BYTES) -> bytes:
    """Returns the content of a file.

    Raises RunError if the file is missing, is not a regular file (a folder, a pipe, a device), has
    more than ``most`` bytes, or is a Git LFS pointer instead of the file that it points to.
    """
    check_file(path)
    try:
        with open(path, "rb") as file:
            data = file.read(most + 1)
    except (OSError, ValueError) as error:
        raise RunError(f"{path} cannot be read ({_line(error)})") from error
    if len(data) > most:
        raise RunError(f"{path} cannot be read (it has more than {most} bytes)")
    return data


def check_file(path: Path) -> None:
    """Raises RunError unless ``path`` is a regular file that can be read. A pipe would block."""
    try:
        kind = path.stat().st_mode
        if not stat.S_ISREG(kind):
            raise RunError(f"{path} cannot be read (it is no regular file)")
        with open(path, "rb") as file:
            start = file.read(len(_POINTER))
    except (OSError, ValueError) as error:  # ValueError is for a name that no file can have
        raise RunError(f"{path} cannot be read ({_line(error)})") from error
    if start == _POINTER:
        raise RunError(
            f"{path} is a pointer of Git LFS, not the file itself; run `git lfs pull` in its folder"
        )


def read_text(path: Path, most: int = MOST_BYTES) -> str:
    """Returns a file's text. Raises RunError as ``read_bytes`` does, or if it is not UTF-8."""
    try:
        return read_bytes(path, most).decode("utf-8")
    except UnicodeDecodeError as error:
        raise RunError(f"{path} cannot be read ({_line(error)})") from error


def read_object(path: Path, most: int = MOST_BYTES) -> dict[str, Any]:
    """Returns a file's JSON object. Raises RunError as ``read_text`` does, or if it has none."""
    return object_of(read_text(path, most), str(path))


def object_of(text: str | bytes, source: str) -> dict[str, Any]:
    """Returns the JSON object in a text. Raises RunError that names ``source`` if it has none."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError: also an integer too long for Python
        raise RunError(f"{source} cannot be read (no JSON: {_line(error)})") from error
    if not isinstance(value, dict):
        raise RunError(f"{source} cannot be read (no JSON object but {short(value)})")
    return value


def short(value: Any) -> str:
    """Returns the repr of a value for a message, cut to 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _line(error: BaseException) -> str:
    return one_line(error) or type(error).__name__


class Fields:
    """The fields of a JSON object. Each method checks that a field has the type that it must have.

    A field that is null counts as missing. A missing field has the value ``default``; without a
    default it is an error. All errors are RunErrors that name the file and the field, e.g.
    ``PATH: FIELD = VALUE is not supported; expected ...``.
    """

    def __init__(self, path: Path | str, raw: Mapping[str, Any]):
        self.path = path
        self.raw = raw

    def refuse(self, name: str, value: Any, expected: str) -> RunError:
        return RunError(f"{self.path}: {name} = {short(value)} is not supported; expected {expected}")

    def given(self, name: str, default: Any = ...) -> Any:
        value = self.raw.get(name)
        if value is None:
            if default is ...:
                raise RunError(f"{self.path}: {name} is missing")
            return default
        return value

    def only(self, allowed: Mapping[str, Sequence[Any]]) -> None:
        """Raises RunError for the first field with a value that is not ``allowed`` for it."""
        for name, values in allowed.items():
            value = self.given(name, None)
            if not any(value == a and type(value) in (type(a), int) for a in values):
                raise self.refuse(name, value, repr(values[0]))

    def whole(self, name: str, most: int, default: Any = ..., least: int = 1) -> int:
        value = self.given(name, default)
        if type(value) is not int or not least <= value <= most:
            raise self.refuse(name, value, f"an integer from {least} to {most}")
        return value

    def positive(self, name: str, default: Any = ...) -> float:
        value = self.given(name, default)
        if (
            type(value) not in (int, float) or not 0 < value < 1e30
        ):  # an int of any size compares without overflow, and NaN fails the comparison
            raise self.refuse(name, value, "a positive number")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        value = self.given(name, default)
        if type(value) is not bool:
            raise self.refuse(name, value, "true or false")
        return value

    def text(self, name: str, default: Any = ...) -> str:
        value = self.given(name, default)
        if type(value) is not str:
            raise self.refuse(name, value, "a text")
        return value

    def part(self, name: str) -> dict[str, Any]:
        """Returns the object in a field; an empty one if the field is missing."""
        value = self.given(name, {})
        if type(value) is not dict:
            raise self.refuse(name, value, "an object")
        return value

    def ids(self, name: str, size: int = 2**31) -> tuple[int, ...]:
        """Returns the ids in a field, which is one id or a list of ids; empty if it is missing.

        Each id must be below ``size``. Ids that are named twice are returned once.
        """
        value = self.given(name, ())
        if value == ():
            return ()
        ids = value if type(value) is list else [value]
        if not ids or not all(type(i) is int and 0 <= i < size for i in ids):
            raise self.refuse(name, value, f"an id, or a list of ids, from 0 to {size - 1}")
        return tuple(dict.fromkeys(ids))
