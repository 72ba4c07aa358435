"""Says who speaks when."""

import dataclasses
import re
from collections.abc import Mapping, Sequence

from atgrpo_jax.common.checks import check_types, require


@dataclasses.dataclass(frozen=True)
class Workflow:
    """The order in which roles speak. As it is data, a new role needs no change of the rollout.

    A turn is a row of stages, and ``order`` has an item for each: a role, or a tuple of roles that
    speak at once.

        ("scout", "mover")                    the mover sees what the scout did
        (("coder", "tester"),)                both see the state at the start of the turn
        (("worker", "checker"), "judge")      the judge sees what both did

    The prompts of a stage all show the state at its start. Then the stage's actions are carried out
    in order, and its last one may end the episode.

    A role may have several seats: seats that speak at once and share the role's policy and prompt
    file. With ``seats = {"worker": 3}``, ``order`` may name "worker" for all of them at once, or
    one alone: "worker0", "worker1", "worker2". The task is told these names.

    Not everybody has to speak: see ``protocol.Selective``.
    """

    order: tuple[str | tuple[str, ...], ...]
    turns: int = 4  # an episode has at most so many
    seats: Mapping[str, int] = dataclasses.field(default_factory=dict)  # of roles with several

    def __post_init__(self):
        check_types(self)
        order = tuple(item if isinstance(item, str) else tuple(item) for item in self.order)
        object.__setattr__(self, "order", order)
        require(self, "turns", self.turns >= 1, "an episode needs at least one turn")
        require(self, "order", len(self.order) >= 1, "a turn needs at least one role")
        require(self, "order", all(self.order), "a stage needs at least one role")
        for role, count in self.seats.items():
            require(self, "seats", count >= 2, f"{role} needs at least 2; leave out a role with one seat")
            require(self, "seats", role in self.roles, f"order does not name {role}")
        for stage in self.stages:
            require(self, "order", len(set(stage)) == len(stage), "somebody is named twice in one stage")
            for speaker in stage:
                role, number = self.seat(speaker)
                count = self.seats.get(role, 0)
                there = number is None or number < count
                require(self, "order", there, f"there is no {speaker}: {role} has {count} seats, from 0")

    @property
    def stages(self) -> tuple[tuple[str, ...], ...]:
        """Returns who speaks in each stage of a turn: the names of roles, or of their seats."""
        stages = []
        for item in self.order:
            names = [item] if isinstance(item, str) else item
            stages.append(tuple(speaker for name in names for speaker in self._seats(name)))
        return tuple(stages)

    @property
    def speakers(self) -> tuple[str, ...]:
        """Returns all who speak, each once, in the order in which they first do."""
        return tuple(dict.fromkeys(speaker for stage in self.stages for speaker in stage))

    @property
    def turn_roles(self) -> tuple[str, ...]:
        """Returns the role of each who speaks in a turn, in order; of one who speaks twice, twice."""
        return tuple(self.seat(speaker)[0] for stage in self.stages for speaker in stage)

    @property
    def once_each(self) -> bool:
        """Returns whether nobody speaks twice in a turn."""
        return len(self.turn_roles) == len(self.speakers)

    @property
    def last(self) -> str:
        """Returns the last speaker of a turn."""
        return self.stages[-1][-1]

    @property
    def roles(self) -> tuple[str, ...]:
        """Returns all roles, each once, in the order in which they first speak."""
        return tuple(dict.fromkeys(self.seat(speaker)[0] for speaker in self.speakers))

    def seat(self, speaker: str) -> tuple[str, int | None]:
        """Returns a speaker's role and the number of its seat; None for a role with one seat."""
        found = re.fullmatch(r"(.*?)(0|[1-9]\d*)", speaker)
        if found and found[1] in self.seats:
            return found[1], int(found[2])
        return speaker, None

    def _seats(self, name: str) -> Sequence[str]:
        return [f"{name}{number}" for number in range(self.seats[name])] if name in self.seats else [name]
