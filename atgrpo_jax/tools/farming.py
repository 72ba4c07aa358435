"""Plays whole episodes of a task, to find failures that pay more than solutions."""

import math
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from atgrpo_jax.common.types import seed_of
from atgrpo_jax.tasks.course import Course
from atgrpo_jax.tasks.protocol import Transition
from atgrpo_jax.tools.hostile import spoilt
from atgrpo_jax.tools.one_call import Calls


class Farming:
    """Plays episodes.

    Args:
      calls: calls the task, and collects the problems.
      hostile: returns the hostile texts that a role may say.
    """

    def __init__(self, calls: Calls, hostile: Callable[[str], list[str]]):
        self._calls = calls
        self._task = calls.task
        self._hostile = hostile

    async def play(self, index: int, episodes: int) -> None:
        """Plays an instance so many times: no failed one may pay a role more than a solved one."""
        best: dict[str, float] = {}
        worst: dict[str, float] = {}
        for episode in range(episodes):
            ended = await self._episode(index, random.Random(seed_of("farm", index, episode)))
            if ended is None:
                return
            earned, solved = ended
            for role, total in earned.items():
                if solved:
                    worst[role] = min(total, worst.get(role, math.inf))
                else:
                    best[role] = max(total, best.get(role, -math.inf))
        for role in self._task.workflow.speakers:
            if best.get(role, -math.inf) > worst.get(role, math.inf) + 1e-9:  # beyond rounding
                self._calls.found(
                    "failing pays less than solving",
                    f"train {index}: an episode that fails pays {role} {best[role]:.3g}, one that is solved "
                    f"{worst[role]:.3g}",
                )

    async def _episode(self, index: int, rng: random.Random) -> tuple[dict[str, float], bool] | None:
        """Plays an episode; returns each role's reward, the team's included, and if it is solved.
        Returns None if the task raised. Answers are spoilt with a probability that each episode
        draws. In about a quarter of the episodes a role takes the best-paid of four answers."""
        task = self._task
        course = Course(task, self._calls.initial(index))
        team = 0.0
        local = dict.fromkeys(task.workflow.speakers, 0.0)
        spoil, tries = rng.choice(((0.0, 1), (0.3, 1), (1.0, 1), (0.5, 4)))
        while speakers := self._calls.next(course, f"train {index}"):
            for role in speakers:
                place = f"train {index}, turn {course.turn}, {role}"
                texts = [self._said(course.state, role, place, spoil, rng) for _ in range(tries)]
                step = await self._best(course.state, role, texts, place)
                if step is None:
                    return None
                course.take(step)
                local[role] += step.reward.local
                team += step.reward.team
        self._bounded(f"train {index}", team, local)
        return {role: team + own for role, own in local.items()}, course.end == "solved"

    def _said(self, state: Any, role: str, place: str, spoil: float, rng: random.Random) -> str:
        text = self._calls.demonstration(state, role, place, rng)
        hostile = self._hostile(role) or [""]
        return rng.choice([*spoilt(text, rng), rng.choice(hostile)]) if rng.random() < spoil else text

    async def _best(self, state: Any, role: str, texts: Sequence[str], place: str) -> Transition | None:
        """Returns the best-paid step; one that solves, and so ends the episode, only if all do.
        Returns None if the task raised."""
        steps: list[Transition] = []
        for text in texts:
            step = await self._calls.attempt(state, role, text, place)
            if step is None:
                return None
            steps.append(step)
        return max(steps, key=lambda step: (not step.solved, step.reward.mixed(1.0)))

    def _bounded(self, place: str, team: float, local: Mapping[str, float]) -> None:
        """Checks that an episode's sums keep the bound of one reward: turns must not add up."""
        for name, total in {"the team": team, **local}.items():
            if abs(total) > self._calls.bound:
                seen = f"{place}: an episode pays {name} {total:.3g}; {self._calls.bound:.3g} is allowed"
                self._calls.found("rewards are bounded", seen)
