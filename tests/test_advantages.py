import numpy as np
import pytest

from atgrpo_jax.credit.advantages import above, apart, group_relative, running_mean


def test_by_hand():
    # Mean 2, population standard deviation sqrt((1 + 0 + 1) / 3).
    advantages_GK, signal_G = group_relative(np.array([[1.0, 2.0, 3.0]]), np.ones((1, 3), bool))
    std = (2 / 3) ** 0.5
    np.testing.assert_allclose(advantages_GK, [[-1 / std, 0.0, 1 / std]], rtol=1e-5)
    assert signal_G.tolist() == [True]
    mean_GK, _ = group_relative(np.array([[1.0, 2.0, 3.0]]), np.ones((1, 3), bool), "mean")
    np.testing.assert_allclose(mean_GK, [[-1.0, 0.0, 1.0]], rtol=1e-6)


def test_excluded_members_change_nothing():
    rewards_GK = np.array([[1.0, np.nan, 3.0, 1e9]])
    mask_GK = np.array([[True, False, True, False]])
    advantages_GK, _ = group_relative(rewards_GK, mask_GK)
    alone_GK, _ = group_relative(np.array([[1.0, 3.0]]), np.ones((1, 2), bool))
    np.testing.assert_array_equal(advantages_GK[:, [0, 2]], alone_GK)
    np.testing.assert_array_equal(advantages_GK[:, [1, 3]], 0.0)


@pytest.mark.parametrize("normalise", ["std", "mean"])
def test_no_signal_without_two_different_rewards(normalise):
    # 0.1 + 0.2 style rewards: equal rewards must give exactly no signal, whatever the rounding.
    rewards_GK = np.array([[0.1, 0.1, 0.1], [7.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    mask_GK = np.array([[True] * 3, [True, False, False], [False] * 3])
    advantages_GK, signal_G = group_relative(rewards_GK, mask_GK, normalise)
    assert signal_G.tolist() == [False, False, False]
    np.testing.assert_array_equal(advantages_GK, 0.0)


@pytest.mark.parametrize("normalise", ["std", "mean"])
def test_identities(normalise):
    rng = np.random.default_rng(0)
    rewards_GK = rng.standard_normal((5, 6))
    mask_GK = np.ones((5, 6), bool)
    base_GK, _ = group_relative(rewards_GK, mask_GK, normalise)
    order = rng.permutation(6)
    permuted_GK, _ = group_relative(rewards_GK[:, order], mask_GK, normalise)
    np.testing.assert_allclose(permuted_GK, base_GK[:, order], atol=1e-6)
    shifted_GK, _ = group_relative(rewards_GK + 100.0, mask_GK, normalise)
    np.testing.assert_allclose(shifted_GK, base_GK, atol=1e-5)
    np.testing.assert_allclose(base_GK.sum(1), 0.0, atol=1e-5)
    # Other groups do not matter.
    alone_GK, _ = group_relative(rewards_GK[2:3], mask_GK[2:3], normalise)
    np.testing.assert_array_equal(alone_GK[0], base_GK[2])


@pytest.mark.parametrize("normalise", ["std", "mean"])
def test_to_the_mean_of_the_others_differences_are_larger_by_n_over_n_minus_1(normalise):
    rng = np.random.default_rng(0)
    rewards_GK, mask_GK = rng.standard_normal((4, 5)), np.arange(5) < np.array([[5], [4], [2], [1]])
    all_GK, _ = group_relative(rewards_GK, mask_GK, normalise)
    others_GK, signal_G = group_relative(rewards_GK, mask_GK, normalise, leave_one_out=True)
    np.testing.assert_allclose(others_GK, all_GK * [[5 / 4], [4 / 3], [2], [1]], rtol=1e-6)
    assert signal_G.tolist() == [True, True, True, False]
    if normalise == "mean":
        np.testing.assert_allclose(
            others_GK[0, 1], rewards_GK[0, 1] - rewards_GK[0, [0, 2, 3, 4]].mean(), rtol=1e-6
        )


def test_successes_by_their_rate():
    """One of four: (1 - 1/4) / (1/4) = 3. What is masked may hold anything."""
    rewards_GK = np.array([[0.0, 1.0, 0.0, 0.0, 7.0], [0.0] * 5, [1.0] * 5])
    advantages_GK, signal_G = group_relative(rewards_GK, np.arange(15).reshape(3, 5) != 4, "rate")
    assert advantages_GK.tolist() == [[-1, 3, -1, -1, 0], [0] * 5, [0] * 5]
    assert signal_G.tolist() == [True, False, False]


def test_above_a_number_that_was_known_before():
    rewards_GK = np.array([[1.0, np.nan, 4.0], [0.3, 0.1 + 0.2, 9.0], [5.0, 9.0, 9.0]])
    mask_GK = np.array([[True, False, True], [True, True, False], [True, False, False]])
    advantages_GK, signal_G = above(rewards_GK, mask_GK, np.array([2.0, 0.3, 4.0]))
    assert advantages_GK.tolist() == [[-1, 0, 2], [0, 0, 0], [1, 0, 0]] and advantages_GK.dtype == np.float32
    assert signal_G.tolist() == [True, False, True]  # the last one needs no sibling


def test_a_running_mean_by_hand():
    assert running_mean(None, np.array([1.0, 3.0]), 0.75) == 2.0
    assert running_mean(4.0, np.array([1.0, 3.0]), 0.75) == 3.5
    many = np.random.default_rng(0).standard_normal(999) * 10.0 ** np.arange(999.0).clip(0, 9)
    assert running_mean(0.1, many, 0.9) == running_mean(0.1, many[::-1], 0.9)


def test_misshapen_arrays_are_refused():
    with pytest.raises(ValueError, match=r"\[G, K\]"):
        group_relative(np.zeros(3), np.ones(3, bool))


ROUNDED = (
    [0.1 + 0.2, 0.3, 0.3],
    [0.1 + 0.2 - 0.3, 0.0, 0.0],  # all that is left
    [1e6 * (0.1 + 0.2), 3e5, 3e5],
    [-0.8, -(0.1 + 0.7), -0.8],
)


@pytest.mark.parametrize("normalise", ["std", "mean"])
def test_rewards_that_differ_by_rounding_are_equal(normalise):
    rewards_GK = np.array(ROUNDED)
    assert all(len(set(row)) > 1 for row in ROUNDED)  # they do differ
    advantages_GK, signal_G = group_relative(rewards_GK, np.ones((4, 3), bool), normalise)
    assert not signal_G.any()
    np.testing.assert_array_equal(advantages_GK, 0.0)


@pytest.mark.parametrize("low", [0.0, 1.0, -1.0, 1e6, -1e6])
def test_a_millionth_is_a_difference(low):
    size = max(abs(low), 1.0)
    assert apart(low, low + 1e-6 * size) and not apart(low, low + 1e-12 * size) and not apart(low, low)
