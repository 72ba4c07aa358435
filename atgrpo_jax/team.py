"""Which policy speaks for which role."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal

from atgrpo_jax.checks import check_types, require


@dataclasses.dataclass(frozen=True)
class Team:
    """How roles share weights, and how rewards are mixed.

    ``sharing``: "shared" is one policy for all roles, "full" one for each role; or a mapping from
    role to policy name for anything between.
    """

    sharing: Literal["shared", "full"] | Mapping[str, str] = "shared"
    alpha: float = 1.0  # weight of the team part in the mixed reward

    def __post_init__(self):
        check_types(self)
        require(self, "alpha", self.alpha >= 0, "must not be negative")

    def policy(self, role: str) -> str:
        """The name of the policy that speaks for ``role``."""
        if self.sharing == "shared":
            return "shared"
        if self.sharing == "full":
            return role
        return self.sharing[role]

    def policies(self, roles: Sequence[str]) -> tuple[str, ...]:
        """Names of all policies of the roles, sorted. Raises ValueError if the two do not match."""
        if isinstance(self.sharing, Mapping):
            require(
                self,
                "sharing",
                set(self.sharing) == set(roles),
                f"must name exactly the roles {', '.join(roles)}",
            )
        return tuple(sorted({self.policy(role) for role in roles}))
