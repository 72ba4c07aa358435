"""Writes one record for each step: a line of metrics.jsonl, and TensorBoard scalars.

Metrics that start with "perf/" depend on the machine (seconds, rates, compiles). All others are the
same in every run with the same config and seed.
"""

import io
import os
import socket
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from atgrpo_jax.common.files import append, append_json_line, make_folder
from atgrpo_jax.common.finite import UNTOUCHED, check_finite
from atgrpo_jax.common.metric_names import of_role, together
from atgrpo_jax.common.types import Episode
from atgrpo_jax.run.folder import RunFolder


class MetricsWriter:
    """Appends records to the run folder.

    ``first`` is the first step to be written. TensorBoard ignores what an older
    run wrote for this and later steps.
    """

    def __init__(self, folder: RunFolder, first: int):
        self._folder = folder
        make_folder(folder.tensorboard)
        name = f"events.out.tfevents.{time.time_ns() // 10**9}.{socket.gethostname()}.{os.getpid()}"
        # Written here: TensorBoard's own writer is a thread whose errors nobody sees.
        self._events = folder.tensorboard / name
        self._show(0, file_version="brain.Event:2")
        self._show(first, session_log=SessionLog(status=SessionLog.START))  # purges later events

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Writes a record. Raises first if a value is not finite, or if one is called "step"."""
        check_finite(values, f"step {step}, metrics", UNTOUCHED)
        record = together({"step": step}, {name: float(value) for name, value in sorted(values.items())})
        self._folder.check_ours()
        append_json_line(self._folder.metrics, record)
        scalars = [Summary.Value(tag=name, simple_value=float(value)) for name, value in values.items()]
        self._show(step, summary=Summary(value=scalars))

    def _show(self, step: int, **what: Any) -> None:
        event = io.BytesIO()
        RecordWriter(event).write(Event(wall_time=time.time(), step=step, **what).SerializeToString())
        append(self._events, event.getvalue())


def episode_metrics(episodes: Sequence[Episode]) -> dict[str, float]:
    """Returns success, turns, ends and counts, and for each role the mean reward and tokens.

    Means of a role are over all its candidates, executed or not. Those of rewards leave out
    candidates that have none; those of the task's own numbers, candidates that were not given them.
    Partners count in neither the candidates nor the tokens of a rollout.
    """
    metrics = {
        "rollout/success": float(np.mean([e.solved for e in episodes])),
        "rollout/turns": float(np.mean([e.turns for e in episodes])),
    }
    ends = Counter(e.end for e in episodes)
    metrics |= {f"end/{end}": n / len(episodes) for end, n in sorted(ends.items())}
    groups = [group for e in episodes for group in e.groups]
    candidates = [c for g in groups for c in g.candidates]
    drawn = [c for g in groups if not g.by_partner for c in g.candidates]
    metrics["rollout/candidates"] = float(len(drawn))
    metrics["rollout/tokens"] = float(sum(len(c.sample.tokens) for c in drawn))
    of_partners = {g.origin.key.role for g in groups if g.by_partner}
    for role in sorted({g.origin.key.role for g in groups}):
        own = [c for c in candidates if c.origin.key.role == role]
        scored = [c.reward for c in own if c.reward is not None]
        values = {}
        if role not in of_partners:  # theirs are counted by their servers
            values["tokens"] = _mean([len(c.sample.tokens) for c in own])
        if scored:
            values["team"] = _mean([r.team for r in scored])
            values["local"] = _mean([r.local for r in scored])
        names = sorted({part for r in scored for part in r.parts})
        parts = {}
        for part in names:
            parts[part] = _mean([r.parts.get(part, 0.0) for r in scored])
        given = sorted({name for c in own for name in c.metrics})
        of_task = {name: _mean([c.metrics[name] for c in own if name in c.metrics]) for name in given}
        metrics |= of_role(role, values, parts, of_task)
    return metrics


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))


class CompileCounter:
    """Counts the XLA compilations of this process; after the first steps there should be none."""

    def __init__(self):
        self.count = 0
        self.seconds = 0.0  # that they took
        jax.monitoring.register_event_duration_secs_listener(self._listen)

    def _listen(self, event: str, duration_secs: float, **_kwargs: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            self.count += 1
            self.seconds += duration_secs
