"""Runs of workflows with seats, and of tasks that say who speaks, keep what runs promise."""

import asyncio
import dataclasses

import jax
import numpy as np
import pytest
from fakes import Answering, AnsweringEngine, CharTokenizer, of_policy
from shared_hosts import Party
from shared_trainer import MODEL, TOKENIZER
from shared_workflows import demonstrated, talk

from atgrpo_jax.common.hosts import ALONE
from atgrpo_jax.common.types import Sampling
from atgrpo_jax.credit.groups import CreditConfig, GroupError, audit, credit
from atgrpo_jax.rollout import wire
from atgrpo_jax.rollout.evaluation import EvaluationConfig
from atgrpo_jax.rollout.player import Player
from atgrpo_jax.rollout.rollout import RolloutConfig, engine_propose, play_all
from atgrpo_jax.rollout.team import Team
from atgrpo_jax.run.experiment import Experiment
from atgrpo_jax.run.folder import RunFolder
from atgrpo_jax.run.loop import train
from atgrpo_jax.run.stages import Stages
from atgrpo_jax.tasks.breadth.breadth import Breadth
from atgrpo_jax.tasks.workflow import Workflow
from atgrpo_jax.update.batch import BatchConfig
from atgrpo_jax.update.objectives import LossConfig

SPEAKERS = ("worker", "aggregator"), ("planner", "worker", "aggregator")
TASKS = {
    "debate": talk.Judged(),
    "aggregator": Breadth(count=2, workflow=Workflow(SPEAKERS[0], turns=1, seats={"worker": 2})),
    "planner": Breadth(count=3, open=2, workflow=Workflow(SPEAKERS[1], turns=1, seats={"worker": 2})),
}
# Who speaks, as roles and seats, in episodes of these tasks. Which workers do is the planner's to say.
DEBATERS = [("debater", 0), ("debater", 1)]
AT_MOST = {
    "debate": [*DEBATERS * 3, ("judge", None)],
    "aggregator": [("worker", 0), ("worker", 1), ("aggregator", None)],
    "planner": [("planner", None), ("worker", 0), ("worker", 1), ("aggregator", None)],
}
every_task = pytest.mark.parametrize("name", TASKS)


def keys(episode):
    return [group.origin.key for group in episode.groups]


def player_of(task, k=3):
    """It says what the task demonstrates."""
    sampling = Sampling(max_tokens=30)
    propose = engine_propose(AnsweringEngine(demonstrated(task)), sampling, k, seed=5)
    return Player(task, Team("full"), CharTokenizer(), propose, sampling, seed=5)


def played(task, k=3, hosts=ALONE, episodes=1):
    """Episodes of three instances."""
    return play_all(player_of(task, k), 1, "train", range(3), episodes, hosts=hosts)


@every_task
def test_every_group_is_of_one_seat_and_audited(name):
    for episode in played(TASKS[name]):
        spoke = [(key.role, key.seat) for key in keys(episode)]
        silent = [who for who in AT_MOST[name] if who not in spoke]
        assert [who for who in AT_MOST[name] if who not in silent] == spoke
        assert all(role == "worker" for role, _ in silent) and len(spoke) >= 3
        assert len(set(keys(episode))) == len(spoke)
        for group in episode.groups:
            assert group.origin.policy == group.origin.key.role
            audit(group, 0, 5)
        one, other = episode.groups[:2]
        mixed = dataclasses.replace(one, candidates=(one.candidates[0], *other.candidates[1:]))
        with pytest.raises(GroupError, match="candidate 1 differs in key"):
            audit(mixed, 0, 5)


@every_task
def test_trajectories_compare_whole_episodes_of_all_seats(name):
    """Three episodes of an instance: all groups of one have its advantage, and the three sum to zero."""
    task = TASKS[name]
    episodes = played(task, k=1, episodes=3)
    credited, _, _ = credit(episodes, alpha=1.0, rule=CreditConfig("instance", "mean"))
    assert len(credited) == sum(len(episode.groups) for episode in episodes)
    found = {}
    for item in credited:
        key = item.group.origin.key
        found.setdefault((key.instance, key.episode), set()).add(float(item.advantages_K[0]))
    assert all(len(advantages) == 1 for advantages in found.values()) and len(found) == 9
    for instance in range(3):
        three = [next(iter(found[instance, episode])) for episode in range(3)]
        returns = [sum(group.candidates[0].reward.mixed(1.0) for group in episode.groups)
                   for episode in episodes if episode.instance == instance]  # fmt: skip
        np.testing.assert_allclose(three, np.array(returns) - np.mean(returns), atol=1e-6)
    assert len(set(map(float, np.ravel([list(a) for a in found.values()])))) > 3


@every_task
def test_what_is_played_depends_on_nothing_before_it(name):
    """So a run that goes on at step 2 plays what it would have played."""
    task = TASKS[name]
    player = player_of(task)
    play_all(player, 1, "train", range(3))
    after = play_all(player, 2, "train", range(3, 6))
    alone = [asyncio.run(player_of(task).play(2, "train", index)) for index in (5, 3, 4)]
    assert after == [alone[1], alone[2], alone[0]]


@every_task
def test_hosts_hand_over_seats_and_stages(name):
    task = TASKS[name]
    alone = played(task)
    back = wire.decode(wire.encode(alone))
    assert back == alone and repr(back) == repr(alone)
    party = Party(2)
    assert party(lambda hosts: played(task, hosts=hosts)) == [alone, alone]
    party.close()


def experiment(task):
    """A run of two steps, with one policy and an engine that knows no weights."""
    return Experiment(
        task=task, tokenizer=TOKENIZER, model=MODEL,
        engine=Answering(answer=demonstrated(task)), rollout=RolloutConfig(instances=3, candidates=3),
        evaluation=EvaluationConfig(instances=1, validation_instances=1, every=0),
        batch=BatchConfig(row_tokens=256, rows=2), loss=LossConfig(minibatches=1), checkpoint_every=1,
        steps=2, warm_start=None, gate=False, max_logprob_gap=100.0,
    )  # fmt: skip


def left_by(path, x):
    """What a finished run left: its weights, episodes, and metrics that do not depend on the machine."""
    folder = RunFolder(path)
    with Stages(x, folder) as stages:
        weights = jax.device_get(stages.begin().policies)
    written = [episodes.read_bytes() for episodes in sorted(folder.episodes.glob("step_??????.jsonl.gz"))]
    records = [
        {name: value for name, value in record.items() if not name.startswith("perf/")}
        for record in folder.read_metrics()
    ]
    return weights, written, records


@pytest.mark.thorough
def test_a_run_that_was_stopped_ends_with_the_same_bytes(tmp_path):
    """Of the planner's workflow: it has seats, silence and an aggregator."""
    x = experiment(TASKS["planner"])
    train(x, RunFolder(tmp_path / "whole"))
    for steps in (1, 2):
        train(dataclasses.replace(x, steps=steps), RunFolder(tmp_path / "stopped"))
    whole, stopped = left_by(tmp_path / "whole", x), left_by(tmp_path / "stopped", x)
    jax.tree.map(np.testing.assert_array_equal, whole[0], stopped[0])
    assert whole[1] == stopped[1] and len(whole[1]) == 2
    assert whole[2][2] == stopped[2][2]  # the first step is the last one of a run of one step
    groups = [group for e in RunFolder(tmp_path / "whole").read_episodes(2) for group in e["groups"]]
    spoke = {(group["role"], group["seat"]) for group in groups}
    assert spoke == set(AT_MOST["planner"])
    assert of_policy(whole[2][2], "shared", "grad_norm") > 0
