"""One token a row from its logits, by inverting the cumulative distribution.

That takes two random numbers a row, however large the vocabulary: noise on every logit costs more than the
products of a small model.
"""

import jax
import jax.numpy as jnp

BLOCK = 128  # entries of the vocabulary that are summed first


def pick(
    logits_RV: jax.Array, uniforms_R2: jax.Array, temperature_R: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Tokens drawn from softmax(logits / temperature), and their logprobs there; both [R].

    Temperature 0 takes the most likely token (the first of several), with its logprob at temperature 1.

    Args:
      uniforms_R2: in [0, 1); the first chooses a block of the vocabulary, the second a token in it.
    """
    R, V = logits_RV.shape
    greedy_R1 = (temperature_R == 0)[:, None]
    scaled_RV = logits_RV / jnp.where(greedy_R1, 1.0, temperature_R[:, None])
    padded_RV = jnp.pad(scaled_RV, ((0, 0), (0, -V % BLOCK)), constant_values=-jnp.inf)
    scaled_RSE = padded_RV.reshape(R, -1, BLOCK)
    highest_RS = scaled_RSE.max(-1)
    highest_R1 = highest_RS.max(-1, keepdims=True)
    sums_RS = jnp.exp(scaled_RSE - highest_R1[..., None]).sum(-1)
    block_R = _invert(jnp.where(greedy_R1, highest_RS == highest_R1, sums_RS), uniforms_R2[:, 0], greedy_R1)
    inside_RE = jnp.take_along_axis(scaled_RSE, block_R[:, None, None], axis=1)[:, 0]
    mass_RE = jnp.where(greedy_R1, inside_RE == highest_R1, jnp.exp(inside_RE - highest_R1))
    entry_R = _invert(mass_RE, uniforms_R2[:, 1], greedy_R1)
    chosen_R = jnp.take_along_axis(inside_RE, entry_R[:, None], axis=1)[:, 0]
    logprobs_R = chosen_R - highest_R1[:, 0] - jnp.log(sums_RS.sum(-1))
    return block_R * BLOCK + entry_R, logprobs_R


def _invert(mass_RN: jax.Array, uniform_R: jax.Array, greedy_R1: jax.Array) -> jax.Array:
    """Index of the first entry up to which there is more than that share of the mass; the first of any mass
    for rows that are greedy."""
    cumulated_RN = jnp.cumsum(mass_RN, axis=-1)
    wanted_R1 = jnp.where(greedy_R1, 0.0, uniform_R[:, None]) * cumulated_RN[:, -1:]
    return jnp.sum(cumulated_RN <= wanted_R1, axis=-1, dtype=jnp.int32)


def uniforms(key_words_R2: jax.Array, count_R: jax.Array) -> jax.Array:
    """[R, 2] numbers in [0, 1) for token number ``count`` of each sample: a function of its address's words
    and of the count."""

    def one(words, count):
        return jax.random.uniform(jax.random.fold_in(jax.random.wrap_key_data(words), count), (2,))

    return jax.vmap(one)(key_words_R2, count_R)
