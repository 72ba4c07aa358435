"""Finds the files of installed packages and of the packages that these need."""

import functools
import importlib.metadata as metadata
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path

from packaging.requirements import Requirement


def paths(names: Iterable[str]) -> list[Path]:
    """Returns the top-level files and folders of packages, in site-packages, and of what they need.

    The packages are named as in an import. Raises ValueError for one that is not installed.
    """
    wanted: list[str] = []
    for name in names:
        if find_spec(name) is None:
            raise ValueError(f"{name} is not installed here")
        wanted += _distributions().get(name, [])
    found: dict[Path, None] = {}
    seen: set[str] = set()
    while wanted:
        distribution = metadata.distribution(wanted.pop())
        if distribution.name in seen:
            continue
        seen.add(distribution.name)
        for file in distribution.files or ():
            top = file.parts[0]
            if top not in ("..", "__pycache__"):
                found[Path(str(distribution.locate_file(top)))] = None
        for text in distribution.requires or ():
            need = Requirement(text)
            if need.marker is None or need.marker.evaluate({"extra": ""}):
                wanted.append(need.name)
    return list(found)


@functools.cache
def _distributions() -> Mapping[str, list[str]]:
    """Returns the distributions that provide each import name. Reading them all takes a second."""
    return metadata.packages_distributions()
