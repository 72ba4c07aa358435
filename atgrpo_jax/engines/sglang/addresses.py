"""Reads the addresses of servers in a config."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import SplitResult, urlsplit


def parsed(url: str) -> SplitResult | None:
    """Splits an address that requests can be sent to; returns None for any other text."""
    try:
        parts = urlsplit(url)
        known = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # the port is not a number, or a bracket is not closed
        return None
    plain = url.isascii() and url.isprintable() and " " not in url
    return parts if known and plain else None


def texts(value: Any) -> Iterator[str]:
    """Yields all strings in a value, at any depth."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Iterable):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from texts(item)
