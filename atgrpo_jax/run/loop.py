"""Runs the training loop.

instances -> rollout -> groups -> advantages -> batch -> loss in update -> push -> next step
"""

import time
from typing import Any

from atgrpo_jax.common.errors import Stopped
from atgrpo_jax.common.hosts import Alone, Hosts, told_json
from atgrpo_jax.common.progress import Progress
from atgrpo_jax.common.stopping import Stopping
from atgrpo_jax.run.experiment import Experiment
from atgrpo_jax.run.folder import RunFolder
from atgrpo_jax.run.metrics import headline
from atgrpo_jax.run.report import summarise
from atgrpo_jax.run.stages import Stages
from atgrpo_jax.run.team_state import TeamState


def train(
    experiment: Experiment, folder: RunFolder, hosts: Hosts | None = None, may_exit: bool = True
) -> dict[str, Any]:
    """Trains to the last step (``Ending``), from the newest checkpoint of ``folder`` if there is one.

    Returns the summary, which is also written to the folder. After SIGTERM or Ctrl-C it saves the
    last complete step and raises Stopped, or ends the process if it ``may_exit`` (``Stopping``). If the
    run has several ``hosts``, all of them call this.
    """
    hosts = hosts or Alone()
    with Stopping(may_exit) as stopping, Stages(experiment, folder, hosts) as stages:
        hosts.heed(stopping, stages.unsaved)
        try:
            team = stages.begin()
            with Progress("train", stages.ending.known, "step", stages.done, compiles=True) as progress:
                while stages.done < stages.ending.last:
                    team, record = one_step(stages, team, stages.done + 1)
                    progress.advance(**headline(stages.done, record), **stages.ending.shown())
        except Stopped as stopped:
            stages.checkpoint_now()
            stopped.note = stages.where()
            raise
        return told_json(hosts, "summary", lambda: stages.tracking.end(summarise(experiment, folder)))


def one_step(stages: Stages, team: TeamState, step: int) -> tuple[TeamState, dict[str, float]]:
    """Makes one training step. Returns the team after it, and the step's metrics."""
    began = time.monotonic()
    episodes, played = team.ahead or stages.rollouts.play(step, team.lessons)
    team, credited, signal = stages.credit(team, episodes)
    team, learned = stages.learn(team, credited, step)  # with a lag, the next step is played meanwhile
    proof = stages.sync(team)
    seconds = {"perf/step_s": time.monotonic() - began}
    record = stages.record(step, team, episodes, credited, played, signal, learned, proof, seconds)
    stages.checkpoint(step, team)
    return team, record
