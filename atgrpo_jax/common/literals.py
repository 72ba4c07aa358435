"""Writes plain values as Python text."""

import ast
import dataclasses
import itertools
import reprlib
from collections.abc import Mapping
from typing import Any

LONG = 60  # letters of a value that a person is shown
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = LONG


def shortened(one: Any, other: Any) -> tuple[str, str]:
    """Returns short texts of two values. They differ if the values have different ``repr``."""
    texts = _SHORT.repr(one), _SHORT.repr(other)
    if texts[0] != texts[1]:
        return texts
    whole = repr(one), repr(other)
    alike = (a == b for a, b in zip(*whole, strict=False))
    start = max(0, sum(itertools.takewhile(bool, alike)) - LONG // 3)
    cut = [f"{'...' if start else ''}{text[start : start + LONG]}" for text in whole]
    return cut[0], cut[1]


def literal(value: Any) -> str | None:
    """Returns ASCII text that Python reads as an equal value; None if there is none.

    Numbers, texts, None and containers of them have such a text.
    """
    text = ascii(value)
    try:
        return text if ast.literal_eval(text) == value else None
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return None


def told(config: Any, later: Mapping[str, Any]) -> str:
    """Returns the ``repr`` of a dataclass, with the fields of ``later`` only if they have other values.

    What has come to a config later is so not in the identity of runs that do not set it.
    """
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    parts = (f"{name}={value!r}" for name, value in values.items() if value != later.get(name, ...))
    return f"{type(config).__name__}({', '.join(parts)})"
