"""Steps with few groups that teach something play more instances: which ones, and how many."""

import dataclasses

import jax
import numpy as np
import pytest
from shared_trainer import TEXTS, experiment, fixed

from atgrpo_jax.credit.groups import CreditConfig
from atgrpo_jax.rollout.rollout import RolloutConfig, train_indices
from atgrpo_jax.rollout.team import Team
from atgrpo_jax.run.folder import RunFolder
from atgrpo_jax.run.loop import one_step
from atgrpo_jax.run.stages import Stages

ROUND = 2  # instances


def some(engine, request):
    """Three texts that are paid differently for each fourth instance, and one text for the others."""
    samples = fixed(engine, request)
    if request.addresses[0].group.instance % 4 == 3:
        return samples
    text = (*map(ord, TEXTS[0]), 0)
    same = dataclasses.replace(samples[0], tokens=text, logprobs=(-1.0,) * len(text), finish="stop")
    return [same] * len(samples)


def rollout(least, most=4, **fields):
    return RolloutConfig(
        instances=ROUND, candidates=3, max_tokens=4, least_signal=least, most_rounds=most, **fields
    )


def played(tmp_path, step, settings, **changes):
    with Stages(experiment(some, rollout=settings, **changes), RunFolder(tmp_path)) as stages:
        team = stages.begin()
        episodes, metrics = stages.rollouts.play(step)
        _, _, signal = stages.credit(team, episodes)
    return (
        [episode.instance for episode in episodes],
        metrics,
        signal["groups/signal"] * signal["groups/total"],
    )


# Instances 3, 7, 11, ... have two groups with signal: role a's and role b's.
@pytest.mark.parametrize(
    ("step", "least", "most", "instances", "signal"),
    [
        (1, 0, 4, [0, 1], 0),
        (3, 0, 4, [4, 5], 0),
        (1, 1, 4, [0, 1, 2, 3], 2),
        (1, 2, 4, [0, 1, 2, 3], 2),
        (1, 3, 4, [0, 1, 2, 3, 4, 5, 6, 7], 4),
        (2, 1, 4, [8, 9, 10, 11], 2),
        (2, 9, 3, [6, 7, 8, 9, 10, 11], 4),  # the bound; a step's block is of three rounds here
        (2, 2, 3, [6, 7], 2),
        (1, 9, 1, [0, 1], 0),
    ],
)
def test_a_step_plays_until_enough_groups_teach_something(tmp_path, step, least, most, instances, signal):
    found, metrics, with_signal = played(tmp_path, step, rollout(least, most))
    assert (found, with_signal) == (instances, signal)
    rounds = len(instances) / ROUND
    assert metrics.get("rollout/rounds") == (rounds if least and most > 1 else None)


def test_without_groups_the_instances_are_what_is_counted(tmp_path):
    trajectories = {"mode": "trajectories", "select": "first"}
    credit = CreditConfig("instance", "mean")
    for least, instances in ((1, 4), (2, 8)):
        settings = rollout(least, **trajectories)
        found, _, signal = played(tmp_path / str(least), 1, settings, credit=credit)
        assert sorted(set(found)) == list(range(instances)) and len(found) == 3 * instances
        assert signal == least


@pytest.mark.parametrize(
    ("team", "instances"),
    [({"frozen": ("b",)}, 8), ({"alternate": 1}, 8), ({}, 4)],
)
def test_groups_of_policies_that_stand_still_are_not_counted(tmp_path, team, instances):
    """Two are asked for. Instances 3 and 7 have one of a's and one of b's, and the step updates a alone."""
    found, _, _ = played(tmp_path, 1, rollout(2), team=Team("lora", **team))
    assert found == list(range(instances))


def test_no_two_steps_or_rounds_share_an_instance():
    blocks = [train_indices(step, 5, 3, number) for step in (1, 2, 3) for number in range(3)]
    assert [index for block in blocks for index in block] == list(range(45))


def trained(path, *until):
    """Trains to each of these steps, and is started again for each."""
    for steps in until:
        x = experiment(some, rollout=rollout(3), steps=steps, checkpoint_every=1, max_logprob_gap=9.0)
        with Stages(x, RunFolder(path)) as stages:
            team = stages.begin()
            for step in range(stages.done + 1, steps + 1):
                team, _ = one_step(stages, team, step)
            params = jax.device_get(team.policies["shared"].params)
    folder = RunFolder(path)
    return params, {file.name: file.read_bytes() for file in folder.episodes.iterdir()}


def test_a_run_that_goes_on_draws_the_same_instances(tmp_path):
    params, episodes = trained(tmp_path / "whole", 3)
    others, again = trained(tmp_path / "parts", 1, 2, 3)
    jax.tree.map(np.testing.assert_array_equal, params, others)
    train = {name for name in episodes if "train" in name or "test" not in name}
    assert {n: episodes[n] for n in train} == {n: again[n] for n in train}


@pytest.mark.parametrize(
    ("fields", "says"), [({"least_signal": -1}, "negative"), ({"most_rounds": 0}, "least 1")]
)
def test_refuses(fields, says):
    with pytest.raises(ValueError, match=f"RolloutConfig.{next(iter(fields))}.*{says}"):
        RolloutConfig(**fields)
