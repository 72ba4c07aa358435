"""Defines the task of mathematical problems: some roles reason, others write programs.

Every problem has one answer, and all roles see what was said in earlier turns. It is the task of
arXiv 2510.11062 without the faults of its reference code: agreement ends an episode, but only a
right answer is success; no test problem is trained on; nothing that a model wrote is evaluated in
the trainer's own process.

The beginning of a role's name says its kind: ``tool`` writes a program that prints the answer,
``reasoner`` ends with a boxed answer, and so does ``judge``, who sees what the others said in the
same turn. ``checker`` sees it, too, and accepts or rejects the team's answer. Several roles of a
kind are numbered: ``reasoner1``, ``reasoner2``.
"""

import dataclasses
import random
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Literal

from atgrpo_jax.common.checks import check_types, require
from atgrpo_jax.common.types import Message, Outcome, Reward
from atgrpo_jax.sandbox.protocol import Program, ProgramResult
from atgrpo_jax.tasks import prompts
from atgrpo_jax.tasks.data import absolute, files_of, pick, rows_of
from atgrpo_jax.tasks.math.boxes import ACCEPT, REJECT, boxed, short_enough, verdict
from atgrpo_jax.tasks.math.math_problems import (
    WARM_UP,
    Problem,
    algebra,
    as_number,
    key,
    made_up,
    plainly_equal,
    read,
    totals,
)
from atgrpo_jax.tasks.math.said import (
    CHECKER,
    JUDGE,
    KINDS,
    TOOL,
    Said,
    State,
    agree,
    kind_of,
    last_said,
    shown,
    team_answer,
)
from atgrpo_jax.tasks.parts import changes, program_parts
from atgrpo_jax.tasks.protocol import Transition
from atgrpo_jax.tasks.texts import python_block
from atgrpo_jax.tasks.workflow import Workflow


@dataclasses.dataclass(frozen=True)
class Math:
    """Math is a task and its config in one. A role's local reward (arXiv 2510.11062, appendix):

    reasoner, judge   form * [boxed an answer] + match * [it is right]
    tool              builds * [its program is Python] + runs * [it ends well]
                      + tool_match * [it prints the right answer]
    checker           form * [boxed a verdict] + accepts * [it accepts what is right]
                      + match * [it rejects what is wrong]

    The team reward is 1 if the team's answer is right. That answer is taken from the last turn in
    which any role gave one: it is the judge's, else the last reasoner's, else the last tool's. If
    ``decides`` is "majority", it is what most reasoners (or tools) of that turn gave. Of answers
    that were given equally often, it is the one that was given last.

    Each part is paid as its change since the role (or the team) spoke before. This subtracts the
    same amount from all candidates of a group, so their advantages do not change. The sum over an
    episode depends only on where it ends, so delaying agreement pays nothing.

    The episode ends after a turn in which all roles (two or more) gave equal answers, and after the
    last turn. With a checker it ends when that accepts, whether others agree or not. It is solved
    if the team's answer is right then.

    A judge hears every turn or, if ``judged`` is "last turn", only the last one. Then the others'
    agreement ends the episode without it.
    """

    workflow: Workflow = Workflow(order=(("tool", "reasoner"),), turns=4)
    prompts: str = "math/full"  # a folder of templates; see tasks/prompts.py
    # Files of problems for each split; see docs/data.md. If empty, sums are made up.
    files: Mapping[str, str | tuple[str, ...]] = dataclasses.field(default_factory=dict)
    least_terms: int = 2  # fewest numbers in a made-up sum
    terms: int = 3  # most numbers
    largest: int = 20  # largest number
    signs: str = "+-*"  # that a made-up sum may have
    seed: int = 0  # other seeds make other problems
    form: float = 0.2
    match: float = 0.8
    builds: float = 0.1
    runs: float = 0.1
    tool_match: float = 0.8
    accepts: float = 0.8
    decides: Literal["last", "majority"] = "last"  # whose answer, of several of a kind, is the team's
    judged: Literal["every turn", "last turn"] = "every turn"
    demonstration_error: float = 0.3  # probability that a demonstrated answer is a wrong one
    working: bool = False  # whether demonstrated answers to made-up sums come after those of their parts
    prompts_digest: str = dataclasses.field(init=False, default="")  # of the templates' content

    def __post_init__(self):
        check_types(self)
        speakers = self.workflow.speakers
        unknown = sorted({role for role in speakers if kind_of(role) not in KINDS})
        require(self, "workflow", not unknown, f"roles are {', '.join(KINDS)} and a number, not {unknown}")
        hearers = tuple(role for role in speakers if kind_of(role) in (JUDGE, CHECKER))
        last = not hearers or hearers == self.workflow.stages[-1] != self.workflow.stages[0]
        rule = "a judge or checker is one, and hears the others: it speaks last, and alone"
        require(self, "workflow", last, rule)
        late = self.judged == "every turn" or kind_of(self.workflow.last) == JUDGE
        require(self, "judged", late, "there is no judge")
        require(self, "workflow", self.workflow.once_each, "somebody speaks twice in a turn")
        require(self, "least_terms", self.least_terms >= 2, "must be at least 2")
        enough = self.terms >= self.least_terms
        require(self, "terms", enough, f"must be at least least_terms = {self.least_terms}")
        require(self, "largest", self.largest >= 2, "must be at least 2")
        signs = bool(self.signs) and set(self.signs) <= set("+-*")
        require(self, "signs", signs, "must be some of +-*")
        require(self, "demonstration_error", 0 <= self.demonstration_error <= 1, "must be in [0, 1]")
        for name in ("form", "match", "builds", "runs", "tool_match", "accepts"):
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
            return pick(self.file_rows(split), self.seed, split, index)
        kind = self.least_terms, self.terms, self.largest, self.signs
        return made_up(*kind, self.seed, split, index)

    def file_rows(self, split: str) -> tuple[Problem, ...]:
        return rows_of(files_of(self.files), split, read, key) if self.files else ()

    def initial(self, instance: Problem) -> State:
        return State(instance)

    # Play

    @property
    def tools(self) -> tuple[str, ...]:
        return self.workflow.speakers  # all of them, because answers are compared in the sandbox

    packages = ("sympy",)
    warm_up = WARM_UP

    def speaks(self, state: State, role: str) -> bool:
        if kind_of(role) != JUDGE or self.judged == "every turn":
            return True
        return self._in_last_turn(state) and bool(state.said)  # a complete turn has left nothing to judge

    def prompt(self, state: State, role: str) -> list[Message]:
        kind = kind_of(role)
        hears = kind in (JUDGE, CHECKER) and bool(state.said)
        rounds = [*state.turns, state.said] if hears else state.turns
        team = team_answer(state, self.decides == "majority")
        values = {
            "question": state.problem.question,
            "rounds": [[shown(said, role) for said in turn] for turn in rounds],
            "answer": team and team.answer,  # the team's, as of now
        }
        return prompts.render(self.prompts, kind, values)

    def programs(self, state: State, role: str, text: str, runs: Sequence[ProgramResult]) -> list[Program]:
        if kind_of(role) == CHECKER:
            return []
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
        if kind_of(role) == CHECKER:
            said, outcome = self._check(state, role, text)
        else:
            said, outcome = self._hear(state, role, text, runs)
        after = dataclasses.replace(state, said=(*state.said, said))
        before = last_said(state, role)
        parts = changes(said.parts, () if before is None else before.parts)
        team = float(self._right(after)) - float(self._right(state))
        done = self._ends(after, role)
        solved = done and self._right(after)
        if not done and role == self._last(after):
            after = State(state.problem, (*after.turns, after.said))
        return Transition(after, Reward.of(team, **parts), outcome, done, solved)

    def _in_last_turn(self, state: State) -> bool:
        return len(state.turns) + 1 == self.workflow.turns

    def _last(self, state: State) -> str:
        """Returns who speaks last in this turn."""
        return [role for role in self.workflow.speakers if self.speaks(state, role)][-1]

    def _ends(self, state: State, role: str) -> bool:
        """Returns whether the episode ends, now that ``role`` has spoken."""
        if role == self._last(state) and self._in_last_turn(state):
            return True
        if kind_of(self.workflow.last) == CHECKER:
            return role == self.workflow.last and state.said[-1].answer == ACCEPT
        # Who hears the last turn alone has no part in the agreement of the others.
        agreeing = self.workflow.stages[-1 if self.judged == "every turn" else -2]
        return role == agreeing[-1] and agree(state.said)

    def _right(self, state: State) -> bool:
        """Returns whether the team's answer is right."""
        team = team_answer(state, self.decides == "majority")
        return team is not None and team.right

    def demonstration(self, state: State, role: str, rng: random.Random) -> str:
        answer = state.problem.answer
        wrong = rng.random() < self.demonstration_error
        if kind_of(role) == CHECKER:
            return f"\\boxed{{{ACCEPT if self._right(state) != wrong else REJECT}}}"
        if wrong:
            number = as_number(answer)
            answer = str(rng.randrange(100) if number is None else number + rng.choice((-2, -1, 1, 2)))
        if kind_of(role) == TOOL:
            return f"```python\nprint({answer!r})\n```"
        steps = totals(state.problem)[:-1] if self.working and not self.files else []
        return " ".join((*steps, f"\\boxed{{{answer}}}"))

    def _others(self, state: State) -> list[str]:
        """Returns what an answer is compared with: the truth, then the different answers given so
        far in this turn."""
        return [state.problem.answer, *dict.fromkeys(said.like for said in state.said if said.like)]

    def _unclear(self, state: State, answer: str) -> list[str]:
        """Returns those of ``_others`` that need algebra to be compared with ``answer``."""
        return [other for other in self._others(state) if plainly_equal(state.problem, other, answer) is None]

    def _check(self, state: State, role: str, text: str) -> tuple[Said, Outcome]:
        """Returns a checker's verdict on the team's answer as it is now."""
        said = verdict(text)
        right = said is not None and (said == ACCEPT) == self._right(state)
        worth = self.accepts if said == ACCEPT else self.match
        parts = ("form", self.form * (said is not None)), ("match", worth * right)
        outcome = Outcome.INVALID if said is None else Outcome.OK
        return Said(role, text, answer=said, right=right, parts=parts), outcome

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


def _answer(problem: Problem, role: str, text: str, runs: Sequence[ProgramResult]) -> str | None:
    """Returns the answer of a role: what it boxed; for a tool, what its program boxed or else its
    last printed line. Returns None if there is no answer."""
    if kind_of(role) != TOOL:
        return boxed(text, problem.multiple)
    if not runs or runs[0].end != "ok":
        return None
    printed = runs[0].stdout.strip()
    return boxed(printed, problem.multiple) or short_enough(printed.rpartition("\n")[2])
