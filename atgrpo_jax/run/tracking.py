"""Sends the records of a run to its trackers. None of them can end a run, or lose a record in silence.

metrics.jsonl is the truth. A tracker that fails is said once and tried again after a pause, and then
gets all steps that it has missed. What it has got is noted in trackers/state.json of the run folder:
a run that goes on begins there, be it with another tracker, or with one that was left out for a while.
"""

import contextlib
import json
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from atgrpo_jax.common.errors import RunError, UserError, one_line
from atgrpo_jax.common.files import make_folder, read_file, write_atomically
from atgrpo_jax.common.hosts import Hosts
from atgrpo_jax.common.progress import say
from atgrpo_jax.common.types import hash_bytes
from atgrpo_jax.run.experiment import Experiment
from atgrpo_jax.run.folder import RunFolder
from atgrpo_jax.run.gin_writing import settings_of
from atgrpo_jax.run.nodes import speaker
from atgrpo_jax.tasks.prompts import shortened
from atgrpo_jax.tracking.tracker import About, Row, Tracker, TrackerConfig
from atgrpo_jax.tracking.trackers import Trackers

_FIRST_PAUSE, _LONGEST_PAUSE = 60.0, 1800.0  # seconds until a tracker that failed is tried again
_SCRATCH = "~/.cache/atgrpo_jax/trackers"  # of runs in buckets


class Tracking:
    """The trackers of a run. Opening them raises RunError where a person has to do something first."""

    def __init__(self, trackers: Trackers, folder: RunFolder, settings: Mapping[str, Any]):
        self._folder = folder
        self._trackers = trackers
        self._path = folder.trackers / "state.json"
        chosen = trackers.chosen()
        self._state: dict[str, dict[str, Any]] = _read_state(self._path) if chosen else {}
        self._written = dict(self._state)
        self._channels = []
        try:
            for name, config in chosen.items():
                known = self._state.get(name, {"key": "", "next": 0})
                about = About(folder.path.name, known["key"], settings, folder.path, _local(folder))
                self._channels.append(_Channel(name, config, about, known["next"]))
        except BaseException:
            self.close()
            raise

    def begin(self, first: int) -> None:
        """Sends what is missing of the steps before ``first``, which is the next one."""
        for channel in self._channels:
            channel.next = min(channel.next, first)
        self._catch_up(first - 1, insist=True)
        self.note()

    def send(self, record: Mapping[str, float]) -> None:
        """Sends the record of a step that is in the run folder, with a table if it has an evaluation."""
        self._catch_up(int(record["step"]), record)

    def note(self) -> None:
        """Notes in the run folder what each tracker surely has."""
        for channel in self._channels:
            self._state[channel.name] = {"key": channel.key, "next": channel.first_unsure()}
        if self._state != self._written:
            self._folder.check_ours()
            make_folder(self._folder.trackers)
            write_atomically(self._path, (json.dumps(self._state, indent=2) + "\n").encode())
            self._written = dict(self._state)

    def end(self, summary: dict[str, Any]) -> dict[str, Any]:
        """Sends what is missing and the summary, and closes all records. Returns the summary."""
        self._catch_up(summary["steps"], insist=True)
        self.close(summary)
        return summary

    def close(self, summary: Mapping[str, Any] | None = None) -> None:
        """Closes all records. ``summary`` is None if the run has stopped before its last step."""
        for channel in self._channels:
            channel.close(summary)
        self.note()

    def _catch_up(self, last: int, record: Mapping[str, float] | None = None, insist: bool = False) -> None:
        behind = [c for c in self._channels if c.next <= last and c.ready(insist)]
        if not behind:
            return
        records: Sequence[Mapping[str, float]] = [record] if record else []
        if record is None or any(channel.next < last for channel in behind):
            records = self._folder.read_metrics()
        for channel in behind:
            due = [record for record in records if channel.next <= record["step"] <= last]
            channel.send(due, self._tables)

    def _tables(self, record: Mapping[str, float]) -> Iterator[tuple[str, list[Row]]]:
        """Yields the split of each evaluation of a step, and its table."""
        for split in ("validation", "test"):
            if self._trackers.rows and f"{split}/success" in record:
                episodes = self._folder.read_episodes(int(record["step"]), split)
                yield split, table_of(episodes, self._trackers.rows, self._trackers.letters)


class _Channel:
    """A tracker, the first step that it has not got, and when it may be tried again."""

    def __init__(self, name: str, config: TrackerConfig, about: About, following: int):
        self.name = name
        self.key = about.key
        self.next = following
        self._first = following  # the first step that no record has which was closed well
        self._config = config
        self._about = about
        self._tracker: Tracker | None = None
        self._pause = 0.0  # seconds; 0 unless it has failed
        self._again = 0.0  # by the clock
        self._no_tables = False
        self._unsure: list[tuple[float, int]] = []  # until when a kill would lose a step that it got
        try:
            self._open()
        except UserError as error:
            raise type(error)(f"{self._field}: {error}; to train without it: {self._field} = None") from error
        except Exception as error:  # whatever somebody else's library raises
            if not self.key:
                raise RunError(
                    f"{self._field}: it cannot be opened ({harmless(error)}); to train without it: "
                    f"{self._field} = None"
                ) from error
            self._failed(error)
        if name != "tensorboard" and self._tracker is not None:
            say(f"{name}: {_hidden(self._tracker.where)}")

    @property
    def _field(self) -> str:
        return f"trackers.Trackers.{self.name}"

    def _open(self) -> Tracker:
        if self._tracker is None:
            self._tracker = self._config.open(self._about._replace(key=self.key))
            self.key = self._tracker.key
        return self._tracker

    def first_unsure(self) -> int:
        """Returns the first step that it would not have if all processes were killed now."""
        now = time.monotonic()
        self._unsure = [(until, step) for until, step in self._unsure if now < until]
        return min([self.next, *(step for _, step in self._unsure)])

    def ready(self, insist: bool) -> bool:
        return insist or time.monotonic() >= self._again

    def send(self, records: Sequence[Mapping[str, float]], tables: Any) -> None:
        """Sends records in order, until one is not taken."""
        try:
            tracker = self._open()
            for record in records:
                step = int(record["step"])
                tracker.log(step, {name: value for name, value in record.items() if name != "step"})
                self.next = step + 1
                self._first = min(self._first, step)
                self._unsure.append((time.monotonic() + tracker.lag_s, step))
                self._send_tables(tracker, record, tables)
        except Exception as error:
            self._failed(error)
            return
        if self._pause:
            say(f"{self.name}: it answers again, and has all steps up to {self.next - 1}")
            self._pause = 0.0

    def _send_tables(self, tracker: Tracker, record: Mapping[str, float], tables: Any) -> None:
        try:
            for split, rows in tables(record):
                self._send_table(tracker, int(record["step"]), split, rows)
        except Exception as error:  # our own reading of the episodes: the tracker has no part in it
            self._without_table(f"is not read ({harmless(error)})")

    def _send_table(self, tracker: Tracker, step: int, split: str, rows: list[Row]) -> None:
        try:
            tracker.table(step, split, rows)
        except Exception as error:  # a store of files may refuse what the one of metrics takes
            self._without_table(f"is not taken ({harmless(error)}); the folder has all")

    def _without_table(self, why: str) -> None:
        if not self._no_tables:
            say(f"{self.name}: a table of episodes {why}")
        self._no_tables = True

    def _failed(self, error: Exception) -> None:
        self.next = self.first_unsure()
        if not self._pause:
            say(
                f"{self.name}: step {self.next} is not taken ({harmless(error)}); the run goes on, and what "
                "is missing is sent later"
            )
        # wandb refuses the same run for as long as an earlier record of it is open in this process.
        if self._tracker is not None:
            with contextlib.suppress(Exception):  # what failed just now may fail again
                self._tracker.end(None)
                self._first = self.next
        self._tracker = None
        self._pause = min(max(_FIRST_PAUSE, 2 * self._pause), _LONGEST_PAUSE)
        self._again = time.monotonic() + self._pause

    def close(self, summary: Mapping[str, Any] | None) -> None:
        if self._tracker is not None:
            where = _hidden(self._tracker.where)
            try:
                self._tracker.end(summary)
                self._unsure = []
                self._first = self.next
            except Exception as error:
                if self._tracker.lag_s:  # it takes steps before it sends them, and so may lack any of them
                    self.next = self._first
                say(
                    f"{self.name}: its record is not closed ({harmless(error)}); the same command sends what "
                    f"it lacks; {where}"
                )
        elif self._pause:
            say(f"{self.name}: it lacks the steps from {self.next}; the same command sends them")
        self._tracker = None
        self._pause = 0.0


@contextlib.contextmanager
def tracked(experiment: Experiment, folder: RunFolder, hosts: Hosts) -> Iterator[Tracking]:
    """Opens the trackers of a run on host 0, and closes them."""
    tracking = Tracking(Trackers(tensorboard=None), folder, {})

    def start() -> bytes:
        nonlocal tracking
        tracking = Tracking(experiment.trackers, folder, settings_of(experiment))
        return b""

    hosts.told("trackers", start)
    with contextlib.closing(tracking):
        yield tracking


def table_of(episodes: Iterator[Mapping[str, Any]], rows: int, letters: int) -> list[Row]:
    """Returns a table of the first episodes of an evaluation: the same instances each time.

    An episode that does not fit whole into ``rows`` is cut.
    """
    found: list[Row] = []
    for episode in episodes:
        for group in episode["groups"]:
            said = None if group["executed"] is None else group["candidates"][group["executed"]]
            found.append((
                episode["instance"],
                group["turn"],
                speaker(group),
                shortened(group["prompt"], letters),
                shortened(said["text"], letters) if said else "",
                said["mixed"] if said else None,
                episode["end"],
            ))  # fmt: skip
            if len(found) >= rows:
                return found
    return found


def harmless(error: BaseException) -> str:
    """Returns an error as one line, without keys and passwords."""
    return f"{type(error).__name__}: {one_line(RunError(_hidden(str(error))))}"


def _hidden(text: str) -> str:
    """Returns a text without the keys and passwords of the environment and of URLs."""
    for name, value in os.environ.items():
        if re.search("KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL", name) and len(value) >= 6:
            text = text.replace(value, "***")
    return re.sub(r"//[^/@\s]+@", "//***@", text)


def _local(folder: RunFolder) -> Path:
    """Returns a folder for the trackers' own files, on this machine's disk."""
    if isinstance(folder.trackers, Path):
        return folder.trackers
    return Path(_SCRATCH).expanduser() / hash_bytes(str(folder.path)).hex()[:16]


def _read_state(path: Any) -> dict[str, dict[str, Any]]:
    try:
        return json.loads(read_file(path))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise RunError(f"{path} is not JSON ({error}); remove it, and all is sent again") from error
