"""Writes plain values as Python text."""

import ast
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
