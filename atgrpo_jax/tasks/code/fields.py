"""Reads single fields of rows, each of its type. Raises ValueError that names a bad field."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any


def shown(value: Any) -> str:
    return repr(str(value)[:60])


def id_of(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, (str, int, type(None))):
        raise ValueError(f"id = {shown(value)} is neither a text nor a whole number")
    return "" if value is None else str(value)


def text_of(row: Mapping[str, Any], name: str, default: str | None = None) -> str:
    """Returns a text field. A field that is null counts as missing. Raises KeyError if a field
    without a default is missing, ValueError if it is no text."""
    value = row.get(name)
    if value is None and default is not None:
        return default
    return characters(name, row[name])


def characters(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{name} = {shown(value)} is no text")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{name} has half a character (a lone surrogate) at {error.start}") from error
    return value


def list_of(row: Mapping[str, Any], name: str) -> list[Any]:
    if not isinstance(row[name], list):
        raise ValueError(f"{name} = {shown(row[name])} is no list")
    return row[name]


def pairs_of(row: Mapping[str, Any]) -> tuple[list[Any], list[Any]]:
    inputs = list_of(row, "test_input")
    outputs = list_of(row, "test_output")
    if len(inputs) != len(outputs):
        raise ValueError(f"test_input has {len(inputs)} items, test_output {len(outputs)}")
    return inputs, outputs


def lines(name: str, value: Any, numbers: bool = True) -> str:
    """Returns a text that may be given as a list of its lines. With ``numbers``, the text or a line
    may also be a number."""
    if isinstance(value, list):
        found = [lines(f"{name}[{i}]", line, numbers) for i, line in enumerate(value) if _flat(name, line)]
        return "\n".join(found)
    whole = isinstance(value, int) and not isinstance(value, bool)
    number = whole or (isinstance(value, float) and math.isfinite(value))
    return str(value) if number and numbers else characters(name, value)


def _flat(name: str, line: Any) -> bool:
    if isinstance(line, list):
        raise ValueError(f"{name} holds a list in a list: {shown(line)}")
    return True


def json_of(name: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name} is no JSON: {error}") from error


def flag(row: Mapping[str, Any], name: str) -> bool:
    value = row.get(name)
    if value is not None and not isinstance(value, bool):
        raise ValueError(f"{name} = {shown(value)} is neither true nor false")
    return bool(value)


def tolerance_of(value: Any) -> float:
    if value is None:
        return 0.0
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"tolerance = {shown(value)} is no number")
    if not 0 <= value < 1:  # refuses NaN, too; from 1 on, 0 would pass for any small number
        raise ValueError(f"tolerance = {shown(value)} is not at least 0 and less than 1")
    return float(value)


def refuse(row: Mapping[str, Any], names: Sequence[str], where: str) -> None:
    """Raises ValueError for fields that would be ignored."""
    for name in names:
        if row.get(name) not in (None, False, 0):
            raise ValueError(f"{name} = {shown(row[name])}: it has no meaning in {where}")
