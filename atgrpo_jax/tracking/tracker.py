"""Says what a tracker must offer: something outside that shows the records of runs, and compares them.

A tracker of your own is a frozen dataclass with ``open``, and what that returns (docs/trackers.md).
"""

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable
from urllib.parse import urlsplit

from atgrpo_jax.common.errors import RunError
from atgrpo_jax.common.files import Place

# The columns of a table of episodes, and their values in a row.
COLUMNS = ("instance", "turn", "role", "prompt", "answer", "reward", "end")
Row = tuple[int, int, str, str, str, float | None, str]


class About(NamedTuple):
    """What a tracker is told of a run."""

    name: str  # of the run folder
    key: str  # what this tracker called the run when it opened it first; "" if it never did
    settings: Mapping[str, Any]  # of the config, by place: {"rollout.candidates": 4}
    folder: Place  # the run folder
    local: Path  # a folder on this machine's disk for files of trackers; it may not be there yet


class Tracker(Protocol):
    """One run, as a tracker has it open. Every method may raise whatever its library raises."""

    key: str  # the run's name there, by which it is opened again
    where: str  # for people: where the record is to be seen
    lag_s: float  # seconds for which it may hold what it got in memory, where a kill would lose it

    def log(self, step: int, record: Mapping[str, float]) -> None:
        """Takes the metrics of a step. After a resume the same step may come again: the later one counts."""
        ...

    def table(self, step: int, split: str, rows: Sequence[Row]) -> None:
        """Takes some episodes of an evaluation; see ``COLUMNS``."""
        ...

    def end(self, summary: Mapping[str, Any] | None) -> None:
        """Closes the record. ``summary`` is None if the run has stopped before its last step."""
        ...


@runtime_checkable
class TrackerConfig(Protocol):
    """The settings of a tracker."""

    def open(self, run: About) -> Tracker:
        """Opens the record of a run, or goes on with the one of ``run.key``.

        Raises RunError if a person has to do something first: install it, log in, mend a setting.
        """
        ...


def library(name: str, extra: str) -> Any:
    """Returns the module of a tracker's library. Raises RunError if it is not installed."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise RunError(f"{error.name} is not installed; pip install 'atgrpo_jax[{extra}]'") from error


def refuse_secrets(field: str, url: str | None, variable: str) -> None:
    """Raises ValueError, without the URL in it, if a URL of the config could hold a secret."""
    parts = urlsplit(url or "")
    if "@" in parts.netloc or (parts.query and parts.scheme.startswith("http")):
        raise ValueError(
            f"{field}: no user, password or token may be in the config, which is kept; set {variable} instead"
        )


def flat(values: Mapping[str, Any], above: str = "summary") -> dict[str, Any]:
    """Returns the values of a summary by their places: {"summary/after/success": 0.5}."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        place = f"{above}/{name}"
        found |= flat(value, place) if isinstance(value, Mapping) else {place: value}
    return found
