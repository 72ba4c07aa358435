"""Measures how many groups of which lengths a training step has."""

import asyncio
import dataclasses

import numpy as np

from atgrpo_jax.common import coroutines
from atgrpo_jax.common.types import Sampling
from atgrpo_jax.rollout.player import Player
from atgrpo_jax.run.experiment import Experiment
from atgrpo_jax.update.warm_start import demonstrations


@dataclasses.dataclass(frozen=True)
class Workload:
    """Holds the number and the lengths of a training step's groups.

    It is assumed that all episodes last all turns, that everybody speaks in each, and that all answers
    are as long as the limit allows.
    """

    groups: int  # of all roles in one step
    prompt: float  # tokens, mean
    longest_prompt: int  # tokens
    new: int  # tokens of one candidate
    candidates: int  # of each group

    @property
    def longest_group(self) -> int:
        """Returns the tokens of the longest group."""
        return self.longest_prompt + self.candidates * self.new


def workload_of(experiment: Experiment, instances: int = 16) -> Workload:
    """Measures prompts in demonstrated episodes of the first ``instances`` training instances."""
    propose = demonstrations(experiment.task, experiment.tokenizer, 1, experiment.seed)

    async def play(runner):
        player = Player(
            experiment.task,
            experiment.team,
            experiment.tokenizer,
            propose,
            Sampling(),
            experiment.seed,
            runner=runner,
            select="random",
        )
        return await asyncio.gather(*(player.play(1, "train", index) for index in range(instances)))

    with experiment.running() as runner:
        episodes = coroutines.run(play(runner))
    origins = [group.origin for episode in episodes for group in episode.groups]
    lengths = [len(origin.prompt_ids) for origin in origins]
    workflow = experiment.task.workflow
    speakers = sum(map(len, workflow.stages)) * workflow.turns
    tree = experiment.rollout.tree
    return Workload(
        groups=experiment.rollout.instances * speakers * (1 if tree else experiment.rollout.candidates),
        prompt=float(np.mean(lengths)),
        longest_prompt=max(lengths),
        new=experiment.rollout.max_tokens,
        candidates=experiment.rollout.candidates if tree else 1,
    )
