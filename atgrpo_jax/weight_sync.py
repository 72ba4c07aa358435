"""New weights -> engines, and the proof that sampler and learner agree."""

from collections.abc import Mapping
from typing import Any

from atgrpo_jax.engines.base import Engine
from atgrpo_jax.errors import RunError


def push(engine: Engine, weights: Mapping[str, Any], version: int) -> None:
    """Gives the engine all policies under one version. Raises RunError if it does not take it."""
    for policy, own in weights.items():
        engine.push_weights(policy, own, version)
        if engine.version(policy) != version:
            raise RunError(
                f"the engine reports version {engine.version(policy)} of policy {policy} "
                f"after a push of version {version}"
            )


def check_gap(policy: str, gap: float, limit: float) -> None:
    """Raises RunError if the largest |learner - sampler| logprob of a step's tokens is above ``limit``.

    ``gap`` is that of the step's first mini-batch, before any update, where the two are the same policy.
    """
    if not gap <= limit:
        raise RunError(
            f"policy {policy}: sampler and learner logprobs of the same tokens differ by {gap:.3g}, "
            f"more than Experiment.max_logprob_gap = {limit:.3g}; the engine does not hold "
            "the learner's weights, or computes at a lower precision"
        )
