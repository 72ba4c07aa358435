"""Reads files as they are downloaded: JSON lines, JSON, CSV, Boxoban's text and Parquet."""

import csv
import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from atgrpo_jax.common.errors import RunError


class Unusable(Exception):
    """Says why a row is left out although it has the form of its source."""


def rows_in(file: Path, *, levels: bool = False) -> Iterator[Any]:
    """Yields the rows of a file: lines of JSON lines, or levels of Boxoban's text (``levels``).

    Raises RunError if the file is not there, damaged or something else.
    """
    kind = file.name.removesuffix(".gz").rpartition(".")[2]
    read = _levels if levels else {"csv": _table, "json": _whole}.get(kind, _lines)
    try:
        if instead := _instead_of_data(file):
            raise RunError(f"{file}: {instead}")
        if kind == "parquet":
            yield from _parquet(file)
            return
        opened = gzip.open if file.suffix == ".gz" else open
        with opened(file, "rt", encoding="utf-8-sig", newline="") as text:
            yield from read(text)
    except (OSError, EOFError, zlib.error, csv.Error, ValueError, RecursionError) as error:
        raise RunError(
            f"{file}: cannot be read ({said(error)}); if it was downloaded, do so again"
        ) from error


def _instead_of_data(file: Path) -> str | None:
    """Returns what a failed download left in the file's place; None if it looks like data."""
    if not file.is_file():
        return "no such file"
    with open(file, "rb") as opened:
        start = opened.read(200).lstrip().lower()
    if not start:
        return "it is empty"
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "it is a web page, not the data: download it again, perhaps after a login"
    if start.startswith(b"version https://git-lfs"):
        return "it is Git LFS's pointer to the data: get the file itself (git lfs pull)"
    return None


def _lines(text: TextIO) -> Iterator[Any]:
    return (line for line in text if line.strip())


def _whole(text: TextIO) -> Iterator[Any]:
    whole = json.load(text)
    if not isinstance(whole, (list, dict)):
        raise ValueError("neither a list nor an object")
    return iter(whole if isinstance(whole, list) else whole.values())


def _table(text: TextIO) -> Iterator[Any]:
    csv.field_size_limit(1 << 30)  # tests can be long
    return csv.DictReader(text)


def _levels(text: TextIO) -> Iterator[Any]:
    """Yields Boxoban's levels; each is a line "; NUMBER" and then its rows."""
    stem = Path(text.name).name.partition(".")[0]
    level: dict[str, Any] = {}
    for line in map(str.rstrip, text):
        if line.startswith(";"):
            if level:
                yield level
            level = {"id": f"boxoban-{stem}-{line[1:].strip()}", "grid": []}
        elif line:
            level.setdefault("grid", []).append(line)
    if level:
        yield level


def _parquet(file: Path) -> Iterator[Any]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise RunError(f"{file}: Parquet needs pyarrow: pip install pyarrow") from error
    try:
        for batch in parquet.ParquetFile(file).iter_batches(1000):
            yield from batch.to_pylist()
    except ArrowException as error:
        raise ValueError(str(error)) from error


def json_of(text: Any, reason: str) -> Any:
    """Returns the value of a field that holds JSON, or holds the value itself.

    Raises Unusable with ``reason``, if that is not empty, for an empty field.
    """
    if not text and reason:
        raise Unusable(reason)
    try:
        return json.loads(text) if isinstance(text, str) else text
    except json.JSONDecodeError as error:
        raise ValueError(f"malformed JSON: {error}") from error
    except ValueError as error:
        raise Unusable("an integer is longer than Python reads") from error
    except RecursionError as error:
        raise ValueError("JSON nested too deep") from error


def list_of(found: Any) -> list[Any]:
    if not isinstance(found, list):
        raise TypeError(f"{str(found)[:60]!r} is no list")
    return found


def said(error: BaseException) -> str:
    """Returns the text of an error in one line."""
    if isinstance(error, KeyError):
        return f"no field {error}"
    return (str(error).strip() or type(error).__name__).partition("\n")[0][:200]
