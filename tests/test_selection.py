import collections

import pytest

from atgrpo_jax.common.types import Reward
from atgrpo_jax.credit.selection import choose

REWARDS = [Reward.of(0.0, a=3.0), Reward.of(1.0, a=1.0), None, Reward.of(2.0, a=-5.0)]


@pytest.mark.parametrize(
    ("by", "alpha", "winner"),
    [
        ("mixed", 1.0, 0),
        ("mixed", 10.0, 3),
        ("mixed", 3.0, 1),
        ("team", 1.0, 3),
        ("local", 1.0, 0),
        ("first", 1.0, 0),
    ],
)
def test_best_by_each_score(by, alpha, winner):
    assert choose(REWARDS, by, alpha, seed=0) == winner


def test_ties_are_broken_by_the_seed_and_evenly():
    tied = [Reward.of(0.0, a=1.0), Reward.of(1.0, a=0.0), Reward.of(0.0, a=0.5)]
    winners = collections.Counter(choose(tied, "mixed", 1.0, seed) for seed in range(1000))
    assert set(winners) == {0, 1}
    assert 400 < winners[0] < 600
    assert len({choose(tied, "mixed", 1.0, seed=7) for _ in range(5)}) == 1


def test_random_takes_any_that_is_not_excluded():
    assert {choose(REWARDS, "random", 1.0, seed) for seed in range(100)} == {0, 1, 3}


def test_first_skips_excluded_ones_and_none_is_left_if_all_are():
    assert choose([None, Reward.of(0.0), Reward.of(9.0)], "first", 1.0, 0) == 1
    assert choose([None, None], "mixed", 1.0, 0) is None


def test_rewards_that_differ_by_rounding_are_a_tie():
    tied = [
        Reward.of(0.0, a=0.3),
        Reward.of(0.0, a=0.1, b=0.2),
        Reward.of(0.3, a=0.0),
        Reward.of(0.0, a=0.29),
    ]
    assert tied[0].local != tied[1].local
    winners = collections.Counter(choose(tied, "mixed", 1.0, seed) for seed in range(1000))
    assert set(winners) == {0, 1, 2} and min(winners.values()) > 250
    assert {choose(tied, "local", 1.0, seed) for seed in range(100)} == {0, 1}
