"""Which policy speaks for which role, and what is trained of it."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal

from atgrpo_jax.common.checks import check_types, require

Kind = Literal["full", "lora"]
BASE = "base"  # what adapters adapt: the starting weights, never trained


@dataclasses.dataclass(frozen=True)
class Team:
    """How roles share weights, and how rewards are mixed.

    ``sharing`` is one of these for all roles, or a mapping from each role to its own:

        "shared"        one policy for all roles that say so
        "full"          a policy of the role's own, all of its weights trained
        "lora"          an adapter of the role's own on the starting weights, which stay as they are
        "full:NAME", "lora:NAME"   the same, shared by the roles that give the same name
    """

    sharing: str | Mapping[str, str] = "shared"
    alpha: float = 1.0  # weight of the team part in the mixed reward
    frozen: tuple[str, ...] = ()  # policies that play and are not updated
    # Policy -> factor of the learning rate; 1 for those it does not name.
    rates: Mapping[str, float] = dataclasses.field(default_factory=dict)
    alternate: int = 0  # steps after which the next policy is the only one updated; 0 updates all at once

    def __post_init__(self):
        check_types(self)
        object.__setattr__(self, "frozen", tuple(self.frozen))
        require(self, "alpha", self.alpha >= 0, "must not be negative")
        require(self, "alternate", self.alternate >= 0, "must not be negative")
        positive = all(factor > 0 for factor in self.rates.values())
        require(self, "rates", positive, "must be positive; freeze with frozen")
        specs = self.sharing.values() if isinstance(self.sharing, Mapping) else [self.sharing]
        for spec in specs:
            kind, colon, name = spec.partition(":")
            known = spec == "shared" or (kind in ("full", "lora") and bool(name) == bool(colon))
            require(self, "sharing", known, 'expected "shared", "full", "lora", "full:NAME" or "lora:NAME"')

    def policy(self, role: str) -> str:
        """The name of the policy that speaks for ``role``."""
        spec = self._spec(role)
        return spec if spec == "shared" else spec.partition(":")[2] or role

    def kind(self, policy: str, roles: Sequence[str]) -> Kind:
        """What is trained of a policy of the roles."""
        spec = next(self._spec(role) for role in roles if self.policy(role) == policy)
        return "lora" if spec.startswith("lora") else "full"

    def policies(self, roles: Sequence[str]) -> tuple[str, ...]:
        """Names of all policies of the roles, sorted. Raises ValueError if roles and fields do not match."""
        if isinstance(self.sharing, Mapping):
            same = set(self.sharing) == set(roles)
            require(self, "sharing", same, f"must name exactly the roles {', '.join(roles)}")
        kinds: dict[str, str] = {}
        for role in roles:
            kind = self._spec(role).partition(":")[0]
            before = kinds.setdefault(self.policy(role), kind)
            require(
                self, "sharing", before == kind, f"policy {self.policy(role)} is both {before} and {kind}"
            )
        for name in ("frozen", "rates"):
            known = set(getattr(self, name)) <= set(kinds)
            require(self, name, known, f"the policies are {', '.join(sorted(kinds))}")
        require(self, "frozen", set(self.frozen) != set(kinds), "nothing is left to train")
        return tuple(sorted(kinds))

    def updated(self, step: int, roles: Sequence[str]) -> tuple[str, ...]:
        """The policies that step ``step`` (counted from 1) updates."""
        moving = [policy for policy in self.policies(roles) if policy not in self.frozen]
        if self.alternate:
            return (moving[(step - 1) // self.alternate % len(moving)],)
        return tuple(moving)

    def starting(self, roles: Sequence[str]) -> "Team":
        """The same team before training, when all adapters are still their base."""
        policies = {role: self.policy(role) for role in roles}
        names = {r: BASE if self.kind(p, roles) == "lora" else p for r, p in policies.items()}
        return Team(
            {role: "shared" if n == "shared" else f"full:{n}" for role, n in names.items()}, self.alpha
        )

    def _spec(self, role: str) -> str:
        return self.sharing[role] if isinstance(self.sharing, Mapping) else self.sharing
