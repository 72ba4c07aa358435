"""Token logprobs and entropy without [B, T, V] logits."""

from typing import Any

import jax
import jax.numpy as jnp

from atgrpo_jax.models.transformer import logits

CHUNK = 512  # rows of logits that exist at a time


def token_logprobs(
    params: Any, hidden_BTD: jax.Array, targets_BT: jax.Array, temperature: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Logprob of each target and entropy of its distribution, at a temperature. Both [B, T] float32.

    The projection runs chunk by chunk with a checkpointed backward, so that at most ``CHUNK`` rows of
    logits exist at a time, forward or backward.
    """
    flat_XD = hidden_BTD.reshape(-1, hidden_BTD.shape[-1])
    rows = flat_XD.shape[0]
    chunks = -(-rows // CHUNK)
    pad = chunks * CHUNK - rows
    flat_XD = jnp.pad(flat_XD, ((0, pad), (0, 0))).reshape(chunks, -1, flat_XD.shape[-1])
    targets_X = jnp.pad(targets_BT.reshape(-1), (0, pad)).reshape(chunks, -1)

    @jax.checkpoint
    def chunk(_, xs):
        hidden_XD, targets_X = xs
        logp_XV = jax.nn.log_softmax(logits(params, hidden_XD) / temperature, axis=-1)
        entropy_X = -jnp.sum(jnp.exp(logp_XV) * logp_XV, axis=-1)
        chosen_X = jnp.take_along_axis(logp_XV, targets_X[:, None], axis=-1)[:, 0]
        return None, (chosen_X, entropy_X)

    _, (logprobs, entropy) = jax.lax.scan(chunk, None, (flat_XD, targets_X))
    shape = targets_BT.shape
    return logprobs.reshape(-1)[:rows].reshape(shape), entropy.reshape(-1)[:rows].reshape(shape)
