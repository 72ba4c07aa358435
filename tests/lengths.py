"""A task in which even a random policy has something to learn."""

import dataclasses

from atgrpo_jax.common.types import Reward
from atgrpo_jax.tasks.games.plan_path import PlanPath


class Lengths(PlanPath):
    """Pays for the length of a text, whatever it says."""

    def act(self, state, role, text, runs=()):
        step = super().act(state, role, text, runs)
        return dataclasses.replace(step, reward=Reward.of(0.0, length=len(text)))
