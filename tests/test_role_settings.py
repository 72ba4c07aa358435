"""Settings of a role: what it draws with, and what its tokens are trained with."""

import asyncio
import dataclasses
import re

import jax
import numpy as np
import pytest
from fakes import CharTokenizer, ScriptedEngine, Sum
from shared_learner import MODEL, OPTIMIZER, assert_same, items, packed

from atgrpo_jax.arrays.mesh import MeshConfig
from atgrpo_jax.common.types import Sampling
from atgrpo_jax.credit.groups import CreditConfig, credit
from atgrpo_jax.rollout.player import Player
from atgrpo_jax.rollout.rollout import RolloutConfig, engine_propose
from atgrpo_jax.rollout.team import Team
from atgrpo_jax.run.experiment import Experiment
from atgrpo_jax.run.role_settings import role_settings
from atgrpo_jax.tasks.workflow import Workflow
from atgrpo_jax.update.batch import BatchConfig, pack
from atgrpo_jax.update.learner import Learner, UpdateInputs
from atgrpo_jax.update.objectives import GSPOLossConfig, LossConfig, by_number

TEAM = Team(roles={"a": {"max_tokens": 4, "candidates": 2, "alpha": 0.5, "clip_high": 0.3, "kl": 0.01}})
ROLLOUT = RolloutConfig(max_tokens=8, candidates=3)


def test_what_a_role_does_not_say_is_the_teams():
    mine = role_settings(TEAM, ROLLOUT, LossConfig(), "a")
    assert (mine.sampling, mine.candidates) == (Sampling(max_tokens=4), 2)
    assert mine.loss == LossConfig(clip_high=0.3, kl=0.01)
    assert role_settings(TEAM, ROLLOUT, LossConfig(), "b") == (Sampling(max_tokens=8), 3, LossConfig(), 0)
    assert (TEAM.alpha_of("a"), TEAM.alpha_of("b")) == (0.5, 1.0)


@pytest.mark.parametrize(
    ("roles", "says"),
    [
        (
            {"a": {"max_token": 4}},
            "Team.roles = .*: a has no setting max_token; there are alpha, ban",
        ),
        ({"a": {"max_tokens": 0}}, "Team.roles['a']: RolloutConfig.max_tokens = 0: must be at least 1"),
        (
            {"a": {"candidates": 1}},
            "Team.roles['a']: RolloutConfig.candidates = 1: a baseline needs",
        ),
        ({"a": {"clip_low": 2.0}}, "Team.roles['a']: LossConfig.clip_low = 2.0: must be in (0, 1)"),
        ({"a": {"alpha": -1.0}}, "Team.roles['a']: Team.alpha = -1.0: must not be negative"),
        ({"a": {"epochs": 2}}, "a has no setting epochs"),  # it belongs to whole updates
        ({"c": {"kl": 0.1}}, "there is no role c; there are a, b"),
        ({"a": 3}, "Team.roles = {'a': 3}: expected"),
    ],
)
def test_a_bad_setting_is_one_line_before_the_run(roles, says):
    with pytest.raises(ValueError, match=re.escape(says).replace(r"\.\*", ".*")):
        Experiment(Sum(), team=Team(roles=roles))


def test_episodes_of_an_instance_have_one_candidate_each():
    with pytest.raises(ValueError, match='in mode "trajectories" all roles have one candidate'):
        role_settings(TEAM, dataclasses.replace(ROLLOUT, mode="trajectories"), LossConfig(), "a")


def test_the_engine_has_room_for_the_longest_answer_and_the_largest_group():
    x = Experiment(Sum(), team=Team(roles={"a": {"max_tokens": 40}, "b": {"candidates": 12}}))
    assert (x.longest_answer, x.most_candidates) == (40, 12)


def test_each_role_draws_and_is_paid_by_its_own_settings():
    sampling = {"a": Sampling(0.7, 4), "b": Sampling(1.0, 8)}
    engine = ScriptedEngine({(0, "a"): ["1", "2"], (0, "b"): ["3", "10", "5"]})
    propose = engine_propose(engine, sampling, {"a": 2, "b": 3}, 5)
    team = Team(roles={"b": {"alpha": 0.0}})
    player = Player(Sum(Workflow(("a", "b"), 1)), team, CharTokenizer(), propose, sampling, seed=5)
    episode = asyncio.run(player.play(1, "train", 0))
    assert [len(request.addresses) for request in engine.requests] == [2, 3]
    assert [request.sampling for request in engine.requests] == list(sampling.values())
    assert [group.origin.sampling for group in episode.groups] == list(sampling.values())
    # After 2, b's 8 would solve it; nothing does. Local rewards are the numbers, and alpha weighs nothing.
    alpha = {role: team.alpha_of(role) for role in "ab"}
    credited, _, _ = credit([episode], alpha=alpha, rule=CreditConfig("group", "mean"))
    np.testing.assert_allclose(credited[0].advantages_K, [-0.5, 0.5])
    np.testing.assert_allclose(credited[1].advantages_K, [-3, 4, -1])


def of_roles(groups, *names):
    """The groups as if these roles had drawn them."""
    found = []
    for item, name in zip(groups, names, strict=True):
        members = []
        for candidate in item.group.candidates:
            origin = candidate.origin
            key = dataclasses.replace(origin.key, role=name)
            members.append(dataclasses.replace(candidate, origin=dataclasses.replace(origin, key=key)))
        group = dataclasses.replace(item.group, candidates=tuple(members))
        found.append(dataclasses.replace(item, group=group))
    return found


@pytest.mark.thorough
def test_two_losses_in_one_update_are_the_sum_of_two_updates():
    """Each over its own role's groups, which have the weights that they have in the whole batch."""
    losses = [LossConfig(clip_low=0.1, entropy=0.1), GSPOLossConfig(kl=0.3)]
    groups = of_roles(items(), "a", "b", "a")
    config = BatchConfig(row_tokens=48, rows=4)
    batch = pack(groups, config, "candidate", 16, {"a": 0, "b": 1})
    own = batch.trained.weights > 0
    noise = np.random.default_rng(0).normal(0, 0.3, own.shape).astype(np.float32)
    batch = batch._replace(trained=batch.trained._replace(old_logprobs=batch.trained.old_logprobs + noise))

    def found(objective, weights):
        """Its loss and gradient, over tokens with these weights."""
        ours = Learner(MODEL, OPTIMIZER, objective, MeshConfig().build())
        reference = jax.device_get(ours.init(jax.random.key(1)).params)
        trained = batch.trained._replace(weights=weights)
        inputs = ours._on_devices(UpdateInputs(batch._replace(trained=trained), reference=reference))
        grads, metrics = ours._jit_gradients(ours.init(jax.random.key(0)).params, inputs)
        return jax.device_get((grads, metrics["loss"]))

    both = found(by_number([loss.objective() for loss in losses]), batch.trained.weights)
    parts = []
    for number, loss in enumerate(losses):
        weights = np.where(batch.trained.objectives == number, batch.trained.weights, np.float32(0))
        assert 0 < (weights > 0).sum() < own.sum()
        parts.append(found(loss.objective(), weights))
    assert_same(both, jax.tree.map(np.add, *parts))


def test_one_loss_for_all_is_that_loss():
    objective = LossConfig().objective()
    assert by_number([objective]) is objective


def test_a_group_is_trained_at_the_temperature_that_it_was_drawn_at():
    groups = items()
    sampling = dataclasses.replace(groups[0].group.origin.sampling, temperature=0.5)
    members = [
        dataclasses.replace(c, origin=dataclasses.replace(c.origin, sampling=sampling))
        for c in groups[0].group.candidates
    ]
    cool = dataclasses.replace(
        groups[0], group=dataclasses.replace(groups[0].group, candidates=tuple(members))
    )
    trained = packed([cool, *groups[1:]]).trained
    counts = {t: int((trained.temperatures[trained.weights > 0] == t).sum()) for t in (0.5, 1.0)}
    assert counts == {0.5: 3 + 5 + 2, 1.0: 4 + 4 + 1 + 6 + 2 + 7}
