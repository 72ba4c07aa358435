"""Studies: what they ask, how they go on, what they say. A script makes the runs in place of processes."""

import asyncio
import csv
import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from fakes import CharTokenizer, Sum
from shared_rollout import player

from atgrpo_jax.common.errors import ConfigError, RunError, Stopped
from atgrpo_jax.common.files import append_json_line
from atgrpo_jax.run import episodes, gin_config
from atgrpo_jax.run.folder import RunFolder
from atgrpo_jax.run.gin_writing import text_of
from atgrpo_jax.studying import making, verdicts
from atgrpo_jax.studying import results as results_module
from atgrpo_jax.studying.asked import Prediction, read
from atgrpo_jax.studying.conducting import conduct
from atgrpo_jax.studying.recorded import StudyFolder, configs

ROOT = Path(__file__).parents[1]
STUDY = """
title = "Is fast better?"
gin_files = ["smoke.gin"]
gin_params = ["evaluation.EvaluationConfig.every = 1"]
seeds = [0, 1]
tokens = 150

[arms.fast]
about = "the higher rate"
gin_params = ["optimizer.OptimizerConfig.learning_rate = 2e-3"]

[arms.slow]
gin_params = ["optimizer.OptimizerConfig.learning_rate = 1e-3"]

[[predictions]]
better = ["fast", "slow"]
by = 0.1
because = "it learns faster"

[[predictions]]
arm = "fast"
at_least = 0.5
"""
# What each run solves of four instances, at the beginning and at the end.
SOLVED = {"fast_0": "1110", "fast_1": "1111", "slow_0": "1000", "slow_1": "0000"}


@pytest.fixture(scope="module")
def episode():
    made, _ = player({(t, r): ["1"] * 3 for t in range(2) for r in "ab"}, Sum())
    return asyncio.run(made.play(0, "test", 0))


@pytest.fixture
def undrawn(monkeypatch):
    """A figure takes most of a second."""
    monkeypatch.setattr(results_module, "figure", lambda groups, curve: b"")


class Script:
    """Stands in for training processes: writes what a run leaves, at the second look at it."""

    def __init__(self, study, episode, fails=(), solved=SOLVED, stop=None):
        self.study, self.episode, self.fails, self.solved, self.stop = study, episode, fails, solved, stop
        self.started, self.asked, self.most, self.going = [], [], 0, 0

    def __call__(self, run, place):
        self.started.append((run.name, place))
        self.going += 1
        self.most = max(self.most, self.going)
        script, looks = self, iter((None, "end"))

        class Process:
            def poll(self):
                if script.stop == run.name:
                    raise Stopped(signal.SIGTERM)
                if next(looks) is None:
                    return None
                script.going -= 1
                if run.name in script.fails:
                    run.folder.path.parent.joinpath("logs").mkdir(exist_ok=True)
                    log = run.folder.path.parent / "logs" / f"{run.name}.log"
                    log.write_text("$ python\nstep 1\nerror: step 3, policy shared: not finite\nbye\n")
                    return 2
                script.write(run)
                return 0

            def ask_to_stop(self):
                script.asked.append(run.name)

            def wait(self):
                return 0

        return Process()

    def write(self, run):
        if run.test is not None:
            return scored_again(run, self.solved[run.name], self.episode)
        x = gin_config.load(self.study.files(run.arm), self.study.bindings(run.arm, run.seed))
        left(run.folder, x, self.solved[run.name], self.episode)


def played(episode, solved):
    """One episode for each digit: whether it was solved."""
    return [
        dataclasses.replace(episode, instance=i, problem=str(i), solved=digit == "1")
        for i, digit in enumerate(solved)
    ]


def scored_again(run, solved, episode, **others):
    """Writes what ``evaluate`` leaves in the folder of a run."""
    step = 2 if run.test.step is None else run.test.step
    content = episodes.written(step, played(episode, solved), (), CharTokenizer(), {"a": 1.0, "b": 1.0})
    name = run.folder.write_evaluation("test", content)
    record = {"step": step, "gin_param": list(run.test.gin_params) or None, "split": "test", "flags": {}}
    record |= {"swap": list(run.test.swap)} if run.test.swap else {}
    success = np.mean([digit == "1" for digit in solved])
    record |= {"success": success, "episodes": f"evaluations/{name}"} | others
    append_json_line(run.folder.evaluations, record)


def left(folder, x, solved, episode, tokens=100):
    """Writes what a run leaves that has drawn ``tokens`` in each of two steps."""
    folder.path.mkdir(parents=True, exist_ok=True)
    folder.config.write_text(text_of(x))
    success = float(np.mean([digit == "1" for digit in solved]))
    score = {f"{s}/{k}": v for s in ("test", "validation") for k, v in
             {"success": success, "low": 0.1, "high": 0.9}.items()}  # fmt: skip
    none = {"test/success": 0.0, "validation/success": 0.0}
    drawn = {
        "rollout/tokens": tokens,
        "perf/step_s": time.time() % 1,
        "groups/total": 5,
        "groups/signal": 0.4,
    }
    records = [{"step": 0} | none, {"step": 1} | drawn, {"step": 2} | drawn | score]
    folder.metrics.write_text("".join(json.dumps(record) + "\n" for record in records))
    for step, found in ((0, "0000"), (2, solved)):
        content = episodes.written(step, played(episode, found), (), CharTokenizer(), {"a": 1.0, "b": 1.0})
        for split in "test", "validation":
            folder.write_episodes(step, content, split)
    folder.summary.write_text("{}")


@pytest.fixture
def asked(tmp_path):
    def write(text=STUDY):
        path = tmp_path / "asked.toml"
        path.write_text(text)
        return read(path)

    return write


def results(folder):
    return {path.name: path.read_bytes() for path in (folder.table, folder.verdicts, folder.page)}


def rows(path):
    return list(csv.DictReader(path.read_text().splitlines()))


def test_a_study_makes_its_runs_and_says_what_came_out(asked, episode, tmp_path, capsys):
    study, folder = asked(), StudyFolder(tmp_path / "study")
    script = Script(study, episode)
    page = conduct(folder, study, script, at_once=2, look_s=0)
    assert [name for name, _ in script.started] == ["fast_0", "fast_1", "slow_0", "slow_1"]
    assert script.most == 2 and {place for _, place in script.started} == {0, 1}
    fast, slow = rows(folder.table)
    assert (fast["arm"], fast["seeds"], fast["each"], fast["instances"]) == (
        "fast",
        "0 1",
        "0.750000 1.000000",
        "4",
    )
    assert (fast["mean"], fast["steps"], fast["tokens"]) == ("0.875000", "2 2", "200")
    assert fast["useful_tokens"] == "50.00"  # 4 of the run's 10 groups have a signal
    assert (slow["mean"], slow["low"]) == ("0.125000", "0.000000")
    tokens = sum(len(c.sample.tokens) for group in episode.groups for c in group.candidates)
    assert float(fast["test_tokens"]) == tokens
    first, second = rows(folder.verdicts)
    assert (first["verdict"], first["mean"]) == ("undecided", "0.750000")  # two seeds decide hardly anything
    assert (second["verdict"], second["measured"]) == ("held", "the worst is seed 0 with 75.0%")
    assert "- fast: the higher rate\n\n| prediction" in page
    assert "# Is fast better?" in page and "| it learns faster |" in page and "150 sampled tokens" in page
    assert folder.figure.read_bytes().startswith(b"\x89PNG")
    said = capsys.readouterr().err
    assert "4 runs: 0 there, 4 to make, 2 at a time" in said and "4 of 4 runs made" in said


def test_a_study_that_was_stopped_goes_on_to_the_same_tables(asked, episode, undrawn, tmp_path):
    study, whole, folder = asked(), StudyFolder(tmp_path / "whole"), StudyFolder(tmp_path / "study")
    conduct(whole, study, Script(study, episode), look_s=0)
    script = Script(study, episode, stop="slow_0")
    with pytest.raises(Stopped) as stopped:
        conduct(folder, study, script, look_s=0)
    assert script.asked == ["slow_0"] and "the same command goes on" in stopped.value.note
    script = Script(study, episode)
    conduct(folder, study, script, look_s=0)
    assert [name for name, _ in script.started] == ["slow_0", "slow_1"]
    expected = results(whole)
    assert {name: text.replace(b"whole", b"study") for name, text in expected.items()} == results(folder)
    script = Script(study, episode)
    conduct(folder, study, script, look_s=0)
    assert script.started == [] and folder.table.read_bytes() == whole.table.read_bytes()


def test_a_run_that_fails_stops_no_other_one_and_is_named_with_its_log(asked, episode, undrawn, tmp_path):
    study, folder = asked(), StudyFolder(tmp_path / "study")
    script = Script(study, episode, fails=["slow_0"])
    line = (
        r"^1 run failed: slow_0: error: step 3, policy shared: not finite \(.*logs/slow_0.log\)\. All others"
    )
    with pytest.raises(RunError, match=line):
        conduct(folder, study, script, look_s=0)
    assert len(script.started) == 4
    assert [row["verdict"] for row in rows(folder.verdicts)] == ["undecided", "held"]
    assert rows(folder.verdicts)[0]["measured"] == "runs of slow are missing"
    script = Script(study, episode)
    conduct(folder, study, script, look_s=0)
    assert [name for name, _ in script.started] == ["slow_0"]


def test_runs_in_which_somebody_trains_come_last(asked, episode, undrawn, tmp_path):
    study, folder = asked(), StudyFolder(tmp_path / "study")
    busy = RunFolder(folder.path / "fast_0")
    busy.lock()
    script = Script(study, episode)

    def start(run, place):
        if run.name == "slow_1":
            busy.unlock()
        return script(run, place)

    conduct(folder, study, start, look_s=0)
    assert [name for name, _ in script.started] == ["fast_1", "slow_0", "slow_1", "fast_0"]


def test_a_prediction_cannot_change_after_the_first_run(asked, episode, undrawn, tmp_path):
    folder = StudyFolder(tmp_path / "study")
    with pytest.raises(ZeroDivisionError):  # no run has begun yet
        conduct(folder, asked(), lambda run, place: 1 / 0, look_s=0)
    changed = STUDY.replace("by = 0.1", "by = 0.2")
    study = asked(changed)
    conduct(folder, study, Script(study, episode), look_s=0)
    digest = json.loads(folder.record.read_text())["digest"]
    assert f"`{digest}`" in folder.page.read_text()
    with pytest.raises(
        RunError, match=r"predictions 1.by = 0.2 there, 0.1 given. Put it back, or give another"
    ):
        conduct(folder, asked(), Script(study, episode), look_s=0)
    for text, difference in (
        (
            changed.replace("seeds = [0, 1]", "seeds = [0, 1, 2]"),
            r"seeds = \[0, 1\] there, \[0, 1, 2\] given",
        ),
        (
            changed.replace("[arms.slow]", "[arms.lazy]").replace('"slow"', '"lazy"'),
            "arms.slow = .* 'nothing' given",
        ),
    ):
        with pytest.raises(RunError, match=difference):
            conduct(folder, asked(text), Script(study, episode), look_s=0)
    other = asked(changed.replace("Is fast", "Is it").replace("it learns faster", "we think so"))
    assert "# Is it better?" in conduct(folder, other, Script(study, episode), look_s=0)


def test_a_gin_file_that_says_something_else_is_another_study(asked, episode, undrawn, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.gin").write_text('include "smoke.gin"\n')
    folder, study = StudyFolder(tmp_path / "study"), asked(STUDY.replace("smoke.gin", "mine.gin"))
    conduct(folder, study, Script(study, episode), look_s=0)
    (tmp_path / "mine.gin").write_text('include "smoke.gin"\nteam.Team.alpha = 2.0\n')
    with pytest.raises(RunError, match="the gin files of fast, slow say something else than then"):
        conduct(folder, study, Script(study, episode), look_s=0)


def test_runs_that_are_there_can_be_arms(asked, episode, undrawn, tmp_path):
    """Pairs are the seeds and instances that both arms have."""
    paths = {}
    for name, solved, seed in (("a", "1110", 5), ("b", "0000", 5), ("c", "1111", 6), ("d", "0001", 6)):
        x = gin_config.load(
            "smoke.gin", [f"experiment.Experiment.seed = {seed}", "experiment.Experiment.steps = 2"]
        )
        folder = RunFolder(tmp_path / name)
        left(folder, x, solved, episode)
        paths[name] = str(folder.path)
    text = """
    measure = "validation"
    arms.ours.runs = ["{a}", "{c}"]
    arms.theirs.runs = ["{b}", "{d}"]
    predictions = [{{better = ["ours", "theirs"]}}, {{better = ["theirs", "ours"], by = 0.999}}]
    """
    study = asked(text.format(**paths))
    folder = StudyFolder(tmp_path / "study")
    page = conduct(folder, study, lambda run, place: 1 / 0, look_s=0)
    ours, theirs = rows(folder.table)
    # From 0 to the success of the last step on a line: the mean is half of that.
    assert (ours["mean"], ours["each"], theirs["mean"]) == ("0.437500", "0.375000 0.500000", "0.062500")
    assert rows(folder.verdicts)[0]["mean"] == "0.375000"
    assert rows(folder.verdicts)[1]["verdict"] == "failed"
    assert "Runs of ours, theirs were there before these predictions." in page
    cases = [
        (
            "tokens = 10",
            paths["d"],
            "d ended after 2 steps and 200 tokens, and the study is of 10 tokens; name",
        ),
        ("tokens = 500", paths["d"], "ended after 2 steps and 200 tokens, and the study is of 500 tokens"),
        ("steps = 3", paths["d"], "ended after 2 steps and 200 tokens, and the study is of 3 steps"),
        ("", paths["c"], "arm ours: .*c and .*c have the same seed 6; name one of them"),
        ("", tmp_path / "nothing", "arm ours: .*nothing holds no run"),
    ]
    for more, first, line in cases:
        other = asked(more + text.format(**paths | {"a": first}))
        with pytest.raises(RunError, match=line):
            conduct(StudyFolder(tmp_path / "other"), other, None, look_s=0)
        (tmp_path / "other" / "study.json").unlink()


TESTS = """
[arms.early]
again = "fast"
step = 0

[arms.few]
again = "fast"
gin_params = ["evaluation.EvaluationConfig.instances = 4"]
"""
AGAIN = f"""{TESTS}
[[predictions]]
better = ["few", "early"]
by = 0.1
because = "it is the same team"
"""
SOLVED_AGAIN = SOLVED | {"early_0": "0000", "early_1": "0000", "few_0": "1100", "few_1": "1100"}


def test_trained_teams_are_tested_again_in_another_way(asked, episode, tmp_path, capsys, monkeypatch):
    """Tests begin when all runs have ended. Another score of the run in its folder is none of a test's."""
    plain, study, folder = asked(), asked(STUDY + AGAIN), StudyFolder(tmp_path / "study")
    script = Script(study, episode, solved=SOLVED_AGAIN)
    before = StudyFolder(tmp_path / "before")
    monkeypatch.setattr(results_module, "figure", lambda groups, curve: b"")
    conduct(before, plain, Script(plain, episode), look_s=0)
    assert "again" not in before.record.read_text()  # an older study keeps its digest

    def start(run, place):
        if run.test is not None:
            others = {"step": 1}, {"split": "train"}, {"gin_param": ["a.b = 1"]}, {"swap": ["a", "b"]}
            for other in (*others, {"flags": {"temperature": 0.0}}):
                scored_again(run, "1111", episode, **other)
        return script(run, place)

    drawn = []

    def draw(groups, curve):
        drawn.extend(group.name for group in groups)
        return b""

    monkeypatch.setattr(results_module, "figure", draw)
    page = conduct(folder, study, start, look_s=0)
    assert drawn == ["fast", "slow"]  # a test has no curve
    names = [name for name, _ in script.started]
    assert names == ["fast_0", "fast_1", "slow_0", "slow_1", "early_0", "early_1", "few_0", "few_1"]
    table = {row["arm"]: row for row in rows(folder.table)}
    assert (table["early"]["each"], table["early"]["steps"]) == ("0.000000 0.000000", "0 0")
    assert (table["few"]["each"], table["few"]["steps"]) == ("0.500000 0.500000", "2 2")
    assert (table["early"]["tokens"], table["few"]["tokens"]) == ("0", "200")
    assert rows(folder.verdicts)[-1]["mean"] == "0.500000" and "few is better than early" in page
    assert "4 tests: 0 there, 4 to make" in (said := capsys.readouterr().err) and "4 of 4 tests made" in said
    script = Script(study, episode)
    assert conduct(folder, study, script, look_s=0) == page and script.started == []


def test_a_test_needs_its_run(asked, episode, undrawn, tmp_path):
    study, folder = asked(STUDY + AGAIN), StudyFolder(tmp_path / "study")
    script = Script(study, episode, fails=["fast_1"], solved=SOLVED_AGAIN)
    with pytest.raises(RunError, match="^1 run failed: fast_1: "):
        conduct(folder, study, script, look_s=0)
    assert [name for name, _ in script.started][4:] == ["early_0", "few_0"]
    assert rows(folder.verdicts)[-1]["measured"] == "runs of few and early are missing"


def test_tests_of_one_run_follow_each_other(asked, episode, undrawn, tmp_path):
    """They number their files in one folder."""
    one = STUDY.replace("[0, 1]", "[0]").partition("[[predictions]]")[0] + TESTS
    study, folder = asked(one), StudyFolder(tmp_path / "study")
    script = Script(study, episode, solved=SOLVED_AGAIN)
    conduct(folder, study, script, at_once=2, look_s=0)
    assert [place for name, place in script.started[2:]] == [0, 0]


@pytest.mark.parametrize(
    ("more", "line"),
    [
        ('again = "fast"', "arms.more.: Arm.again = 'fast': say what is other in this test"),
        ('again = "fats"\nstep = 0', "arms.more: again = 'fats' is no arm that is trained here: fast, slow"),
        ("step = 0", "swap and step are of an arm that has it"),
        ('again = "fast"\nstep = 0\ngin_files = ["a.gin"]', "a run has the gin files that it was trained"),
        ('again = "fast"\nswap = ["scout"]', "names two roles"),
        ('again = "fast"\nswap = ["scout", "mover"]', "arm more: swap: scout and mover share the policy"),
        ('again = "fast"\nswap = ["scout", "judge"]', "arm more: swap: name two roles of scout, mover"),
        ('again = "fast"\ngin_params = ["team.Team.alpha = 3.0"]', "arm more: .*may change the task and the"),
    ],
)  # fmt: skip
def test_what_is_wrong_in_a_test_is_said(more, line, asked, tmp_path):
    with pytest.raises(ConfigError, match=line):
        text = f"{STUDY}\n[arms.more]\n{more}\n"
        conduct(StudyFolder(tmp_path / "study"), asked(text), lambda run, place: 1 / 0)
    assert not (tmp_path / "study").exists()


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ('["fast", "slow"]', '["fats", "slow"]', "prediction 1 .*: there is no arm 'fats'; did you mean"),
        ('["fast", "slow"]', '["fast"]', r"prediction 1: Prediction.better = \['fast'\]: names two arms"),
        ('["fast", "slow"]', '["fast", "fast"]', "compares an arm with itself"),
        ("by = 0.1", "by = 10", "is a share between -1 and 1: 0.1 is ten points"),
        ("by = 0.1", "buy = 0.1", "prediction 1 has no setting 'buy'; did you mean by?"),
        ("by = 0.1", 'by = 0.1\narm = "fast"', "there is either better = "),
        ("at_least = 0.5", "", "there is either better = "),
        ("at_least = 0.5", "at_least = 80", "is a share above 0 and up to 1"),
        ("seeds = [0, 1]", "seeds = [0]", "the difference of prediction 1 needs two or more"),
        ("seeds = [0, 1]", "", "Study.seeds = .*: there is none, e.g. seeds = "),
        ("seeds = [0, 1]", "seeds = [0, 0]", "names one twice"),
        ("tokens = 150", "tokens = 150\nsteps = 3", "one of tokens and steps ends the runs"),
        ("tokens = 150", "tokens = 150\nmeasure = 'best'", "expected one of 'test', 'validation'"),
        ('every = 1"]', "every = 0\"]\nmeasure = 'validation'", "arm fast: the measure .* needs evaluations"),
        ("tokens = 150", "tokens = '150'", "Study.tokens = '150': expected int"),
        ("tokens = 150", "tokens =", "asked.toml: Invalid value"),
        ("EvaluationConfig.every", "EvaluationConfig.evry", "arm fast: .*evry"),
        ("evaluation.EvaluationConfig.every", "experiment.Experiment.seed", "is set by the study; name the"),
        ("evaluation.EvaluationConfig.every", "experiment.Experiment.steps", "set by the study; say its own"),
        ('"smoke.gin"', '"smoky.gin"', "arm fast: .*smoky.gin.*did you mean smoke.gin"),
        ("[arms.slow]", '[arms.slow]\nruns = ["a"]', "an arm has either gin files and params, or runs"),
        ("[arms.slow]", '[arms."s l"]', "a name has letters, digits, points, _ and - only"),
        ("[arms.slow]", "[arm.slow]", "there is no arm 'slow'|no setting 'arm'; did you mean arms?"),
    ],
)  # fmt: skip
def test_what_is_wrong_in_a_study_is_said(old, new, line, asked, tmp_path):
    assert old in STUDY
    with pytest.raises(ConfigError, match=line):
        conduct(StudyFolder(tmp_path / "study"), asked(STUDY.replace(old, new)), lambda run, place: 1 / 0)
    assert not (tmp_path / "study").exists()


def test_a_study_that_is_not_there_is_said_with_the_nearest(tmp_path):
    (tmp_path / "plan.toml").touch()
    with pytest.raises(ConfigError, match="there is no study .*plam.toml; did you mean plan.toml?"):
        read(tmp_path / "plam.toml")


def drawn(rng, seeds, instances, gain=0.0, spread=0.04):
    """Success of two arms: instances differ in how hard they are, and runs in how good they are."""
    hardness_I = rng.normal(0, 1.5, instances)
    arms = []
    for own in (gain, 0.0):
        skill_S1 = rng.normal(0.8 + 5.5 * own, spread * 5.5, (seeds, 1))  # 5.5: from a share to the logit
        chance_SI = 1 / (1 + np.exp(hardness_I - skill_S1))
        arms.append((rng.random((seeds, instances)) < chance_SI).astype(float))
    return arms


def words(draws, by, **settings):
    rng = np.random.default_rng(0)
    found = [verdicts.crossed(*drawn(rng, **settings)) for _ in range(draws)]
    return [verdicts.word(interval, by) for interval in found]


@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize(("instances", "spread"), [(20, 0.0), (200, 0.04), (1000, 0.08)])
def test_two_equal_arms_are_undecided_in_19_of_20_studies(seeds, instances, spread):
    found = words(1000, 0.0, seeds=seeds, instances=instances, spread=spread)
    assert found.count("undecided") >= 950


def test_a_large_difference_is_found_with_few_seeds():
    for seeds, share in ((3, 0.5), (5, 0.95)):
        found = words(200, 0.0, seeds=seeds, instances=200, gain=0.25)
        assert found.count("held") >= share * 200 and "failed" not in found


def test_a_verdict_is_by_both_ends_of_the_interval():
    ends = {(0.11, 0.3): "held", (0.1, 0.3): "undecided", (-0.2, 0.1): "undecided", (-0.2, 0.09): "failed"}
    for (low, high), word in ends.items():
        assert verdicts.word(verdicts.Interval(0.2, low, high), 0.1) == word
    same = np.array([[1.0, 0.0, 1.0], [1.0, 1.0, 1.0]])
    assert verdicts.word(verdicts.crossed(same, same), 0.0) == "undecided"  # two arms that are the same runs


def test_the_interval_has_both_reaches():
    """Seeds: gains of 0.5 and 0.25, so 12.7 * 0.125. Instances: as ``difference`` has it."""
    ours = np.array([[1.0, 1.0, 0.0, 1.0], [1.0, 1.0, 0.0, 1.0]])
    theirs = np.array([[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0]])
    found = verdicts.crossed(ours, theirs)
    assert found.mean == 0.375 and (found.low, found.high) == (-1.0, 1.0)
    one = verdicts.crossed(ours[:1], theirs[:1])
    several = verdicts.crossed(np.repeat(ours[:1], 3, 0), np.repeat(theirs[:1], 3, 0))
    assert one == several  # seeds that do not differ


def test_predictions_are_told_in_words():
    told = {0.1: "a is better than b by more than 10 points", 0.0: "a is better than b",
            -0.05: "a is less than 5 points worse than b"}  # fmt: skip
    assert {by: str(Prediction(better=("a", "b"), by=by)) for by in told} == told
    assert str(Prediction(arm="a", at_least=0.5)) == "every run of a reaches 50.0%"


def test_processes_share_the_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {5, 6, 7})
    assert making.shares(1) == [{5, 6, 7}] and making.shares(2) == [{5}, {6}]
    with pytest.raises(ConfigError, match="--at_once=4: this machine gives us 3 cores"):
        making.shares(4)


PAGE = (ROOT / "docs" / "studies.md").read_text()
(EXAMPLE,) = re.findall(r"^```toml\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
GIN = """
experiment.Experiment.warm_start = None
experiment.Experiment.gate = False
trackers.Trackers.tensorboard = None
objectives.LossConfig.minibatches = 1
config.Architecture.layers = 1
rollout.RolloutConfig.instances = 2
rollout.RolloutConfig.candidates = 2
rollout.RolloutConfig.max_tokens = 4
evaluation.EvaluationConfig.instances = 2
evaluation.EvaluationConfig.validation_instances = 1
evaluation.EvaluationConfig.every = 0
"""


@pytest.mark.parametrize("path", sorted((ROOT / "studies").glob("*.toml")), ids=lambda path: path.stem)
def test_a_study_that_comes_with_the_checkout_loads(path):
    """One has a budget if it compares arms: the same for all. One about credit has every shipped rule."""
    study = read(path)
    assert set(configs(study)) == set(study.arms) and len(study.seeds) >= 3
    assert bool(study.tokens or study.steps) == any(one.better for one in study.predictions)
    rules = {f"credit/{rule.name}" for rule in (ROOT / "gin" / "credit").iterdir()}
    if path.stem.startswith("credit_"):
        assert {name for arm in study.arms.values() for name in arm.gin_files} == rules
    assert {name for one in study.predictions for name in one.arms} == set(study.arms)
    assert all(one.because for one in study.predictions) and f"`studies/{path.name}`" in PAGE


def test_the_study_of_the_page_is_made(asked, episode, undrawn, tmp_path):
    study = asked(EXAMPLE.replace("4_000", "150"))
    solved = {"own_0": "1000", "own_1": "0100", "others_0": "1111", "others_1": "1111"}
    conduct(StudyFolder(tmp_path / "study"), study, Script(study, episode, solved=solved), look_s=0)
    assert rows(StudyFolder(tmp_path / "study").verdicts)[0]["mean"] == "0.750000"
    study = asked(EXAMPLE)
    assert configs(study)["own"] != configs(study)["others"]
    assert making.command(study, StudyFolder(Path("/x")).runs(study)[3])[2:] == [
        "atgrpo_jax.train", "--gin_file=smoke.gin", "--gin_file=credit/rloo.gin",
        "--gin_param=experiment.Experiment.seed = 1", "--gin_param=experiment.Experiment.tokens = 4000",
        "--gin_param=experiment.Experiment.steps = 4000", "--run_dir=/x/others_1",
    ]  # fmt: skip


@pytest.mark.slow
def test_a_study_by_command_that_is_killed_goes_on(tmp_path):
    """The study of the page, with shorter runs. Its processes end with it."""
    (name,) = re.findall(r"`(\w+)\.toml`:", PAGE)
    short = EXAMPLE.replace('["smoke.gin"]', '["smoke.gin", "short.gin"]').replace("4_000", "60")
    short = short.partition("[[predictions]]")[0].replace("[0, 1]", "[0]")
    short += '[arms.before]\nagain = "own"\nstep = 0\n[[predictions]]\narm = "others"\nat_least = 0.9\n'
    (tmp_path / f"{name}.toml").write_text(short)
    (tmp_path / "short.gin").write_text(GIN)
    (line,) = re.findall(r"^    python -m (.*)$", PAGE, re.MULTILINE)
    command = [sys.executable, "-m", *line.split()]
    path = os.pathsep.join((str(ROOT), os.environ.get("PYTHONPATH", "")))
    settings = {"cwd": tmp_path, "env": os.environ | {"PYTHONPATH": path}, "text": True}
    first = subprocess.Popen(command[:-1], **settings, stderr=subprocess.DEVNULL)  # one run at a time
    folder = StudyFolder(tmp_path / "runs" / name)
    log = folder.logs / "own_0.log"
    while not log.exists():
        assert first.poll() is None
        time.sleep(0.05)
    first.kill()
    first.wait()
    done = subprocess.run(command, **settings, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert "2 of 2 runs made" in done.stderr and str(folder.page) in done.stdout
    assert "1 of 1 test made" in done.stderr
    assert [(row["arm"], row["steps"] == "0") for row in rows(folder.table)] == [
        ("own", False), ("others", False), ("before", True),
    ]  # fmt: skip
    (first,) = [RunFolder(folder.path / f"{arm}_0").read_metrics()[0] for arm in ("own",)]
    assert float(rows(folder.table)[-1]["mean"]) == pytest.approx(first["test/success"])
    assert [row["verdict"] for row in rows(folder.verdicts)] == ["failed"]
    assert log.read_text().count("$ ") == 2  # the second would fail if the first one had outlived the kill
    *before, last = [r["rollout/tokens"] for r in RunFolder(folder.path / "own_0").read_metrics()[1:]]
    assert sum(before) < 60 <= sum(before) + last


def test_the_cause_of_a_failure_is_that_of_the_last_try(tmp_path):
    log = tmp_path / "a.log"
    log.write_text("$ python\nerror: no space left\n$ python\nTraceback\nValueError: odd\n")
    assert making.last_words(log) == "ValueError: odd"
    log.write_text("$ python\nstep 1\nerror: not finite\nbye\n")
    assert making.last_words(log) == "error: not finite"
    log.write_text("$ python\n")
    assert making.last_words(log) == "it said nothing"


def test_a_table_takes_any_words():
    rows = results_module._markdown(["why"], [["a | b,\nand\n  more"]])
    assert rows == ["| why |", "| --- |", "| a \\| b, and more |"]
