"""Says which role speaks when."""

import dataclasses

from atgrpo_jax.common.checks import check_types, require


@dataclasses.dataclass(frozen=True)
class Workflow:
    """The order in which roles speak. As it is data, a new role needs no change of the rollout.

    ``order`` is the order of roles within a turn. In a sequential workflow each role sees what the
    role before it did, and any action may end the episode. In a parallel workflow all roles see the
    state at the start of the turn. Their actions are then carried out in order, and only the last
    one may end the episode.
    """

    order: tuple[str, ...]
    turns: int = 4
    parallel: bool = False

    def __post_init__(self):
        check_types(self)
        object.__setattr__(self, "order", tuple(self.order))
        require(self, "turns", self.turns >= 1, "an episode needs at least one turn")
        require(self, "order", len(self.order) >= 1, "a turn needs at least one role")
        require(self, "order", len(set(self.order)) == len(self.order), "a role is named twice")
