"""Who speaks when."""

import dataclasses

from atgrpo_jax.common.checks import check_types, require


@dataclasses.dataclass(frozen=True)
class Workflow:
    """Who speaks when. Data, so that roles can be added without touching the rollout.

    ``order`` is the order of roles within a turn. In a sequential workflow each sees what the role before it
    did, and an action may end the episode. In a parallel one all roles observe the turn's start; their
    actions are carried out in order, and only the last one's end counts.
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
