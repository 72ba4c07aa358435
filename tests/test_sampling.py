import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fakes import PARITY

from atgrpo_jax.engines.local.sampling import BLOCK, Rules, _first, pick, uniforms

jit_pick = jax.jit(pick)


def draw(logits, numbers, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, never=()):
    """All rows by the same rules, or by arrays of them."""
    rows = len(logits)

    def full(value, dtype):
        return np.broadcast_to(np.asarray(value, dtype), rows)

    never_RW = np.broadcast_to(np.asarray([*never, -1], np.int32), (rows, len(never) + 1))
    f32 = np.float32
    rules = Rules(full(temperature, f32), full(top_k, np.int32), full(top_p, f32), full(min_p, f32), never_RW)
    return jit_pick(logits, numbers, rules)


def spread(count):
    """Numbers in [0, 1), equally far apart, for a vocabulary of one block: the first chooses nothing."""
    return np.stack([np.zeros(count), (np.arange(count) + 0.5) / count], axis=1).astype(np.float32)


def test_each_token_has_its_share_of_the_numbers():
    """By hand: a hundred numbers, ten, twenty, thirty and forty of them a token's."""
    logits = np.log(np.tile(np.float32([0.1, 0.2, 0.3, 0.4]), (100, 1)))
    tokens, logprobs, drawn_logprobs = draw(logits, spread(100))
    assert (logprobs == drawn_logprobs).all()
    assert np.bincount(tokens).tolist() == [10, 20, 30, 40]
    np.testing.assert_allclose(logprobs, logits[0, np.asarray(tokens)], **PARITY)


def test_a_temperature_of_one_half_squares_the_probabilities():
    logits = np.log(np.tile(np.float32([1, 3]), (100, 1)))
    tokens, logprobs, _ = draw(logits, spread(100), temperature=0.5)
    assert np.bincount(tokens).tolist() == [10, 90]
    np.testing.assert_allclose(np.exp(logprobs), np.float32([0.1, 0.9])[np.asarray(tokens)], **PARITY)


@pytest.mark.parametrize("size", [5, BLOCK, BLOCK + 1, 1000])
def test_frequencies_are_the_probabilities(size):
    rows = 20_000
    logits = np.random.default_rng(0).normal(0, 2, size).astype(np.float32)
    logits[::3] = -np.inf  # never
    words = np.random.default_rng(1).integers(0, 2**32, (rows, 2), dtype=np.uint32)
    numbers = uniforms(words, np.zeros(rows, np.int32))
    tokens, logprobs, _ = draw(np.tile(logits, (rows, 1)), numbers)
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
    tokens, *_ = draw(logits, np.full((500, 2), np.nextafter(np.float32(1), 0)))
    assert np.isfinite(np.take_along_axis(logits, np.asarray(tokens)[:, None], 1)).all()


def test_nothing_without_mass_is_drawn_in_a_long_row():
    """Of 1,187 blocks (151,936 tokens) 30 have mass, and the numbers are where the sums step up."""
    rng = np.random.default_rng(0)
    mass = np.zeros((20, 1187), np.float32)
    for row in mass:
        row[rng.choice(1187, 30, replace=False)] = rng.exponential(size=30)
    cumulated = np.asarray(jax.jit(lambda given: jnp.cumsum(given, axis=-1))(mass))
    shares = (cumulated / cumulated[:, -1:]).astype(np.float32)
    first = jax.jit(_first)
    for numbers in (shares, np.nextafter(shares, np.float32(0)), np.nextafter(shares, np.float32(2))):
        below_one = np.minimum(numbers, np.nextafter(np.float32(1), np.float32(0)))
        for row, own in zip(mass, below_one, strict=True):
            found = np.asarray(first(np.tile(row, (1187, 1)), own, np.zeros((1187, 1), bool)))
            assert (row[found] > 0).all()


def test_temperature_zero_takes_the_first_of_the_most_likely():
    logits = np.zeros((2, 300), np.float32)
    logits[0, [140, 290]] = 5
    logits[1, 7] = 1
    tokens, logprobs, _ = draw(logits, np.full((2, 2), 0.9, np.float32), temperature=0.0)
    assert tokens.tolist() == [140, 7]
    np.testing.assert_allclose(logprobs, jax.nn.log_softmax(logits)[np.arange(2), tokens], **PARITY)


def test_numbers_are_of_the_address_and_the_count_alone():
    words = np.uint32([[1, 2], [1, 2], [1, 3], [1, 2]])
    numbers = np.asarray(uniforms(words, np.int32([0, 1, 0, 0])))
    assert (numbers[0] == numbers[3]).all()
    assert len(np.unique(numbers[:3])) == 6
    alone = jax.jit(uniforms)(words[1:2], jnp.int32([1]))
    assert (np.asarray(alone) == numbers[1:2]).all()


PROBS = np.float32([0.05, 0.4, 0.1, 0.3, 0.15])


@pytest.mark.parametrize(
    ("rules", "left"),
    [
        ({"top_k": 2}, {1, 3}),
        ({"top_k": 9}, {0, 1, 2, 3, 4}),
        ({"top_p": 0.69}, {1, 3}),
        ({"top_p": 0.71}, {1, 3, 4}),
        ({"top_p": 1e-6}, {1}),
        ({"min_p": 0.3}, {1, 3, 4}),
        ({"never": [1, 4]}, {0, 2, 3}),
        ({"never": [1], "top_k": 2}, {3, 4}),
        ({"top_k": 3, "top_p": 0.8}, {1, 3}),  # 0.7 of the 0.85 that top-k leaves is more than 0.8
        ({"top_k": 4, "min_p": 0.5}, {1, 3}),
    ],
    ids=str,
)
def test_rules_leave_some_tokens_in_their_proportions(rules, left):
    """By hand. The learner's logprob stays that of the whole distribution."""
    tokens, logprobs, drawn_logprobs = map(
        np.asarray, draw(np.log(np.tile(PROBS, (5000, 1))), spread(5000), **rules)
    )
    assert set(tokens.tolist()) == left
    total = sum(PROBS[token] for token in left)
    for token in left:
        assert (tokens == token).mean() == pytest.approx(PROBS[token] / total, abs=1e-3)
    np.testing.assert_allclose(logprobs, np.log(PROBS)[tokens], **PARITY)
    np.testing.assert_allclose(drawn_logprobs, np.log(PROBS / total)[tokens], **PARITY)


def test_logprobs_are_those_of_the_temperature_whatever_the_rules_leave():
    """By hand, at one half: the squares of 0.05, 0.4, 0.1, 0.3 and 0.15 add up to 0.285; top-k leaves two."""
    logits = np.log(np.tile(PROBS, (100, 1)))
    tokens, logprobs, drawn = map(np.asarray, draw(logits, spread(100), temperature=0.5, top_k=2))
    assert set(tokens.tolist()) == {1, 3}
    np.testing.assert_allclose(np.exp(logprobs), np.float32(PROBS**2 / 0.285)[tokens], **PARITY)
    np.testing.assert_allclose(np.exp(drawn), np.float32(PROBS**2 / 0.25)[tokens], **PARITY)


@pytest.mark.thorough
def test_rules_equal_sorting():
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (200, 300)).astype(np.float32)
    top_k, top_p = rng.integers(1, 40, 200), rng.uniform(0.1, 0.99, 200).astype(np.float32)
    tokens, _, drawn_logprobs = map(
        np.asarray, draw(logits, rng.random((200, 2), np.float32), top_k=top_k, top_p=top_p)
    )
    for row in range(200):
        best = np.argsort(-logits[row])[: top_k[row]]
        probs = np.asarray(jax.nn.softmax(logits[row, best]))
        best = best[: np.searchsorted(np.cumsum(probs), top_p[row]) + 1]
        assert tokens[row] in best
        expected = jax.nn.log_softmax(logits[row, best])[best == tokens[row]][0]
        np.testing.assert_allclose(drawn_logprobs[row], expected, **PARITY)


def test_a_row_without_rules_is_the_same_beside_one_with():
    rng = np.random.default_rng(0)
    logits, numbers = rng.normal(0, 2, (50, 300)).astype(np.float32), rng.random((50, 2), np.float32)
    alone, mixed = draw(logits, numbers), draw(logits, numbers, top_k=np.where(np.arange(50) % 2, 3, 0))
    for one, other in zip(alone, mixed, strict=True):
        assert (np.asarray(one)[::2] == np.asarray(other)[::2]).all()
