"""Says how one role draws and learns: the team's settings, changed by those of the role."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

from atgrpo_jax.common.checks import require
from atgrpo_jax.common.types import Sampling
from atgrpo_jax.rollout.rollout import RolloutConfig
from atgrpo_jax.rollout.team import Team
from atgrpo_jax.update.objectives import LossConfig

# What belongs to a whole update, and not to single tokens.
OF_UPDATES = ("aggregate", "epochs", "minibatches", "correction")


class RoleSettings(NamedTuple):
    sampling: Sampling
    candidates: int  # K
    loss: LossConfig
    first_candidates: int  # those of the K that are drawn first; 0 if all are drawn at once


def role_settings(team: Team, rollout: RolloutConfig, loss: LossConfig, role: str) -> RoleSettings:
    """Returns the settings of a role.

    Raises ValueError that names the role and the setting for a setting that there is not, or a
    value that it cannot have.
    """
    own = dict(team.roles.get(role, {}))
    drawn = {*_names(Sampling), "candidates", "first_candidates"}
    learnt = set(_names(type(loss))) - set(OF_UPDATES)
    known = sorted(drawn | learnt | {"alpha"})
    rule = f"{role} has a partner, which is asked as partners.Partner says"
    require(team, "roles", not own or role not in team.partners, rule)
    for name in own:
        require(team, "roles", name in known, f"{role} has no setting {name}; there are {', '.join(known)}")
    if "candidates" in own:
        require(team, "roles", rollout.tree, f'{role}: in mode "trajectories" all roles have one candidate')
    try:
        drawing = dataclasses.replace(rollout, **_those(own, drawn))
        learning = dataclasses.replace(loss, **_those(own, learnt))
        dataclasses.replace(team, alpha=own.get("alpha", team.alpha), roles={})  # checks the value
    except ValueError as error:
        raise ValueError(f"Team.roles[{role!r}]: {error}") from error
    return RoleSettings(drawing.sampling, drawing.candidates, learning, drawing.first_candidates)


def _names(kind: Any) -> list[str]:
    return [field.name for field in dataclasses.fields(kind)]


def _those(given: Mapping[str, Any], names: set[str]) -> dict[str, Any]:
    return {name: value for name, value in given.items() if name in names}
