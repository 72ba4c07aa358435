"""Tries hostile texts, endings of programs, and texts that grow, on the roles of a task."""

import copy
import itertools
import random
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from atgrpo_jax.common.types import seed_of
from atgrpo_jax.sandbox.protocol import ProgramResult
from atgrpo_jax.tasks.course import Course, speaks
from atgrpo_jax.tasks.protocol import Demonstrating, ToolTask, Transition
from atgrpo_jax.tools.children import in_child
from atgrpo_jax.tools.hostile import ENDS, EVALUATES, HOSTILE, OUTPUTS, SHAPES
from atgrpo_jax.tools.one_call import RAISED, Calls, cause, guess

MOST_DEADLY = 4  # texts that end or hang the process; after so many, no more are tried
ROOM = 2000  # characters that a prompt may grow by when a long text grows


class Robustness:
    """Tries what a model or its programs may write.

    Args:
      calls: calls the task, and collects the problems.
      patience: seconds after which a call for a text counts as hanging.
    """

    def __init__(self, calls: Calls, patience: float):
        self._calls = calls
        self._task = calls.task
        self._patience = patience
        self._deadly: dict[str, set[str]] = {}  # role -> texts not to try in this process

    def texts(self, role: str) -> list[str]:
        """Returns the hostile texts that can be tried in this process."""
        return [text for text in HOSTILE if text not in self._deadly.get(role, ())]

    def endings(self, state: Any, role: str, texts: Sequence[str], place: str) -> None:
        """Checks that ``act`` raises for no way in which a program can end."""
        if not isinstance(self._task, ToolTask):
            return
        for text, end, out in itertools.product(texts, ENDS, OUTPUTS):
            self._calls.doing(place, f"a program that ends with {end} {out[:20]!r}")
            try:
                acted(self._task, state, role, text, ProgramResult(end, out, out, True))
            except RAISED as error:
                self._calls.found("no run raises", f"{place}: {end} {out[:20]!r}: {cause(error, state)}")

    def survive(self, state: Any, role: str, place: str) -> None:
        """Tries texts, and outputs of programs, in child processes. Those that end or hang one are
        problems, and are not tried in this process."""
        deadly = self._deadly.setdefault(role, set())
        texts = [text for text in (*EVALUATES, *HOSTILE) if text not in deadly]

        def call(text: str) -> str | None:
            try:
                acted(self._task, state, role, text, ProgramResult("ok", text, text, True))
            except Exception as error:
                return cause(error, state)
            return None

        for text, raised, ending in in_child(call, texts, self._patience):
            self._calls.doing(place, repr(text[:80]))
            if raised:
                self._calls.found("no text raises", f"{place}: {text[:80]!r}: {raised}")
            if ending:
                deadly.add(text)
                self._calls.found("no text ends or holds up the process", f"{place}: {text[:80]!r} {ending}")
            if len(deadly) >= MOST_DEADLY:
                deadly.update(HOSTILE)
                return

    def grow(self, course: Course, role: str, place: str) -> None:
        """Checks long texts and outputs: time may grow as they do, and prompts must not grow.

        ``role`` is the next speaker of the course.
        """
        state = course.state
        good = self._calls.demonstration(state, role, place, random.Random(seed_of(place)))
        kinds = ("text", "output") if isinstance(self._task, ToolTask) else ("text",)

        def tried(kind: str, shape: str, length: int) -> tuple[float, dict[str, int]]:
            before, middle, after = shape.split("…") if "…" in shape else ("", shape, "")
            long = before + (middle * length)[:length] + after
            text, run = (
                (long, ProgramResult("ok", ""))
                if kind == "text"
                else (good, ProgramResult("ok", long, long, True))
            )
            began = time.process_time()
            step = acted(self._task, state, role, text, run)
            seconds = time.process_time() - began
            return seconds, next_prompts(self._task, course, step, seed_of(place))

        def call(given: tuple[str, str]) -> list[tuple[str, str]]:
            try:
                return list(growth(lambda length: tried(*given, length)))
            except Exception as error:
                return [("no text raises", f"ends in {cause(error)}")]

        bad = 0
        for (kind, shape), seen, ending in in_child(
            call, list(itertools.product(kinds, SHAPES)), self._patience
        ):
            what = f"{place}: a long {kind} of {shape!r}"
            self._calls.doing(place, f"a long {kind} of {shape!r}")
            bad += bool(ending or seen)
            if ending:
                self._calls.found("no text ends or holds up the process", f"{what} {ending}")
            for rule, how in seen or ():
                self._calls.found(rule, f"{what} {how}")
            if bad >= MOST_DEADLY:
                return


def acted(task: Any, state: Any, role: str, text: str, run: ProgramResult) -> Transition:
    """Returns the step that a text leads to, if all its programs end as ``run``."""
    if not isinstance(task, ToolTask):
        return task.act(state, role, text)
    runs: list[ProgramResult] = []
    while programs := task.programs(state, role, text, runs):
        runs += [run] * len(programs)
    return task.act(state, role, text, runs)


def next_prompts(task: Any, course: Course, step: Transition, seed: int) -> dict[str, int]:
    """Returns the length of each speaker's next prompt, in characters.

    The next speaker of the course takes ``step``, and then the turn is played to its end along
    demonstrations. The course stays as it is.
    """
    course = copy.copy(course)
    turn = course.turn
    course.take(step)
    while (waiting := course.waiting or course.next()) and course.turn == turn:
        for other in waiting:
            rng = random.Random(seed)
            known = isinstance(task, Demonstrating)
            text = task.demonstration(course.state, other, rng) if known else guess(rng)
            course.take(acted(task, course.state, other, text, ProgramResult("ok", text, "", True)))
    lengths = {}
    for other in task.workflow.speakers:
        if speaks(task, course.state, other):
            shown = task.prompt(course.state, other)
            lengths[other] = sum(len(message["content"]) for message in shown)
    return lengths


def growth(tried: Callable[[int], tuple[float, dict[str, int]]]) -> Iterator[tuple[str, str]]:
    """Yields (rule, how it is broken) for rules that a text breaks when it grows eightfold.

    ``tried`` takes a length. It returns the CPU seconds that a text of this length takes, and the
    characters of each role's next prompt. Times that look too long are measured again.
    """
    short = 1 << 12
    long = 1 << 15
    _, before = tried(short)
    seconds, after = tried(long)
    if seconds > 0.05:
        quick = min(tried(short)[0] for _ in range(3))
        slow = min(tried(long)[0] for _ in range(3))
        if slow > 0.02 + 20 * quick:
            yield (
                "time grows as texts do",
                f"takes {quick:.2g} s for {short:,} characters, {slow:.2g} s for {long:,}",
            )
    if any(after[role] > before[role] + ROOM for role in after if role in before):
        longer = tried(4 * long)[1]
        for role in after:
            if longer.get(role, 0) > after[role] + ROOM:
                yield (
                    "prompts are bounded",
                    f"of {4 * long:,} characters makes {role}'s next prompt {longer[role]:,} long: cut what "
                    "others say, by prompts.shortened or prompts.bounded",
                )
