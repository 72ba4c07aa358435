"""Defines the task of mathematical problems: some roles reason, others write programs.

Every problem has one answer, and all roles see what was said in earlier turns. It is the task of
arXiv 2510.11062 without the faults of its reference code: agreement ends an episode, but only a
right answer is success; no test problem is trained on; nothing that a model wrote is evaluated in
the trainer's own process.

The beginning of a role's name says its kind: ``tool`` writes a program that prints the answer,
``reasoner`` ends with a boxed answer, and so does ``judge``, who sees what the others said in the
same turn. Several roles of a kind are numbered: ``reasoner1``, ``reasoner2``.
"""

import dataclasses
import random
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

from atgrpo_jax.common.checks import check_types, require
from atgrpo_jax.common.types import Message, Outcome, Reward
from atgrpo_jax.sandbox.protocol import Program, ProgramResult
from atgrpo_jax.tasks import prompts
from atgrpo_jax.tasks.data import absolute, files_of, pick, rows_of
from atgrpo_jax.tasks.math.boxes import boxed, short_enough
from atgrpo_jax.tasks.math.math_problems import (
    WARM_UP,
    Problem,
    algebra,
    as_number,
    key,
    made_up,
    plainly_equal,
    read,
)
from atgrpo_jax.tasks.parts import Parts, changes, program_parts
from atgrpo_jax.tasks.protocol import Transition
from atgrpo_jax.tasks.texts import python_block
from atgrpo_jax.tasks.workflow import Workflow

TOOL, REASONER, JUDGE = KINDS = ("tool", "reasoner", "judge")
SHOWN = 1000  # characters of a text, or of a program's output, that others are shown
PROGRAM_SHOWN = 2000  # characters of a program that others are shown


@dataclasses.dataclass(frozen=True)
class Said:
    """The words of a role in a turn. ``answer`` is None if it gave none."""

    role: str
    text: str = ""
    code: str = ""
    output: str = ""
    answer: str | None = None
    right: bool = False
    like: str | None = None  # the first answer of the turn that is equal to this one
    parts: Parts = ()  # parts of its local reward, by name


@dataclasses.dataclass(frozen=True)
class State:
    problem: Problem
    turns: tuple[tuple[Said, ...], ...] = ()  # the turns that are complete
    said: tuple[Said, ...] = ()  # what was said in this turn so far


@dataclasses.dataclass(frozen=True)
class Math:
    """Math is a task and its config in one. A role's local reward (arXiv 2510.11062, appendix):

    reasoner, judge   form * [boxed an answer] + match * [it is right]
    tool              builds * [its program is Python] + runs * [it ends well]
                      + tool_match * [it prints the right answer]

    The team reward is 1 if the team's answer is right. That answer is taken from the last turn in
    which any role gave one: it is the judge's, else the last reasoner's, else the last tool's.

    Each part is paid as its change since the role (or the team) spoke before. This subtracts the
    same amount from all candidates of a group, so their advantages do not change. The sum over an
    episode depends only on where it ends, so delaying agreement pays nothing.

    The episode ends after a turn in which all roles (two or more) gave equal answers, and after the
    last turn. It is solved if the team's answer is right then.
    """

    workflow: Workflow = Workflow(order=(("tool", "reasoner"),), turns=4)
    prompts: str = "math/full"
    # Files of problems for each split; see docs/data.md. If empty, sums are made up.
    files: Mapping[str, str | tuple[str, ...]] = dataclasses.field(default_factory=dict)
    terms: int = 3  # most numbers in a made-up sum
    largest: int = 20  # largest number in a made-up sum
    seed: int = 0
    form: float = 0.2
    match: float = 0.8
    builds: float = 0.1
    runs: float = 0.1
    tool_match: float = 0.8
    demonstration_error: float = 0.3  # probability that a demonstrated answer is a wrong one
    prompts_digest: str = dataclasses.field(init=False, default="")  # of the templates' content

    def __post_init__(self):
        check_types(self)
        speakers = self.workflow.speakers
        unknown = sorted({role for role in speakers if kind_of(role) not in KINDS})
        require(self, "workflow", not unknown, f"roles are {', '.join(KINDS)} and a number, not {unknown}")
        judges = tuple(role for role in speakers if kind_of(role) == JUDGE)
        last = not judges or judges == self.workflow.stages[-1]
        require(self, "workflow", last, "a judge is one, and hears the others: it speaks last, and alone")
        once = sum(map(len, self.workflow.stages)) == len(speakers)
        require(self, "workflow", once, "somebody speaks twice in a turn")
        require(self, "terms", self.terms >= 2, "must be at least 2")
        require(self, "largest", self.largest >= 2, "must be at least 2")
        require(self, "demonstration_error", 0 <= self.demonstration_error <= 1, "must be in [0, 1]")
        for name in ("form", "match", "builds", "runs", "tool_match"):
            require(self, name, getattr(self, name) >= 0, "must not be negative")
        missing = find_spec("sympy") is None
        require(self, "files", not missing, 'needs sympy: pip install "atgrpo_jax[math]"')
        object.__setattr__(self, "files", absolute(self.files))
        prompts.settle(self, list(map(kind_of, speakers)), next(iter(self.files), "train"))

    def instance(self, split: str, index: int) -> Problem:
        """Returns a problem of the files, or a made-up one. Raises ValueError for a split without
        files, or one that names the line and field of a bad row; IndexError past the end of a
        held-out split's files."""
        if self.files:
            return pick(rows_of(files_of(self.files), split, read, key), self.seed, split, index)
        return made_up(self.terms, self.largest, self.seed, split, index)

    def initial(self, instance: Problem) -> State:
        return State(instance)

    # Play

    @property
    def tools(self) -> tuple[str, ...]:
        return self.workflow.speakers  # all of them, because answers are compared in the sandbox

    packages = ("sympy",)
    warm_up = WARM_UP

    def prompt(self, state: State, role: str) -> list[Message]:
        kind = kind_of(role)
        rounds = [*state.turns, *([state.said] if kind == JUDGE and state.said else [])]
        shown = []
        for turn in rounds:
            shown.append([_shown(said) for said in turn])
        return prompts.render(self.prompts, kind, {"question": state.problem.question, "rounds": shown})

    def programs(self, state: State, role: str, text: str, runs: Sequence[ProgramResult]) -> list[Program]:
        if kind_of(role) == TOOL and not runs:
            code = python_block(text)
            return [] if code is None else [Program(code)]
        answer = _answer(state.problem, role, text, runs)
        if answer is None or len(runs) > (kind_of(role) == TOOL):
            return []
        # One program for each comparison, so that an unreadable answer of another role spoils only
        # its own.
        return [algebra(state.problem, other, answer) for other in self._unclear(state, answer)]

    def act(self, state: State, role: str, text: str, runs: Sequence[ProgramResult]) -> Transition:
        said, outcome = self._hear(state, role, text, runs)
        after = dataclasses.replace(state, said=(*state.said, said))
        before = _last(state, role)
        parts = changes(said.parts, () if before is None else before.parts)
        team = float(_right(after)) - float(_right(state))
        done = False
        if role == self.workflow.last:
            likes = {said.like for said in after.said}
            agreed = len(after.said) > 1 and len(likes) == 1 and None not in likes
            done = agreed or len(after.turns) + 1 == self.workflow.turns
            if not done:
                after = State(state.problem, (*after.turns, after.said))
        return Transition(after, Reward.of(team, **parts), outcome, done, done and _right(after))

    def demonstration(self, state: State, role: str, rng: random.Random) -> str:
        answer = state.problem.answer
        if rng.random() < self.demonstration_error:
            number = as_number(answer)
            answer = str(rng.randrange(100) if number is None else number + rng.choice((-2, -1, 1, 2)))
        if kind_of(role) == TOOL:
            return f"```python\nprint({answer!r})\n```"
        return f"\\boxed{{{answer}}}"

    def _others(self, state: State) -> list[str]:
        """Returns what an answer is compared with: the truth, then the different answers given so
        far in this turn."""
        return [state.problem.answer, *dict.fromkeys(said.like for said in state.said if said.like)]

    def _unclear(self, state: State, answer: str) -> list[str]:
        """Returns those of ``_others`` that need algebra to be compared with ``answer``."""
        return [other for other in self._others(state) if plainly_equal(state.problem, other, answer) is None]

    def _hear(
        self, state: State, role: str, text: str, runs: Sequence[ProgramResult]
    ) -> tuple[Said, Outcome]:
        kind = kind_of(role)
        answer = _answer(state.problem, role, text, runs)
        right = False
        like = answer
        outcome = Outcome.OK if answer is not None else Outcome.INVALID
        if answer is not None:
            judged = zip(self._unclear(state, answer), runs[kind == TOOL :], strict=True)
            algebra = {other: run.end == "ok" and run.stdout.strip() == "1" for other, run in judged}
            truth, *others = (
                (other, algebra[other] if other in algebra else plainly_equal(state.problem, other, answer))
                for other in self._others(state)
            )
            right = bool(truth[1])
            like = next((other for other, same in others if same), answer)
        if kind != TOOL:
            parts = ("form", self.form * (answer is not None)), ("match", self.match * right)
            return Said(role, text, answer=answer, right=right, like=like, parts=parts), outcome
        run = runs[0] if runs else ProgramResult("error")
        if run.end == "timeout":
            outcome = Outcome.TOOL_TIMEOUT
        made = (*program_parts(run, self.builds, self.runs), ("match", self.tool_match * right))
        output = run.stdout or run.stderr
        return Said(role, text, python_block(text) or "", output, answer, right, like, made), outcome


def _shown(said: Said) -> dict[str, Any]:
    return {
        "role": said.role,
        "kind": kind_of(said.role),
        "text": prompts.shortened(said.text, SHOWN),
        "code": prompts.shortened(said.code, PROGRAM_SHOWN),
        "output": prompts.shortened(said.output, SHOWN),
        "answer": said.answer,
    }


def kind_of(role: str) -> str:
    return role.rstrip("0123456789")


def _answer(problem: Problem, role: str, text: str, runs: Sequence[ProgramResult]) -> str | None:
    """Returns the answer of a role: what it boxed; for a tool, what its program boxed or else its
    last printed line. Returns None if there is no answer."""
    if kind_of(role) != TOOL:
        return boxed(text, problem.multiple)
    if not runs or runs[0].end != "ok":
        return None
    printed = runs[0].stdout.strip()
    return boxed(printed, problem.multiple) or short_enough(printed.rpartition("\n")[2])


def _last(state: State, role: str) -> Said | None:
    """Returns what a role said in the turn before this one; None if nothing."""
    found = [said for turn in state.turns[-1:] for said in turn if said.role == role]
    return found[0] if found else None


def _right(state: State) -> bool:
    """Returns whether the team's answer in a state is right."""
    for turn in (state.said, *reversed(state.turns)):
        answers = [said for said in turn if said.answer is not None]
        for kind in (JUDGE, REASONER, TOOL):
            of_kind = [said for said in answers if kind_of(said.role) == kind]
            if of_kind:
                return of_kind[-1].right
    return False
