"""Refuses parts of an experiment that are sound alone, and do not go together."""

from typing import Any

from atgrpo_jax.common.checks import require
from atgrpo_jax.common.errors import ConfigError
from atgrpo_jax.common.types import GroupKey
from atgrpo_jax.tokens.tokens import FolderTokenizer


def check_credit(experiment: Any) -> None:
    """Raises ValueError if the rule of credit does not fit what the experiment draws and who plays."""
    credit, rollout = experiment.credit, experiment.rollout
    require(
        experiment,
        "credit",
        credit.fits(rollout.tree, rollout.by_signal),
        f"is not for RolloutConfig.mode = {rollout.mode!r}, least_signal = {rollout.least_signal}: baseline "
        '"group" needs "tree", or every baseline would have one member; "instance" and rewards of episodes '
        'need "trajectories"; "role" and "running" need least_signal = 0, and no curriculum by "signal"',
    )
    if credit.counterfactual:
        plays_on = rollout.tree and not experiment.team.partners
        rule = 'counterfactual needs RolloutConfig.mode = "tree", and no partners: all would be asked again'
        require(experiment, "credit", plays_on, rule)


def check_vocabulary(experiment: Any, initial: str) -> None:
    """Raises ValueError if a model has no rows for ids of the tokenizer."""
    size, own = experiment.architecture(initial).vocab_size, experiment.tokenizer
    if size is None or size >= own.vocab_size:
        return
    least = own.least_rows if isinstance(own, FolderTokenizer) else own.vocab_size
    if size < least:
        raise ValueError(
            f"Experiment.model: {initial} has a vocabulary of {size}, smaller than the tokenizer's {least}"
        )


def check_lag(experiment: Any) -> None:
    """Raises ValueError if a step cannot be played while the one before is learned."""
    if experiment.max_lag:
        experiment.engine.check_ahead(experiment.mesh)


def check_one_host(experiment: Any, hosts: int) -> None:
    """Raises ConfigError if several hosts cannot make a run."""
    if experiment.max_lag and hosts > 1:
        raise ConfigError(
            f"Experiment.max_lag = {experiment.max_lag} is for one host, and there are {hosts}; these play "
            "and update together, one after the other: set it to 0"
        )


def check_precision(experiment: Any) -> None:
    """Raises ConfigError if trained parameters are not float32: small updates would be rounded away."""
    own = experiment.compute.param_dtype
    moving = [name for name in experiment.policies if name not in experiment.team.frozen]
    whole = [name for name in moving if experiment.initial_name(name) == name]
    if own != "float32" and (whole or experiment.warm_start is not None):
        raise ConfigError(
            f'Compute.param_dtype = "{own}" is to play a model, and {", ".join(whole) or "the warm start"} '
            "trains parameters, which are float32; to compute in less, set Compute.dtype"
        )


def check_siblings(experiment: Any) -> None:
    """Raises ValueError if some candidates are drawn later, and are compared with more than siblings.

    How many there are then depends on the rewards of the first ones, also in the sets of other groups. And
    the correction for it (credit/branching.py) needs the rewards by which it was decided.
    """
    branching = [role for role, own in experiment.by_role.items() if own.first_candidates]
    credit = experiment.credit
    alone = all(credit.set_of(GroupKey(0, "train", 0, 0, 0, role)) is None for role in branching)
    rule = 'first_candidates needs a rule that compares a group with itself alone: baseline "group"'
    require(credit, "baseline", alone, rule)
    rule = "first_candidates looks at what candidates earn at once, which is not what this credits them with"
    require(credit, "counterfactual", not (branching and credit.counterfactual), rule)
