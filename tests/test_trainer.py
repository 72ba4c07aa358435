"""That the trainer hears every setting: real stages around an engine that answers by a script."""

import collections
import dataclasses

import jax
import numpy as np
import oracle
import pytest
from fakes import of_policy
from shared_trainer import experiment, fixed, honest

from atgrpo_jax.common.errors import RunError
from atgrpo_jax.common.types import Outcome, Sample
from atgrpo_jax.credit.groups import CreditConfig
from atgrpo_jax.rollout.evaluation import EvaluationConfig
from atgrpo_jax.rollout.rollout import RolloutConfig
from atgrpo_jax.rollout.team import Team
from atgrpo_jax.run.checkpoint import Checkpoints
from atgrpo_jax.run.folder import RunFolder
from atgrpo_jax.run.loop import train
from atgrpo_jax.run.scoring import held_out
from atgrpo_jax.run.stages import Stages
from atgrpo_jax.run.team_state import TeamState
from atgrpo_jax.update.objectives import LossConfig


def rolled_out(x, path):
    """Episodes and credited groups of the first step, and the requests that were made for them."""
    with Stages(x, RunFolder(path)) as stages:
        team = TeamState({})  # of version 0, as the engine says
        episodes = stages.rollouts.play(1)[0]
        return episodes, stages.credit(team, episodes)[1], x.engine.built[-1].requests


@pytest.mark.parametrize(
    ("alpha", "advantages"),
    # Local parts 3, 1 and 5, team parts 0, 2 and 1: mixed rewards 3, 1, 5 and 3, 5, 7.
    [(0.0, [0.0, -2.0, 2.0]), (2.0, [-2.0, 0.0, 2.0])],
)
def test_the_teams_alpha_is_that_of_the_advantages(alpha, advantages, tmp_path):
    _, credited, _ = rolled_out(experiment(team=Team(alpha=alpha)), tmp_path)
    assert [c.advantages_K.tolist() for c in credited] == [advantages] * 4


@pytest.mark.parametrize(("alpha", "executed"), [(0.0, 2), (9.0, 1)])
def test_the_teams_alpha_is_that_of_the_selection(alpha, executed, tmp_path):
    episodes, *_ = rolled_out(experiment(team=Team(alpha=alpha)), tmp_path)
    assert {group.chosen for e in episodes for group in e.groups} == {executed}


def test_credit_settings_are_heard(tmp_path):
    x = experiment(credit=CreditConfig(normalise="std"), team=Team(alpha=0.0))
    _, credited, _ = rolled_out(x, tmp_path)
    expected = oracle.advantages([3.0, 1.0, 5.0], "std")
    np.testing.assert_allclose(credited[0].advantages_K, expected, rtol=1e-6)


def test_excluded_outcomes_are_those_of_the_config(tmp_path):
    plain = experiment()
    episodes, *_ = rolled_out(plain, tmp_path / "plain")
    assert all(c.reward is not None for e in episodes for g in e.groups for c in g.candidates)
    rollout = dataclasses.replace(plain.rollout, exclude=("truncated", "engine_error"))
    x = experiment(rollout=rollout, team=Team(alpha=0.0))
    episodes, credited, _ = rolled_out(x, tmp_path / "excluded")
    for group in (group for episode in episodes for group in episode.groups):
        assert [c.reward is None for c in group.candidates] == [False, False, True]
        assert group.candidates[2].outcome is Outcome.TRUNCATED
    assert [c.mask_K.tolist() for c in credited] == [[True, True, False]] * 4


def test_the_rollouts_sampling_reaches_the_engine_and_the_origins(tmp_path):
    rollout = RolloutConfig(
        instances=2, candidates=3, max_tokens=5, temperature=0.7, top_k=3, top_p=0.9, min_p=0.1,
        min_tokens=1, banned=(4,), select="first",
    )  # fmt: skip
    episodes, _, requests = rolled_out(experiment(rollout=rollout, seed=7), tmp_path)
    assert {r.sampling for r in requests} == {rollout.sampling}
    assert {r.addresses[0].seed for r in requests} == {7}
    assert {tuple(a.k for a in r.addresses) for r in requests} == {(0, 1, 2)}
    groups = [group for episode in episodes for group in episode.groups]
    assert {c.origin.sampling for g in groups for c in g.candidates} == {rollout.sampling}
    assert {g.chosen for g in groups} == {0}


def test_trajectories_are_whole_episodes_of_one_candidate(tmp_path):
    rollout = RolloutConfig(instances=2, candidates=3, max_tokens=4, mode="trajectories")
    x = experiment(rollout=rollout, credit=CreditConfig("instance", "mean"), team=Team(alpha=0.0))
    episodes, credited, _ = rolled_out(x, tmp_path)
    assert [(e.instance, e.episode) for e in episodes] == [(i, e) for i in range(2) for e in range(3)]
    assert all(len(g.candidates) == 1 for e in episodes for g in e.groups)
    assert [c.advantages_K.tolist() for c in credited[:6]] == [[0.0]] * 2 + [[-4.0]] * 2 + [[4.0]] * 2


def test_groups_of_older_weights_are_refused(tmp_path):
    def stale(engine, request):
        return [dataclasses.replace(sample, version=3) for sample in fixed(engine, request)]

    with pytest.raises(RunError, match="was drawn by version 3 of policy shared, .* is of version 0"):
        rolled_out(experiment(stale), tmp_path)


def test_evaluations_draw_by_settings_of_their_own(tmp_path):
    """At their own temperature, without the rules that a rollout explores by; each split its instances."""
    rollout = RolloutConfig(instances=1, candidates=2, max_tokens=4, temperature=0.6, top_k=5, top_p=0.8)
    evaluation = EvaluationConfig(temperature=0.3, instances=3, validation_instances=2, every=2)
    x = experiment(honest(), rollout=rollout, evaluation=evaluation, steps=5, checkpoint_every=2, seed=3)
    train(x, RunFolder(tmp_path))
    asked = collections.defaultdict(set)
    (engine,) = x.engine.built
    for request in engine.requests:
        key, sampling = request.addresses[0].group, request.sampling
        asked[key.step, key.split].add(key.instance)
        assert request.addresses[0].seed == 3 and sampling.max_tokens == 4
        if key.split == "train":
            assert sampling == rollout.sampling and len(request.addresses) == 2
        else:
            assert (sampling.temperature, sampling.top_k, sampling.top_p) == (0.3, 0, 1.0)
            assert len(request.addresses) == 1
    scored = {(step, "validation"): {0, 1} for step in (0, 2, 4, 5)}
    scored |= {(step, "test"): {0, 1, 2} for step in (0, 5)}
    assert asked == scored | {(step, "train"): {step - 1} for step in range(1, 6)}
    records = RunFolder(tmp_path).read_metrics()
    assert [r["step"] for r in records] == list(range(6))
    for split, steps in (("validation", [0, 2, 4, 5]), ("test", [0, 5])):
        assert [r["step"] for r in records if f"{split}/success" in r] == steps
    for name in ("0", "4", "5"):  # the newest two that were due, and the start
        assert (tmp_path / "checkpoints" / name).is_dir()


def test_a_split_has_its_own_number_of_instances_in_every_command():
    x = experiment(evaluation=EvaluationConfig(instances=3, validation_instances=2))
    assert [held_out(x, split) for split in ("train", "validation", "test")] == [3, 2, 3]
    assert [held_out(x, split, 4) for split in ("train", "validation", "test")] == [4, 4, 4]


def test_a_score_is_of_the_split_that_it_is_called_by(tmp_path):
    """The validation split is solved, the test split is not, nor is what is trained on."""

    def answer(engine, request):
        text = "9" if request.addresses[0].group.split == "validation" else "10"
        tokens = (*map(ord, text), 0)
        return [Sample(tokens, (-1.0,) * len(tokens), "stop", 0) for _ in request.addresses]

    x = experiment(answer, evaluation=EvaluationConfig(instances=3, validation_instances=2))
    with Stages(x, RunFolder(tmp_path)) as stages:
        stages.begin()
    (record,) = RunFolder(tmp_path).read_metrics()
    assert (record["validation/success"], record["test/success"]) == (1.0, 0.0)


def learned(x, path):
    with Stages(x, RunFolder(path)) as stages:
        team = stages.begin()
        episodes, _ = stages.rollouts.play(1)
        return stages.learner.update(team, stages.credit(team, episodes)[1], 1)[1]


@pytest.mark.thorough
def test_an_engine_whose_logprobs_are_off_stops_the_update(tmp_path):
    with pytest.raises(RunError, match="policy shared: sampler and learner logprobs .* differ by 0.1"):
        learned(experiment(honest(off=0.1)), tmp_path / "off")
    metrics = learned(experiment(honest(off=0.1), max_logprob_gap=0.11), tmp_path / "limit")
    assert of_policy(metrics, "shared", "logprob_gap") == pytest.approx(0.1, abs=1e-4)
    corrected = experiment(honest(off=0.1), loss=LossConfig(minibatches=1, correction=2.0))
    metrics = learned(corrected, tmp_path / "corrected")
    assert of_policy(metrics, "shared", "correction") == pytest.approx(np.exp(-0.1), abs=1e-4)
    np.testing.assert_allclose(of_policy(metrics, "shared", "ratio"), 1.0, rtol=1e-5)


def test_training_is_at_the_temperature_of_the_rollout(tmp_path):
    """An honest engine's logprobs are the learner's, or the gap would stop the step."""
    rollout = RolloutConfig(instances=2, candidates=3, max_tokens=4, temperature=0.5)
    metrics = learned(experiment(honest(), rollout=rollout), tmp_path)
    assert of_policy(metrics, "shared", "logprob_gap") < 1e-5
    np.testing.assert_allclose(of_policy(metrics, "shared", "ratio"), 1.0, rtol=1e-5)


@pytest.mark.thorough
def test_a_resumed_run_keeps_the_reference_that_it_started_with(tmp_path):
    """The KL term is to step 0, not to the step that the run goes on from."""

    def run(path, *until):
        for steps in until:
            x = experiment(
                honest(), steps=steps, checkpoint_every=1, loss=LossConfig(minibatches=1, epochs=2, kl=5.0)
            )
            train(x, RunFolder(path))
        x = dataclasses.replace(x, steps=until[-1])
        with Stages(x, RunFolder(path)) as stages:
            team = stages.begin()
            return jax.device_get(team.policies), RunFolder(path).read_metrics()

    whole, records = run(tmp_path / "whole", 4)
    resumed, again = run(tmp_path / "resumed", 2, 4)
    jax.tree.map(np.testing.assert_array_equal, whole, resumed)
    distances = [of_policy(r, "shared", "kl_start") for r in records[1:]]
    assert distances == [of_policy(r, "shared", "kl_start") for r in again[1:]]
    assert all(distance > 1e-4 for distance in distances)


def test_the_reference_comes_without_its_optimizer(tmp_path, monkeypatch):
    """At a start there is room for one team's optimizers."""
    restored = []
    monkeypatch.setattr(Checkpoints, "restore", lambda *_: restored.append(1))
    x = experiment(honest(), loss=LossConfig(minibatches=1, kl=0.1))
    with Stages(x, RunFolder(tmp_path)) as stages:
        team = stages.begin()
        jax.tree.map(
            np.testing.assert_array_equal, stages.learner.reference["shared"], team.policies["shared"].params
        )
    assert restored == []


def test_without_a_kl_term_there_is_no_reference_to_keep(tmp_path):
    with Stages(experiment(), RunFolder(tmp_path)) as stages:
        stages.begin()
        assert stages.learner.reference == {}


def test_checkpoints_are_kept_as_configured(tmp_path):
    x = experiment(honest(), steps=5, checkpoint_every=2, keep_checkpoints=1)
    train(x, RunFolder(tmp_path))
    checkpoints = Checkpoints(tmp_path / "checkpoints", x.identity(), read_only=True)
    assert checkpoints.latest() == 5
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir() if p.is_dir()) == ["0", "5"]
