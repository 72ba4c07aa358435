"""Says what may change when a trained team is scored again: its task, and whose policy a role speaks with."""

import dataclasses
from collections.abc import Mapping, Sequence

from atgrpo_jax.common.errors import ConfigError
from atgrpo_jax.models.transformer import PolicyWeights
from atgrpo_jax.rollout.team import BASE
from atgrpo_jax.run.experiment import Experiment, experiment_difference


def check_rescored(trained: Experiment, given: Experiment) -> None:
    """Raises ConfigError unless the team of ``trained`` can be scored as ``given`` says.

    Task, evaluation and sandbox may change, and what may change when a run goes on. The roles stay.
    """
    free = {name: getattr(trained, name) for name in ("task", "evaluation", "sandbox")}
    settled = experiment_difference(dataclasses.replace(given, **free), trained)
    roles = given.task.workflow.roles
    if settled or set(roles) != set(trained.task.workflow.roles):
        settled = settled or f"its roles to {', '.join(roles)}"
        raise ConfigError(f"--gin_param may change the task and the evaluation of a run, not {settled}")


def check_swap(experiment: Experiment, roles: Sequence[str]) -> None:
    """Raises ConfigError unless these are two roles whose policies can be exchanged."""
    drawn = experiment.team.drawn(experiment.task.workflow.roles)
    named = " and ".join(roles)
    if len(set(roles)) != 2 or not set(roles) <= set(drawn):
        raise ConfigError(f"swap: name two roles of {', '.join(drawn)}, not {named or 'none'}")
    one, other = (experiment.team.policy(role) for role in roles)
    if one == other:
        raise ConfigError(f"swap: {named} share the policy {one}, so there is nothing to exchange")
    starts = [experiment.initial_name(policy) for policy in (one, other)]
    if (starts[0] == BASE) != (starts[1] == BASE):
        raise ConfigError(f"swap: of {named} one has an adapter, and the other one a model of its own")
    if experiment.architecture(starts[0]) != experiment.architecture(starts[1]):
        raise ConfigError(f"swap: {named} have models that are not alike")
    if experiment.mesh.policies > 1:
        raise ConfigError("swap: each policy has its own devices; give one mesh for all, e.g. --mesh=data=1")


def swapped(
    experiment: Experiment, roles: Sequence[str], weights: Mapping[str, PolicyWeights]
) -> Mapping[str, PolicyWeights]:
    """Returns the weights of every policy, with those of the two roles exchanged.

    Other roles that share one of these two policies get the other one, too.
    """
    one, other = (experiment.team.policy(role) for role in roles)
    return {**weights, one: weights[other], other: weights[one]}
