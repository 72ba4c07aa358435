import dataclasses

import pytest

from atgrpo_jax.common.types import Address, GroupKey, Reward, Sampling, seed_of

KEY = GroupKey(12, "train", 3, 0, 1, "coder")


def test_mixed_reward_weighs_the_team_part_only():
    reward = Reward.of(2.0, format=0.5, progress=0.25)
    assert reward.local == 0.75
    assert reward.mixed(1.0) == 2.75
    assert reward.mixed(0.5) == 1.75


def test_key_words_are_stable():
    # Written down once: if they change, no older run can be replayed.
    assert Address(7, KEY, 5).key_words() == (467036959, 1985894089)


def test_every_part_of_an_address_changes_the_words():
    base = Address(7, KEY, 5)
    others = [Address(8, KEY, 5), Address(7, KEY, 6)]
    for field, value in (
        ("step", 13),
        ("split", "test"),
        ("instance", 4),
        ("episode", 1),
        ("turn", 2),
        ("role", "tester"),
        ("seat", 0),
        ("stage", 1),
    ):
        others.append(Address(7, dataclasses.replace(KEY, **{field: value}), 5))
    words = [address.key_words() for address in [base, *others]]
    assert len(set(words)) == len(words)


def test_seeds_keep_parts_apart():
    assert seed_of("a", 1) == seed_of("a", 1)
    assert seed_of("a", 11) != seed_of("a1", 1)


@pytest.mark.parametrize("wrong", [{"temperature": -1.0}, {"max_tokens": 0}, {"max_tokens": 1.5}])
def test_sampling_refuses(wrong):
    with pytest.raises(ValueError, match=f"Sampling.{next(iter(wrong))}"):
        Sampling(**wrong)
