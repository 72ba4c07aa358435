"""The Task protocol. A task is functional: states are immutable values, and K candidates branch from one."""

import dataclasses
import random
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from atgrpo_jax.common.types import Message, Outcome, Reward, hash_bytes
from atgrpo_jax.sandbox.protocol import Program, Run
from atgrpo_jax.tasks.workflow import Workflow


@dataclasses.dataclass(frozen=True)
class Step:
    """What one action leads to. ``done`` ends the episode; only ``solved`` is success."""

    state: Any
    reward: Reward
    outcome: Outcome
    done: bool
    solved: bool


class Play(Protocol):
    """One kind of problem. Instances are pure functions of (task config, split, index), and no two
    splits share one."""

    @property
    def workflow(self) -> Workflow: ...

    def instance(self, split: str, index: int) -> Any:
        """A hashable, immutable problem. Splits but "train" may end: IndexError beyond."""
        ...

    def initial(self, instance: Any) -> Any:
        """The state before the first turn: immutable, with a ``repr`` that tells states apart."""
        ...

    def prompt(self, state: Any, role: str) -> Sequence[Message]: ...

    def demonstration(self, state: Any, role: str, rng: random.Random) -> str:
        """A deliberately imperfect answer, for the warm start."""
        ...


@runtime_checkable
class Task(Play, Protocol):
    def act(self, state: Any, role: str, text: str) -> Step:
        """What ``role`` saying ``text`` leads to. Never raises on any text."""
        ...


@runtime_checkable
class ToolTask(Play, Protocol):
    """A task of which some roles write programs. It is as pure as any other: it says which programs are to
    be run, and is told what became of them."""

    @property
    def tools(self) -> tuple[str, ...]:
        """The roles of its workflow that write programs, or whose words need some to be run."""
        ...

    @property
    def packages(self) -> tuple[str, ...]:
        """That programs import, beside Python's own (``SandboxConfig.packages``)."""
        ...

    @property
    def warm_up(self) -> str:
        """A program that loads what others then find loaded; may be empty."""
        ...

    def programs(self, state: Any, role: str, text: str, runs: Sequence[Run]) -> Sequence[Program]:
        """To be run next because ``role`` said ``text``, given how those before have ended; none if that is
        all."""
        ...

    def act(self, state: Any, role: str, text: str, runs: Sequence[Run]) -> Step:
        """What it leads to, given how all those programs ended. Never raises on any text or run."""
        ...


def missing(task: Any) -> list[str]:
    """Names of what a task has to have and has not."""
    names = ["workflow", "instance", "initial", "prompt", "act", "demonstration"]
    if hasattr(task, "programs") or hasattr(task, "tools"):
        names += ["tools", "packages", "warm_up", "programs"]
    return [name for name in names if not hasattr(task, name)]


def digest(state: Any) -> str:
    """Names a state: equal states, and only those, have equal digests."""
    return hash_bytes(repr(state)).hex()
