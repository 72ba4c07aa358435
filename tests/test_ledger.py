"""Where a step's signal, tokens and gradient go: numbers by hand, on groups of a scripted engine."""

import asyncio
import dataclasses
import functools
import re
from pathlib import Path

import numpy as np
import pytest
from fakes import KEY, ORIGIN, Sum, candidate, group
from shared_rollout import player
from shared_trainer import experiment
from shared_workflows import talk

from atgrpo_jax.common.types import Episode, Group
from atgrpo_jax.credit.groups import CreditConfig, credit
from atgrpo_jax.credit.ledger import ledger
from atgrpo_jax.rollout.team import Team
from atgrpo_jax.run.metrics import training_metrics
from atgrpo_jax.tasks.workflow import Workflow
from atgrpo_jax.update.batch import BatchConfig, pack, token_weights
from atgrpo_jax.update.objectives import LossConfig

# Texts of K = 3 candidates. A number is its own reward, and the team earns 1 if the sum is 10. A text has
# a token for each letter, and one to stop. Executed are 5, 2, 2 and 1.
SCRIPT = {
    (0, "a"): ["1", "03", "5"],  # advantages -2, 0, 2
    (0, "b"): ["2", "2", "2"],  # none
    (1, "a"): ["2", "0", "01"],  # 1, -1, 0
    (1, "b"): ["1", "0", "00"],  # 4/3, -2/3, -2/3: the first one ends at 10
}


TWICE, ONCE = Workflow(("a", "b"), turns=2), Workflow(("a", "b"), turns=1)


def weigh(aggregate="candidate"):
    return functools.partial(token_weights, aggregate=aggregate, constant=8)


def played(script, workflow=TWICE, team=None, task=None):
    made, _ = player(script, task or Sum(workflow), team=team)
    return [asyncio.run(made.play(1, "train", 0))]


def of(episodes, aggregate="candidate", updated=("shared",), turns=2, baseline="group"):
    credited, _, _ = credit(episodes, alpha=1.0, rule=CreditConfig(baseline, "mean"))
    return ledger(episodes, credited, weigh=weigh(aggregate), updated=updated, turns=turns)


def test_a_ledger_by_hand():
    """Of |advantage| * tokens / (9 * tokens), for 3 groups of 3 with signal: 4/9, 2/9 and (8/3)/9."""
    assert of(played(SCRIPT)) == pytest.approx({
        "groups/identical": 1 / 4,
        "role/a/groups": 2, "role/a/signal": 1, "role/a/drawn_tokens": 14, "role/a/drawn_entropy": 1,
        "role/a/tokens_per_signal": 7,
        "role/a/identical": 0, "role/a/advantage_mass": 2 * 2 + 2 * 2 + 2 + 2,
        "role/a/effective_candidates": 2, "role/a/gradient_share": 9 / 13, "role/a/repeats/a": 0,
        "role/a/first/groups": 1, "role/a/first/signal": 1, "role/a/first/drawn_tokens": 7,
        "role/a/first/gradient_share": 6 / 13,
        "role/a/later/groups": 1, "role/a/later/signal": 1, "role/a/later/drawn_tokens": 7,
        "role/a/later/gradient_share": 3 / 13,
        "role/b/groups": 2, "role/b/signal": 1 / 2, "role/b/drawn_tokens": 13, "role/b/drawn_entropy": 1,
        "role/b/tokens_per_signal": 13,
        "role/b/identical": 1 / 2, "role/b/advantage_mass": 4 / 3 * 2 + 2 / 3 * 2 + 2 / 3 * 3,
        "role/b/effective_candidates": (8 / 3) ** 2 / (24 / 9), "role/b/gradient_share": 4 / 13,
        "role/b/repeats/a": 0, "role/b/repeats/b": 0,
        "role/b/first/groups": 1, "role/b/first/signal": 0, "role/b/first/drawn_tokens": 6,
        "role/b/first/gradient_share": 0,
        "role/b/later/groups": 1, "role/b/later/signal": 1, "role/b/later/drawn_tokens": 7,
        "role/b/later/gradient_share": 4 / 13,
    })  # fmt: skip


@pytest.mark.parametrize("aggregate", ["candidate", "token", "constant"])
def test_shares_are_those_of_the_weights_and_advantages_that_an_update_is_given(aggregate):
    """The batch of one update of all groups says of each token whose it is: by the number of its loss."""
    episodes = played(SCRIPT)
    credited, _, _ = credit(episodes, alpha=1.0, rule=CreditConfig(normalise="mean"))
    config = BatchConfig(row_tokens=64, rows=4)
    trained = pack(credited, config, aggregate, 8, {"a": 0, "b": 1}).trained
    pull = np.abs(trained.advantages) * trained.weights
    expected = [pull[trained.objectives == number].sum() / pull.sum() for number in (0, 1)]
    found = of(episodes, aggregate)
    assert [found[f"role/{role}/gradient_share"] for role in "ab"] == pytest.approx(expected)
    if aggregate == "token":  # long answers weigh more
        assert expected[0] == pytest.approx(12 / 18)


def test_the_entropy_of_a_role_is_of_what_its_tokens_were_drawn_from():
    """Of 7 + 7 tokens of a, all of 1 nat, two are drawn from fewer tokens, at 0.25 and 0.5 nats."""
    (episode,) = played(SCRIPT)
    first = episode.groups[0].candidates[0]
    sample = dataclasses.replace(first.sample, drawn_logprobs=(-0.25, -0.5))
    members = (dataclasses.replace(first, sample=sample), *episode.groups[0].candidates[1:])
    groups = (dataclasses.replace(episode.groups[0], candidates=members), *episode.groups[1:])
    found = of([dataclasses.replace(episode, groups=groups)])
    assert found["role/a/drawn_entropy"] == (12 + 0.75) / 14 and found["role/b/drawn_entropy"] == 1


def test_policies_have_gradients_of_their_own():
    episodes = played(SCRIPT, team=Team("full"))
    found = of(episodes, updated=("a",))
    assert "role/a/gradient_share" not in found  # nobody shares it
    assert found["role/a/first/gradient_share"] == pytest.approx(2 / 3)
    gradient = ("mass", "gradient", "effective")
    assert not [name for name in found if name.startswith("role/b") and any(g in name for g in gradient)]
    assert found["role/b/signal"] == 1 / 2
    assert of(episodes, updated=("a", "b"))["role/b/later/gradient_share"] == 1.0


def test_without_any_signal_nothing_has_a_share():
    found = of(played({(turn, role): ["1", "1", "1"] for turn in (0, 1) for role in "ab"}))
    assert found["role/a/advantage_mass"] == 0.0 and found["role/a/identical"] == 1.0
    assert not [name for name in found if "share" in name or "per_signal" in name or "effective" in name]
    assert of([]) == {}


def test_one_turn_is_not_divided():
    found = of(played(SCRIPT, ONCE), turns=1)
    assert not [name for name in found if "first" in name or "later" in name or "repeats/b" in name]
    assert found["role/a/gradient_share"] == 1.0 and found["role/b/gradient_share"] == 0.0


def test_an_episode_that_ends_early_has_no_later_groups():
    found = of(played({(0, "a"): ["10", "1", "2"], (0, "b"): ["0", "0", "1"]}))
    assert found["role/a/later/groups"] == found["role/a/later/gradient_share"] == 0.0
    assert "role/a/later/signal" not in found


def test_a_sample_that_failed_has_no_text_to_compare():
    found = of(played({(0, "a"): ["1", None, "1"], (0, "b"): ["1", None, None]}, ONCE))
    assert found["role/a/identical"] == 1.0 and found["role/a/drawn_tokens"] == 4
    assert found["groups/identical"] == 1.0 and "role/b/identical" not in found


def test_trajectories_have_groups_of_one():
    """Returns 3 + 4 and 1 + 2: all tokens of the first episode have advantage 2, of the other one -2."""
    episodes = []
    for number, (a, b) in enumerate([("3", "004"), ("1", "2")]):
        made, _ = player({(0, "a"): [a], (0, "b"): [b]}, Sum(ONCE), k=1)
        episodes.append(asyncio.run(made.play(1, "train", 0, number)))
    found = of(episodes, "token", baseline="instance")
    assert found["role/a/signal"] == 1.0 and found["role/a/advantage_mass"] == 2 * 2 + 2 * 2
    assert found["role/b/gradient_share"] == pytest.approx(12 / 20)
    assert not [name for name in found if "identical" in name or "effective" in name]


def says(text, role="a", turn=0, stage=0, seat=None, policy="shared", chosen=0):
    """A group of one candidate."""
    key = dataclasses.replace(KEY, role=role, turn=turn, stage=stage, seat=seat)
    origin = dataclasses.replace(ORIGIN, key=key, policy=policy)
    made = dataclasses.replace(candidate(reward=1.0, origin=origin), text=text)
    return Group((made,), chosen)


def repeats(*groups):
    found = of([Episode("train", 3, 0, groups, False, 1, "ended")])
    return {name.removeprefix("role/"): value for name, value in found.items() if "repeats" in name}


def test_a_role_repeats_the_one_before_it_in_the_turn():
    first = says("x"), says("x", "b", stage=1), says("y", "c", stage=2)
    said = *first, says("y", "a", 1), says("z", "b", 1, 1)
    # In turn 1, a does not follow c: what c said was in the turn before.
    assert repeats(*said) == {"a/repeats/a": 0, "b/repeats/a": 0.5, "b/repeats/b": 0, "c/repeats/b": 0}


def test_what_is_compared_is_what_was_executed():
    first = group(1.0, 2.0, chosen=1)
    texts = [dataclasses.replace(c, text=text) for c, text in zip(first.candidates, "xy", strict=True)]
    first = dataclasses.replace(first, candidates=tuple(texts))
    assert repeats(first, says("y", "b", stage=1)) == {"b/repeats/a": 1}
    assert repeats(first, says("x", "b", stage=1)) == {"b/repeats/a": 0}
    assert repeats(first, says("y", "b", stage=1, chosen=None)) == {}


def test_to_choose_among_several_is_no_repetition():
    workers = says("x", "worker", seat=0), says("y", "worker", seat=1)
    assert repeats(*workers, says("y", "judge", stage=1)) == {}
    assert repeats(workers[0], says("x", "judge", stage=1)) == {"judge/repeats/worker": 1}  # one spoke


def test_seats_repeat_themselves_and_not_one_another():
    first = says("x", "worker", seat=0), says("y", "worker", seat=1)
    second = says("y", "worker", 1, seat=0), says("y", "worker", 1, seat=1)
    assert repeats(*first, *second) == {"worker/repeats/worker": 0.5}
    # Nor if they speak one after the other.
    assert repeats(first[0], says("x", "worker", stage=1, seat=1)) == {}


def test_a_role_that_was_silent_is_compared_with_its_last_words():
    said = says("x"), says("y", "b", stage=1), says("y", "b", 1, 1), says("x", "a", 2)
    assert repeats(*said) == {"a/repeats/a": 1, "b/repeats/a": 0, "b/repeats/b": 1}


def test_partners_count_in_nothing_but_can_be_repeated():
    partner, later = says("x", "p", policy=""), says("x", "p", 1, policy="")
    episode = Episode("train", 3, 0, (partner, says("x", "b", stage=1), later), False, 2, "ended")
    found = of([episode])
    assert found["role/b/repeats/p"] == 1.0 and not [name for name in found if name.startswith("role/p")]
    assert of([dataclasses.replace(episode, groups=(partner,))]) == {}


def test_a_role_that_is_called_like_a_path_has_one_level():
    assert repeats(says("x", "a/b"), says("x", "c", stage=1)) == {"c/repeats/a%2Fb": 1}


def test_seats_and_a_judge_have_a_ledger():
    """A task that says who speaks: in no turn but the last one does the judge."""
    task = talk.Judged()
    texts = {(turn, role): ["1", "2", "3"] for turn in range(9) for role in task.workflow.roles}
    episodes = played(texts, task=task)
    found = of(episodes, turns=task.workflow.turns)
    spoke = [g.origin.key.role for g in episodes[0].groups]
    for role in task.workflow.roles:
        assert found[f"role/{role}/groups"] == spoke.count(role) > 0
        parts = [found[f"role/{role}/{part}/groups"] for part in ("first", "later")]
        assert sum(parts) == spoke.count(role)
    assert not [name for name in found if name.startswith("role/judge/repeats")]


def test_a_step_is_weighed_as_its_experiment_says():
    """|advantages| are 1, 1, 0 and 2/3, 1/3, 1/3, tokens 2, 2, 3 and 4, 2, 2."""
    episodes = played({(0, "a"): ["5", "3", "04"], (0, "b"): ["001", "2", "2"]}, ONCE)
    credited, _, _ = credit(episodes, alpha=1.0, rule=CreditConfig(normalise="mean"))
    for aggregate, share in (("candidate", 2 / (2 + 4 / 3)), ("token", 4 / (4 + 4))):
        x = experiment(loss=LossConfig(minibatches=1, aggregate=aggregate))
        found = training_metrics(x, 1, episodes, credited)
        assert found["role/a/gradient_share"] == pytest.approx(share)
        assert found["rollout/success"] == 0.0  # and what else is known of episodes


def test_a_frozen_policy_has_no_gradient():
    episodes = played(SCRIPT, ONCE, team=Team("full"))
    credited, _, _ = credit(episodes, alpha=1.0, rule=CreditConfig(normalise="mean"))
    found = training_metrics(experiment(team=Team("full", frozen=("b",))), 1, episodes, credited)
    assert "role/a/advantage_mass" in found and "role/b/advantage_mass" not in found
    alternating = experiment(team=Team("full", alternate=1))
    for step, role in ((1, "a"), (2, "b")):
        found = training_metrics(alternating, step, episodes, credited)
        assert [r for r in "ab" if f"role/{r}/advantage_mass" in found] == [role]


def test_every_number_is_documented():
    page = (Path(__file__).parents[1] / "docs" / "ledger.md").read_text()
    named = set(re.findall(r"^\| `(\w+)(?:/ROLE)?` \|", page, re.MULTILINE))
    found = {name.split("/")[2] for name in of(played(SCRIPT)) if name.startswith("role/")}
    assert found == named | {"first", "later"} and "`first/...`, `later/...`" in page
