"""Defines the task of programming problems: a coder writes a program, a tester writes a test of it.

Both see where the program and the test differ. It is the task of arXiv 2510.11062 without the
faults of its reference code: golden tests are hidden from both roles; an episode ends when program
and test agree, but only golden tests decide success; and the tester has a reward of its own.
"""

import dataclasses
import random
from collections.abc import Mapping, Sequence

from atgrpo_jax.common.checks import check_types, require
from atgrpo_jax.common.types import Message, Outcome, Reward
from atgrpo_jax.sandbox.protocol import Program, ProgramResult
from atgrpo_jax.tasks import prompts
from atgrpo_jax.tasks.code.code_problems import (
    Problem,
    alias,
    key,
    made_up,
    passed,
    programs,
    read,
    told,
    verdicts,
)
from atgrpo_jax.tasks.code.written_tests import (
    SHOWN,
    passes,
    read_test,
    run_of,
    shown_output,
    some_test,
    writable,
    written,
)
from atgrpo_jax.tasks.data import absolute, files_of, pick, rows_of
from atgrpo_jax.tasks.parts import Parts, changes, program_parts
from atgrpo_jax.tasks.protocol import Transition
from atgrpo_jax.tasks.texts import python_block
from atgrpo_jax.tasks.workflow import Workflow

CODER, TESTER = ROLES = ("coder", "tester")
PROGRAM_SHOWN = 4000  # characters of a program that roles are shown


@dataclasses.dataclass(frozen=True)
class Case:
    """A tester's test and what the program printed for it. In the form "call", ``given`` is the
    call and ``printed`` its value."""

    given: str
    expected: str
    printed: str
    agrees: bool


@dataclasses.dataclass(frozen=True)
class Round:
    """The program, the test and the rewards of a turn. No role is told ``right``."""

    code: str = ""  # the program as of this turn
    right: float = 0.0  # share of golden tests that the program passes
    case: Case | None = None
    coder: Parts = ()  # parts of the coder's reward, by name
    tester: Parts = ()  # the same for the tester


@dataclasses.dataclass(frozen=True)
class State:
    problem: Problem
    rounds: tuple[Round, ...] = ()  # the turns that are complete
    now: Round = Round()


@dataclasses.dataclass(frozen=True)
class Code:
    """Code is a task and its config in one. A role's local reward (arXiv 2510.11062, appendix):

    coder    builds * [its program is Python] + runs * [it ends well in its first run]
             + golden * (share of golden tests that it passes)
    tester   form * [it wrote a test] + quality * [a right program passes it]

    The right program is the problem's own solution or, if it has none, the team's program when that
    passes all golden tests. Without either the quality part is 0.

    The team reward is the share of golden tests that the program passes. Each part is paid as its
    change since the role (or the team) spoke before, as in ``Math``.

    Each golden test has the whole limits of a program (``SandboxConfig``), so a test that hangs
    does not take time from others. After ``timeouts`` such tests the rest is not run and counts as
    failed, so a program that never ends costs ``timeouts`` waits, not ``tests``. A program that
    passes all tests is not affected.

    The episode ends after a turn in which the program passes the tester's test, and after the last
    turn. It is solved if the program passes all golden tests then.
    """

    workflow: Workflow = Workflow(order=(("coder", "tester"),), turns=4)
    prompts: str = "code/full"  # a folder of templates; see tasks/prompts.py
    # Files of problems for each split; see docs/data.md. If empty, small problems are made up.
    files: Mapping[str, str | tuple[str, ...]] = dataclasses.field(default_factory=dict)
    tests: int = 8  # most golden tests that are run
    timeouts: int = 2  # after so many golden tests that reached a time limit, no more are run
    seed: int = 0  # other seeds make other problems
    builds: float = 0.1
    runs: float = 0.1
    golden: float = 0.8
    form: float = 0.2
    quality: float = 0.8
    demonstration_error: float = 0.3  # probability that a demonstrated program or test is a wrong one
    prompts_digest: str = dataclasses.field(init=False, default="")  # of the templates' content

    packages = ()
    warm_up = ""

    def __post_init__(self):
        check_types(self)
        speakers = self.workflow.speakers
        unknown = sorted(set(speakers) - set(ROLES))
        require(self, "workflow", not unknown, f"roles are {' and '.join(ROLES)}, not {unknown}")
        require(self, "workflow", speakers[0] == CODER, "the coder speaks first")
        require(self, "workflow", self.workflow.once_each, "somebody speaks twice in a turn")
        for name in ("tests", "timeouts"):
            require(self, name, getattr(self, name) >= 1, "must be at least 1")
        require(self, "demonstration_error", 0 <= self.demonstration_error <= 1, "must be in [0, 1]")
        for name in ("builds", "runs", "golden", "form", "quality"):
            require(self, name, getattr(self, name) >= 0, "must not be negative")
        object.__setattr__(self, "files", absolute(self.files))
        prompts.settle(self, speakers, next(iter(self.files), "train"))

    def instance(self, split: str, index: int) -> Problem:
        """Returns a problem of the files, or a made-up one. Raises ValueError for a split without
        files, or one that names the line and field of a bad row; IndexError past the end of a
        held-out split's files."""
        if self.files:
            return pick(self.file_rows(split), self.seed, split, index)
        return made_up(self.seed, split, index)

    def file_rows(self, split: str) -> tuple[Problem, ...]:
        return rows_of(files_of(self.files), split, read, key) if self.files else ()

    def initial(self, instance: Problem) -> State:
        return State(instance)

    # Play

    @property
    def tools(self) -> tuple[str, ...]:
        return self.workflow.speakers

    def prompt(self, state: State, role: str) -> list[Message]:
        problem = state.problem
        sees_now = role != CODER and CODER not in self.workflow.stages[-1]
        rounds = (*state.rounds, state.now) if sees_now else state.rounds
        values = {
            "question": problem.question,
            "form": problem.form,
            "starter": problem.starter,
            "call": alias(problem.names[0]) if problem.names else "",
            "rounds": [
                {"code": prompts.shortened(r.code, PROGRAM_SHOWN), "case": r.case and vars(r.case)}
                for r in rounds
            ],
        }
        return prompts.render(self.prompts, role, values)

    def programs(self, state: State, role: str, text: str, runs: Sequence[ProgramResult]) -> list[Program]:
        problem = state.problem
        if role == CODER:
            code = python_block(text)
            return [] if code is None else programs(problem, code, self.tests, self.timeouts, runs)
        test = read_test(problem, text)
        if test is None or runs:
            return []
        return [run_of(problem, code, test) for code in (state.now.code, self._reference(state)) if code]

    def act(self, state: State, role: str, text: str, runs: Sequence[ProgramResult]) -> Transition:
        now, outcome = (self._code if role == CODER else self._test)(state, text, runs)
        before = state.rounds[-1] if state.rounds else Round()
        own = "coder" if role == CODER else "tester"
        parts = changes(getattr(now, own), getattr(before, own))
        team = now.right - state.now.right
        after = dataclasses.replace(state, now=now)
        done = False
        if role == self.workflow.last:
            agrees = now.case is not None and now.case.agrees
            done = agrees or len(state.rounds) + 1 == self.workflow.turns
            if not done:
                kept = Round(now.code, now.right)
                after = State(state.problem, (*state.rounds, now), kept)
        note = told(state.problem, runs, self.tests) if role == CODER and runs else ""
        return Transition(after, Reward.of(team, **parts), outcome, done, done and now.right == 1.0, note)

    def _code(self, state: State, text: str, runs: Sequence[ProgramResult]) -> tuple[Round, Outcome]:
        code = python_block(text)
        if code is None or not runs:
            nothing = tuple((name, 0.0) for name in ("builds", "runs", "golden"))
            return dataclasses.replace(state.now, coder=nothing), Outcome.INVALID
        good, count = passed(state.problem, runs, self.tests)
        ran = program_parts(runs[0], self.builds, self.runs)
        parts = (*ran, ("golden", self.golden * good / count))
        timeout = runs[0].end == "timeout" or "timeout" in verdicts(state.problem, runs, self.tests)
        outcome = Outcome.TOOL_TIMEOUT if timeout else Outcome.OK if runs[0].built else Outcome.INVALID
        return dataclasses.replace(state.now, code=code, right=good / count, coder=parts), outcome

    def _test(self, state: State, text: str, runs: Sequence[ProgramResult]) -> tuple[Round, Outcome]:
        problem = state.problem
        test = read_test(state.problem, text)
        if test is None:
            nothing = tuple((name, 0.0) for name in ("form", "quality"))
            return dataclasses.replace(state.now, case=None, tester=nothing), Outcome.INVALID
        results = iter(runs)
        own = next(results, None) if state.now.code else None
        other = next(results, None) if self._reference(state) else None
        agrees = own is not None and passes(problem, own, test)
        printed = "" if own is None else shown_output(problem, own)
        good = other is not None and passes(problem, other, test)
        parts = ("form", self.form), ("quality", self.quality * good)
        given, expected, printed = (prompts.shortened(part, SHOWN) for part in (*test, printed))
        case = Case(given, expected, printed, agrees)
        return dataclasses.replace(state.now, case=case, tester=parts), Outcome.OK

    def _reference(self, state: State) -> str:
        """Returns a right program; "" if none is known."""
        return state.problem.solution or (state.now.code if state.now.right == 1.0 else "")

    def demonstration(self, state: State, role: str, rng: random.Random) -> str:
        problem = state.problem
        wrong = rng.random() < self.demonstration_error
        if role == CODER:
            code = problem.solution if problem.solution and not wrong else "print(0)"
            return f"```python\n{code}\n```"
        given, expected = rng.choice(writable(problem) or (some_test(problem),))
        if wrong:
            expected = "0" if problem.form == "stdio" else "None"
        return written(problem, given, expected)
