"""Checks a task by itself against the contract. The command for it is ``tools/check_task.py``."""

import random
from typing import Any

from atgrpo_jax.common import coroutines
from atgrpo_jax.common.types import seed_of
from atgrpo_jax.rollout.evaluation import available
from atgrpo_jax.sandbox.protocol import Runner
from atgrpo_jax.tasks.course import Course
from atgrpo_jax.tasks.protocol import Task, ToolTask, Transition, missing
from atgrpo_jax.tasks.splits import SPLITS
from atgrpo_jax.tasks.workflow import Workflow
from atgrpo_jax.tools.farming import Farming
from atgrpo_jax.tools.hostile import spoilt
from atgrpo_jax.tools.one_call import BOUND, Broken, Calls, Tell, Violation
from atgrpo_jax.tools.robustness import Robustness

PATIENCE = 30.0  # seconds that a call may take; it should take a moment


def check(
    task: Task | ToolTask,
    runner: Runner | None = None,
    instances: int = 20,
    episodes: int = 60,
    bound: float = BOUND,
    patience: float = PATIENCE,
    tell: Tell = lambda kind, what, more: None,
) -> list[Violation]:
    """Returns the problems of a task by itself; ``check_experiment`` finds others as well.

    Args:
      runner: runs the programs that its roles write.
      instances: how many of each split are looked at.
      episodes: how many of each of the first instances are played to find a failure that pays.
      bound: largest absolute value of a reward, and of the sums of rewards over an episode.
      patience: seconds after which a call for a text counts as hanging.
      tell: hears of each call before it is made, and of each problem.
    """
    calls = Calls(task, runner, bound, tell)
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
        rule = "a task has all methods"
        kind = type(self._task).__name__
        if lacks:
            self._calls.found(rule, f"{kind} has no {', '.join(lacks)}")
            return self._calls.problems
        if not isinstance(self._task.workflow, Workflow):
            seen = f"{kind}.workflow is {self._task.workflow!r}, and no tasks.workflow.Workflow"
            self._calls.found(rule, seen)
            return self._calls.problems
        rule = "what a task returns can be used"
        for look in (self._pure_instances, self._disjoint_splits):
            with self._calls.going_on(rule, "instances"):
                look()
        for index in self._instances:
            with self._calls.going_on(rule, f"train {index}"):
                await self._play(index)
        for index in self._instances[:5]:
            with self._calls.going_on(rule, f"train {index}, whole episodes"):
                await self._farming.play(index, self._episodes)
        return self._calls.problems

    def _held(self, split: str) -> range:
        def instance() -> int:
            return available(self._task, split, len(self._instances))

        return range(self._calls.called("instances can be made", split, instance))

    def _pure_instances(self) -> None:
        for split in SPLITS:
            held = self._held(split)
            first = [self._named(split, index) for index in held]
            again = [self._named(split, index) for index in reversed(held)][::-1]
            for index, (one, other) in enumerate(zip(first, again, strict=True)):
                if one != other:
                    seen = f"{split} {index} is another one the second time: {_differ(one, other)}"
                    self._calls.found("instances are pure", seen)

    def _disjoint_splits(self) -> None:
        seen: dict[str, str] = {}
        for split in SPLITS:
            for index in self._held(split):
                name = self._named(split, index)
                place = seen.setdefault(name, f"{split} {index}")
                if not place.startswith(split):
                    self._calls.found("splits share no instance", f"{split} {index} is {place}: {name[:80]}")

    def _named(self, split: str, index: int) -> str:
        return self._repr(self._calls.instance(split, index), f"{split} {index}")

    def _repr(self, value: Any, place: str) -> str:
        return self._calls.called("instances and states have a repr", place, repr, value)

    # Texts

    async def _play(self, index: int) -> None:
        """Plays an instance along demonstrations, and tries all texts in every state on the way."""
        state = self._calls.initial(index)
        one = self._repr(state, f"train {index}")
        other = self._repr(self._calls.initial(index), f"train {index}")
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
        before = self._repr(state, place)
        shown, again = (repr(self._calls.prompt(state, role, place)) for _ in range(2))
        if shown != again:
            self._calls.found("prompts are pure", f"{place}: {_differ(shown, again)}")
        drawn, again = (repr(self._calls.board(state, place)) for _ in range(2))
        if drawn != again:
            self._calls.found("boards are pure", f"{place}: {_differ(drawn, again)}")
        seeds = [seed_of(place, i) for i in range(4)]
        good = [self._calls.demonstration(state, role, place, random.Random(seed)) for seed in seeds]
        another = self._calls.demonstration(state, role, place, random.Random(seeds[0]))
        if good[0] != another:
            seen = f"{place}: {_differ(repr(good[0]), repr(another))}"
            self._calls.found("demonstrations depend on their rng only", seen)
        nearly = (text for one in good for text in spoilt(one, self._rng))
        texts = [*good, *self._robustness.texts(role), *nearly]
        steps = [await self._calls.attempt(state, role, text, place) for text in texts]
        reprs = [self._repr(step, place) for step in steps]
        for text, one in reversed(list(zip(texts, reprs, strict=True))):
            other = self._repr(await self._calls.attempt(state, role, text, place), place)
            if one != other:
                seen = f"{place}: {text[:80]!r} leads elsewhere later: {_differ(one, other)}"
                self._calls.found("siblings do not disturb each other", seen)
        after = self._repr(state, place)
        if after != before:
            seen = f"{place}: act has changed the state that it was given: {_differ(before, after)}"
            self._calls.found("states do not change", seen)
        self._robustness.endings(state, role, good, place)
        if steps[0] is None:
            raise Broken
        return steps[0]


def _differ(one: str, other: str) -> str:
    """Returns a text on the first difference of two reprs that should be equal."""
    pairs = zip(one, other, strict=False)
    place = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))
    start = max(0, place - 30)
    first, second = (text[start : start + 80] for text in (one, other))
    unnamed = " at 0x" in first + second
    why = (
        "; equal ones need equal reprs: make it a frozen dataclass, or give it a __repr__" if unnamed else ""
    )
    return f"its repr is {first!r} and then {second!r}{why}"
