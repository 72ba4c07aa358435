"""The stages of a step, one at a time, around an engine that answers by a script."""

import contextlib
import dataclasses

import jax
import numpy as np
import pytest
from fakes import by_path, of_policy
from shared_trainer import experiment, honest

from atgrpo_jax.arrays.trees import Damaged
from atgrpo_jax.common.errors import RunError
from atgrpo_jax.common.finite import NotFinite
from atgrpo_jax.common.hosts import Alone
from atgrpo_jax.rollout.evaluation import EvaluationConfig
from atgrpo_jax.rollout.team import Team
from atgrpo_jax.run import last_step
from atgrpo_jax.run import stages as stages_module
from atgrpo_jax.run.findings import LEAST
from atgrpo_jax.run.folder import RunFolder
from atgrpo_jax.run.loop import one_step, train
from atgrpo_jax.run.report import summarise
from atgrpo_jax.run.stages import Stages

NO_SIGNAL = {"groups/total": 4.0, "groups/signal": 0.0, "groups/too_small": 0.0}


@pytest.fixture
def begun(tmp_path):
    """Opens stages that have begun, and closes them. Returns them and the team of step 0."""
    with contextlib.ExitStack() as opened:

        def make(**changes):
            stages = opened.enter_context(Stages(experiment(honest(), **changes), RunFolder(tmp_path)))
            return stages, stages.begin()

        yield make


def engine_of(stages):
    return stages.experiment.engine.built[-1]


def host(team):
    return jax.device_get({name: state.params for name, state in team.policies.items()})


def equal(one, other):
    return all(jax.tree.leaves(jax.tree.map(np.array_equal, one, other)))


def played(stages, team, step=1):
    episodes, _ = stages.rollouts.play(step)
    _, credited, signal = stages.credit(team, episodes)
    return episodes, credited, signal


def saved(stages):
    return sorted(int(path.name) for path in stages.folder.checkpoints.glob("[0-9]*"))


def test_a_run_begins_with_step_0_which_is_pushed_scored_and_saved(begun):
    stages, _ = begun(evaluation=EvaluationConfig(instances=3, validation_instances=2, every=5))
    assert stages.done == 0 and not stages.unsaved() and saved(stages) == [0]
    assert engine_of(stages).versions == {"shared": 0}
    (record,) = stages.folder.read_metrics()
    assert record["step"] == 0 and {"validation/success", "test/success"} <= record.keys()


def test_a_run_that_validates_on_no_step_does_not_before_the_first_one(begun):
    settings = EvaluationConfig(instances=2, validation_instances=2, every=0)
    stages, _ = begun(evaluation=settings)
    (record,) = stages.folder.read_metrics()
    assert [name for name in record if "/success" in name] == ["test/success"]
    assert {request.addresses[0].group.split for request in engine_of(stages).requests} == {"test"}


def test_a_rollout_changes_no_state_and_gives_groups_of_the_pushed_version(begun):
    stages, team = begun()
    before = host(team)
    episodes, credited, _ = played(stages, team)
    assert len(episodes) == 2 and len(credited) == 4
    assert {c.origin.version for item in credited for c in item.group.candidates} == {0}
    assert equal(before, host(team)) and stages.done == 0


def test_an_update_changes_the_policies_that_have_groups_and_pushes_nothing(begun):
    stages, team = begun(team=Team("full"))
    before = host(team)
    _, credited, _ = played(stages, team)
    of_a = [item for item in credited if item.group.origin.policy == "a"]
    team, metrics = stages.learner.update(team, of_a, 1)
    after = host(team)
    assert not equal(before["a"], after["a"]) and equal(before["b"], after["b"])
    assert (of_policy(metrics, "a", "updates"), of_policy(metrics, "b", "updates")) == (1.0, 0.0)
    assert engine_of(stages).versions == {"a": 0, "b": 0}


def test_frozen_policies_learn_nothing_from_their_groups(begun):
    stages, team = begun(team=Team("full", frozen=("b",)))
    before = host(team)
    _, credited, _ = played(stages, team)
    team, _ = stages.learner.update(team, credited, 1)
    after = host(team)
    assert not equal(before["a"], after["a"]) and equal(before["b"], after["b"])


def test_sync_gives_the_engine_the_team_under_its_version(begun):
    stages, team = begun()
    _, credited, _ = played(stages, team)
    team, _ = stages.learner.update(team, credited, 1)
    stages.sync(team)
    engine = engine_of(stages)
    assert engine.versions == {"shared": 1}
    assert equal(by_path(engine.weights["shared"].params), by_path(team.policies["shared"].params))


def test_the_engine_gives_up_its_arrays_before_the_update_frees_them(begun):
    stages, team = begun()
    before = jax.tree.leaves(team.policies["shared"].params)
    alive = []
    engine_of(stages).release = lambda: alive.append(not any(leaf.is_deleted() for leaf in before))
    one_step(stages, team, 1)
    assert alive == [True] and all(leaf.is_deleted() for leaf in before)


def test_sync_refuses_weights_that_are_not_finite_before_it_pushes(begun):
    stages, team = begun()
    state = team.policies["shared"]
    bad = state._replace(params=jax.tree.map(lambda x: x * np.nan, state.params))
    with pytest.raises(NotFinite, match="policy shared, version 1"):
        stages.sync(team._replace(policies={"shared": bad}, version=1))
    assert engine_of(stages).versions == {"shared": 0}


def test_a_record_is_a_line_and_the_steps_episodes_and_ends_the_step(begun):
    stages, team = begun()
    episodes, credited, signal = played(stages, team)
    record = stages.record(1, team, episodes, credited, signal, {"mine": 2.0})
    assert record["mine"] == 2.0 and stages.done == 1 and stages.unsaved()
    assert [line["step"] for line in stages.folder.read_metrics()] == [0, 1]
    assert [len(episode["groups"]) for episode in stages.folder.read_episodes(1)] == [2, 2]


def test_a_record_has_the_ledger_of_the_step_and_the_summary_what_is_wrong(begun):
    """All candidates of both roles always say the same three things, so a shared gradient is one half's."""
    stages, team = begun(steps=LEAST)
    episodes, credited, _ = played(stages, team)
    for step in range(1, LEAST + 1):
        record = stages.record(step, team, episodes, credited, NO_SIGNAL)
    assert record["role/a/gradient_share"] == record["role/b/gradient_share"] == 0.5
    assert record["role/b/repeats/a"] == 1.0 and "role/a/first/groups" not in record
    summary = summarise(stages.experiment, stages.folder)
    assert list(summary["findings"]) == ["no_signal", "copy/b"]


def test_what_is_not_finite_is_not_recorded(begun):
    stages, team = begun()
    episodes, credited, _ = played(stages, team)
    with pytest.raises(NotFinite, match="step 1, metrics.*mine"):
        stages.record(1, team, episodes, credited, {"mine": float("nan")})
    assert len(stages.folder.read_metrics()) == 1 and stages.done == 0


def test_the_team_is_scored_when_that_is_due(begun):
    """By validation instances at every second step and after the last one; then by test instances, too."""
    settings = EvaluationConfig(instances=3, validation_instances=2, every=2)
    stages, team = begun(steps=3, evaluation=settings)
    scored = []
    for step in (1, 2, 3):
        episodes, credited, _ = played(stages, team, step)
        record = stages.record(step, team, episodes, credited)
        scored.append([split for split in ("validation", "test") if f"{split}/success" in record])
    assert scored == [[], ["validation"], ["validation", "test"]]


def test_checkpoints_are_saved_when_they_are_due(begun):
    stages, team = begun(steps=5, checkpoint_every=2, keep_checkpoints=3)
    for step in range(1, 6):
        stages.checkpoint(step, team)
    assert saved(stages) == [0, 2, 4, 5]


def test_a_stop_saves_the_last_complete_step_once_and_says_so(begun):
    stages, team = begun(steps=5, checkpoint_every=5)
    assert stages.where().startswith("stopped after step 0, which is saved")
    episodes, credited, _ = played(stages, team)
    stages.record(1, team, episodes, credited)
    stages.checkpoint(1, team)
    assert saved(stages) == [0]
    for _ in range(2):
        stages.checkpoint_now()
        assert saved(stages) == [0, 1] and not stages.unsaved()
    assert stages.where().startswith("stopped after step 1, which is saved")


def test_curves_are_drawn_at_each_validation_in_between_and_after_a_stop(begun):
    settings = EvaluationConfig(instances=3, validation_instances=2, every=2)
    stages, team = begun(steps=3, evaluation=settings)
    drawn = []
    for step in (0, 1, 2):
        if step:
            episodes, credited, _ = played(stages, team, step)
            stages.record(step, team, episodes, credited)
        drawn.append(stages.folder.curves.exists())
        stages.folder.curves.unlink(missing_ok=True)
    assert drawn == [False, False, True]  # one point is no curve
    stages.checkpoint_now()
    assert stages.folder.curves.exists()


def test_a_step_that_is_saved_is_gone_on_from(tmp_path):
    x = experiment(honest(), checkpoint_every=1)
    with Stages(x, RunFolder(tmp_path)) as stages:
        team, _ = one_step(stages, stages.begin(), 1)
        learned = host(team)
    with Stages(x, RunFolder(tmp_path)) as stages:
        team = stages.begin()
        assert stages.done == 1 and equal(learned, host(team))
        assert engine_of(stages).versions == {"shared": 1}


def left_by(folder):
    """Records, episodes and weights of a run, but for how long it took."""
    records = [{k: v for k, v in r.items() if not k.startswith("perf/")} for r in folder.read_metrics()]
    files = {path.name: path.read_bytes() for path in folder.episodes.iterdir()}
    return records, files


def test_a_run_that_is_to_end_where_it_is_makes_its_last_step_again(tmp_path):
    """It leaves what a run leaves that had these steps from the start, and keeps what was saved before.

    A step draws 2 x 2 groups of 3 + 3 + 2 tokens. The last test has the logprobs of the last weights.
    """
    settings = EvaluationConfig(instances=1, validation_instances=1, every=2)
    x = experiment(honest(), steps=9, checkpoint_every=2, evaluation=settings)
    folder, other = RunFolder(tmp_path / "one"), RunFolder(tmp_path / "other")
    with Stages(x, folder) as stages:
        team = stages.begin()
        while stages.done < 3:
            team, _ = one_step(stages, team, stages.done + 1)
        stages.checkpoint_now()
        before = (folder.checkpoints / "3" / "saved.json").read_bytes()
    for ends, missed in (
        ({"steps": 3}, True),
        ({"steps": 4}, False),
        ({"tokens": 96}, True),
        ({"tokens": 97}, False),
    ):
        assert last_step.is_missed(dataclasses.replace(x, **ends), folder, 3) is missed
    ended = dataclasses.replace(x, steps=3)
    assert train(ended, folder)["steps"] == 3
    train(ended, other)
    assert left_by(folder) == left_by(other)
    assert (folder.checkpoints / "3.not_last" / "saved.json").read_bytes() == before
    assert not last_step.is_missed(ended, folder, 3)


def test_a_step_is_made_again_only_if_that_is_cheap_and_gives_the_same(tmp_path, monkeypatch):
    folder = RunFolder(tmp_path)
    x = experiment(checkpoint_every=2)
    for step in (0, 3, 5):
        (folder.checkpoints / str(step)).mkdir(parents=True)

    def damaged(path):
        raise Damaged("a file is missing")

    monkeypatch.setattr(last_step.trees, "about_tree", lambda path: None)
    assert last_step.step_before(x, folder, 5) == 3
    assert last_step.step_before(dataclasses.replace(x, checkpoint_every=1), folder, 5) is None
    for file in (folder.changes, folder.shapes):
        file.write_text('{"after_step": 3}\n')
        assert last_step.step_before(x, folder, 5) == 3
        file.write_text('{"after_step": 4}\n')
        assert last_step.step_before(x, folder, 5) is None
        file.unlink()
    monkeypatch.setattr(last_step.trees, "about_tree", damaged)
    assert last_step.step_before(x, folder, 5) is None


def test_a_step_says_what_each_stage_took(begun):
    stages, team = begun()
    _, record = one_step(stages, team, 1)
    seconds = [record[f"perf/{stage}_s"] for stage in ("rollout", "update", "sync")]
    assert all(each > 0 for each in seconds) and sum(seconds) <= record["perf/step_s"]


def test_a_start_that_fails_closes_what_was_opened(tmp_path, monkeypatch):
    def refused(*_):
        raise RunError("no gate today")

    monkeypatch.setattr(stages_module, "Gate", refused)  # it is made after the engine
    x = experiment(honest())
    with pytest.raises(RunError, match="no gate today"):
        Stages(x, RunFolder(tmp_path))
    assert x.engine.built[-1].closed


class Noted(Alone):
    """Notes the names of meetings, and whether a stop may end their work at the cost of a step."""

    def __init__(self):
        super().__init__()
        self.noted = {}

    def meet(self, name, work, stops=False):
        self.noted[name] = stops
        return super().meet(name, work, stops)


def test_a_stop_may_end_a_rollout_and_nothing_else_of_a_step(tmp_path):
    hosts = Noted()
    x = experiment(honest(), evaluation=EvaluationConfig(instances=2, validation_instances=2, every=1))
    with Stages(x, RunFolder(tmp_path), hosts) as stages:
        team = stages.begin()
        hosts.noted.clear()
        one_step(stages, team, 1)
    assert hosts.noted["train rollout of step 1"] and not hosts.noted["validation rollout of step 1"]
    assert [name for name, stops in hosts.noted.items() if stops] == ["train rollout of step 1"]


def test_what_a_host_alone_does_may_be_stopped_while_nothing_is_unsaved():
    """As ``Hosts.meet`` says: ``stops`` counts only if complete steps would be lost."""
    entered = []

    class Stop:
        @contextlib.contextmanager
        def interruptible(self):
            entered.append(1)
            yield

    unsaved = True
    hosts = Alone()
    hosts.heed(Stop(), lambda: unsaved)
    hosts.meet("gate", lambda: None)
    assert not entered
    hosts.meet("rollout", lambda: None, stops=True)
    unsaved = False
    hosts.meet("gate", lambda: None)
    assert len(entered) == 2


def test_a_folder_stays_as_it_is_if_the_newest_checkpoint_cannot_be_restored(begun, monkeypatch):
    stages, _ = begun()
    stages.folder.metrics.write_text(stages.folder.metrics.read_text() + '{"step": 1}\n')
    before = stages.folder.metrics.read_bytes()
    monkeypatch.setattr(stages.learner, "restore", lambda *_: (_ for _ in ()).throw(RunError("no")))
    with pytest.raises(RunError, match="no"):
        stages.begin()
    assert stages.folder.metrics.read_bytes() == before
