"""Says what each metric of a step means, in the words of meanings.txt, which docs/metrics.md ends with.

A new metric needs a row there. Then ``PYTHONPATH=. python tests/test_metrics_page.py`` writes the page anew.
"""

import functools
import importlib.resources
import re
from collections.abc import Iterable
from typing import NamedTuple

_ROW = re.compile(r"\| `([^`]+)` \| ([^|]+) \| ([^|]+) \|(?: ([^|]+))? \|")
# A level of a row's name that is in capitals stands for any name, but for these.
LEVELS = {"SPLIT": ("validation", "test")}


class Meaning(NamedTuple):
    name: str  # such as "role/NAME/part/PART"
    says: str  # one sentence
    unit: str
    healthy: str  # what runs of this project have shown; empty if nothing is known


def tables() -> str:
    """Returns the tables of all metrics, as Markdown."""
    return (importlib.resources.files("atgrpo_jax.viewing") / "meanings.txt").read_text()


@functools.cache
def rows() -> tuple[Meaning, ...]:
    found = (_ROW.fullmatch(line) for line in tables().splitlines())
    return tuple(Meaning(*row.groups("")) for row in found if row)


def meaning_of(name: str) -> Meaning | None:
    """Returns the row that describes a metric; None if there is none."""
    return next((row for row in rows() if _pattern(row.name).fullmatch(name)), None)


def sentences(names: Iterable[str]) -> dict[str, str]:
    """Returns what each of the metrics means that has a row."""
    found = {name: meaning_of(name) for name in names}
    return {name: row.says for name, row in found.items() if row is not None}


@functools.cache
def _pattern(name: str) -> re.Pattern[str]:
    return re.compile("/".join(map(_level, name.split("/"))))


def _level(level: str) -> str:
    if level in LEVELS:
        return f"(?:{'|'.join(LEVELS[level])})"
    return "[^/]+" if level.isupper() else re.escape(level)
