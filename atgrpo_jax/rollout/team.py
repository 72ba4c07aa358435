"""Defines which policy speaks for which role, and which of a policy's weights are trained."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from atgrpo_jax.common.checks import check_types, require
from atgrpo_jax.partners.partners import Partner

Kind = Literal["full", "lora"]
BASE = "base"  # name of the starting weights under all adapters; they are never trained


@dataclasses.dataclass(frozen=True)
class Team:
    """Says how roles share weights, which policies are updated, and how rewards are mixed.

    ``sharing`` is one of these strings for all roles, or a mapping from each role to one of them.
    Roles with partners are left out.

        "shared"        one policy for all roles that say so
        "full"          a policy of the role's own; all of its weights are trained
        "lora"          an adapter of the role's own on the starting weights, which stay as they are
        "full:NAME", "lora:NAME"   the same, shared by the roles that give the same name
    """

    sharing: str | Mapping[str, str] = "shared"
    alpha: float = 1.0  # weight of the team part in the mixed reward
    frozen: tuple[str, ...] = ()  # policies that speak but are not updated
    # From a policy to the factor of its learning rate; 1 for policies that are not named.
    rates: Mapping[str, float] = dataclasses.field(default_factory=dict)
    # Steps for which one policy alone is updated before the next one; 0 updates all in every step.
    alternate: int = 0
    # From a role to those of its settings that are not the team's: any of ``Sampling`` and of the
    # loss (clip_low, clip_high, dual_clip, kl, entropy), "candidates", "first_candidates" and "alpha".
    # E.g. {"tester": {"max_tokens": 100, "temperature": 0.7, "candidates": 4, "kl": 0.01}}
    roles: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    # From a role to the model on a server that speaks for it. Such a role has no policy.
    partners: Mapping[str, Partner] = dataclasses.field(default_factory=dict)

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
        """Returns the name of the policy that speaks for ``role``; "" if it has a partner."""
        if role in self.partners:
            return ""
        spec = self._spec(role)
        return spec if spec == "shared" else spec.partition(":")[2] or role

    def alpha_of(self, role: str) -> float:
        """Returns the weight of the team part in a role's mixed reward."""
        return self.roles.get(role, {}).get("alpha", self.alpha)

    def kind(self, policy: str, roles: Sequence[str]) -> Kind:
        """Returns whether all weights of a policy are trained ("full") or an adapter ("lora")."""
        spec = next(self._spec(role) for role in roles if self.policy(role) == policy)
        return "lora" if spec.startswith("lora") else "full"

    def policies(self, roles: Sequence[str]) -> tuple[str, ...]:
        """Returns the names of all policies of the roles, sorted.

        Raises ValueError if the roles do not fit this team's fields.
        """
        known = set(self.partners) <= set(roles)
        require(self, "partners", known, f"the roles are {', '.join(roles)}")
        drawn = self.drawn(roles)
        require(self, "partners", bool(drawn), "nothing is left to train")
        if isinstance(self.sharing, Mapping):
            same = set(self.sharing) == set(drawn)
            others = " that have no partner:" if self.partners else ""
            require(self, "sharing", same, f"must name exactly the roles{others} {', '.join(drawn)}")
        kinds: dict[str, str] = {}
        for role in drawn:
            kind = self._spec(role).partition(":")[0]
            before = kinds.setdefault(self.policy(role), kind)
            require(
                self, "sharing", before == kind, f"policy {self.policy(role)} is both {before} and {kind}"
            )
        unknown = sorted(set(self.roles) - set(roles))
        rule = f"there is no role {', '.join(unknown)}; there are {', '.join(roles)}"
        require(self, "roles", not unknown, rule)
        for name in ("frozen", "rates"):
            known = set(getattr(self, name)) <= set(kinds)
            require(self, name, known, f"the policies are {', '.join(sorted(kinds))}")
        require(self, "frozen", set(self.frozen) != set(kinds), "nothing is left to train")
        return tuple(sorted(kinds))

    def drawn(self, roles: Sequence[str]) -> tuple[str, ...]:
        """Returns the roles that policies speak for: those without a partner."""
        return tuple(role for role in roles if role not in self.partners)

    def updated(self, step: int, roles: Sequence[str]) -> tuple[str, ...]:
        """Returns the policies that step ``step`` (counted from 1) updates."""
        moving = [policy for policy in self.policies(roles) if policy not in self.frozen]
        if self.alternate:
            return (moving[(step - 1) // self.alternate % len(moving)],)
        return tuple(moving)

    def starting(self, roles: Sequence[str]) -> "Team":
        """Returns the same team before training: every adapter is replaced by its base."""
        policies = {role: self.policy(role) for role in self.drawn(roles)}
        names = {r: BASE if self.kind(p, roles) == "lora" else p for r, p in policies.items()}
        return Team(
            {role: "shared" if n == "shared" else f"full:{n}" for role, n in names.items()},
            self.alpha,
            partners=self.partners,
        )

    def _spec(self, role: str) -> str:
        return self.sharing[role] if isinstance(self.sharing, Mapping) else self.sharing
