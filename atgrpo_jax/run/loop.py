"""Runs the training loop.

instances -> rollout -> groups -> advantages -> batch -> loss in update -> push -> next step
"""

import time
from typing import Any

from atgrpo_jax.common.errors import Stopped
from atgrpo_jax.common.progress import Progress
from atgrpo_jax.common.stopping import Stopping
from atgrpo_jax.run.experiment import Experiment
from atgrpo_jax.run.folder import RunFolder
from atgrpo_jax.run.report import summarise
from atgrpo_jax.run.trainer import Trainer


def train(experiment: Experiment, folder: RunFolder) -> dict[str, Any]:
    """Trains to ``experiment.steps``, from the newest checkpoint of ``folder`` if there is one.

    Returns the summary, which is also written to the folder. After SIGTERM or Ctrl-C it saves the
    last complete step and raises Stopped.
    """
    with Stopping() as stopping, Trainer(experiment, folder) as trainer:
        stopping.unsaved = trainer.unsaved
        try:
            with stopping.interruptible():
                trainer.begin()
            with Progress("train", experiment.steps, "step", trainer.done) as progress:
                for step in range(trainer.done + 1, experiment.steps + 1):
                    began = time.monotonic()
                    with stopping.interruptible():  # nothing of an incomplete rollout is kept
                        episodes = trainer.rollout(step)
                    credited, signal = trainer.credit(step, episodes)
                    learned = trainer.learn(step, credited)
                    proof = trainer.sync(step)
                    seconds = {"perf/step_s": time.monotonic() - began}
                    record = trainer.record(step, episodes, credited, signal, learned, proof, seconds)
                    trainer.checkpoint(step)
                    progress.advance(success=record["rollout/success"])
        except Stopped as stopped:
            trainer.checkpoint_now()
            stopped.note = trainer.where()
            raise
    return summarise(experiment, folder)
