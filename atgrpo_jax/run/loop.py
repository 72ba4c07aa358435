"""Runs the training loop.

instances -> rollout -> groups -> advantages -> batch -> loss in update -> push -> next step
"""

import contextlib
import time
from collections.abc import Callable
from typing import Any

from atgrpo_jax.common.errors import Stopped
from atgrpo_jax.common.progress import Progress
from atgrpo_jax.common.stopping import Stopping
from atgrpo_jax.run.experiment import Experiment
from atgrpo_jax.run.folder import RunFolder
from atgrpo_jax.run.report import summarise
from atgrpo_jax.run.stages import Stages
from atgrpo_jax.run.team_learner import TeamState


def train(experiment: Experiment, folder: RunFolder) -> dict[str, Any]:
    """Trains to ``experiment.steps``, from the newest checkpoint of ``folder`` if there is one.

    Returns the summary, which is also written to the folder. After SIGTERM or Ctrl-C it saves the
    last complete step and raises Stopped.
    """
    with Stopping() as stopping, Stages(experiment, folder) as stages:
        stopping.unsaved = stages.unsaved
        try:
            with stopping.interruptible():
                team = stages.begin()
            with Progress("train", experiment.steps, "step", stages.done) as progress:
                for step in range(stages.done + 1, experiment.steps + 1):
                    team, record = one_step(stages, team, step, stopping.interruptible)
                    progress.advance(success=record["rollout/success"])
        except Stopped as stopped:
            stages.checkpoint_now()
            stopped.note = stages.where()
            raise
    return summarise(experiment, folder)


def one_step(
    stages: Stages,
    team: TeamState,
    step: int,
    interruptible: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext,
) -> tuple[TeamState, dict[str, float]]:
    """Makes one training step. Returns the team after it, and the step's metrics."""
    began = time.monotonic()
    with interruptible():  # nothing of an incomplete rollout is kept
        episodes, played = stages.rollouts.play(step)
    credited, signal = stages.credit(team, episodes)
    stages.engine.release()  # the update frees the team's old arrays
    team, learned = stages.learner.update(team, credited, step)
    proof = stages.sync(team)
    seconds = {"perf/step_s": time.monotonic() - began}
    record = stages.record(step, team, episodes, credited, played, signal, learned, proof, seconds)
    stages.checkpoint(step, team)
    return team, record
