"""The trainer's stages, one at a time, around an engine that answers by a script."""

import contextlib

import jax
import numpy as np
import pytest
from fakes import by_path, of_policy, quickly_compiled  # noqa: F401
from shared_trainer import experiment, honest

from atgrpo_jax.common.finite import NotFinite
from atgrpo_jax.rollout.evaluation import EvaluationConfig
from atgrpo_jax.rollout.team import Team
from atgrpo_jax.run.folder import RunFolder
from atgrpo_jax.run.trainer import Trainer


@pytest.fixture
def begun(tmp_path):
    """Makes a trainer that has begun, and closes it."""
    with contextlib.ExitStack() as opened:

        def make(**changes):
            trainer = opened.enter_context(Trainer(experiment(honest(), **changes), RunFolder(tmp_path)))
            trainer.begin()
            return trainer

        yield make


def engine_of(trainer):
    return trainer.experiment.engine.built[-1]


def host(states):
    return jax.device_get({name: state.params for name, state in states.items()})


def equal(one, other):
    return all(jax.tree.leaves(jax.tree.map(np.array_equal, one, other)))


def played(trainer, step=1):
    episodes = trainer.rollout(step)
    credited, signal = trainer.credit(step, episodes)
    return episodes, credited, signal


def saved(trainer):
    return sorted(int(path.name) for path in trainer.folder.checkpoints.glob("[0-9]*"))


def test_a_run_begins_with_step_0_which_is_pushed_scored_and_saved(begun):
    trainer = begun()
    assert trainer.done == 0 and not trainer.unsaved() and saved(trainer) == [0]
    assert engine_of(trainer).versions == {"shared": 0}
    (record,) = trainer.folder.read_metrics()
    assert record["step"] == 0 and {"validation/success", "test/success"} <= record.keys()


def test_a_rollout_changes_no_state_and_gives_groups_of_the_pushed_version(begun):
    trainer = begun()
    before = host(trainer.states)
    episodes, credited, _ = played(trainer)
    assert len(episodes) == 2 and len(credited) == 4
    assert {c.origin.version for item in credited for c in item.group.candidates} == {0}
    assert equal(before, host(trainer.states)) and trainer.done == 0


def test_learning_updates_the_policies_that_have_groups_and_pushes_nothing(begun):
    trainer = begun(team=Team("full"))
    before = host(trainer.states)
    _, credited, _ = played(trainer)
    of_a = [item for item in credited if item.group.origin.policy == "a"]
    metrics = trainer.learn(1, of_a)
    after = host(trainer.states)
    assert not equal(before["a"], after["a"]) and equal(before["b"], after["b"])
    assert (of_policy(metrics, "a", "updates"), of_policy(metrics, "b", "updates")) == (1.0, 0.0)
    assert engine_of(trainer).versions == {"a": 0, "b": 0}


def test_frozen_policies_learn_nothing_from_their_groups(begun):
    trainer = begun(team=Team("full", frozen=("b",)))
    before = host(trainer.states)
    _, credited, _ = played(trainer)
    trainer.learn(1, credited)
    after = host(trainer.states)
    assert not equal(before["a"], after["a"]) and equal(before["b"], after["b"])


def test_sync_gives_the_engine_the_states_under_the_steps_number(begun):
    trainer = begun()
    _, credited, _ = played(trainer)
    trainer.learn(1, credited)
    trainer.sync(1)
    engine = engine_of(trainer)
    assert engine.versions == {"shared": 1}
    assert equal(by_path(engine.weights["shared"].params), by_path(trainer.states["shared"].params))


def test_sync_refuses_weights_that_are_not_finite_before_it_pushes(begun):
    trainer = begun()
    state = trainer.states["shared"]
    trainer.states["shared"] = state._replace(params=jax.tree.map(lambda x: x * np.nan, state.params))
    with pytest.raises(NotFinite, match="policy shared, version 1"):
        trainer.sync(1)
    assert engine_of(trainer).versions == {"shared": 0}


def test_a_record_is_a_line_and_the_steps_episodes_and_ends_the_step(begun):
    trainer = begun()
    episodes, credited, signal = played(trainer)
    record = trainer.record(1, episodes, credited, signal, {"mine": 2.0})
    assert record["mine"] == 2.0 and trainer.done == 1 and trainer.unsaved()
    assert [line["step"] for line in trainer.folder.read_metrics()] == [0, 1]
    assert len(list(trainer.folder.read_episodes(1))) == 4


def test_what_is_not_finite_is_not_recorded(begun):
    trainer = begun()
    episodes, credited, _ = played(trainer)
    with pytest.raises(NotFinite, match="step 1, metrics.*mine"):
        trainer.record(1, episodes, credited, {"mine": float("nan")})
    assert len(trainer.folder.read_metrics()) == 1 and trainer.done == 0


def test_the_team_is_scored_when_that_is_due(begun):
    """By validation instances at every second step and after the last one; then by test instances, too."""
    trainer = begun(steps=3, evaluation=EvaluationConfig(instances=3, validation_instances=2, every=2))
    scored = []
    for step in (1, 2, 3):
        episodes, credited, _ = played(trainer, step)
        trainer.sync(step)
        record = trainer.record(step, episodes, credited)
        scored.append([split for split in ("validation", "test") if f"{split}/success" in record])
    assert scored == [[], ["validation"], ["validation", "test"]]


def test_checkpoints_are_saved_when_they_are_due(begun):
    trainer = begun(steps=5, checkpoint_every=2, keep_checkpoints=3)
    for step in range(1, 6):
        trainer.checkpoint(step)
    assert saved(trainer) == [0, 2, 4, 5]


def test_a_stop_saves_the_last_complete_step_once_and_says_so(begun):
    trainer = begun(steps=5, checkpoint_every=5)
    assert trainer.where().startswith("stopped after step 0, which is saved")
    episodes, credited, _ = played(trainer)
    trainer.record(1, episodes, credited)
    trainer.checkpoint(1)
    assert saved(trainer) == [0]
    for _ in range(2):
        trainer.checkpoint_now()
        assert saved(trainer) == [0, 1] and not trainer.unsaved()
    assert trainer.where().startswith("stopped after step 1, which is saved")


def test_a_step_that_is_saved_is_gone_on_from(tmp_path):
    x = experiment(honest(), checkpoint_every=1)
    with Trainer(x, RunFolder(tmp_path)) as trainer:
        trainer.begin()
        episodes, credited, _ = played(trainer)
        trainer.learn(1, credited)
        trainer.record(1, episodes, credited)
        trainer.checkpoint(1)
        learned = host(trainer.states)
    with Trainer(x, RunFolder(tmp_path)) as trainer:
        trainer.begin()
        assert trainer.done == 1 and equal(learned, host(trainer.states))
        assert engine_of(trainer).versions == {"shared": 1}
