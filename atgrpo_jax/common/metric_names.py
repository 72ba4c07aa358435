"""Names of metrics: no two are ever the same, whatever policies, roles and parts of rewards are called.

policy/NAME/loss         what updates and the gate say of a policy
role/NAME/team           what candidates of a role were paid, and how long they were
role/NAME/part/PART      parts of their local reward
"""

from collections.abc import Mapping

from atgrpo_jax.common.errors import RunError

OF_POLICY, OF_ROLE = "policy", "role"


def of_policy(policy: str, values: Mapping[str, float]) -> dict[str, float]:
    return {f"{OF_POLICY}/{_level(policy)}/{name}": value for name, value in values.items()}


def of_role(role: str, values: Mapping[str, float], parts: Mapping[str, float]) -> dict[str, float]:
    start = f"{OF_ROLE}/{_level(role)}"
    named = {f"{start}/part/{_level(part)}": value for part, value in parts.items()}
    return {f"{start}/{name}": value for name, value in values.items()} | named


def together(*records: Mapping[str, float]) -> dict[str, float]:
    """All metrics of a step. Raises RunError for a name that comes twice."""
    found: dict[str, float] = {}
    for record in records:
        twice = sorted(set(found) & set(record))
        if twice:
            raise RunError(f"two metrics of one step are called {twice[0]!r}")
        found |= record
    return found


def _level(name: str) -> str:
    """One level of a name: with its slashes written otherwise, as in a URL."""
    return name.replace("%", "%25").replace("/", "%2F")
