"""Says what an update minimises: AT-GRPO's loss, GSPO's, the warm start's, or a loss of your own.

docs/your-loss.md shows how to write one. Axis letters: B rows, T trained tokens of a row, X those
of a chunk.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp

from atgrpo_jax.common.checks import check_types, require
from atgrpo_jax.common.types import Trained
from atgrpo_jax.models.head import TokenObjective
from atgrpo_jax.update.batch import Aggregate
from atgrpo_jax.update.loss import cloning_loss, kl_penalty, policy_loss, sequence_log_ratio


class Prepare(Protocol):
    """Looks at whole answers before the chunks of an update are visited. It has no gradient."""

    def __call__(self, logprobs_BT: jax.Array, trained: Trained, answers_BT: jax.Array) -> Trained:
        """Returns ``trained`` with old logprobs, advantages or weights changed.

        Args:
          logprobs_BT: of the trained tokens, by the policy just before this update.
          answers_BT: int32; the answer that each token belongs to, 1, 2, ... within a row; 0 is
            padding, where logprobs are arbitrary.
        """
        ...


class Objective(NamedTuple):
    """What an update minimises: a sum over tokens, of values that ``prepare`` may change first."""

    tokens: TokenObjective
    prepare: Prepare | None = None  # costs a forward pass


def by_number(objectives: Sequence[Objective]) -> Objective:
    """Returns the sum of objectives, each over the tokens that have its number."""
    if len(objectives) == 1:
        return objectives[0]

    def tokens(logprobs_BX, entropy_BX, reference_BX, trained):
        loss = jnp.float32(0)
        metrics: dict[str, jax.Array] = {}
        for number, objective in enumerate(objectives):
            weights_BX = jnp.where(trained.objectives == number, trained.weights, 0.0)
            own = trained._replace(weights=weights_BX)
            value, sums = objective.tokens(logprobs_BX, entropy_BX, reference_BX, own)
            loss += value
            metrics |= {name: metrics.get(name, 0.0) + total for name, total in sums.items()}
        return loss, metrics

    def prepare(logprobs_BT, trained, answers_BT):
        changed = trained
        for number, objective in enumerate(objectives):
            if objective.prepare is not None:
                own = objective.prepare(logprobs_BT, trained, answers_BT)
                pick = functools.partial(jnp.where, trained.objectives == number)
                changed = Trained._make(map(pick, own, changed))
        return changed

    prepares = any(objective.prepare is not None for objective in objectives)
    return Objective(tokens, prepare if prepares else None)


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """Sets the AT-GRPO loss; see ``loss.policy_loss`` and ``batch.token_weights``."""

    clip_low: float = 0.2  # the ratio of probabilities is clipped at 1 - clip_low
    clip_high: float = 0.2  # and at 1 + clip_high
    dual_clip: float | None = 3.0  # largest ratio that counts if the advantage is negative; None for any
    aggregate: Aggregate = "candidate"  # what counts equally; see ``batch.token_weights``
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
        """Returns what an update minimises. A loss of your own overrides this method."""

        def at_grpo(logprobs_BX, entropy_BX, reference_BX, trained):
            loss, metrics = policy_loss(
                logprobs_BX,
                trained.old_logprobs,
                trained.advantages,
                trained.weights,
                clip_low=self.clip_low,
                clip_high=self.clip_high,
                dual_clip=self.dual_clip,
            )
            metrics["entropy"] = jnp.sum(trained.weights * entropy_BX)
            if self.entropy:
                loss -= self.entropy * metrics["entropy"]
            if reference_BX is not None:
                metrics["kl_start"] = kl_penalty(logprobs_BX, reference_BX, trained.weights)
                loss += self.kl * metrics["kl_start"]
            return loss, metrics

        return Objective(at_grpo)


@dataclasses.dataclass(frozen=True)
class GSPOLossConfig(LossConfig):
    """Sets GSPO's loss (arXiv 2507.18071, eq. 5): one ratio for each answer, which is clipped.

        s    = exp(mean over the answer's tokens of (logprob - old))
        term = min(s A, clip(s, 1 - clip_low, 1 + clip_high) A)

    The ratio is a geometric mean, so it stays nearer to 1 than those of tokens. The bounds are
    those of the paper's section 5.1. The aggregate "candidate" gives the paper's mean over answers.
    """

    clip_low: float = 3e-4
    clip_high: float = 4e-4
    dual_clip: float | None = None

    def objective(self) -> Objective:
        return super().objective()._replace(prepare=_one_ratio_an_answer)


def _one_ratio_an_answer(logprobs_BT, trained, answers_BT):
    """Moves old logprobs so that each token's ratio is its answer's, in value.

    The gradient of that ratio is s times the gradient of the token's logprob. The mean over an
    answer's tokens is then the gradient of s.
    """
    log_ratio_BT = sequence_log_ratio(logprobs_BT, trained.old_logprobs, answers_BT)
    return trained._replace(old_logprobs=logprobs_BT - log_ratio_BT)


def _clone(logprobs_BX, entropy_BX, reference_BX, trained):
    return cloning_loss(logprobs_BX, trained.weights), {"entropy": jnp.sum(trained.weights * entropy_BX)}


cloning = Objective(_clone)  # the warm start's
