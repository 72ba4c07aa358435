"""Writes TensorBoard's events into the run folder.

TensorBoard calls a run by the folder that its events are in, and sorts metrics by their names.
"""

import dataclasses
import io
import os
import socket
import time
from collections.abc import Mapping, Sequence
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from atgrpo_jax.common.files import Place, append, make_folder, names_in
from atgrpo_jax.tracking.tracker import About, Row

FIRST = "Success"  # a capital comes before small letters
_EVENTS = "events.out.tfevents."


@dataclasses.dataclass(frozen=True)
class TensorBoard:
    """``tensorboard --logdir=RUN_DIR/tensorboard`` shows the curves of a run."""

    def open(self, run: About) -> "_Events":
        folder = run.folder / "tensorboard"
        there = sorted(names_in(folder))
        if any(name.startswith(_EVENTS) for name in there):
            return _Events(folder)  # an older run, which goes on where it began
        return _Events(folder / (there[0] if there else run.name))


class _Events:
    """A file of events. It is made by the first step that is written."""

    key = ""
    lag_s = 0.0

    def __init__(self, folder: Place):
        self.where = str(folder)
        self._folder = folder
        name = f"{_EVENTS}{time.time_ns() // 10**9}.{socket.gethostname()}.{os.getpid()}"
        # Written here: TensorBoard's own writer is a thread whose errors nobody sees.
        self._file = folder / name
        self._begun = False

    def log(self, step: int, record: Mapping[str, float]) -> None:
        if not self._begun:
            make_folder(self._folder)
            self._show(0, file_version="brain.Event:2")
            # TensorBoard then ignores what an older file says of this and later steps.
            self._show(step, session_log=SessionLog(status=SessionLog.START))
            self._begun = True
        shown = {**_first(record), **record}
        scalars = [Summary.Value(tag=name, simple_value=value) for name, value in shown.items()]
        self._show(step, summary=Summary(value=scalars))

    def table(self, step: int, split: str, rows: Sequence[Row]) -> None:
        """TensorBoard has no tables."""

    def end(self, summary: Mapping[str, Any] | None) -> None:
        """All is on the disk."""

    def _show(self, step: int, **what: Any) -> None:
        event = io.BytesIO()
        RecordWriter(event).write(Event(wall_time=time.time(), step=step, **what).SerializeToString())
        append(self._file, event.getvalue())


def _first(record: Mapping[str, float]) -> dict[str, float]:
    """Returns what is to be seen first: success, under names that come before all others."""
    levels = {name: name.split("/") for name in record}
    return {f"{FIRST}/{own[0]}": record[name] for name, own in levels.items() if own[1:] == ["success"]}
