"""Writes plain values as Python text."""

import ast
import dataclasses
from collections.abc import Mapping
from typing import Any


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
