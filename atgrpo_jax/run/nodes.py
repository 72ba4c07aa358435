"""Names a place in what a run keeps of its episodes."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from atgrpo_jax.common.errors import ConfigError

FORM = "STEP/SPLIT/INSTANCE[/EPISODE[/TURN[/STAGE[/SPEAKER[/K]]]]], e.g. 12/train/530 or 0/test/3/0/1/0/mover"


class Node(NamedTuple):
    """An episode, or what lies in it: a turn, a stage, a group, a candidate. None stands for all."""

    step: int  # training step; for an evaluation, the step that it belongs to
    split: str
    instance: int
    episode: int | None = None
    turn: int | None = None
    stage: int | None = None
    speaker: str | None = None
    k: int | None = None

    @classmethod
    def parse(cls, name: str) -> "Node":
        """Reads a name of the form ``FORM``. Raises ConfigError if it has another one."""
        parts = name.split("/")
        numbers = [part for place, part in enumerate(parts) if place not in (1, 6)]
        if not 3 <= len(parts) <= 8 or not all(part.isascii() and part.isdigit() for part in numbers):
            raise ConfigError(f"{name!r} is no node; expected {FORM}")
        return cls(*(part if place in (1, 6) else int(part) for place, part in enumerate(parts)))  # type: ignore[arg-type]

    def __str__(self) -> str:
        return "/".join(str(part) for part in self if part is not None)

    def holds(self, group: Mapping[str, Any]) -> bool:
        """Returns whether a recorded group of its episode lies under it."""
        wanted = (self.turn, group["turn"]), (self.stage, group["stage"]), (self.speaker, speaker(group))
        return all(own is None or own == found for own, found in wanted)


def speaker(group: Mapping[str, Any]) -> str:
    """Returns the name of who spoke: the role's, or its seat's."""
    return group["role"] if group["seat"] is None else f"{group['role']}{group['seat']}"
