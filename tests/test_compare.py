"""Runs that are listed and compared: by hand, and by simulation where intervals are promised."""

import asyncio
import dataclasses
import json
import re
import types

import numpy as np
import pytest
from fakes import CharTokenizer, Sum
from shared_rollout import player

from atgrpo_jax.common.errors import ConfigError, RunError
from atgrpo_jax.run import episodes, gin_config
from atgrpo_jax.run.ending import drawn_tokens
from atgrpo_jax.run.experiment import without_changeable
from atgrpo_jax.run.folder import RunFolder
from atgrpo_jax.run.saved import claim
from atgrpo_jax.viewing import comparing
from atgrpo_jax.viewing.folders import STEPS, TOKENS, metric_of, outline, runs_in, state


def made(path, solved, seed=0, steps=2, rate=1e-3):
    """The folder of a run that solved these test instances at its end."""
    folder = RunFolder(path)
    values = f"experiment.Experiment.seed = {seed}", f"experiment.Experiment.steps = {steps}"
    x = gin_config.load("smoke.gin", [*values, f"optimizer.OptimizerConfig.learning_rate = {rate}"])
    with claim(folder, x):
        pass
    score = {"test/success": float(np.mean(solved)), "test/low": 0.1, "test/high": 0.9}
    first = {"step": 1, "rollout/success": 0.5, "rollout/tokens": 60, "counterfactual/tokens": 40}
    records = [{"step": 0, "test/success": 0.25}, first]
    records.append({"step": 2, "rollout/success": 0.5, "rollout/tokens": 100, "perf/step_s": 3.0} | score)
    folder.metrics.write_text("".join(json.dumps(record) + "\n" for record in records[: steps + 1]))
    player_, _ = player({(t, r): ["1"] * 3 for t in range(2) for r in "ab"}, Sum())
    one = asyncio.run(player_.play(0, "test", 0))
    played = [dataclasses.replace(one, instance=i, problem=str(i), solved=s) for i, s in enumerate(solved)]
    content = episodes.written(2, played, (), CharTokenizer(), {"a": 1.0, "b": 1.0})
    folder.write_episodes(2, content, "test")
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two seeds of one config, and two of another one that solves one instance of four more."""
    place = tmp_path_factory.mktemp("runs")
    made(place / "a0", [True, False, False, False])
    made(place / "a1", [True, True, False, False], seed=1)
    made(place / "b0", [True, True, False, False], rate=2e-3)
    made(place / "b1", [True, True, True, False], seed=1, rate=2e-3)
    return place


def groups(place, *names):
    return comparing.grouped([outline(RunFolder(place / name)) for name in names])


def test_runs_that_differ_in_their_seed_alone_are_a_group(runs):
    found = groups(runs, "a0", "b0", "a1", "b1")
    assert [(group.letter, group.title) for group in found] == [("A", "a0, a1"), ("B", "b0, b1")]
    assert comparing.settings(found) == ["optimizer.OptimizerConfig.learning_rate: A 0.001, B 0.002"]
    rows = comparing.table(found).splitlines()
    cells = ["A", "a0, a1", "2", "2", "25.0%", "37.5%", "0.0% to 100.0%", "200", "3 s"]
    assert re.split(" {2,}", rows[1]) == cells


@pytest.fixture
def claimed(tmp_path):
    def make(name, *values, gin_file="smoke.gin"):
        with claim(RunFolder(tmp_path / name), gin_config.load(gin_file, values)):
            pass
        return outline(RunFolder(tmp_path / name))

    return make


def test_runs_that_read_other_files_of_the_same_names_are_no_group(claimed, tmp_path):
    found = []
    for number, name in enumerate(("one", "two", "copy_of_two")):
        place = tmp_path / f"problems_{name}"
        place.mkdir()
        question = "1 + 1" if name == "one" else "1 + 2"
        (place / "train.jsonl").write_text(json.dumps({"id": "1", "question": question, "answer": "3"}))
        files = f"math.Math.files = {{'train': '{place}/train.jsonl'}}"
        found.append(
            claimed(name, files, f"experiment.Experiment.seed = {number}", gin_file="math_debate.gin")
        )
    told = comparing.grouped(found)
    assert [group.title for group in told] == ["one", "two, copy_of_two"]
    assert re.fullmatch(
        r"math.Math.files: A {'train': '\w{16}'}, B {'train': '\w{16}'}", *comparing.settings(told)
    )


def test_runs_of_other_modules_of_the_same_name_are_no_group(claimed, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    game = "from atgrpo_jax.tasks.games.plan_path import PlanPath\nclass Own(PlanPath):\n    pass\n"
    found = []
    for seed, text in enumerate((game, game + "# changed\n")):
        (tmp_path / "own_game.py").write_text(text)
        (tmp_path / "own.gin").write_text(
            'from __gin__ import dynamic_registration\nimport own_game\ninclude "smoke.gin"\n'
            "experiment.Experiment.task = @own_game.Own()\n"
        )
        found.append(claimed(f"run_{seed}", f"experiment.Experiment.seed = {seed}", gin_file="own.gin"))
    told = comparing.grouped(found)
    assert [group.title for group in told] == ["run_0", "run_1"]
    assert comparing.settings(told)[0].startswith("module own_game: A ")
    (tmp_path / "own_game.py").write_text(game)  # and so it was in the first run, from step 1 on
    changed = gin_config.load(str(tmp_path / "own.gin"), ["experiment.Experiment.seed = 1"])
    with claim(RunFolder(tmp_path / "run_1"), changed, changed_code=True):
        pass
    told = comparing.grouped([found[0], outline(RunFolder(tmp_path / "run_1"))])
    (line,) = comparing.settings(told)
    assert line.startswith("module own_game before step 1: A not set, B ")


def test_a_run_whose_settings_changed_on_the_way_is_no_seed_of_another(tmp_path):
    """It ends with the same config as one that had it all along."""
    rate, other = (f"optimizer.OptimizerConfig.learning_rate = {value}" for value in ("1e-3", "2e-3"))

    def run(name, seed, step, *rates):
        """Each rate but the last one is changed after ``step``."""
        checkpoint = tmp_path / name / "checkpoints" / str(step)
        for number, value in enumerate(rates):
            values = [f"experiment.Experiment.seed = {seed}", value]
            with claim(RunFolder(tmp_path / name), gin_config.load("smoke.gin", values), change=number > 0):
                checkpoint.mkdir(parents=True, exist_ok=True)
                (checkpoint / "saved.json").touch()
        return outline(RunFolder(tmp_path / name))

    found = [
        run("a", 0, 2, other),
        run("b", 1, 2, rate, other),
        run("c", 2, 2, rate, other),
        run("d", 3, 3, rate, other),
        run("e", 4, 2, other, rate, other),  # and back, before a step was made
    ]
    told = comparing.grouped(found)
    assert [group.title for group in told] == ["a, e", "b, c", "d"]
    assert comparing.settings(told) == [
        "OptimizerConfig.learning_rate after step 2: A not set, B 0.001 to 0.002, C not set",
        "OptimizerConfig.learning_rate after step 3: A not set, B not set, C 0.001 to 0.002",
    ]


def test_settings_that_change_no_step_part_no_group(claimed):
    found = [
        claimed("a"),
        claimed("b", "experiment.Experiment.seed = 1", "trackers.Trackers.rows = 0"),
        claimed("c", "experiment.Experiment.seed = 2", "trackio.Trackio.project = 'mine'"),
        claimed("d", "experiment.Experiment.seed = 3", "pool.SandboxConfig.workers = 3"),
    ]
    assert [group.title for group in comparing.grouped(found)] == ["a and 3 more"]
    engine = "experiment.Experiment.engine = @sglang.SGLangConfig()", "sglang.SGLangConfig.folder = '/shared'"
    servers = []
    for seed, url in enumerate(("http://one:30000", "http://other:30000")):
        own = f"experiment.Experiment.seed = {seed}", f"sglang.SGLangConfig.urls = ('{url}',)"
        servers.append(claimed(f"s{seed}", *engine, *own))
    assert len(comparing.grouped(servers)) == 1


def test_settings_that_change_no_step_are_those_of_the_identity(claimed):
    """What ``IDLE`` names in texts is what ``without_changeable`` takes off."""
    changed = (
        "experiment.Experiment.steps = 3", "experiment.Experiment.tokens = 9",
        "experiment.Experiment.checkpoint_every = 3", "experiment.Experiment.keep_checkpoints = 7",
        "experiment.Experiment.keep_every = 4", "experiment.Experiment.keep_best = True",
        "trackers.Trackers.rows = 0", "trackio.Trackio.project = 'mine'",
        "warm_start.WarmStartConfig.cache_dir = '/elsewhere'",
        "pool.SandboxConfig.level = 'limits'", "pool.SandboxConfig.workers = 3",
    )  # fmt: skip
    run = claimed("a", *changed)
    x = gin_config.load("smoke.gin", changed)
    assert x.identity() == gin_config.load("smoke.gin").identity()
    bare = dict(re.findall(r"^([\w./]+) = (.*)$", gin_config.render(without_changeable(x)), re.MULTILINE))
    taken_off = {name for name in run.settings if run.settings[name] != bare.get(name)}
    assert len(taken_off) >= len(changed)
    assert taken_off - {STEPS, TOKENS} <= run._idle()


def test_a_curve_that_no_run_has_is_refused(runs):
    found = [outline(RunFolder(runs / "a0"))]
    assert metric_of(found, "rollout/tokens") == "rollout/tokens"
    with pytest.raises(ConfigError, match="has that metric; did you mean rollout/success"):
        metric_of(found, "rollout/succes")


def test_two_runs_are_paired_by_the_instances_that_both_were_tested_on(runs):
    first, other = groups(runs, "a0", "b1")
    found, common = comparing.paired(other, first)
    assert (found.mean, found.better, found.worse, common) == (0.5, 2, 0, 4)
    assert found.low < 0.5 < found.high
    made(runs / "few", [False, True], rate=3e-3)
    first, other = groups(runs, "a0", "few")
    found, common = comparing.paired(other, first)
    assert (found.mean, common) == (0.0, 2)  # one better, one worse of the two in common


def test_groups_are_paired_by_their_means_and_compared_over_seeds(runs):
    lines = comparing.differences(groups(runs, "a0", "a1", "b0", "b1"))
    assert lines[0].startswith("B - A: +25.0% (95 % interval -51.") and "over seeds" in lines[0]
    assert lines[1].startswith("B - A: +25.0%") and "of 4 that both" in lines[1]
    assert "seeds" in lines[0] and lines[1].endswith("these runs alone, and says nothing about other seeds")


def test_runs_without_common_instances_say_so(runs):
    folder = made(runs / "none", [True], rate=4e-3)
    for path in folder.episodes.iterdir():
        path.unlink()
    assert "no test instance is the same" in comparing.differences(groups(runs, "a0", "none"))[0]


def test_what_cannot_be_compared_is_named(runs):
    made(runs / "copy", [True] * 4)
    with pytest.raises(RunError, match=r"a0, .*copy have the same config and seed 0"):
        groups(runs, "a0", "copy")
    made(runs / "young", [True] * 4, rate=5e-3, steps=1)
    with pytest.raises(RunError, match="young has no test score after training: it is at step 1 of 1"):
        comparing.table(groups(runs, "a0", "young"))


def test_a_run_that_was_made_longer_has_no_score_until_its_new_end(runs):
    """It ended at step 2, was to have six steps then, and is at step 2 or 4."""
    folder = made(runs / "longer", [True] * 4, rate=6e-3)
    assert comparing.At().score(outline(folder)) == (2, 1.0)
    values = [f"{STEPS} = 6", "optimizer.OptimizerConfig.learning_rate = 6e-3"]
    with claim(folder, gin_config.load("smoke.gin", values)):
        pass
    with open(folder.metrics, "a") as file:
        for step in (2, 3, 4):
            if step > 2:
                file.write(json.dumps({"step": step, "rollout/success": 0.5}) + "\n")
                file.flush()
            with pytest.raises(
                RunError, match=f"no test score after training: it is at step {step} of 6; --st"
            ):
                comparing.table(groups(runs, "a0", "longer"))
    assert comparing.At("test", 2).score(outline(folder)) == (2, 1.0)


def test_runs_are_compared_at_a_step_that_all_were_evaluated_after(runs, tmp_path):
    """Also runs that go on, and by validation if they have no test score there."""
    for name, solved, rate in (("one", [True, False], 1e-3), ("two", [True, True], 2e-3)):
        folder = made(tmp_path / name, solved, rate=rate)
        records = folder.read_metrics()
        score = {"success": sum(solved) / 2, "low": 0.2, "high": 0.7}
        records[1] |= {f"validation/{key}": value for key, value in score.items()}
        folder.metrics.write_text("".join(json.dumps(record) + "\n" for record in records[:2]))
        played = folder.episodes / "step_000002.test.jsonl.gz"
        played.rename(folder.episodes / "step_000001.validation.jsonl.gz")
    found = [outline(RunFolder(tmp_path / name)) for name in ("one", "two")]
    at = comparing.at_step(found, 1)
    assert at == comparing.At("validation", 1)
    pair = comparing.grouped(found, at)
    rows = [re.split(" {2,}", row) for row in comparing.table(pair).splitlines()]
    assert rows[0][4:6] == ["validation before", "validation after"] and rows[1][3] == "1"
    assert rows[1][5:8] == ["50.0%", "20.0% to 70.0%", "100"] and rows[2][5] == "100.0%"
    assert comparing.paired(pair[1], pair[0])[0].mean == 0.5
    assert comparing.at_step(found, 0) == comparing.At("test", 0)
    with pytest.raises(RunError, match="not all runs were evaluated after step 2; steps .* all were: 0, 1$"):
        comparing.at_step(found, 2)
    with pytest.raises(RunError, match="--step compares runs that go on"):
        comparing.table(comparing.grouped(found))


def test_at_a_step_only_what_it_took_until_then_counts(runs):
    found = [outline(RunFolder(runs / name)) for name in ("a0", "b0")]
    assert comparing.At("test", 1).total(found[0], drawn_tokens) == 100
    assert comparing.At().total(found[0], drawn_tokens) == 200
    assert found[0].solved("test", 1) == (-1, {}) and found[0].solved("test", 2)[0] == 2


def test_welchs_interval_by_hand():
    mean, low, high = comparing.welch([0.5, 0.7], [0.2, 0.4])
    # Variances 0.02 / 2 each, so the error is sqrt(0.02) with 2 degrees of freedom, whose t is 4.3027.
    assert mean == pytest.approx(0.3)
    assert (low, high) == pytest.approx((0.3 - 4.3027 * 0.02**0.5, 0.3 + 4.3027 * 0.02**0.5), abs=1e-4)


def test_intervals_over_seeds_cover_what_they_promise():
    rng = np.random.default_rng(0)
    one, two = rng.normal(0.5, 0.1, (4000, 5)), rng.normal(0.6, 0.05, (4000, 4))
    covered = [low <= 0.1 <= high for _, low, high in map(comparing.welch, two, one)]
    assert 0.94 < np.mean(covered) < 0.97
    covered = [low <= 0.5 <= high for low, high in map(comparing.over_seeds, one)]
    assert 0.94 < np.mean(covered) < 0.96


def test_a_figure_has_a_line_a_run_over_what_it_cost(runs):
    found = groups(runs, "a0", "a1", "b0")
    assert comparing.curve_of(found) == "rollout/success"  # the others have two points
    png = comparing.figure(found, "rollout/success")
    assert png.startswith(b"\x89PNG") and len(png) > 10_000
    places, values = comparing._line(found[0].runs[0], "rollout/success", drawn_tokens)
    assert places.tolist() == [100, 200] and values.tolist() == [0.5, 0.5]


def test_the_curve_is_one_that_all_runs_have_the_ends_of():
    """What is executed in training may differ between arms, so it is the last choice."""

    def groups_of(*steps):
        score = {"validation/success": 0.5}
        lines = [
            [{"rollout/success": 0.5} | (score if step in own else {}) for step in range(5)] for own in steps
        ]
        return [comparing.Group("A", [types.SimpleNamespace(records=records)]) for records in lines]

    assert comparing.curve_of(groups_of({0, 2, 4}, {0, 4})) == "validation/success"
    assert comparing.curve_of(groups_of({0, 2, 4}, {4})) == "rollout/success"
    assert comparing.curve_of(groups_of({0, 4}, {0, 4})) == "rollout/success"  # a line of two points


def test_of_many_groups_a_figure_has_the_means_alone_each_in_a_look_of_its_own(runs):
    few = groups(runs, "a0", "a1", "b0", "b1")
    lines = [len(axis.lines) for axis in comparing.drawn(few, "rollout/success").axes]
    assert lines == [2 * (2 + 1 + 1)] * 3  # two runs, their mean, and the legend's, of two groups
    many = comparing.drawn(few * 6, "rollout/success")
    for axis in many.axes:
        assert len(axis.lines) == 12 * 2 and not axis.collections
        looks = {(line.get_color(), line.get_linestyle()) for line in axis.lines}
        assert len(looks) == 12


def test_runs_are_found_and_their_state_is_told(tmp_path):
    folder = made(tmp_path / "runs" / "one", [True])
    (tmp_path / "runs" / "letter.txt").write_text("dear")
    (tmp_path / "runs" / "empty").mkdir()
    assert [found.path.name for found in runs_in(tmp_path / "runs")] == ["one"]
    assert [found.path.name for found in runs_in(folder.path)] == ["one"]
    assert state(outline(folder)) == "ended"
    folder.lock()
    assert state(outline(RunFolder(folder.path))) == "running"
    folder.unlock()
    folder.metrics.write_text('{"step": 0}\n')
    assert state(outline(folder)) == "stopped"
