"""Checks a task by itself against the contract. The command for it is ``tools/check_task.py``."""

import contextlib
import random
from typing import Any

from atgrpo_jax.common import coroutines
from atgrpo_jax.common.types import seed_of
from atgrpo_jax.rollout.evaluation import available
from atgrpo_jax.sandbox.protocol import Runner
from atgrpo_jax.tasks.course import Course
from atgrpo_jax.tasks.protocol import Task, ToolTask, Transition, digest, missing
from atgrpo_jax.tasks.splits import SPLITS
from atgrpo_jax.tools.farming import Farming
from atgrpo_jax.tools.hostile import spoilt
from atgrpo_jax.tools.one_call import BOUND, Broken, Calls, Violation
from atgrpo_jax.tools.robustness import Robustness

PATIENCE = 30.0  # seconds that a call may take; it should take a moment


def check(
    task: Task | ToolTask,
    runner: Runner | None = None,
    instances: int = 20,
    episodes: int = 60,
    bound: float = BOUND,
    patience: float = PATIENCE,
) -> list[Violation]:
    """Returns the problems of a task by itself; ``check_experiment`` finds others as well.

    Args:
      runner: runs the programs that its roles write.
      instances: how many of each split are looked at.
      episodes: how many of each of the first instances are played to find a failure that pays.
      bound: largest absolute value of a reward, and of the sums of rewards over an episode.
      patience: seconds after which a call for a text counts as hanging.
    """
    calls = Calls(task, runner, bound)
    return coroutines.run(_Contract(calls, instances, episodes, patience).everything())


class _Contract:
    """Checks one task; see ``check``."""

    def __init__(self, calls: Calls, instances: int, episodes: int, patience: float):
        self._calls = calls
        self._task = calls.task
        self._instances = range(instances)
        self._episodes = episodes
        self._robustness = Robustness(calls, patience)
        self._farming = Farming(calls, self._robustness.texts)
        self._rng = random.Random(0)

    async def everything(self) -> list[Violation]:
        lacks = missing(self._task)
        if lacks:
            self._calls.found(
                "a task has all methods", f"{type(self._task).__name__} has no {', '.join(lacks)}"
            )
            return self._calls.problems
        for look in (self._pure_instances, self._disjoint_splits):
            with contextlib.suppress(Broken):
                look()
        for index in self._instances:
            with contextlib.suppress(Broken):
                await self._play(index)
        for index in self._instances[:5]:
            with contextlib.suppress(Broken):
                await self._farming.play(index, self._episodes)
        return self._calls.problems

    def _held(self, split: str) -> range:
        count = self._calls.called(
            "instances can be made", split, available, self._task, split, len(self._instances)
        )
        return range(count)

    def _pure_instances(self) -> None:
        for split in SPLITS:
            held = self._held(split)
            first = [digest(self._calls.instance(split, i)) for i in held]
            again = [digest(self._calls.instance(split, i)) for i in reversed(held)][::-1]
            for index, (one, other) in enumerate(zip(first, again, strict=True)):
                if one != other:
                    self._calls.found("instances are pure", f"{split} {index} is another one the second time")

    def _disjoint_splits(self) -> None:
        seen: dict[str, str] = {}
        for split in SPLITS:
            for index in self._held(split):
                name = digest(self._calls.instance(split, index))
                place = seen.setdefault(name, f"{split} {index}")
                if not place.startswith(split):
                    self._calls.found("splits share no instance", f"{split} {index} is {place}")

    # Texts

    async def _play(self, index: int) -> None:
        """Plays an instance along demonstrations, and tries all texts in every state on the way."""
        state = self._calls.initial(index)
        one = repr(state)
        other = repr(self._calls.initial(index))
        if one != other:
            self._calls.found("the first state is pure", f"train {index}: {_differ(one, other)}")
        course = Course(self._task, state)
        while speakers := self._calls.next(course, f"train {index}"):
            for role in speakers:
                place = f"train {index}, turn {course.turn}, {role}"
                if index < 3:
                    self._robustness.survive(course.state, role, place)
                step = await self._look(course.state, role, place)
                if index == course.turn == 0:
                    self._robustness.grow(course, role, place)
                course.take(step)

    async def _look(self, state: Any, role: str, place: str) -> Transition:
        before = digest(state)
        if self._calls.prompt(state, role, place) != self._calls.prompt(state, role, place):
            self._calls.found("prompts are pure", place)
        if self._calls.board(state, place) != self._calls.board(state, place):
            self._calls.found("boards are pure", place)
        seeds = [seed_of(place, i) for i in range(4)]
        good = [self._calls.demonstration(state, role, place, random.Random(seed)) for seed in seeds]
        if good[0] != self._calls.demonstration(state, role, place, random.Random(seeds[0])):
            self._calls.found("demonstrations depend on their rng only", place)
        nearly = (text for one in good for text in spoilt(one, self._rng))
        texts = [*good, *self._robustness.texts(role), *nearly]
        steps = [await self._calls.attempt(state, role, text, place) for text in texts]
        for text, step in reversed(list(zip(texts, steps, strict=True))):
            again = await self._calls.attempt(state, role, text, place)
            if repr(step) != repr(again):
                self._calls.found(
                    "siblings do not disturb each other", f"{place}: {text[:80]!r} leads elsewhere later"
                )
        if digest(state) != before:
            self._calls.found("states do not change", f"{place}: act has changed the state that it was given")
        self._robustness.endings(state, role, good, place)
        if steps[0] is None:
            raise Broken
        return steps[0]


def _differ(one: str, other: str) -> str:
    """Returns a text on the first difference of two reprs that should be equal."""
    pairs = zip(one, other, strict=False)
    place = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))
    start = max(0, place - 30)
    return (
        f"its repr is {one[start : start + 80]!r} and then {other[start : start + 80]!r}; equal states need "
        "equal ones: make it a frozen dataclass, or give it a __repr__"
    )
