"""Measures how many groups of which lengths a training step has."""

import asyncio
import dataclasses
import math

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

    groups: int  # of all roles in one round
    prompt: float  # tokens, mean
    longest_prompt: int  # tokens
    new: int  # tokens of one candidate; the mean over speakers, rounded up
    candidates: int  # of each group; the mean over speakers, rounded up
    longest_answer: int  # tokens
    longest_group: int  # tokens
    demonstrated: float = 0.0  # groups of an episode that a warm start clones, mean
    demonstration: float = 0.0  # tokens, mean
    longest_demonstrated: int = 0  # tokens of a group that a warm start clones, at most
    rounds: int = 1  # of a step, at most
    continued: int = 0  # prompts of a round that counterfactual credit asks once each, at most


MEASURED = 16  # training instances whose prompts are measured


def workload_of(experiment: Experiment, instances: int = MEASURED, longest: int = 0) -> Workload:
    """Measures prompts in demonstrated episodes of the first ``instances`` training instances.

    If the task has no demonstrations, everybody says nothing in them. The longest prompt has at least
    ``longest`` tokens.
    """
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
    groups = [group for episode in episodes for group in episode.groups]
    origins = [group.origin for group in groups if not group.by_partner]
    lengths = [len(origin.prompt_ids) for origin in origins]
    longest = max(*lengths, longest)
    workflow = experiment.task.workflow
    warm = experiment.warm_start
    turns = (warm and warm.turns) or workflow.turns
    cloned = [group for group in groups if group.origin.key.turn < turns and not group.by_partner]
    shown = [len(candidate.sample.tokens) for group in cloned for candidate in group.candidates]
    speakers = experiment.team.drawn(workflow.turn_roles)
    settings = [experiment.of_role(role) for role in speakers]
    tree = experiment.rollout.tree
    candidates = [own.candidates if tree else 1 for own in settings]
    new = [own.sampling.max_tokens for own in settings]
    answers = [k * tokens for k, tokens in zip(candidates, new, strict=True)]
    mean = math.ceil(sum(candidates) / len(speakers))
    episodes = 1 if tree else experiment.rollout.candidates
    spoken = len(speakers) * workflow.turns
    # What follows a candidate is played: after the last speaker of an episode nothing.
    rest = mean * spoken * (spoken - 1) / 2
    return Workload(
        groups=experiment.rollout.instances * spoken * episodes,
        prompt=float(np.mean(lengths)),
        longest_prompt=longest,
        new=math.ceil(sum(answers) / (mean * len(speakers))),
        candidates=mean,
        longest_answer=experiment.longest_answer,
        longest_group=longest + max(answers),
        demonstrated=len(cloned) / instances,
        demonstration=float(np.mean(shown or [0])),
        longest_demonstrated=longest + (warm.candidates if warm else 1) * max(shown, default=0),
        rounds=experiment.rollout.rounds,
        continued=math.ceil(experiment.credit.counterfactual * experiment.rollout.instances * rest),
    )
