"""Defines the task of reasoning-gym: problems of any of its generators, scored by its own scorers.

Two teams can solve them. The ``solver`` alone gives one answer. Or a ``checker`` hears each answer,
and accepts or rejects it. After a rejection the solver answers again.
"""

import dataclasses
import functools
import random
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from atgrpo_jax.common.checks import check_types, require
from atgrpo_jax.common.types import Message, Outcome, Reward
from atgrpo_jax.sandbox.protocol import Program, ProgramResult
from atgrpo_jax.tasks import prompts
from atgrpo_jax.tasks.environments.draws import Draws
from atgrpo_jax.tasks.environments.reasoning_problems import (
    PACKAGE,
    WARM_UP,
    Generator,
    Problem,
    another,
    score_of,
    scorer,
)
from atgrpo_jax.tasks.protocol import Transition
from atgrpo_jax.tasks.texts import THOUGHT
from atgrpo_jax.tasks.workflow import Workflow

SOLVER, CHECKER = "solver", "checker"
ACCEPT, REJECT = "accept", "reject"
TEAMS: tuple[tuple[tuple[str, ...], ...], ...] = (((SOLVER,),), ((SOLVER,), (CHECKER,)))
LONGEST = 10_000  # characters of an answer; a longer one is none
SHOWN = 1000  # characters of an answer that others are shown
RIGHT = 1 - 1e-6  # a score from which on an answer is right


@dataclasses.dataclass(frozen=True)
class Attempt:
    answer: str | None  # None if the solver gave none
    score: float  # the generator's own score, from 0 to 1

    @property
    def right(self) -> bool:
        return self.score >= RIGHT


@dataclasses.dataclass(frozen=True)
class State:
    problem: Problem
    attempts: tuple[Attempt, ...] = ()  # all before the last one were rejected

    @property
    def last(self) -> Attempt:
        return self.attempts[-1] if self.attempts else Attempt(None, 0.0)


@dataclasses.dataclass(frozen=True)
class ReasoningGym:
    """A task and its config in one. Rewards:

    solver   team = 1 if its answer is right; local = partial * score - invalid / turns * [no answer]
    checker  local = verdict / turns * [its verdict is right] - invalid / turns * [no verdict]

    Team and score are paid as their change since the answer before, so their sums over an episode
    depend only on the last answer. That one is the team's. The episode is solved if it is right when
    the checker accepts, or when all turns are over. A checker that says neither has rejected.

    So no role earns more in a failed episode than in a solved one, if ``verdict + invalid`` is at most
    1: ``__post_init__`` refuses other weights.
    """

    workflow: Workflow = Workflow(order=(SOLVER, CHECKER), turns=2)
    name: str = "chain_sum"  # of a generator
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # its settings, without a seed
    prompts: str = "reasoning_gym/short"  # a folder of templates; see tasks/prompts.py
    # "text": the whole text is the answer. "tags": it is what the last <answer>...</answer> holds.
    form: Literal["text", "tags"] = "text"
    seed: int = 0  # other seeds make other problems
    partial: float = 0.2
    verdict: float = 0.5
    invalid: float = 0.1
    demonstration_error: float = 0.3  # probability that a demonstrated answer or verdict is a wrong one
    prompts_digest: str = dataclasses.field(init=False, default="")  # of the templates' content

    def __post_init__(self):
        check_types(self)
        who = f"expected ({SOLVER!r},) or ({SOLVER!r}, {CHECKER!r})"
        require(self, "workflow", self.workflow.stages in TEAMS, who)
        require(self, "demonstration_error", 0 <= self.demonstration_error <= 1, "must be in [0, 1]")
        for name in ("partial", "verdict", "invalid"):
            require(self, name, getattr(self, name) >= 0, "must not be negative")
        most = "with invalid it must be at most 1, so that failing pays less than solving"
        require(self, "verdict", self.verdict + self.invalid <= 1, most)
        require(self, "config", not {"seed", "size"} & set(self.config), "seed and size are set by the task")
        try:
            self._generator  # noqa: B018 - it is made here, once
        except ValueError as error:
            require(self, "name", False, str(error))
        prompts.settle(self, self.workflow.roles)

    @functools.cached_property
    def _generator(self) -> Generator:
        return Generator.of(self.name, self.config)

    @functools.cached_property
    def _draws(self) -> Draws:
        generator = self._generator
        return Draws(generator.problem, lambda problem: problem.question, repr(generator), self.seed)

    @property
    def tools(self) -> tuple[str, ...]:
        return (SOLVER,)  # its answers are scored in the sandbox

    packages = (PACKAGE,)
    warm_up = WARM_UP

    def instance(self, split: str, index: int) -> Problem:
        """Returns a problem. Raises IndexError past the last one of a held-out split, and ValueError
        for an unknown split or one that has no problem."""
        return self._draws.at(split, index)

    def initial(self, instance: Problem) -> State:
        return State(instance)

    def prompt(self, state: State, role: str) -> list[Message]:
        shown = [_shown(attempt.answer) for attempt in state.attempts]
        answer = shown.pop() if role == CHECKER and shown else ""
        values = {"question": state.problem.question, "form": self.form, "answer": answer, "rejected": shown}
        return prompts.render(self.prompts, role, values)

    def programs(self, state: State, role: str, text: str, runs: Sequence[ProgramResult]) -> list[Program]:
        answer = self._answer(text) if role == SOLVER and not runs else None
        return [] if answer is None else [scorer(self._generator, state.problem, answer)]

    def act(self, state: State, role: str, text: str, runs: Sequence[ProgramResult]) -> Transition:
        answer = self._answer(text)
        return self._verdict(state, answer) if role == CHECKER else self._attempt(state, answer, runs)

    def demonstration(self, state: State, role: str, rng: random.Random) -> str:
        """Returns the generator's own answer, or that of another problem; a problem without one has the
        answer "unknown"."""
        wrong = rng.random() < self.demonstration_error
        if role == CHECKER:
            said = ACCEPT if state.last.right != wrong else REJECT
        else:
            problem = self._generator.problem(rng.getrandbits(31)) if wrong else state.problem
            said = problem.answer or "unknown"
        return f"<answer>{said}</answer>" if self.form == "tags" else said

    def _answer(self, text: str) -> str | None:
        """Returns the answer in a text, without what was thought before it; None if there is none."""
        said = text.rpartition(THOUGHT)[2]
        if self.form == "tags":
            _, opened, rest = said.rpartition("<answer>")
            said, closed, _ = rest.partition("</answer>")
            if not (opened and closed):
                return None
        said = said.strip()
        return said if 0 < len(said) <= LONGEST else None

    def _attempt(self, state: State, answer: str | None, runs: Sequence[ProgramResult]) -> Transition:
        turns = self.workflow.turns
        run = runs[0] if runs else ProgramResult("ok")
        now = Attempt(answer, score_of(run) if answer is not None else 0.0)
        parts = {"score": self.partial * (now.score - state.last.score)}
        if answer is None:
            parts["invalid"] = -self.invalid / turns
        reward = Reward.of(float(now.right) - float(state.last.right), **parts)
        outcome = Outcome.INVALID if answer is None else Outcome.OK
        if run.end == "timeout":
            outcome = Outcome.TOOL_TIMEOUT
        elif another(run):
            outcome = Outcome.TOOL_CRASH  # the generator's fault, and so no sample to learn from
        alone = CHECKER not in self.workflow.roles
        after = State(state.problem, (*state.attempts, now))
        return Transition(after, reward, outcome, alone, alone and now.right)

    def _verdict(self, state: State, said: str | None) -> Transition:
        turns = self.workflow.turns
        found = re.fullmatch(f"({ACCEPT}|{REJECT})(ed|s)?[.!]?", (said or "")[:20].lower())
        if found is None:
            parts = {"invalid": -self.invalid / turns}
            outcome = Outcome.INVALID
        else:
            parts = {"verdict": self.verdict / turns * ((found[1] == ACCEPT) == state.last.right)}
            outcome = Outcome.OK
        accepted = found is not None and found[1] == ACCEPT
        done = accepted or len(state.attempts) >= turns
        return Transition(state, Reward.of(0.0, **parts), outcome, done, done and state.last.right)


def _shown(answer: str | None) -> str:
    return "nothing" if answer is None else prompts.shortened(answer, SHOWN)
