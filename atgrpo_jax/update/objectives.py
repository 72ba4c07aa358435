"""Makes the objectives that the learner minimises: AT-GRPO's loss, and the warm start's."""

import dataclasses

import jax.numpy as jnp

from atgrpo_jax.common.checks import check_types, require
from atgrpo_jax.models.head import Objective
from atgrpo_jax.update.batch import Aggregate
from atgrpo_jax.update.loss import cloning_loss, kl_penalty, policy_loss


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """Sets the AT-GRPO loss; see ``loss.policy_loss`` and ``batch.token_weights``."""

    clip_low: float = 0.2
    clip_high: float = 0.2
    dual_clip: float | None = 3.0
    aggregate: Aggregate = "candidate"
    kl: float = 0.0  # coefficient of the KL estimate to the starting policy
    entropy: float = 0.0  # coefficient of the entropy bonus
    epochs: int = 1  # passes over a step's groups
    minibatches: int = 4  # updates in each pass
    # For engines that compute at another precision than the learner. With a number, old logprobs
    # are the learner's own, and the advantage of each token is multiplied by min(learner
    # probability / sampler probability, correction): truncated importance sampling (2110.00641).
    # With None, old logprobs are the sampler's, and the run stops where the learner's differ.
    correction: float | None = None

    def __post_init__(self):
        check_types(self)
        require(self, "clip_low", 0 < self.clip_low < 1, "must be in (0, 1)")
        require(self, "clip_high", self.clip_high > 0, "must be positive")
        dual = self.dual_clip
        require(self, "dual_clip", dual is None or dual > 1, "must be above 1, or None")
        cap = self.correction
        require(self, "correction", cap is None or cap >= 1, "must be at least 1, or None")
        for name in ("kl", "entropy"):
            require(self, name, getattr(self, name) >= 0, "must not be negative")
        for name in ("epochs", "minibatches"):
            require(self, name, getattr(self, name) >= 1, "must be at least 1")

    def objective(self) -> Objective:
        def at_grpo(logprobs_BT, entropy_BT, reference_BT, trained):
            loss, metrics = policy_loss(
                logprobs_BT,
                trained.old_logprobs,
                trained.advantages,
                trained.weights,
                clip_low=self.clip_low,
                clip_high=self.clip_high,
                dual_clip=self.dual_clip,
            )
            metrics["entropy"] = jnp.sum(trained.weights * entropy_BT)
            if self.entropy:
                loss -= self.entropy * metrics["entropy"]
            if reference_BT is not None:
                metrics["kl_start"] = kl_penalty(logprobs_BT, reference_BT, trained.weights)
                loss += self.kl * metrics["kl_start"]
            return loss, metrics

        return at_grpo


def cloning(logprobs_BT, entropy_BT, reference_BT, trained):
    """Computes the warm start's loss; it is an ``Objective``."""
    return cloning_loss(logprobs_BT, trained.weights), {"entropy": jnp.sum(trained.weights * entropy_BT)}
