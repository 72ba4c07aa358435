"""Makes names of metrics. No two are the same, whatever policies, roles and rewards are called.

policy/NAME/loss         metrics of a policy, from updates and from the gate
role/NAME/team           rewards and lengths of a role's candidates
role/NAME/part/PART      parts of their local reward
"""

from collections.abc import Mapping

from atgrpo_jax.common.errors import RunError

OF_POLICY = "policy"
OF_ROLE = "role"


def of_policy(policy: str, values: Mapping[str, float]) -> dict[str, float]:
    return {f"{OF_POLICY}/{_level(policy)}/{name}": value for name, value in values.items()}


def of_role(role: str, values: Mapping[str, float], parts: Mapping[str, float]) -> dict[str, float]:
    start = f"{OF_ROLE}/{_level(role)}"
    named = {f"{start}/part/{_level(part)}": value for part, value in parts.items()}
    return {f"{start}/{name}": value for name, value in values.items()} | named


def together(*records: Mapping[str, float]) -> dict[str, float]:
    """Returns all metrics of a step. Raises RunError for a name that occurs twice."""
    found: dict[str, float] = {}
    for record in records:
        twice = sorted(set(found) & set(record))
        if twice:
            raise RunError(f"two metrics of one step are called {twice[0]!r}")
        found |= record
    return found


def _level(name: str) -> str:
    """Returns ``name`` as one level of a metric's name: slashes are escaped as in a URL."""
    return name.replace("%", "%25").replace("/", "%2F")
