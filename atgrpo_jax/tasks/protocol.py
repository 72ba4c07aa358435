"""Defines what a task must offer. States are immutable values, and K candidates branch from one."""

import dataclasses
import random
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from atgrpo_jax.common.types import Board, Message, Outcome, Reward, hash_bytes
from atgrpo_jax.sandbox.protocol import Program, ProgramResult
from atgrpo_jax.tasks.workflow import Workflow


@dataclasses.dataclass(frozen=True)
class Transition:
    """The result of one action. ``done`` ends the episode; only ``solved`` is success.

    ``note`` is for people who read the episode, and is cut to 2,000 characters. ``metrics`` are
    numbers of the task's own, whose means over a role's candidates are metrics of the step. Nothing
    is trained on them, and no role sees them.
    """

    state: Any
    reward: Reward
    outcome: Outcome
    done: bool
    solved: bool
    note: str = ""
    metrics: Mapping[str, float] = dataclasses.field(default_factory=dict)


class Play(Protocol):
    """The members that all tasks have; ``Task`` and ``ToolTask`` add the rest. An instance is a
    pure function of (task config, split, index), and no two splits share one."""

    @property
    def workflow(self) -> Workflow: ...

    def instance(self, split: str, index: int) -> Any:
        """Returns a problem: hashable and immutable. If it has a field ``id``, that is its name where
        episodes are written down. Raises IndexError past the end of a split that
        is finite; "train" must not end."""
        ...

    def initial(self, instance: Any) -> Any:
        """Returns the state before the first turn: immutable, with a ``repr`` that differs between
        states."""
        ...

    def prompt(self, state: Any, role: str) -> Sequence[Message]:
        """Returns what ``role`` is shown. Here and below, a role with several seats is named with the
        seat's number (``Workflow.seats``): "worker0"."""
        ...


@runtime_checkable
class Task(Play, Protocol):
    def act(self, state: Any, role: str, text: str) -> Transition:
        """Returns what happens when ``role`` says ``text``. Never raises, whatever the text."""
        ...


@runtime_checkable
class Demonstrating(Protocol):
    """What a task has beside, if policies get a warm start."""

    def demonstration(self, state: Any, role: str, rng: random.Random) -> str:
        """Returns an answer for the warm start. It is imperfect on purpose."""
        ...


@runtime_checkable
class Selective(Protocol):
    """What a task has beside, if not everybody speaks whenever the workflow names them."""

    def speaks(self, state: Any, role: str) -> bool:
        """Returns whether ``role`` speaks, now that the workflow comes to it. It is a pure function.

        All of a stage are asked in the state at its start. If nobody speaks in a whole turn, the
        episode is over.
        """
        ...


@runtime_checkable
class Drawn(Protocol):
    """What a task has beside, if people who read episodes shall see its states."""

    def drawn(self, state: Any) -> Board | Sequence[Sequence[str]] | None:
        """Returns a picture of a state, or None. It is a pure function. Nothing is trained on it, and
        no role sees it.

        It is a text, or rows of cells. A cell is a text: its kind and, after a space, its label if it
        has one ("wall", "given 3"). An empty one is a gap. ``viewing.text.SIGNS`` has the kinds that are
        drawn in a way of their own; others are drawn as their labels. A text is cut to 2,000
        characters; rows to 64, of 64 cells, of 32 characters.
        """
        ...


@runtime_checkable
class FromFiles(Protocol):
    """What a task has beside, if its problems may be rows of files."""

    def file_rows(self, split: str) -> Sequence[Any]:
        """Returns the problems of a split's files, each once; none if problems are made up.

        The first so many training instances are these, in some order. The next so many are them again.
        """
        ...


@runtime_checkable
class ToolTask(Play, Protocol):
    """A task in which some roles write programs. It is a set of pure functions, too: it says which
    programs to run, and is told how they ended."""

    @property
    def tools(self) -> tuple[str, ...]:
        """Returns the roles of the workflow whose answers need programs to be run."""
        ...

    @property
    def packages(self) -> tuple[str, ...]:
        """Returns the packages that programs may import beside Python's own
        (``SandboxConfig.packages``)."""
        ...

    @property
    def warm_up(self) -> str:
        """Returns a program that loads what later programs need, so that they find it loaded; may
        be empty."""
        ...

    def programs(self, state: Any, role: str, text: str, runs: Sequence[ProgramResult]) -> Sequence[Program]:
        """Returns the programs to run next for what ``role`` said. ``runs`` says how the earlier
        ones ended. Returns none when no more are needed."""
        ...

    def act(self, state: Any, role: str, text: str, runs: Sequence[ProgramResult]) -> Transition:
        """Returns what happens when ``role`` says ``text`` and its programs ended as ``runs`` says.
        Never raises, whatever the text and the runs."""
        ...


def missing(task: Any) -> list[str]:
    """Returns the names of the members that a task needs and lacks."""
    names = ["workflow", "instance", "initial", "prompt", "act"]
    if hasattr(task, "programs") or hasattr(task, "tools"):
        names += ["tools", "packages", "warm_up", "programs"]
    return [name for name in names if not hasattr(task, name)]


def digest(state: Any) -> str:
    """Returns a name of a state. States have the same digest if and only if their ``repr`` is the
    same."""
    return hash_bytes(repr(state)).hex()
