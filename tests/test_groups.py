import dataclasses

import numpy as np
import pytest
from fakes import KEY, ORIGIN, candidate, group

from atgrpo_jax.common.types import Candidate, Episode, Group, Outcome, Reward, Sample, Sampling
from atgrpo_jax.credit.groups import CreditConfig, GroupError, audit, credit


def episodes(*groups, instance=3, episode=0, end="solved"):
    """One episode; the groups are at its place."""
    placed = []
    for own in groups:
        key = dataclasses.replace(own.origin.key, instance=instance, episode=episode)
        origin = dataclasses.replace(own.origin, key=key)
        members = tuple(dataclasses.replace(c, origin=origin) for c in own.candidates)
        placed.append(Group(members, own.chosen))
    return [Episode("train", instance, episode, tuple(placed), end == "solved", 1, end)]


def test_a_clean_group_passes_the_audit():
    audit(group(1.0, 2.0, 3.0), version=0, seed=0)


@pytest.mark.parametrize(
    "change",
    [
        {"key": dataclasses.replace(KEY, instance=4)},  # K problems merged into one group
        {"prompt_ids": (5, 6, 8)},
        {"state_digest": "later"},
        {"policy": "other"},
        {"version": 1},
        {"sampling": Sampling(0.7, 8)},
    ],
)
def test_the_audit_names_the_first_member_and_field_that_differ(change):
    field = next(iter(change))
    odd = candidate(origin=dataclasses.replace(ORIGIN, **change))
    mixed = Group((candidate(k=0), candidate(k=1), odd, candidate(k=3)), 0)
    with pytest.raises(GroupError, match=rf"1/train/3/0/0/0/a: candidate 2 differs in {field} "):
        audit(mixed, version=0, seed=0)


def test_the_audit_refuses_stale_weights():
    with pytest.raises(GroupError, match="drawn by version 0 of policy shared, and the step is of version 5"):
        audit(group(1.0, 2.0), version=5, seed=0)


@pytest.mark.parametrize(
    "drawn",
    [
        dataclasses.replace(ORIGIN, prompt_ids=(5, 6)),
        dataclasses.replace(ORIGIN, policy="other"),
        dataclasses.replace(ORIGIN, sampling=Sampling(0.7, 8)),
        dataclasses.replace(ORIGIN, key=dataclasses.replace(KEY, instance=4)),
    ],
    ids=["prompt", "policy", "sampling", "address"],
)
def test_the_audit_refuses_what_the_engine_drew_for_another_request(drawn):
    """The rollout recorded the same origin for all; the engine says of one that it was asked otherwise."""
    odd = dataclasses.replace(candidate(origin=drawn, k=1), origin=ORIGIN)
    with pytest.raises(GroupError, match="0/0/0/a: the engine drew candidate 1 for another request"):
        audit(Group((candidate(), odd, candidate(k=2)), 0), version=0, seed=0)


def test_the_audit_tells_the_writer_of_an_engine_that_receipts_are_missing():
    mute = dataclasses.replace(candidate(k=1), sample=dataclasses.replace(candidate(k=1).sample, receipt=""))
    with pytest.raises(GroupError, match="the engine gave no receipt for candidate 1; it must fill in"):
        audit(Group((candidate(), mute), 0), version=0, seed=0)


def test_the_audit_refuses_samples_at_each_others_addresses_and_those_of_another_run():
    swapped = Group((candidate(k=1), candidate(k=0)), 0)
    with pytest.raises(GroupError, match="the engine drew candidate 0 for another request"):
        audit(swapped, version=0, seed=0)
    with pytest.raises(GroupError, match="the engine drew candidate 0 for another request"):
        audit(group(1.0, 2.0), version=0, seed=1)


def test_credit_by_group():
    credited, metrics, _ = credit(
        episodes(group(0.0, 2.0), group(1.0, 1.0), group(5.0), group(4.0, 8.0), group(6.0), group(1.0, 3.0)),
        alpha=1.0, rule=CreditConfig("group", "mean"),
    )  # fmt: skip
    advantages = [[-1.0, 1.0], [0.0, 0.0], [0.0], [-2.0, 2.0], [0.0], [-1.0, 1.0]]
    assert [c.advantages_K.tolist() for c in credited] == advantages
    assert [c.mask_K.tolist() for c in credited] == [[a != 0 for a in row] for row in advantages]
    assert metrics["groups/total"] == 6
    assert metrics["groups/signal"] == pytest.approx(3 / 6)
    assert metrics["groups/zero_variance"] == pytest.approx(1 / 6)
    assert metrics["groups/too_small"] == pytest.approx(2 / 6)
    assert metrics["outcome/ok"] == 1.0


def test_outcomes_are_counted_over_all_groups():
    """One of three, and none of two."""
    crashed = candidate(reward=None, outcome=Outcome.TOOL_CRASH)
    first = Group((candidate(reward=0.0), crashed, candidate(reward=1.0)), 2)
    _, metrics, _ = credit(episodes(first, group(0.0, 2.0)), alpha=1.0, rule=CreditConfig("group", "mean"))
    assert metrics["outcome/tool_crash"] == pytest.approx(1 / 5)
    assert metrics["outcome/ok"] == pytest.approx(4 / 5)


def test_an_excluded_candidate_leaves_its_siblings_what_they_would_have_without_it():
    members = (
        candidate(reward=0.0),
        candidate(reward=None, outcome=Outcome.ENGINE_ERROR),
        candidate(reward=2.0),
    )
    with_it, metrics, _ = credit(episodes(Group(members, 2)), alpha=1.0, rule=CreditConfig("group", "std"))
    without, _, _ = credit(episodes(group(0.0, 2.0)), alpha=1.0, rule=CreditConfig("group", "std"))
    np.testing.assert_array_equal(with_it[0].advantages_K[[0, 2]], without[0].advantages_K)
    assert with_it[0].mask_K.tolist() == [True, False, True]
    assert metrics["outcome/engine_error"] == pytest.approx(1 / 3)


def with_team(members: Group, *parts: float) -> Group:
    """The same group with these team rewards."""
    candidates = tuple(
        dataclasses.replace(c, reward=dataclasses.replace(c.reward, team=team))
        for c, team in zip(members.candidates, parts, strict=True)
    )
    return Group(candidates, members.chosen)


def test_alpha_weighs_the_team_part():
    def advantages(alpha):
        played = episodes(with_team(group(1.0, 0.0), 0.0, 2.0))
        credited, _, _ = credit(played, alpha=alpha, rule=CreditConfig("group", "mean"))
        return credited[0].advantages_K.tolist()

    assert advantages(0.0) == [0.5, -0.5]
    assert advantages(1.0) == [-0.5, 0.5]


@pytest.mark.parametrize(("alpha", "advantage"), [(0.0, 1.0), (0.5, 0.5), (2.0, -1.0)])
def test_alpha_weighs_the_team_part_of_returns(alpha, advantage):
    """Returns 1 + 2 + 0 alpha, and 1 + 0 + 2 alpha; half their difference is the advantage."""
    played = [
        *episodes(with_team(group(1.0), 0.0), with_team(group(2.0), 0.0), episode=0),
        *episodes(with_team(group(1.0), 0.0), with_team(group(0.0), 2.0), episode=1),
    ]
    credited, _, _ = credit(played, alpha=alpha, rule=CreditConfig("instance", "mean"))
    assert [c.advantages_K.tolist() for c in credited] == [[advantage]] * 2 + [[-advantage]] * 2


def test_an_excluded_sample_of_an_episode_is_not_trained_its_others_are():
    excluded = Group((candidate(reward=None, outcome=Outcome.TOOL_CRASH),), None)
    played = [*episodes(group(3.0), excluded, episode=0, end="ended"), *episodes(group(1.0), episode=1)]
    credited, _, _ = credit(played, alpha=1.0, rule=CreditConfig("instance", "mean"))
    assert [c.mask_K.tolist() for c in credited] == [[True], [False], [True]]
    assert [c.advantages_K.tolist() for c in credited] == [[1.0], [0.0], [-1.0]]


def test_what_is_executed_counts_towards_the_return():
    """Not the first, the best or the mean of those drawn."""
    played = [*episodes(group(7.0, 2.0, 0.0, chosen=1)), *episodes(group(4.0), episode=1)]
    credited, _, _ = credit(played, alpha=1.0, rule=CreditConfig("instance", "mean"))
    assert credited[0].advantages_K.tolist() == [0.0, -1.0, 0.0]  # its siblings led nowhere
    assert credited[0].mask_K.tolist() == [False, True, False]
    assert credited[1].advantages_K.tolist() == [1.0]


def test_credit_by_instance_gives_every_sample_of_an_episode_its_return():
    """Returns 3 and 1 of instance 3; instance 4 has one episode, so no baseline."""
    played = [
        *episodes(group(1.0), group(2.0), episode=0),
        *episodes(group(1.0), episode=1),
        *episodes(group(9.0), instance=4),
    ]
    credited, metrics, _ = credit(played, alpha=1.0, rule=CreditConfig("instance", "mean"))
    assert [c.advantages_K.tolist() for c in credited] == [[1.0], [1.0], [-1.0], [0.0]]
    assert [c.mask_K.tolist() for c in credited] == [[True], [True], [True], [False]]
    assert metrics["groups/total"] == 2


def test_an_episode_that_the_engine_failed_has_no_return():
    played = [
        *episodes(group(1.0), episode=0),
        *episodes(group(5.0), episode=1),
        *episodes(group(9.0), episode=2, end="engine_error"),
    ]
    credited, _, _ = credit(played, alpha=1.0, rule=CreditConfig("instance", "mean"))
    assert [c.advantages_K.tolist() for c in credited] == [[-2.0], [2.0], [0.0]]
    assert [c.mask_K.tolist() for c in credited] == [[True], [True], [False]]


def by_partner(reward, team=0.0):
    """A group of one answer, which no policy gave."""
    sample = Sample((), (), "stop", -1)
    origin = dataclasses.replace(ORIGIN, policy="", version=-1)
    answer = Candidate(origin, sample, "text", Outcome.TRUNCATED, Reward.of(team, number=reward))
    return Group((answer,), 0)


def test_what_a_partner_says_is_in_no_baseline_and_no_metric():
    own = group(1.0, 2.0, 3.0)
    audit(by_partner(9.0), version=7, seed=7)
    credited, metrics, _ = credit(
        episodes(by_partner(9.0), own, by_partner(-9.0)), alpha=1.0, rule=CreditConfig("group", "mean")
    )
    assert [c.advantages_K.tolist() for c in credited] == [[0.0], [-1.0, 0.0, 1.0], [0.0]]
    assert [c.mask_K.tolist() for c in credited] == [[False], [True] * 3, [False]]
    _, alone, _ = credit(episodes(own), alpha=1.0, rule=CreditConfig("group", "mean"))
    assert metrics == alone and metrics["groups/total"] == 1.0 and metrics["outcome/ok"] == 1.0


def test_of_what_a_partner_did_returns_hold_the_team_part():
    one = episodes(group(1.0), by_partner(9.0, team=0.5), episode=0)
    other = episodes(group(1.0), by_partner(-9.0), episode=1)
    credited, metrics, _ = credit(one + other, alpha=4.0, rule=CreditConfig("instance", "mean"))
    assert [c.advantages_K.tolist() for c in credited] == [[1.0], [0.0], [-1.0], [0.0]]
    assert [c.mask_K.tolist() for c in credited] == [[True], [False]] * 2
    assert metrics["outcome/ok"] == 1.0


@pytest.mark.parametrize("baseline", ["group", "instance"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_reward_that_is_not_finite_is_named(baseline, value):
    played = episodes(group(1.0, value, chosen=1)) + episodes(group(2.0, 1.0), episode=1)
    with pytest.raises(GroupError, match=r"1/train/3/0/0/0/a: Reward.* mixed is (nan|inf); must be finite"):
        credit(played, alpha=1.0, rule=CreditConfig(baseline, "std"))
