"""Makes names of metrics. No two are the same, whatever policies, roles and rewards are called.

policy/NAME/loss         metrics of a policy, from updates and from the gate
role/NAME/team           rewards and lengths of a role's candidates
role/NAME/part/PART      parts of their local reward
role/NAME/task/METRIC    numbers of the task's own (``Transition.metrics``)
role/NAME/repeats/ROLE   how often it repeats another role, or itself (``credit.ledger``)
"""

from collections.abc import Mapping
from types import MappingProxyType

from atgrpo_jax.common.errors import RunError

OF_POLICY = "policy"
OF_ROLE = "role"


def of_policy(policy: str, values: Mapping[str, float]) -> dict[str, float]:
    return {f"{OF_POLICY}/{_level(policy)}/{name}": value for name, value in values.items()}


def of_role(
    role: str,
    values: Mapping[str, float],
    parts: Mapping[str, float] = MappingProxyType({}),
    own: Mapping[str, float] = MappingProxyType({}),
    repeats: Mapping[str, float] = MappingProxyType({}),
) -> dict[str, float]:
    """Returns the metrics of a role: its own, parts of its reward, numbers of the task, repetitions."""
    start = f"{OF_ROLE}/{_level(role)}"
    named = {f"{start}/{name}": value for name, value in values.items()}
    for kind, found in (("part", parts), ("task", own), ("repeats", repeats)):
        named |= {f"{start}/{kind}/{_level(name)}": value for name, value in found.items()}
    return named


def together(*records: Mapping[str, float]) -> dict[str, float]:
    """Returns all metrics of a step. Raises RunError for a name that occurs twice."""
    found: dict[str, float] = {}
    for record in records:
        twice = sorted(set(found) & set(record))
        if twice:
            raise RunError(f"two metrics of one step are called {twice[0]!r}")
        found |= record
    return found


def plain(level: str) -> str:
    """Returns the name that one level of a metric's name stands for."""
    return level.replace("%2F", "/").replace("%25", "%")


def _level(name: str) -> str:
    """Returns ``name`` as one level of a metric's name: slashes are escaped as in a URL."""
    return name.replace("%", "%25").replace("/", "%2F")
