"""Draws one token for each row from its logits, by inverting the cumulative distribution.

This takes two random numbers a row, however large the vocabulary is; noise on every logit would
cost more than the products of a small model. Bisection, not sorting, finds what top-k and top-p
keep.

Axis letters: R rows, V vocabulary, W banned ids of a row, S blocks of the vocabulary, E entries of
a block, N blocks or the entries of one (``_first``).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

BLOCK = 128  # E; entries of the vocabulary that are summed first


class Rules(NamedTuple):
    """Says how each of R rows is drawn. All fields are arrays."""

    temperature: Any  # [R]; 0 takes the most likely token
    top_k: Any  # [R]; keeps so many of the most likely tokens; 0 keeps all
    top_p: Any  # [R]; keeps the fewest most likely tokens that have this share; 1 keeps all
    min_p: Any  # [R]; keeps tokens with at least this part of the highest probability
    never: Any  # [R, W] banned ids; an id that is not in the vocabulary bans nothing


class Picked(NamedTuple):
    tokens: jax.Array  # [R]
    logprobs: jax.Array  # [R] in softmax(logits / temperature), as a learner computes them
    drawn_logprobs: jax.Array  # [R] in the distribution that the tokens were drawn from


def pick(
    logits_RV: jax.Array, uniforms_R2: jax.Array, rules: Rules, allowed_RV: jax.Array | None = None
) -> Picked:
    """Draws a token for each row.

    Temperature 0 takes the most likely token, the first of equals; its logprob is at temperature 1.

    Args:
      uniforms_R2: in [0, 1); the first chooses a block of the vocabulary, the second a token in it.
      allowed_RV: bool; the rules apply to the tokens that it allows, at least one in each row.
    """
    greedy_R1 = (rules.temperature == 0)[:, None]
    scaled_RV = logits_RV / jnp.where(greedy_R1, 1.0, rules.temperature[:, None])

    def from_all():
        tokens_R, logprobs_R = _invert(scaled_RV, uniforms_R2, greedy_R1)
        return Picked(tokens_R, logprobs_R, logprobs_R)

    def from_some():
        allowed = scaled_RV if allowed_RV is None else jnp.where(allowed_RV, scaled_RV, -jnp.inf)
        tokens_R, drawn_logprobs_R = _invert(_allowed(allowed, rules), uniforms_R2, greedy_R1)
        chosen_R = jnp.take_along_axis(scaled_RV, tokens_R[:, None], axis=1)[:, 0]
        scaled_RSE = _blocks(scaled_RV)
        highest_R = scaled_RSE.max((-2, -1))
        return Picked(tokens_R, _logprob(chosen_R, highest_R, _sums(scaled_RSE, highest_R)), drawn_logprobs_R)

    if allowed_RV is not None:
        return from_some()
    limits = rules.top_k > 0, rules.top_p < 1, rules.min_p > 0, jnp.any(_banned(rules, logits_RV), axis=-1)
    return jax.lax.cond(jnp.any(jnp.stack(limits)), from_some, from_all)


def uniforms(key_words_R2: jax.Array, count_R: jax.Array) -> jax.Array:
    """Returns [R, 2] numbers in [0, 1) for token number ``count`` of each sample.

    They depend only on the words of the sample's address and on the count.
    """

    def one(words, count):
        return jax.random.uniform(jax.random.fold_in(jax.random.wrap_key_data(words), count), (2,))

    return jax.vmap(one)(key_words_R2, count_R)


def _invert(
    scaled_RV: jax.Array, uniforms_R2: jax.Array, greedy_R1: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns tokens drawn from the softmax, and their logprobs."""
    scaled_RSE = _blocks(scaled_RV)
    highest_RS = scaled_RSE.max(-1)
    highest_R1 = highest_RS.max(-1, keepdims=True)
    sums_RS = _sums(scaled_RSE, highest_R1[:, 0])
    block_R = _first(jnp.where(greedy_R1, highest_RS == highest_R1, sums_RS), uniforms_R2[:, 0], greedy_R1)
    inside_RE = jnp.take_along_axis(scaled_RSE, block_R[:, None, None], axis=1)[:, 0]
    mass_RE = jnp.where(greedy_R1, inside_RE == highest_R1, jnp.exp(inside_RE - highest_R1))
    entry_R = _first(mass_RE, uniforms_R2[:, 1], greedy_R1)
    chosen_R = jnp.take_along_axis(inside_RE, entry_R[:, None], axis=1)[:, 0]
    return block_R * BLOCK + entry_R, _logprob(chosen_R, highest_R1[:, 0], sums_RS)


def _first(mass_RN: jax.Array, uniform_R: jax.Array, greedy_R1: jax.Array) -> jax.Array:
    """Returns the index of the first entry at which the cumulated mass exceeds a share of all.

    The share is ``uniform_R``. For greedy rows it is 0, which finds the first entry with any mass. XLA may
    add up long rows in parts, whose sums step up by rounding where there is no mass: such an entry is
    never taken.
    """
    cumulated_RN = jnp.cumsum(mass_RN, axis=-1)
    wanted_R1 = jnp.where(greedy_R1, 0.0, uniform_R[:, None]) * cumulated_RN[:, -1:]
    N = mass_RN.shape[-1]
    place_N = jnp.arange(N, dtype=jnp.int32)
    there_RN = mass_RN > 0
    first_R = jnp.min(jnp.where(there_RN & (cumulated_RN > wanted_R1), place_N, N), axis=-1)
    last_R = jnp.max(jnp.where(there_RN, place_N, 0), axis=-1)
    return jnp.where(first_R < N, first_R, last_R)


def _blocks(scaled_RV: jax.Array) -> jax.Array:
    """Returns [R, S, E]: the entries in blocks, the last one filled up with -inf (never drawn)."""
    R, V = scaled_RV.shape
    return jnp.pad(scaled_RV, ((0, 0), (0, -V % BLOCK)), constant_values=-jnp.inf).reshape(R, -1, BLOCK)


def _sums(scaled_RSE: jax.Array, highest_R: jax.Array) -> jax.Array:
    return jnp.exp(scaled_RSE - highest_R[:, None, None]).sum(-1)


def _logprob(chosen_R: jax.Array, highest_R: jax.Array, sums_RS: jax.Array) -> jax.Array:
    return chosen_R - highest_R - jnp.log(sums_RS.sum(-1))


def _banned(rules: Rules, logits_RV: jax.Array) -> jax.Array:
    return (rules.never >= 0) & (rules.never < logits_RV.shape[-1])


def _allowed(scaled_RV: jax.Array, rules: Rules) -> jax.Array:
    """Returns ``scaled_RV`` with -inf where the rules forbid a token.

    They apply one after the other, each to what the last one left.
    """
    rows = jnp.arange(len(scaled_RV))[:, None]
    never_RW = jnp.where(_banned(rules, scaled_RV), rules.never, scaled_RV.shape[-1])
    scaled_RV = scaled_RV.at[rows, never_RW].set(-jnp.inf, mode="drop")
    order_RV = _order(scaled_RV)
    enough_R = jnp.where(rules.top_k > 0, rules.top_k, scaled_RV.shape[-1]).astype(jnp.float32)
    least_R = _threshold(order_RV, jnp.ones_like(scaled_RV), enough_R)
    mass_RV = jnp.exp(scaled_RV - scaled_RV.max(-1, keepdims=True))
    left_RV = jnp.where(order_RV >= least_R[:, None], mass_RV, 0.0)
    by_share_R = _threshold(order_RV, left_RV, rules.top_p * left_RV.sum(-1))
    least_R = jnp.where(rules.top_p < 1, jnp.maximum(least_R, by_share_R), least_R)
    keep_RV = (order_RV >= least_R[:, None]) & (mass_RV >= rules.min_p[:, None])
    return jnp.where(keep_RV, scaled_RV, -jnp.inf)


def _order(values: jax.Array) -> jax.Array:
    """Returns int32 numbers that have the order of the float32 values."""
    bits = jax.lax.bitcast_convert_type(values.astype(jnp.float32), jnp.int32)
    return jnp.where(bits < 0, bits ^ jnp.int32(0x7FFFFFFF), bits)


def _threshold(order_RV: jax.Array, mass_RV: jax.Array, wanted_R: jax.Array) -> jax.Array:
    """Returns the largest number for which all entries >= it together have the wanted mass."""

    def halve(_, bounds):
        low_R, high_R = bounds  # low has enough, high has not; their mean without overflow
        middle_R = (low_R & high_R) + ((low_R ^ high_R) >> 1)
        enough_R = jnp.where(order_RV >= middle_R[:, None], mass_RV, 0.0).sum(-1) >= wanted_R
        return jnp.where(enough_R, middle_R, low_R), jnp.where(enough_R, high_R, middle_R)

    limits = jnp.iinfo(jnp.int32)
    bounds = jnp.full(len(order_RV), limits.min), jnp.full(len(order_RV), limits.max)
    return jax.lax.fori_loop(0, 32, halve, bounds)[0]
