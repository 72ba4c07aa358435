"""Checkpoints that are kept, runs that begin from other runs, and settings that change on the way.

Most runs here are made without training: a folder gets its config and checkpoints, and no engine draws.
"""

import dataclasses
import importlib
import itertools
import json
import os
import shlex
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from shared_hosts import HERE, LENGTHS, ended, start
from shared_trainer import experiment, honest

from atgrpo_jax.arrays import trees
from atgrpo_jax.common.errors import ConfigError, RunError
from atgrpo_jax.common.files import read_json_lines
from atgrpo_jax.common.types import Sample
from atgrpo_jax.models.lora import merge
from atgrpo_jax.replaying.again import Again
from atgrpo_jax.replaying.teams import Teams
from atgrpo_jax.rollout.evaluation import EvaluationConfig
from atgrpo_jax.run import changes, checkpoint, origin
from atgrpo_jax.run.changes import experiment_at
from atgrpo_jax.run.checkpoint import Checkpoints
from atgrpo_jax.run.experiment import experiment_difference
from atgrpo_jax.run.folder import RunFolder
from atgrpo_jax.run.found import FoundRun
from atgrpo_jax.run.gin_config import load, render
from atgrpo_jax.run.keeping import best_of
from atgrpo_jax.run.kept_source import make_importable
from atgrpo_jax.run.loop import train
from atgrpo_jax.run.nodes import Node
from atgrpo_jax.run.run_dirs import config_of, default_run_dir
from atgrpo_jax.run.saved import SavedRun, claim
from atgrpo_jax.run.stages import Stages
from atgrpo_jax.run.starts import Asked
from atgrpo_jax.run.team_learner import TeamLearner

SMALL = (
    "config.Architecture.layers = 1",
    "config.Architecture.width = 8",
    "config.Architecture.mlp_width = 8",
    "config.Architecture.heads = 1",
    "config.Architecture.kv_heads = 1",
    "config.Architecture.head_size = 8",
    "experiment.Experiment.warm_start = None",
    "experiment.Experiment.steps = 4",
)
SHARING = "team.Team.sharing = "


def given(*bindings):
    return load("smoke.gin", [*SMALL, *bindings])


def made(path, *bindings, steps=(0, 4), seed=1):
    """A run of ``seed`` with checkpoints of these steps, all of other weights. Returns its folder."""
    folder = RunFolder(path)
    with claim(folder, given(f"experiment.Experiment.seed = {seed}", *bindings)) as x:
        learner = TeamLearner(x)
        team = learner.initial()
        checkpoints = Checkpoints(folder.checkpoints, x.identity(), keep=9)
        for step in steps:
            moved = jax.tree.map(
                lambda leaf, step=step: leaf + jnp.asarray(step / 8, leaf.dtype), dict(team.policies)
            )
            checkpoints.save(step, moved, team.base, step)
    records = [{"step": step} for step in range(max(steps, default=-1) + 1)]
    for record in records[-1:]:
        record["test/success"] = 0.5
    folder.metrics.write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def begun(folder, x, runs, steps=None):
    """The team with which a fork begins: as ``Stages.begin`` makes it, without an engine."""
    with claim(folder, x, asked=Asked.parse(runs, steps)) as fork:
        learner = TeamLearner(fork)
        return fork, learner.initial(None, origin.load(folder, fork, learner))


def params(team, policy):
    return jax.device_get(team.policies[policy].params)


def same(one, other):
    return jax.tree.structure(one) == jax.tree.structure(other) and all(
        jax.tree.leaves(jax.tree.map(np.array_equal, one, other))
    )


# Checkpoints that are kept.

SCORES = {0: 1, 1: 0, 2: 3, 3: 1, 4: 3, 5: 2, 6: 0, 7: 1}  # solved validation instances, of 4, by step


def scripted(engine, request):
    """Evaluations come out as SCORES says; the training's answers are those of ``honest``."""
    if request.addresses[0].group.split == "train":
        return honest()(engine, request)
    samples = []
    for address in request.addresses:
        key = address.group
        text = "9" if key.split == "validation" and key.instance < SCORES[key.step] else "10"
        tokens = (*map(ord, text), 0)
        version = engine.versions.get(request.policy, 0)
        samples.append(Sample(tokens, (-1.0,) * len(tokens), "stop", version))
    return samples


def scored(**changes):
    settings = {"steps": 7, "checkpoint_every": 3, "keep_checkpoints": 1, "keep_best": True} | changes
    evaluation = EvaluationConfig(instances=1, validation_instances=4, every=1)
    return experiment(scripted, evaluation=evaluation, **settings)


def kept(folder):
    return sorted(int(path.name) for path in folder.checkpoints.iterdir() if path.name.isdigit())


def test_the_earliest_of_the_best_scored_steps_with_a_checkpoint_is_the_best():
    records = [{"step": step, "validation/success": score / 4} for step, score in SCORES.items()]
    assert best_of(records, SCORES) == (2, 0.75)
    assert best_of(records, (0, 3, 4, 7)) == (4, 0.75)
    assert best_of([{"step": 0}, *records[1:]], (0,)) is None


def test_the_best_checkpoint_stays_though_its_step_is_none_of_a_checkpoint(tmp_path):
    folder = RunFolder(tmp_path)
    train(scored(), folder)
    assert kept(folder) == [0, 2, 7]
    assert json.loads(folder.best.read_text()) == {"step": 2, "validation/success": 0.75}
    x = scored()
    checkpoints = Checkpoints(folder.checkpoints, x.identity(), read_only=True)
    assert checkpoints.restore(2, TeamLearner(x).shapes)[1] == 2  # whole, and of that step


def test_the_best_needs_scores():
    with pytest.raises(ValueError, match="Experiment.keep_best = True: nothing is scored on the way"):
        experiment(honest(), keep_best=True)


@pytest.mark.thorough
@pytest.mark.long
def test_every_so_many_steps_one_stays_and_nothing_is_kept_unasked(tmp_path):
    folder = RunFolder(tmp_path / "some")
    train(scored(keep_best=False, keep_every=2), folder)  # 2 and 4 are no multiples of 3
    assert kept(folder) == [0, 2, 4, 6, 7] and not folder.best.exists()
    train(scored(keep_best=False, steps=7), RunFolder(tmp_path / "none"))
    assert kept(RunFolder(tmp_path / "none")) == [0, 7]


class Killed(BaseException):
    pass


@pytest.mark.long
def test_a_run_that_was_killed_keeps_the_same_ones(tmp_path, monkeypatch):
    """Killed whenever it saves or removes a second checkpoint: each time it gets one call further."""
    left = 0

    def dying(real):
        def call(*args, **kwargs):
            nonlocal left
            left -= 1
            if left < 0:
                raise Killed
            return real(*args, **kwargs)

        return call

    for name in ("write_tree", "remove_tree"):
        monkeypatch.setattr(checkpoint.trees, name, dying(getattr(trees, name)))
    folder = RunFolder(tmp_path)
    deaths = 0
    while True:
        left = 1
        try:
            train(scored(), folder)
            break
        except Killed:
            deaths += 1
    # Before 2, 3, 6 and 7 are written, and before 3 and 6 are removed.
    assert deaths == 6 and kept(folder) == [0, 2, 7]
    assert json.loads(folder.best.read_text())["step"] == 2


@pytest.mark.thorough
@pytest.mark.long
def test_what_is_kept_may_change_when_a_run_goes_on(tmp_path):
    x = scored(keep_best=False)
    assert x.identity() == scored(keep_every=5).identity()
    train(dataclasses.replace(x, steps=4), RunFolder(tmp_path))
    assert kept(RunFolder(tmp_path)) == [0, 4]  # step 2 is lost, so the best that there is counts
    train(scored(), RunFolder(tmp_path))
    assert kept(RunFolder(tmp_path)) == [0, 4, 7]
    train(scored(keep_best=False), RunFolder(tmp_path))
    assert kept(RunFolder(tmp_path)) == [0, 7] and not RunFolder(tmp_path).best.exists()


def test_the_same_ones_are_kept_in_a_bucket(bucket):
    folder = RunFolder(bucket)
    train(scored(steps=3), folder)
    there = Checkpoints(folder.checkpoints, scored().identity(), read_only=True)
    assert there.steps() == [0, 2, 3] and json.loads(folder.best.read_text())["step"] == 2


def test_a_person_names_the_best_step(tmp_path, capsys):
    folder = made(tmp_path / "a", steps=(0, 2, 4))
    run = FoundRun(folder.path)
    with pytest.raises(RunError, match="has no checkpoint with a validation score"):
        run.step_of("best")
    lines = [{"step": 0}, {"step": 1, "validation/success": 1}, {"step": 2, "validation/success": 0.5}]
    folder.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert [run.step_of(text) for text in (None, "0", "best")] == [4, 0, 2]
    assert "step 2 has the best validation success of the checkpoints there: 50.0%" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="step 'bes': it is a step of that run, so a number, or best"):
        run.step_of("bes")


# Forks.


def test_a_fork_has_the_weights_of_its_origin_and_a_fresh_optimizer(tmp_path):
    a = made(tmp_path / "a")
    warm = "experiment.Experiment.warm_start = @warm_start.WarmStartConfig()"
    x, team = begun(RunFolder(tmp_path / "b"), given(warm), str(a.path))
    theirs = SavedRun(a.path).team(4)
    assert same(params(team, "shared"), params(theirs, "shared"))
    assert not same(params(team, "shared"), params(SavedRun(a.path).team(0), "shared"))
    assert not any(
        np.any(leaf) for leaf in jax.tree.leaves(jax.device_get(team.policies["shared"].opt_state))
    )
    assert team.version == 0 and x.warm_start is None
    found = json.loads((tmp_path / "b" / "origin.json").read_text())
    digest = FoundRun(a.path).checkpoints.digest(4)
    assert found["starts"]["shared"] == {
        "run": str(a.path), "step": 4, "checkpoint": digest, "policy": "shared", "takes": "weights",
    }  # fmt: skip
    assert x.origin == found["digest"] == FoundRun(tmp_path / "b").experiment.origin


def test_a_fork_is_known_by_what_it_began_from_and_not_by_where_that_lies(tmp_path):
    a = made(tmp_path / "a").path
    shutil.copytree(a, tmp_path / "copied")
    one, _ = begun(RunFolder(tmp_path / "1"), given(), str(a))
    two, _ = begun(RunFolder(tmp_path / "2"), given(), str(tmp_path / "copied"), "4")
    other, _ = begun(RunFolder(tmp_path / "3"), given(), str(a), "0")
    assert one.identity() == two.identity() != other.identity()
    assert given().identity() not in (one.identity(), other.identity())
    assert "Experiment.origin = " in experiment_difference(one, other)


def test_a_resume_needs_neither_from_nor_the_origin(tmp_path):
    a = made(tmp_path / "a").path
    folder = RunFolder(tmp_path / "b")
    x, _ = begun(folder, given(), str(a))
    shutil.rmtree(a)
    asked = Asked.parse(str(a), None)
    with claim(folder, given("experiment.Experiment.warm_start = @warm_start.WarmStartConfig()")) as again:
        assert again == x
    with claim(folder, given(), asked=asked) as again:  # the same command
        assert again == x
    with pytest.raises(RunError, match="began from another one; give another --run_dir, or no --from"):
        claim(folder, given(), asked=Asked.parse(str(a), "0")).__enter__()
    with pytest.raises(RunError, match=r"has no checkpoint of its own yet.*: .*a holds no run"):
        origin.load(folder, x, TeamLearner(x))


def test_a_fork_that_has_not_begun_yet_refuses_another_checkpoint(tmp_path):
    a = made(tmp_path / "a").path
    x, _ = begun(RunFolder(tmp_path / "b"), given(), str(a))
    shutil.rmtree(a)
    made(tmp_path / "a", seed=2)
    with pytest.raises(RunError, match="checkpoint 4 in .*a is another one now"):
        origin.load(RunFolder(tmp_path / "b"), x, TeamLearner(x))


def test_a_run_that_is_no_fork_does_not_become_one(tmp_path):
    a, b = (made(tmp_path / name) for name in "ab")
    with pytest.raises(RunError, match="holds a run that did not begin from another one"):
        claim(b, given("experiment.Experiment.seed = 1"), asked=Asked.parse(str(a.path), None)).__enter__()
    begun(RunFolder(tmp_path / "fork"), given(), str(a.path))
    copied = load(str(tmp_path / "fork" / "config.gin"))
    with pytest.raises(ConfigError, match="config is that of a fork .* --from=RUN"):
        claim(RunFolder(tmp_path / "new"), copied).__enter__()


def test_a_fork_that_was_killed_before_it_had_a_config_begins_again(tmp_path):
    a = made(tmp_path / "a").path
    folder = RunFolder(tmp_path / "b")
    begun(folder, given(), str(a))
    folder.config.unlink()
    other, _ = begun(folder, given(), str(a), "0")
    assert other.origin == json.loads(folder.origin.read_text())["digest"]
    folder.config.unlink()
    with claim(folder, given()) as x:
        assert x.origin is None and not folder.origin.exists()


def test_the_base_is_that_of_the_checkpoint(tmp_path):
    lora = SHARING + "'lora'"
    a, b = made(tmp_path / "a", lora), made(tmp_path / "b", lora, seed=2)
    shutil.rmtree(a.path / "base")
    shutil.copytree(b.path / "base", a.path / "base")
    with pytest.raises(RunError, match="belongs to another base"):
        begun(RunFolder(tmp_path / "c"), given(lora), str(a.path))


def test_a_class_that_a_notebook_defined_comes_along(tmp_path):
    source = "from atgrpo_jax.tasks.games.plan_path import PlanPath\n\nclass Own(PlanPath): ...\n"
    (tmp_path / "a" / "code").mkdir(parents=True)
    (tmp_path / "a" / "code" / "kept_0f0f0f0f.py").write_text(source)
    make_importable(tmp_path / "a" / "code")
    x = given("experiment.Experiment.task = @plan_path.PlanPath()")
    own = importlib.import_module("kept_0f0f0f0f").Own
    task = own(**{f.name: getattr(x.task, f.name) for f in dataclasses.fields(x.task) if f.init})
    with claim(RunFolder(tmp_path / "b"), dataclasses.replace(x, task=task)):
        pass
    assert (tmp_path / "b" / "code" / "kept_0f0f0f0f.py").read_text() == source


def test_each_role_starts_from_the_policy_that_they_shared(tmp_path):
    a = made(tmp_path / "a")
    x, team = begun(RunFolder(tmp_path / "b"), given(SHARING + "'full'"), str(a.path))
    theirs = params(SavedRun(a.path).team(4), "shared")
    assert x.policies == ("mover", "scout")
    assert same(params(team, "mover"), theirs) and same(params(team, "scout"), theirs)


def test_roles_start_from_runs_of_their_own(tmp_path):
    a = made(tmp_path / "a", SHARING + "'full'")
    b = made(tmp_path / "b", seed=2)
    x = given(SHARING + "'full'")
    runs = f"mover={a.path},scout={b.path}"
    _, team = begun(RunFolder(tmp_path / "c"), x, runs, "mover=0")
    assert same(params(team, "mover"), params(SavedRun(a.path).team(0), "mover"))
    assert same(params(team, "scout"), params(SavedRun(b.path).team(4), "shared"))
    _, team = begun(RunFolder(tmp_path / "d"), given(), f"mover={a.path}")  # for the policy of both
    assert same(params(team, "shared"), params(SavedRun(a.path).team(4), "mover"))


def test_adapters_go_on_on_their_base(tmp_path):
    lora = SHARING + "'lora'"
    a = made(tmp_path / "a", lora)
    _, team = begun(RunFolder(tmp_path / "b"), given(lora), str(a.path))
    theirs = SavedRun(a.path).team(4)
    assert same(jax.device_get(team.base), jax.device_get(theirs.base))
    assert all(same(params(team, name), params(theirs, name)) for name in ("mover", "scout"))


def test_a_shared_policy_becomes_the_base_of_fresh_adapters(tmp_path):
    a = made(tmp_path / "a")
    x, team = begun(RunFolder(tmp_path / "b"), given(SHARING + "'lora'"), str(a.path))
    theirs = params(SavedRun(a.path).team(4), "shared")
    assert same(jax.device_get(team.base), theirs)
    assert same(jax.device_get(TeamLearner(x).weights(team)["mover"].params), theirs)
    _, team = begun(RunFolder(tmp_path / "c"), given(SHARING + "'lora'"), f"base={a.path}")
    assert same(jax.device_get(team.base), theirs)


def test_an_adapter_is_merged_into_a_whole_policy(tmp_path):
    a = made(tmp_path / "a", SHARING + "'lora'")
    x, team = begun(RunFolder(tmp_path / "b"), given(SHARING + "'full'"), str(a.path))
    theirs = SavedRun(a.path).team(4)
    merged = merge(theirs.base, theirs.policies["scout"].params, x.lora.scale)
    for own, other in zip(jax.tree.leaves(params(team, "scout")), jax.tree.leaves(merged), strict=True):
        np.testing.assert_allclose(own, other, rtol=1e-6)
    assert not same(params(team, "scout"), jax.device_get(theirs.base))


def test_adapters_of_two_runs_meet_on_one_base_only_if_it_is_the_same(tmp_path):
    lora = SHARING + "'lora'"
    a, b, c = (
        made(tmp_path / n, lora, seed=s, steps=(t,)) for n, s, t in (("a", 1, 0), ("b", 1, 4), ("c", 2, 4))
    )
    _, team = begun(RunFolder(tmp_path / "d"), given(lora), f"mover={a.path},scout={b.path}")
    assert same(params(team, "scout"), params(SavedRun(b.path).team(4), "scout"))
    with pytest.raises(
        RunError, match="c are on other weights than those of .*a, so they cannot be on one base"
    ):
        begun(RunFolder(tmp_path / "e"), given(lora), f"mover={a.path},scout={c.path}")


def test_what_does_not_fit_is_one_line(tmp_path):
    a = made(tmp_path / "a")
    full = made(tmp_path / "full", SHARING + "'full'")
    adapted = made(tmp_path / "adapted", SHARING + "'lora'", "lora.LoraConfig.rank = 4")
    roles, lora = given(SHARING + "'full'"), given(SHARING + "'lora'")
    for x, runs, says in (
        (given("config.Architecture.layers = 2"), a, "shared .* Architecture.layers = 1 there, 2 given"),
        (
            given("config.Compute.param_dtype = 'bfloat16'"),
            a,
            "Compute.param_dtype = 'float32' there, 'bfloat16'",
        ),
        (given("config.Architecture.rope_theta = 7.0"), a, "Architecture.rope_theta"),
        (given("tokens.TinyTokenizer.words = ('a',)"), a, "Architecture.vocab_size"),
        (given(), full, r"shared .* several policies \(mover, scout\) .*--from=ROLE="),
        (
            lora,
            full,
            "mover and scout would bring different ones; name one policy alone, as in --from=mover=RUN",
        ),
        (lora, adapted, "policy mover cannot start from an adapter .*LoraConfig.rank = 4 there, 16 given"),
        (roles, f"mover={a.path}", "says nothing of scout, which has no model folder .*--from=...,scout=RUN"),
        (roles, f"movr={a.path}", "there is no policy or role movr; there are mover, scout$"),
        (given(), f"mover={a.path},scout={a.path}", "mover and scout are both of policy shared"),
        (given(), f"mover={a.path},", "expected one value, or NAME=VALUE"),
        (given(), tmp_path / "none", "none holds no run"),
    ):
        runs = str(getattr(runs, "path", runs))
        with pytest.raises((ConfigError, RunError), match=says) as caught:
            begun(RunFolder(tmp_path / "new"), x, runs)
        assert "\n" not in str(caught.value) and not RunFolder(tmp_path / "new").exists()
    with pytest.raises(RunError, match=r"there is no checkpoint 3 in .* \(steps: 0, 4\)"):
        begun(RunFolder(tmp_path / "new"), given(), str(a.path), "3")
    with pytest.raises(ConfigError, match="--from_step=scout=3: --from names no scout"):
        Asked.parse(f"mover={a.path}", "scout=3")


def test_a_fork_and_its_origin_may_be_in_buckets(bucket, tmp_path):
    a = made(bucket / "a", SHARING + "'lora'")
    _, team = begun(RunFolder(bucket / "b"), given(SHARING + "'lora'"), str(a.path))
    assert same(params(team, "mover"), params(SavedRun(a.path).team(4), "mover"))
    _, there = begun(RunFolder(tmp_path / "c"), given(SHARING + "'full'"), str(a.path))
    assert not same(params(there, "mover"), params(there, "scout"))


def test_stages_begin_a_fork_with_its_origins_weights_and_keep_them_as_step_0(tmp_path, monkeypatch):
    """All but the weights is as in any run: they are scored, pushed and saved."""
    x = experiment(honest(), origin="digest")
    learned = TeamLearner(x).initial()
    moved = jax.tree.map(lambda leaf: leaf + 1, learned.policies["shared"].params)
    asked = []

    def loaded(*given):
        asked.append(given)
        return origin.Given({"shared": jax.tree.map(lambda leaf: leaf + 0, moved)}, {})

    monkeypatch.setattr(origin, "load", loaded)
    for _ in range(2):  # the second one goes on from step 0
        with Stages(x, RunFolder(tmp_path)) as stages:
            assert same(params(stages.begin(), "shared"), jax.device_get(moved))
    assert len(asked) == 1


# Changes.


def changed(folder, *bindings):
    with claim(folder, load(str(folder.config), bindings), change=True) as x:
        return x


def test_a_change_is_recorded_and_earlier_settings_are_found(tmp_path):
    folder = made(tmp_path / "a", steps=(0, 2))
    first = load(str(folder.config))
    rate = "optimizer.OptimizerConfig.learning_rate = 0.5"
    with pytest.raises(
        RunError, match=r"learning_rate = .* there, 0.5 given\); .* or --change to go on with this"
    ):
        claim(folder, load(str(folder.config), [rate])).__enter__()
    second = changed(folder, rate, "rollout.RolloutConfig.candidates = 3")
    (line,) = read_json_lines(folder.changes)
    assert line["after_step"] == 2 and line["before"] == first.identity()
    assert line["changed"] == {
        "RolloutConfig.candidates": {"old": 4, "new": 3},
        "OptimizerConfig.learning_rate": {"old": first.optimizer.learning_rate, "new": 0.5},
    }
    assert changed(folder, "experiment.Experiment.steps = 9").optimizer == second.optimizer  # nothing to note
    assert len(read_json_lines(folder.changes)) == 1
    run = FoundRun(folder.path)
    run.checkpoints.save(3, {"x": jnp.zeros(1)})
    third = changed(folder, "team.Team.alpha = 2.0", "objectives.LossConfig.clip_high = 0.3")
    assert [line["after_step"] for line in read_json_lines(folder.changes)] == [2, 3]
    found = [experiment_at(folder, step) for step in range(6)]
    longer = dataclasses.replace(second, steps=9)
    assert found == [first, first, first, longer, third, third]
    FoundRun(folder.path).checkpoints.digest(2)  # of an earlier identity


def test_what_may_not_change_is_refused_by_name_with_advice(tmp_path):
    folder = made(tmp_path / "a")
    before = folder.config.read_bytes()
    for binding, name in (
        ("experiment.Experiment.seed = 7", "Experiment.seed"),
        ("plan_path.PlanPath.size = 4", "PlanPath.size"),
        ("config.Architecture.layers = 2", "Architecture.layers"),
        (SHARING + "'full'", "Team.sharing"),
        ("tokens.TinyTokenizer.words = ('a',)", "TinyTokenizer.words"),
        ("optimizer.OptimizerConfig.algorithm = 'muon'", "OptimizerConfig.algorithm"),
        ("optimizer.OptimizerConfig.clip_norm = None", "OptimizerConfig.clip_norm"),
    ):
        with pytest.raises(
            RunError, match=f"cannot change in the middle of a run: {name} = .*--from=.*a --run_dir"
        ):
            changed(folder, binding)
    assert (
        folder.config.read_bytes() == before and not folder.changes.exists() and not folder.configs.exists()
    )
    with pytest.raises(RunError, match="holds no run yet, so nothing can change in it"):
        claim(RunFolder(tmp_path / "new"), given(), change=True).__enter__()


def test_a_mesh_does_not_change_along(tmp_path):
    folder = made(tmp_path / "a")
    rate = "optimizer.OptimizerConfig.learning_rate = 0.5"
    with pytest.raises(RunError, match="MeshConfig.data = 1 there, 2 given.*or --other_hosts"):
        changed(folder, rate, "mesh.MeshConfig.data = 2")
    assert not folder.changes.exists()
    x = load(str(folder.config), [rate, "mesh.MeshConfig.data = 2"])
    with claim(folder, x, other_hosts=True, change=True):
        pass
    (line,) = read_json_lines(folder.changes)
    assert list(line["changed"]) == ["OptimizerConfig.learning_rate"]
    assert len(read_json_lines(folder.shapes)) == 1
    FoundRun(folder.path).checkpoints.digest(4)


def test_a_change_that_a_kill_kept_from_the_config_is_forgotten(tmp_path):
    folder = made(tmp_path / "a")
    before = folder.config.read_bytes()
    changed(folder, "rollout.RolloutConfig.temperature = 0.5")
    folder.config.write_bytes(before)  # as if the kill had come before it was written
    with claim(folder, load(str(folder.config))):
        pass
    assert read_json_lines(folder.changes) == []


def test_a_change_counts_from_the_step_that_the_run_really_goes_on_from(tmp_path):
    """A damaged checkpoint gives way to an earlier one; then more steps are made with the new settings."""
    folder = made(tmp_path / "a", steps=(0, 2, 4))
    first = load(str(folder.config))
    second = changed(folder, "rollout.RolloutConfig.temperature = 0.5")
    changes.rewind(folder, 4)
    assert experiment_at(folder, 4) == first
    changes.rewind(folder, 2)
    assert [experiment_at(folder, step) for step in (2, 3)] == [first, second]


def test_a_run_goes_on_with_a_new_rate_and_can_be_made_again(tmp_path):
    """The scripted run: one step at each rate. Its parts that a change does not concern go on."""
    folder = RunFolder(tmp_path)
    x = experiment(honest(), steps=1, checkpoint_every=1)
    train(x, folder)
    folder.config.write_text("of the first step")
    faster = dataclasses.replace(x, steps=2, optimizer=dataclasses.replace(x.optimizer, learning_rate=0.5))
    with pytest.raises(RunError, match="belongs to another config"):
        train(faster, folder)
    changes.record(folder, x, changes.allowed(folder, x, faster), 1)
    train(faster, folder)
    records = folder.read_metrics()
    assert [record["step"] for record in records] == [0, 1, 2]
    learner = TeamLearner(faster)
    before = changes.identities(folder)
    checkpoints = Checkpoints(folder.checkpoints, faster.identity(), read_only=True, earlier=before)
    states = [params(learner.restore(checkpoints, step), "shared") for step in (0, 1, 2)]
    first, second = (
        max(float(np.abs(b - a).max()) for a, b in zip(*map(jax.tree.leaves, pair), strict=True))
        for pair in itertools.pairwise(states)
    )
    assert second > 4 * first > 0  # ten times the rate


# Which folder, and which config.


def test_no_warm_start_is_none_everywhere(tmp_path):
    off = "experiment.Experiment.warm_start = None"
    assert load("plan.gin").warm_start is not None
    own = tmp_path / "config.gin"
    own.write_text(render(load("plan.gin")))
    for name, lines in (("a.gin", 'include "plan.gin"'), ("b.gin", f'include "{own}"')):
        (tmp_path / name).write_text(f"{lines}\n{off}\n")
        assert load(str(tmp_path / name)).warm_start is None
        (tmp_path / name).write_text(f"{lines}\n")
        assert load(str(tmp_path / name), [off]).warm_start is None
    assert load("plan.gin", [off]).warm_start is None and load(str(own), [off]).warm_start is None
    (tmp_path / "c.gin").write_text(f"{own.read_text()}\n{off}\n")
    assert load(str(tmp_path / "c.gin")).warm_start is None


def test_a_runs_config_names_no_new_folder(tmp_path):
    assert str(default_run_dir(["plan.gin", "teams/lora.gin"])) == "runs/plan_lora"
    with pytest.raises(ConfigError, match=r"--run_dir=runs/a goes on with it.*--from=runs/a"):
        default_run_dir(["runs/a/config.gin"])
    with pytest.raises(ConfigError, match="--gin_file is missing, e.g. --gin_file=plan.gin; or name a run"):
        default_run_dir([])


def test_without_files_the_runs_own_config_counts_or_else_its_origins(tmp_path):
    a, new = made(tmp_path / "a"), RunFolder(tmp_path / "new")
    assert config_of(a, None) == str(a.config)
    assert config_of(new, Asked.parse(str(a.path), None)) == str(a.config)
    with pytest.raises(ConfigError, match="--gin_file is missing, and .*new holds no run yet"):
        config_of(new, None)
    with pytest.raises(ConfigError, match="names several runs, so say whose settings count"):
        config_of(new, Asked.parse(f"mover={a.path}", None))
    with pytest.raises(ConfigError, match="none holds no run"):
        config_of(new, Asked.parse(str(tmp_path / "none"), None))


# Whole runs, as people start them.

DRAWING = (
    *SMALL[:-1],
    "experiment.Experiment.steps = 2",
    "experiment.Experiment.checkpoint_every = 1",
    "workflow.Workflow.turns = 1",
    "rollout.RolloutConfig.instances = 2",
    "objectives.LossConfig.minibatches = 1",
    "evaluation.EvaluationConfig.instances = 1",
    "evaluation.EvaluationConfig.validation_instances = 2",
    "evaluation.EvaluationConfig.every = 1",
)


@pytest.mark.slow
@pytest.mark.thorough
@pytest.mark.long
def test_two_hosts_fork_and_keep_the_best(tmp_path):
    """Of a run by two hosts a fork begins; its rate changes; host 0 decides what is kept."""
    words = ["--gin_file=smoke.gin", f"--gin_file={LENGTHS}", "--heartbeat=60"]
    words += [f"--gin_param={one}" for one in (*DRAWING, "mesh.MeshConfig.data = 2")]
    keep = "--gin_param=experiment.Experiment.keep_best = True"
    assert ended(start(2, tmp_path, *words, keep, "--run_dir=a")) == [0, 0]
    run = FoundRun(tmp_path / "a")
    best = json.loads((tmp_path / "a" / "best.json").read_text())
    assert best["step"] in run.steps() and run.step_of("best") == best["step"]
    fork = ["--from=a", "--from_step=best", "--run_dir=b", "--heartbeat=60"]
    assert ended(start(2, tmp_path, *fork)) == [0, 0]
    shutil.rmtree(tmp_path / "a")
    rate = "--gin_param=optimizer.OptimizerConfig.learning_rate = 0.5"
    longer = "--gin_param=experiment.Experiment.steps = 3"
    assert ended(start(2, tmp_path, "--run_dir=b", "--heartbeat=60", "--change", rate, longer)) == [0, 0]
    assert [record["step"] for record in RunFolder(tmp_path / "b").read_metrics()] == [0, 1, 2, 3]
    (line,) = read_json_lines(tmp_path / "b" / "changes.jsonl")
    assert line["after_step"] == 2


@pytest.mark.slow
@pytest.mark.thorough
@pytest.mark.long
def test_the_page_is_true(tmp_path):
    """Its commands run one after the other; the first one makes a smaller run than it says."""
    text = (HERE.parent / "docs" / "forks.md").read_text().replace("\\\n", "")
    commands = [shlex.split(line) for line in text.splitlines() if line.startswith("    python -m ")]
    commands.append(["python", "-m", "atgrpo_jax.runs", "runs"])
    small = [f"--gin_param={one}" for one in DRAWING if "Architecture" in one or "experiment" in one]
    out = ""
    path = f"{HERE}{os.pathsep}{HERE.parent}"
    for number, (_, *words) in enumerate(commands):
        files = [f"--gin_file={LENGTHS}", *small] if "--gin_file=smoke.gin" in words else []
        done = subprocess.run(
            [sys.executable, *words, *files],
            cwd=tmp_path, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path},
        )  # fmt: skip
        assert done.returncode == 0, (number, done.stderr)
        out += done.stdout
    assert len(commands) == 7 and "difference to step" in out
    best = json.loads((tmp_path / "runs" / "a" / "best.json").read_text())["step"]
    assert f"a (step {best})" in out and f"a (step {best}), b (step 2)" in out
    x = SavedRun(str(tmp_path / "runs" / "b")).experiment
    assert x.optimizer.learning_rate == 5e-5 and x.steps == 25
    assert experiment_at(RunFolder(tmp_path / "runs" / "b"), 2).optimizer.learning_rate == 1e-4


@pytest.mark.slow
@pytest.mark.thorough
def test_steps_before_and_after_a_change_are_made_again_to_the_last_bit(tmp_path):
    folder = RunFolder(tmp_path / "run")
    x = load(["smoke.gin", str(LENGTHS)], [*DRAWING, "experiment.Experiment.keep_checkpoints = 5"])
    with claim(folder, x) as own:
        train(own, folder)
    changed_to = ["experiment.Experiment.steps = 4", "rollout.RolloutConfig.candidates = 3"]
    changed_to += ["optimizer.OptimizerConfig.learning_rate = 0.1", "objectives.LossConfig.epochs = 2"]
    with claim(folder, load(str(folder.config), changed_to), change=True) as own:
        train(own, folder)
    saved = SavedRun(folder.path)
    whole = {step: params(saved.team(step), "shared") for step in range(5)}
    for step in (1, 2, 3, 4):
        shutil.rmtree(folder.checkpoints / str(step))
    teams = Teams(SavedRun(folder.path))
    for step in range(5):
        assert same(params(teams.after(step), "shared"), whole[step]), step
    assert not same(whole[1], whole[2]) and not same(whole[3], whole[4])
    with Again(SavedRun(folder.path)) as again:
        for step, count in ((2, 4), (3, 3)):
            (episode, *_) = folder.read_episodes(step)
            played = again.play(Node(step, "train", episode["instance"]))
            for one, other in zip(played.recorded.groups, played.episode.groups, strict=True):
                drawn = [candidate.sample.tokens for candidate in other.candidates]
                assert (
                    drawn == [candidate.sample.tokens for candidate in one.candidates] and len(drawn) == count
                )
