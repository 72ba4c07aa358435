"""Computes the AT-GRPO loss from plain arrays; it knows no config object and no model."""

import jax
import jax.numpy as jnp
import numpy as np

LARGEST = np.float32(88.0)  # exp(88) is finite in float32, exp(89) is not


@jax.custom_jvp
def bounded_exp(x: jax.Array) -> jax.Array:
    """Returns exp(min(x, LARGEST)), and has this value as its derivative, too.

    Both are finite for all x. A branch that min, max or where do not take then gets the gradient 0
    and not 0 * inf. If x is beyond LARGEST in the branch that is taken, the norm of the gradient
    overflows, so that nobody trains on it.
    """
    return jnp.exp(jnp.minimum(x, LARGEST))


@bounded_exp.defjvp
def _bounded_exp_jvp(primals, tangents):
    value = bounded_exp(*primals)
    return value, value * tangents[0]


def policy_loss(
    logprobs_BT: jax.Array,
    old_logprobs_BT: jax.Array,
    advantages_BT: jax.Array,
    weights_BT: jax.Array,
    *,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Computes the clipped surrogate (arXiv 2510.11062, eq. 3) per token.

    A dual clip (1912.09729) is optional.

        rho  = exp(logprob - old)
        term = min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A);  if A < 0: max(term, dual_clip A)
        loss = -sum(weight * term)

    Weights come from ``batch.token_weights``, which decides how tokens are averaged. Tokens of
    weight 0 are ignored. ``clip_high > clip_low`` is DAPO's clip-higher (2503.14476). All arrays
    are [B, T] floats.

    Returns:
      The scalar loss, and metrics as weighted sums over the batch. The caller divides the sums of
      all micro-batches by the sum of all weights.
    """
    trained_BT = weights_BT > 0
    old_logprobs_BT, advantages_BT, weights_BT = map(
        jax.lax.stop_gradient, (old_logprobs_BT, advantages_BT, weights_BT)
    )
    # Untrained places hold garbage; a ratio of 1 there keeps 0 * inf from arising.
    advantages_BT = jnp.where(trained_BT, advantages_BT, 0.0)
    log_ratio_BT = jnp.where(trained_BT, logprobs_BT - old_logprobs_BT, 0.0)
    ratio_BT = bounded_exp(log_ratio_BT)
    clipped_BT = jnp.clip(ratio_BT, 1 - clip_low, 1 + clip_high)
    term_BT = jnp.minimum(ratio_BT * advantages_BT, clipped_BT * advantages_BT)
    if dual_clip is not None:
        floor_BT = dual_clip * advantages_BT
        term_BT = jnp.where(advantages_BT < 0, jnp.maximum(term_BT, floor_BT), term_BT)
    loss = -jnp.sum(weights_BT * term_BT)
    outside_BT = clipped_BT * advantages_BT < ratio_BT * advantages_BT
    metrics = {
        "clip_fraction": jnp.sum(jnp.where(outside_BT, weights_BT, 0.0)),
        "ratio": jnp.sum(weights_BT * ratio_BT),
        "kl_old": jnp.sum(weights_BT * (ratio_BT - 1 - log_ratio_BT)),
    }
    return loss, metrics


def sequence_log_ratio(
    logprobs_BT: jax.Array, old_logprobs_BT: jax.Array, answers_BT: jax.Array
) -> jax.Array:
    """Returns for each token the mean of logprob - old logprob over the tokens of its answer.

    Its exp is GSPO's importance ratio (arXiv 2507.18071, eq. 7).

    Args:
      answers_BT: int32; the answer of each token, 1, 2, ... within a row; 0 where there is none,
        and there the result is 0.
    """
    real_BT = answers_BT > 0
    log_ratio_BT = jnp.where(real_BT, logprobs_BT - old_logprobs_BT, 0.0)
    T = answers_BT.shape[1]

    def means(log_ratio_T, answers_T, real_T):
        totals = jax.ops.segment_sum(log_ratio_T, answers_T, T + 1)
        lengths = jax.ops.segment_sum(real_T.astype(jnp.float32), answers_T, T + 1)
        return (totals / jnp.maximum(lengths, 1.0))[answers_T]

    return jax.vmap(means)(log_ratio_BT, answers_BT, real_BT)


def kl_penalty(logprobs_BT: jax.Array, reference_logprobs_BT: jax.Array, weights_BT: jax.Array) -> jax.Array:
    """Returns the weighted sum of an estimate of KL(policy || reference).

    The estimate is exp(d) - 1 - d, with d = reference - logprob of a sampled token. It is unbiased
    and never negative.
    """
    d_BT = jnp.where(weights_BT > 0, reference_logprobs_BT - logprobs_BT, 0.0)
    return jnp.sum(weights_BT * (bounded_exp(d_BT) - 1 - d_BT))


def cloning_loss(logprobs_BT: jax.Array, weights_BT: jax.Array) -> jax.Array:
    """Returns the weighted negative log-likelihood of demonstrated tokens (behaviour cloning)."""
    return -jnp.sum(weights_BT * jnp.where(weights_BT > 0, logprobs_BT, 0.0))
