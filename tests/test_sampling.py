import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fakes import PARITY

from atgrpo_jax.models.sampling import BLOCK, pick, uniforms

draw = jax.jit(pick)


def spread(count):
    """Numbers in [0, 1), equally far apart, for a vocabulary of one block: the first chooses nothing."""
    return np.stack([np.zeros(count), (np.arange(count) + 0.5) / count], axis=1).astype(np.float32)


def test_each_token_has_its_share_of_the_numbers():
    """By hand: a hundred numbers, ten, twenty, thirty and forty of them a token's."""
    logits = np.log(np.tile(np.float32([0.1, 0.2, 0.3, 0.4]), (100, 1)))
    tokens, logprobs = draw(logits, spread(100), np.ones(100, np.float32))
    assert np.bincount(tokens).tolist() == [10, 20, 30, 40]
    np.testing.assert_allclose(logprobs, logits[0, np.asarray(tokens)], **PARITY)


def test_a_temperature_of_one_half_squares_the_probabilities():
    logits = np.log(np.tile(np.float32([1, 3]), (100, 1)))
    tokens, logprobs = draw(logits, spread(100), np.full(100, 0.5, np.float32))
    assert np.bincount(tokens).tolist() == [10, 90]
    np.testing.assert_allclose(np.exp(logprobs), np.float32([0.1, 0.9])[np.asarray(tokens)], **PARITY)


@pytest.mark.parametrize("size", [5, BLOCK, BLOCK + 1, 1000])
def test_frequencies_are_the_probabilities(size):
    rows = 20_000
    logits = np.random.default_rng(0).normal(0, 2, size).astype(np.float32)
    logits[::3] = -np.inf  # never
    words = np.random.default_rng(1).integers(0, 2**32, (rows, 2), dtype=np.uint32)
    numbers = uniforms(words, np.zeros(rows, np.int32))
    tokens, logprobs = draw(np.tile(logits, (rows, 1)), numbers, np.ones(rows, np.float32))
    expected = jax.nn.log_softmax(logits)
    np.testing.assert_allclose(logprobs, expected[tokens], **PARITY)
    share = np.bincount(tokens, minlength=size) / rows
    assert not share[::3].any()
    deviation = np.sqrt(np.exp(expected) / rows)
    assert (np.abs(share - np.exp(expected)) <= 5 * deviation + 1e-9).all()


def test_the_largest_number_finds_a_token():
    """Rounding leaves no gap behind the last one."""
    logits = np.random.default_rng(0).normal(0, 3, (500, 300)).astype(np.float32)
    logits[:, 250:] = -np.inf
    tokens, _ = draw(logits, np.full((500, 2), np.nextafter(np.float32(1), 0)), np.ones(500, np.float32))
    assert np.isfinite(np.take_along_axis(logits, np.asarray(tokens)[:, None], 1)).all()


def test_temperature_zero_takes_the_first_of_the_most_likely():
    logits = np.zeros((2, 300), np.float32)
    logits[0, [140, 290]] = 5
    logits[1, 7] = 1
    tokens, logprobs = draw(logits, np.full((2, 2), 0.9, np.float32), np.zeros(2, np.float32))
    assert tokens.tolist() == [140, 7]
    np.testing.assert_allclose(logprobs, jax.nn.log_softmax(logits)[np.arange(2), tokens], **PARITY)


def test_numbers_are_of_the_address_and_the_count_alone():
    words = np.uint32([[1, 2], [1, 2], [1, 3], [1, 2]])
    numbers = np.asarray(uniforms(words, np.int32([0, 1, 0, 0])))
    assert (numbers[0] == numbers[3]).all()
    assert len(np.unique(numbers[:3])) == 6
    alone = jax.jit(uniforms)(words[1:2], jnp.int32([1]))
    assert (np.asarray(alone) == numbers[1:2]).all()
