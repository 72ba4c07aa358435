"""Defines what the games share: some roles propose a list of actions, another role decides.

A *proposer*'s list is carried out on a copy of the state, and the *decider* is shown the result.
There are two proposers: the ``scout`` writes a list, the ``tool`` writes a Python program that
prints one. A task with a single agent has the decider alone.
"""

import abc
import dataclasses
import random
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from atgrpo_jax.common.checks import check_types, require
from atgrpo_jax.common.types import Message, Outcome, Reward
from atgrpo_jax.sandbox.protocol import Program, ProgramResult
from atgrpo_jax.tasks import prompts
from atgrpo_jax.tasks.protocol import Transition
from atgrpo_jax.tasks.texts import python_block
from atgrpo_jax.tasks.workflow import Workflow

SCOUT = "scout"
TOOL = "tool"
SHOWN = 1500  # characters that others see of a program, its output and each part of the result
LONGEST = 1000  # items of a list that are carried out; the rest is left out


@dataclasses.dataclass(frozen=True)
class Played:
    """The result of a list of actions.

    ``gained`` is how much nearer the state is to the solution, as a share of the whole way from the
    instance's start. It is negative for steps back. Its sum over an episode depends only on where
    the episode ends.
    """

    state: Any  # has no proposal
    carried: Any  # what was done, in the form that ``Game.shown`` takes
    gained: float
    illegal: float  # share of the actions that could not be carried out
    solved: bool
    shortest: bool = False  # solved with the fewest actions, or pushes in Sokoban
    dead: bool = False  # no solution is left


@dataclasses.dataclass(frozen=True)
class Proposal:
    """A proposal of this turn: the result of its list, and the program that printed the list."""

    carried: Any  # ``Played.carried``; None if there was no list
    solved: bool
    code: str = ""  # the tool's program
    output: str = ""  # what it printed


@dataclasses.dataclass(frozen=True)
class Game(abc.ABC):
    """A game is a task and its config in one. Rewards, where g is ``Played.gained``:

    decider    team = 1 if solved; local = progress * g + shortest * [fewest possible actions]
               - illegal / turns * (share of illegal actions)
    proposer   proposal / turns * (1 if solved + the decider's first two terms), both for the list
               that it proposes, and the same cost of illegal actions; no team part, because it
               changes nothing
    tool       in addition code / turns * (half if the program is Python, half if it ends well)

    Only the first ``longest`` items of a list count; the rest is ignored. An answer without a list
    costs ``invalid / turns``. The decider's g telescopes over an episode, and its bonus is paid
    once, at the end. The proposer's g is clipped to [-1, 1]; its terms and all costs are divided by
    the number of turns. So no team earns more in a failed episode than in a solved one:
    ``__post_init__`` refuses weights that would allow it.
    """

    decider: ClassVar[str]
    packages: ClassVar[tuple[str, ...]] = ()
    warm_up: ClassVar[str] = ""

    workflow: Workflow
    prompts: str  # a folder of templates; see tasks/prompts.py
    seed: int = 0  # other seeds make other problems
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
        speakers = self.workflow.speakers
        unknown = sorted(set(speakers) - roles)
        require(self, "workflow", not unknown, f"roles are {', '.join(sorted(roles))}, not {unknown}")
        last = self.workflow.last == self.decider
        require(self, "workflow", last, f"the last role decides: it must be {self.decider}")
        one_by_one = [(speaker,) for speaker in speakers] == list(self.workflow.stages)
        require(self, "workflow", one_by_one, "the decider must see what was proposed")
        for name in ("progress", "shortest", "illegal", "invalid", "proposal", "code"):
            require(self, name, getattr(self, name) >= 0, "must not be negative")
        proposers = len(speakers) - 1
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
        prompts.settle(self, speakers, next(iter(self.sources), "train"))

    # What each game defines

    @abc.abstractmethod
    def instance(self, split: str, index: int) -> Any:
        """Returns an instance. Raises ValueError for an unknown split, or if there is no such
        instance."""

    @abc.abstractmethod
    def initial(self, instance: Any) -> Any: ...

    @abc.abstractmethod
    def read(self, state: Any, text: str) -> Sequence[Any]:
        """Returns the actions that a text lists; none if it has no list."""

    @abc.abstractmethod
    def play(self, state: Any, actions: Sequence[Any]) -> Played: ...

    @abc.abstractmethod
    def values(self, state: Any) -> dict[str, Any]:
        """Returns what the templates may use beside "role" and "proposal"."""

    @abc.abstractmethod
    def shown(self, state: Any, carried: Any) -> dict[str, Any]:
        """Returns what the templates may use of a proposal beside "code", "output" and "solved"."""

    @abc.abstractmethod
    def demonstrated(self, state: Any, rng: random.Random) -> str:
        """Returns a list that ``read`` can read, with some wrong actions
        (``demonstration_error``)."""

    @property
    def sources(self) -> Mapping[str, Any]:
        """Returns the files that each split is read from; empty if instances are generated."""
        return {}

    # What all games share

    @property
    def tools(self) -> tuple[str, ...]:
        return tuple(role for role in self.workflow.speakers if role == TOOL)

    def longest(self, state: Any) -> int:
        """Returns how many items of a list are carried out at most. No shortest solution has
        more."""
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

    def programs(self, state: Any, role: str, text: str, runs: Sequence[ProgramResult] = ()) -> list[Program]:
        code = python_block(text) if role == TOOL and not runs else None
        return [] if code is None else [Program(code)]

    def act(self, state: Any, role: str, text: str, runs: Sequence[ProgramResult] = ()) -> Transition:
        turns = self.workflow.turns
        parts: dict[str, float] = {}
        proposal = Proposal(None, False)
        outcome = Outcome.INVALID
        if role == TOOL:
            run = runs[0] if runs else ProgramResult("error")
            parts["code"] = self.code / turns * (run.built + (run.end == "ok")) / 2
            proposal = Proposal(None, False, python_block(text) or "", run.stdout or run.stderr)
            text = run.stdout
            if run.end == "timeout":
                text = ""
                outcome = Outcome.TOOL_TIMEOUT
        actions = self.read(state, text)[: self.longest(state)]
        if not actions:
            reward = Reward.of(0.0, **parts, invalid=-self.invalid / turns)
            after = dataclasses.replace(state, proposal=proposal if role == TOOL else None)
            return Transition(after, reward, outcome, False, False)
        played = self.play(state, actions)
        shortest = self.shortest * played.shortest
        parts["illegal"] = -self.illegal / turns * played.illegal
        if role == self.decider:
            reward = Reward.of(
                float(played.solved), progress=self.progress * played.gained, shortest=shortest, **parts
            )
            end = played.solved or played.dead
            # What differs only in what is not carried out is the same.
            found = state.proposal
            shown = found is not None and found.carried is not None
            repeats = {"repeats": float(played.carried == found.carried)} if shown else {}
            return Transition(played.state, reward, Outcome.OK, end, played.solved, metrics=repeats)
        bounded = min(max(played.gained, -1.0), 1.0)
        worth = played.solved + self.progress * bounded + shortest
        reward = Reward.of(0.0, proposal=self.proposal / turns * worth, **parts)
        proposal = dataclasses.replace(proposal, carried=played.carried, solved=played.solved)
        return Transition(dataclasses.replace(state, proposal=proposal), reward, Outcome.OK, False, False)

    def demonstration(self, state: Any, role: str, rng: random.Random) -> str:
        """Returns an answer for the warm start. A decider that was shown a solution repeats it."""
        found = state.proposal
        if role == self.decider and found is not None and found.solved:
            return self.repeated(state, found.carried)
        text = self.demonstrated(state, rng)
        return f"```python\nprint({text!r})\n```" if role == TOOL else text

    @abc.abstractmethod
    def repeated(self, state: Any, carried: Any) -> str:
        """Returns what was carried out as a list that ``read`` can read."""
