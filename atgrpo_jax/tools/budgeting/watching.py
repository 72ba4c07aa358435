"""Trains a few steps, and times what each of them does, from outside."""

import dataclasses
import functools
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from atgrpo_jax.common.errors import ConfigError
from atgrpo_jax.common.files import make_folder
from atgrpo_jax.engines.protocol import Usage
from atgrpo_jax.run.experiment import Experiment
from atgrpo_jax.run.folder import RunFolder
from atgrpo_jax.run.loop import one_step
from atgrpo_jax.run.metrics import CompileCounter
from atgrpo_jax.run.stages import Stages
from atgrpo_jax.run.team_learner import TeamLearner
from atgrpo_jax.run.team_state import TeamState
from atgrpo_jax.tracking.trackers import Trackers
from atgrpo_jax.update.learner import Learner, PolicyState, UpdateInputs

NEVER = 10**6  # steps; further than a budget goes


@dataclasses.dataclass(frozen=True)
class Watched:
    """Holds what a step took. Seconds are without compiling, and nested parts count in both."""

    seconds: float  # of the whole step, with compiling
    parts: Mapping[str, float]
    compiling: Mapping[str, float]  # seconds of it in each part, and "all"
    record: Mapping[str, float]  # the step's metrics
    used: Usage  # of the engine, by the rollout
    updates: tuple[tuple[str, Learner, UpdateInputs], ...]  # each with the name of its policy


@dataclasses.dataclass(frozen=True)
class Run:
    """Holds the steps of a run, and what is needed to divide its updates."""

    experiment: Experiment
    learner: TeamLearner
    team: TeamState
    first: Watched
    steps: tuple[Watched, ...]  # after the first, which compiles


def watched(given: Experiment, place: Path, steps: int, trace: Path | None = None) -> Run:
    """Trains one step and then so many more, in a run folder ``place``.

    They are real steps of the run, from its warm start; only scores, checkpoints and trackers are left
    out. With ``trace``, one more step is written there for viewers. Raises ConfigError for a run whose
    steps overlap.
    """
    if given.max_lag:
        raise ConfigError(
            "Experiment.max_lag: the parts of steps that overlap are not told apart; set it to 0"
        )
    scores = dataclasses.replace(given.evaluation, instances=1, validation_instances=1, every=0)
    experiment = dataclasses.replace(
        given,
        evaluation=scores,
        steps=NEVER,
        checkpoint_every=NEVER,
        keep_every=0,
        keep_best=False,
        trackers=Trackers(),
    )
    begun = experiment.begun()
    make_folder(place)
    with Stages(begun, RunFolder(place)) as stages:
        team = stages.begin()
        watch = _Watch(stages)
        found = []
        for step in range(1, steps + 2):
            team, one = watch.step(team, step)
            found.append(one)
        if trace is not None:
            with jax.profiler.trace(str(trace), create_perfetto_trace=True):
                team, _ = watch.step(team, steps + 2)
        return Run(begun, stages.learner, team, found[0], tuple(found[1:]))


class _Watch:
    """Replaces the stages of a run by the same ones with a clock."""

    def __init__(self, stages: Stages):
        self._stages = stages
        self._seconds: dict[str, float] = defaultdict(float)
        self._compiling: dict[str, float] = defaultdict(float)
        self._compiles = CompileCounter()
        self._updates: list[tuple[str, Learner, UpdateInputs]] = []
        self._timed: set[int] = set()
        self._used = Usage()
        self._put(stages.rollouts, "play", self._counted(stages.rollouts.play))
        update = functools.partial(stages.learner.update, watch=self._before_update)
        self._put(stages.learner, "update", update)
        # All are packed before the first of them is computed: else the device would compute meanwhile.
        batches = stages.learner.batches
        self._put(stages.learner, "batches", lambda *given: list(batches(*given)))
        for owner, name, part in (
            (stages.rollouts, "play", "rollout"),
            (stages, "credit", "credit"),
            (stages.learner, "update", "update"),
            (stages.learner, "batches", "packing"),
            (stages, "sync", "sync"),
            (stages.engine, "push_weights", "push"),
            (stages, "record", "writing"),
        ):
            self._put(owner, name, self._clocked(part, getattr(owner, name)))

    def step(self, team: TeamState, number: int) -> tuple[TeamState, Watched]:
        self._seconds.clear()
        self._compiling.clear()
        self._updates.clear()
        began, compiled = time.perf_counter(), self._compiles.seconds
        team, record = one_step(self._stages, team, number)
        seconds = time.perf_counter() - began
        self._compiling["all"] = self._compiles.seconds - compiled
        parts, compiling = dict(self._seconds), dict(self._compiling)
        return team, Watched(seconds, parts, compiling, record, self._used, tuple(self._updates))

    def _before_update(self, policy: str, learner: Learner, state: PolicyState, inputs: UpdateInputs) -> None:
        self._updates.append((policy, learner, inputs))
        if id(learner) not in self._timed:  # policies may share it
            self._timed.add(id(learner))
            self._put(learner, "update", self._clocked("on devices", learner.update))

    def _counted(self, play: Callable[..., Any]) -> Callable[..., Any]:
        """Returns the call, after which ``_used`` is what it had the engine do; the gate draws, too."""

        def counted(*given: Any, **named: Any) -> Any:
            before = self._stages.engine.usage
            played = play(*given, **named)
            self._used = self._stages.engine.usage - before
            return played

        return counted

    def _clocked(self, part: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """Returns the call with a clock, which waits until what it returns is computed."""

        def timed(*given: Any, **named: Any) -> Any:
            began, compiled = time.perf_counter(), self._compiles.seconds
            result = jax.block_until_ready(call(*given, **named))
            compiling = self._compiles.seconds - compiled
            self._seconds[part] += time.perf_counter() - began - compiling
            self._compiling[part] += compiling
            return result

        return timed

    def _put(self, owner: Any, name: str, call: Callable[..., Any]) -> None:
        setattr(owner, name, call)
