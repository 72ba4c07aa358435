"""What Plan-Path, Sokoban and Sudoku have in common: some roles propose a list of actions, another decides.

A *proposer*'s list is carried out on a copy of the state, and the *decider* is shown what came of it. There
are two proposers: the ``scout`` writes a list, the ``tool`` a Python program that prints one. With the
decider alone the task has a single agent.
"""

import abc
import dataclasses
import random
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from atgrpo_jax.common.checks import check_types, require
from atgrpo_jax.common.types import Message, Outcome, Reward
from atgrpo_jax.sandbox.protocol import Program, Run
from atgrpo_jax.tasks import prompts
from atgrpo_jax.tasks.protocol import Step
from atgrpo_jax.tasks.texts import python_block
from atgrpo_jax.tasks.workflow import Workflow

SCOUT, TOOL = "scout", "tool"
SHOWN = 1500  # characters of a program, of its output and of each part of what came of it that others see
LONGEST = 1000  # items of a list that are carried out: what comes after them is left out


@dataclasses.dataclass(frozen=True)
class Played:
    """What a list of actions leads to. ``gained`` is the share of the way from the instance's start to its
    solution, negative for steps back, such that what is gained over an episode is where it ends."""

    state: Any  # with no proposal
    carried: Any  # what was done, as the next role is shown it
    gained: float
    illegal: float  # share of the actions that could not be carried out
    solved: bool
    shortest: bool = False  # solved, by as few actions as any
    dead: bool = False  # no solution is left


@dataclasses.dataclass(frozen=True)
class Proposal:
    """A proposer's, this turn: what came of its list, and the program that has printed it."""

    carried: Any
    solved: bool
    code: str = ""
    output: str = ""


@dataclasses.dataclass(frozen=True)
class Game(abc.ABC):
    """Task and config. Rewards, with g what is gained (``Played``):

    decider    team 1 if solved; local = progress * g + shortest * [by as few actions as any]
               - illegal / turns * (share of illegal actions)
    proposer   proposal / turns * (1 if solved + the decider's first two terms) of what it proposes, and the
               same cost of illegal actions; no team part: it changes nothing
    tool       besides, code / turns * (half for a program that is Python, half for one that ends well)

    Of a list the first ``longest`` items count, and what comes after them is as if it were not there.
    An answer without a list costs ``invalid / turns``. The decider's g telescopes over an episode and its
    bonus is paid once, at the end; the proposer's g is clipped to [-1, 1], and its terms and all costs are
    divided by the number of turns. So no team earns more over a failed episode than over a solved one:
    ``__post_init__`` refuses weights for which that would not hold.
    """

    decider: ClassVar[str]
    packages: ClassVar[tuple[str, ...]] = ()
    warm_up: ClassVar[str] = ""

    workflow: Workflow
    prompts: str  # a folder of templates; see tasks/prompts.py
    seed: int = 0
    progress: float = 0.3
    shortest: float = 0.5
    illegal: float = 0.1
    invalid: float = 0.1
    proposal: float = 0.25
    code: float = 0.1
    demonstration_error: float = 0.3  # probability that a demonstrated action is a random one
    prompts_digest: str = dataclasses.field(init=False, default="")  # of the templates' content

    def __post_init__(self):
        check_types(self)
        require(self, "demonstration_error", 0 <= self.demonstration_error <= 1, "must be in [0, 1]")
        roles = {SCOUT, TOOL, self.decider}
        unknown = sorted(set(self.workflow.order) - roles)
        require(self, "workflow", not unknown, f"roles are {', '.join(sorted(roles))}, not {unknown}")
        last = self.workflow.order[-1] == self.decider
        require(self, "workflow", last, f"the last role decides: it must be {self.decider}")
        require(self, "workflow", not self.workflow.parallel, "the decider must see what was proposed")
        for name in ("progress", "shortest", "illegal", "invalid", "proposal", "code"):
            require(self, name, getattr(self, name) >= 0, "must not be negative")
        proposers = len(self.workflow.order) - 1
        best = self.proposal * (1 + self.progress + self.shortest) + self.code * bool(self.tools)
        failed = self.progress + best * proposers
        cost = max(self.invalid, self.illegal)
        proposer_cost = max(self.invalid, self.illegal + self.proposal * self.progress)
        solved = 1 + self.progress - cost - proposer_cost * proposers
        require(
            self,
            "proposal",
            failed <= solved + 1e-9,
            f"failing could pay {failed:.3g} and solving only {solved:.3g}; lower proposal, shortest, code, "
            "illegal or invalid",
        )
        prompts.settle(self, self.workflow.order, next(iter(self.sources), "train"))

    # Of each game

    @abc.abstractmethod
    def instance(self, split: str, index: int) -> Any:
        """Raises ValueError for an unknown split, or if there are no such instances."""

    @abc.abstractmethod
    def initial(self, instance: Any) -> Any: ...

    @abc.abstractmethod
    def read(self, state: Any, text: str) -> Sequence[Any]:
        """The actions that a text lists; none if it has no list."""

    @abc.abstractmethod
    def play(self, state: Any, actions: Sequence[Any]) -> Played: ...

    @abc.abstractmethod
    def values(self, state: Any) -> dict[str, Any]:
        """What the templates may use, beside "role" and "proposal"."""

    @abc.abstractmethod
    def shown(self, state: Any, carried: Any) -> dict[str, Any]:
        """What they may use of a proposal, beside "code", "output" and "solved"."""

    @abc.abstractmethod
    def demonstrated(self, state: Any, rng: random.Random) -> str:
        """A list as ``read`` reads it, wrong here and there (``demonstration_error``)."""

    @property
    def sources(self) -> Mapping[str, Any]:
        """Of each split, the files that its instances are read from; none if they are made up."""
        return {}

    # Play

    @property
    def tools(self) -> tuple[str, ...]:
        return tuple(role for role in self.workflow.order if role == TOOL)

    def longest(self, state: Any) -> int:
        """Items of a list that are carried out. No shortest solution has more."""
        return LONGEST

    def prompt(self, state: Any, role: str) -> list[Message]:
        found = state.proposal
        proposal = found and {
            "code": found.code,
            "output": found.output,
            "solved": found.solved,
            **(self.shown(state, found.carried) if found.carried is not None else {}),
            "nothing": found.carried is None,
        }
        proposal = prompts.bounded(proposal, SHOWN)
        return prompts.render(self.prompts, role, self.values(state) | {"proposal": proposal})

    def programs(self, state: Any, role: str, text: str, runs: Sequence[Run] = ()) -> list[Program]:
        code = python_block(text) if role == TOOL and not runs else None
        return [] if code is None else [Program(code)]

    def act(self, state: Any, role: str, text: str, runs: Sequence[Run] = ()) -> Step:
        turns = self.workflow.turns
        parts: dict[str, float] = {}
        proposal, outcome = Proposal(None, False), Outcome.INVALID
        if role == TOOL:
            run = runs[0] if runs else Run("error")
            parts["code"] = self.code / turns * (run.built + (run.end == "ok")) / 2
            proposal = Proposal(None, False, python_block(text) or "", run.stdout or run.stderr)
            text = run.stdout
            if run.end == "timeout":
                text, outcome = "", Outcome.TOOL_TIMEOUT
        actions = self.read(state, text)[: self.longest(state)]
        if not actions:
            reward = Reward.of(0.0, **parts, invalid=-self.invalid / turns)
            after = dataclasses.replace(state, proposal=proposal if role == TOOL else None)
            return Step(after, reward, outcome, False, False)
        played = self.play(state, actions)
        shortest = self.shortest * played.shortest
        parts["illegal"] = -self.illegal / turns * played.illegal
        if role == self.decider:
            reward = Reward.of(
                float(played.solved), progress=self.progress * played.gained, shortest=shortest, **parts
            )
            return Step(played.state, reward, Outcome.OK, played.solved or played.dead, played.solved)
        bounded = min(max(played.gained, -1.0), 1.0)
        worth = played.solved + self.progress * bounded + shortest
        reward = Reward.of(0.0, proposal=self.proposal / turns * worth, **parts)
        proposal = dataclasses.replace(proposal, carried=played.carried, solved=played.solved)
        return Step(dataclasses.replace(state, proposal=proposal), reward, Outcome.OK, False, False)

    def demonstration(self, state: Any, role: str, rng: random.Random) -> str:
        """A decider that was shown a solution repeats it."""
        found = state.proposal
        if role == self.decider and found is not None and found.solved:
            return self.repeated(state, found.carried)
        text = self.demonstrated(state, rng)
        return f"```python\nprint({text!r})\n```" if role == TOOL else text

    @abc.abstractmethod
    def repeated(self, state: Any, carried: Any) -> str:
        """A list as ``read`` reads it, of what was carried out."""
