"""Rows of problem sets: JSON lines, plain or gzipped. See docs/data.md."""

import gzip
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


def read_rows(path: str, fields: Mapping[str, Any]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line numbers, from 1, and rows, each with at least ``fields`` of those types.

    Raises ValueError naming the file, the line and the field.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise ValueError(f"{path}: no such file")
    try:
        with (gzip.open if file.suffix == ".gz" else open)(file, "rt", encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield number, _row(line, f"{path}:{number}", fields)
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read ({error})") from error


def _row(line: str, place: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{place}: no JSON ({error})") from error
    if not isinstance(row, dict):
        raise ValueError(f"{place}: no JSON object")
    for name, kind in fields.items():
        if name not in row:
            raise ValueError(f"{place}: no field {name!r}")
        if not isinstance(row[name], kind):
            raise ValueError(f"{place}: {name} = {str(row[name])[:60]!r} is no {kind.__name__}")
    return row
