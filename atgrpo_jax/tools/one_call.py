"""Calls the methods of a task one by one, and holds the rules that each single call has to keep."""

import asyncio
import contextlib
import dataclasses
import math
import numbers
import os
import random
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from atgrpo_jax.common.errors import RunError
from atgrpo_jax.common.types import Board, Message, Outcome, Reward
from atgrpo_jax.sandbox.protocol import ProgramResult, Runner
from atgrpo_jax.tasks.calls import LARGEST, board_of
from atgrpo_jax.tasks.course import Course
from atgrpo_jax.tasks.protocol import Demonstrating, ToolTask, Transition

# Hears what is done and what is found: ("doing", place, what) and ("found", rule, how it is broken).
Tell = Callable[[str, str, str], None]
# What the code of a task may raise. Ctrl-C is a person's.
RAISED = (Exception, SystemExit, asyncio.CancelledError)
# Said for demonstrations by roles of a task that has none.
_GUESSES = ("", "0", "1", "yes", "no", "a b c", "1 2 3", "[1, 2]", "\\boxed{1}", "I do not know.")
# Largest absolute value of a reward's team or local part, and of their sums over an episode.
BOUND = 10.0
LONGEST_STATE = 200  # letters of a state that are shown
NO_STATE: Any = object()  # where a call looks at none

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Violation:
    rule: str
    seen: str

    def __str__(self) -> str:
        return f"{self.rule}: {self.seen}"


class Broken(Exception):
    """Says that a call failed. The failure is already among the problems."""


class Calls:
    """Calls one task; ``problems`` are those found so far, at most three of each rule.

    Args:
      runner: runs the programs that its roles write.
      bound: largest absolute value of a reward's team or local part.
      tell: hears of each call before it is made, and of each problem.
    """

    def __init__(
        self,
        task: Any,
        runner: Runner | None = None,
        bound: float = BOUND,
        tell: Tell = lambda kind, what, more: None,
    ):
        self.task = task
        self.bound = bound
        self._runner = runner
        self._tell = tell
        self._problems: dict[Violation, None] = {}

    @property
    def problems(self) -> list[Violation]:
        return list(self._problems)

    def found(self, rule: str, seen: str) -> None:
        new = Violation(rule, seen) not in self._problems
        if new and sum(problem.rule == rule for problem in self._problems) < 3:
            self._problems[Violation(rule, seen)] = None
            self._tell("found", rule, seen)

    def doing(self, place: str, what: str) -> None:
        """Says what is called next, for whoever outlives the call."""
        self._tell("doing", place, what)

    @contextlib.contextmanager
    def going_on(self, rule: str, place: str) -> Iterator[None]:
        """Lets the check go on after what is inside. What it raises becomes a problem, unless it is one."""
        try:
            yield
        except Broken:
            pass
        except RAISED as error:
            self.found(rule, f"{place}: {cause(error)}")

    def called(self, rule: str, place: str, call: Callable[..., T], *args: Any, state: Any = NO_STATE) -> T:
        """Calls a method of the task and returns its result. Raises Broken if it raises.

        ``state`` is the one that the method looks at, if it does.
        """
        self.doing(place, getattr(call, "__name__", rule))
        try:
            return call(*args)
        except RAISED as error:
            self.found(rule, f"{place}: {cause(error, state)}")
            raise Broken from error

    def instance(self, split: str, index: int) -> Any:
        return self.called("instances can be made", f"{split} {index}", self.task.instance, split, index)

    def initial(self, index: int) -> Any:
        instance = self.instance("train", index)
        return self.called("the first state can be made", f"train {index}", self.task.initial, instance)

    def next(self, course: Course, place: str) -> Sequence[str]:
        """Returns who speaks next. Raises Broken if the task cannot say so."""
        place = f"{place}, turn {course.turn}"
        return self.called("speaks says True or False", place, course.next, state=course.state)

    def prompt(self, state: Any, role: str, place: str) -> Sequence[Message]:
        """Returns a prompt of the task. Raises Broken if it is no list of messages."""
        rule = "prompts are lists of messages"
        found = self.called(rule, place, self.task.prompt, state, role, state=state)
        good = isinstance(found, Sequence) and not isinstance(found, str) and len(found) > 0
        if not good or not all(map(_is_message, found)):
            self.found(
                rule, f"{place}: {str(found)[:80]!r} is none, as [{{'role': 'user', 'content': ...}}] is"
            )
            raise Broken
        return found

    def board(self, state: Any, place: str) -> Board | None:
        """Returns what the task draws of a state. Raises Broken if that is no board."""
        rule = "boards are texts or rows of texts"
        return self.called(rule, place, board_of, self.task, state, place, state=state)

    def demonstration(self, state: Any, role: str, place: str, rng: random.Random) -> str:
        """Returns a demonstration of the task, or anything if it has none. Raises Broken if it is no text."""
        if not isinstance(self.task, Demonstrating):
            return guess(rng)
        rule = "demonstrations are texts"
        found = self.called(rule, place, self.task.demonstration, state, role, rng, state=state)
        if not isinstance(found, str):
            self.found(rule, f"{place}: {str(found)[:80]!r} is none")
            raise Broken
        return found

    async def step(self, state: Any, role: str, text: str, place: str) -> Transition:
        """Returns the step that a text leads to. Raises Broken if the task raises."""
        step = await self.attempt(state, role, text, place)
        if step is None:
            raise Broken
        return step

    async def attempt(self, state: Any, role: str, text: str, place: str) -> Transition | None:
        """Returns the step that a text leads to; None if the task raises, which is a problem."""
        self.doing(place, repr(text[:80]))
        try:
            return await self.act(state, role, text, place)
        except RAISED as error:
            self.found("no text raises", f"{place}: {text[:80]!r}: {cause(error, state)}")
            return None

    async def act(self, state: Any, role: str, text: str, place: str) -> Transition:
        """Returns the step that a text leads to, and checks it. Raises whatever the task raises."""
        task = self.task
        if isinstance(task, ToolTask):
            runs: list[ProgramResult] = []
            while programs := task.programs(state, role, text, runs):
                if role not in task.tools:
                    self.found("tools names the roles that write programs", f"{place}: it is not among them")
                if self._runner is None:
                    raise RunError("its programs need a sandbox")
                runs += [await self._runner.run(program) for program in programs]
            step = task.act(state, role, text, runs)
        else:
            step = task.act(state, role, text)
        if not isinstance(step, Transition) or not isinstance(step.reward, Reward):
            raise TypeError(f"act returns {type(step).__name__}, and no Transition with a Reward")
        if not isinstance(step.outcome, Outcome):
            raise TypeError(f"the outcome is {step.outcome!r}, and no Outcome")
        if not isinstance(step.note, str):
            raise TypeError(f"the note is {step.note!r}, and no text")
        if not _are_metrics(step.metrics):
            seen = f"{place}: {str(step.metrics)[:80]} for {text[:80]!r}"
            self.found("metrics are finite numbers with names", seen)
        self._pays(step, f"{place}: {{}} for {text[:80]!r}")
        if step.solved and not step.done:
            self.found("what is solved is done", f"{place}: {text[:80]!r}")
        return step

    def _pays(self, step: Transition, place: str) -> None:
        reward = step.reward
        seen = place.replace("{}", str(reward), 1)
        if not all(map(math.isfinite, (reward.team, reward.local))):
            self.found("rewards are finite", seen)
        elif max(map(abs, (reward.team, reward.local))) > self.bound:
            self.found("rewards are bounded", f"{seen}; {self.bound:.3g} is allowed")
        if abs(sum(reward.parts.values()) - reward.local) > 1e-9:
            self.found("parts sum to the local reward", seen)


def guess(rng: random.Random) -> str:
    """Returns what is said for a demonstration by a role of a task that has none."""
    return rng.choice(_GUESSES)


def _is_message(value: Any) -> bool:
    return isinstance(value, Mapping) and all(isinstance(value.get(key), str) for key in ("role", "content"))


def _are_metrics(value: Any) -> bool:
    return isinstance(value, Mapping) and all(
        isinstance(name, str) and _is_number(number) for name, number in value.items()
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and bool(abs(value) < LARGEST)  # type: ignore[operator]


def cause(error: BaseException, state: Any = NO_STATE) -> str:
    """Returns a line that says which exception was raised, where, and in which state if that is given."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({os.path.basename(frames[-1].filename)}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {str(error)[:200]}".rstrip(": ") + place + _in(state)


def _in(state: Any) -> str:
    if state is NO_STATE:
        return ""
    try:
        text = " ".join(repr(state).split())
    except RAISED:  # which is a problem of its own
        return ", in a state whose repr raises, too"
    return f", in the state {text if len(text) <= LONGEST_STATE else text[:LONGEST_STATE] + ' ...'}"
