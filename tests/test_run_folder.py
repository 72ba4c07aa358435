import dataclasses
import importlib
import json
import re
import shutil
import subprocess

import jax
import numpy as np
import pytest

from atgrpo_jax.arrays.mesh import MeshConfig
from atgrpo_jax.common.errors import RunError
from atgrpo_jax.common.files import read_json_lines
from atgrpo_jax.run import environment
from atgrpo_jax.run.folder import RunFolder
from atgrpo_jax.run.gin_config import load, render
from atgrpo_jax.run.kept_modules import settle_code
from atgrpo_jax.run.loop import train
from atgrpo_jax.run.saved import SavedRun, claim
from atgrpo_jax.run.shapes import earlier, settle


@pytest.fixture
def folder(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.lock()
    return folder


def records(folder, *steps):
    folder.metrics.write_text("".join(f'{{"step": {s}, "x": 1.5}}\n' for s in steps))


def test_what_is_not_a_run_folder_is_refused(tmp_path):
    assert not RunFolder(tmp_path / "new").exists()
    assert not RunFolder(tmp_path).exists()
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(RunError, match="is not a run folder .* --run_dir"):
        RunFolder(tmp_path).exists()
    with pytest.raises(RunError, match="is not a run folder"):
        RunFolder(tmp_path / "letter.txt").exists()


def test_two_processes_cannot_train_in_one_folder(folder):
    with pytest.raises(RunError, match="another process is training in"):
        RunFolder(folder.path).lock()


def test_a_cut_last_line_is_left_out_but_another_bad_line_is_an_error(folder):
    records(folder, 0, 1)
    with open(folder.metrics, "a") as file:
        file.write('{"step": 2, "x"')
    assert [r["step"] for r in folder.read_metrics()] == [0, 1]
    folder.metrics.write_text('{"step": 0}\nnonsense\n{"step": 2}\n')
    with pytest.raises(RunError, match=r"metrics.jsonl, line 2: not JSON"):
        folder.read_metrics()


def test_rewind_forgets_what_comes_after(folder):
    records(folder, 0, 1, 2, 3)
    before = folder.metrics.read_text().splitlines(keepends=True)
    for step in (1, 2, 3):
        folder.write_episodes(step, b"")
        folder.write_episodes(step, b"", "validation")
    (folder.episodes / ".step_000004.jsonl.gz.partial").write_bytes(b"cut short")
    (folder.episodes / ".step_000004.test.jsonl.gz.partial").write_bytes(b"cut short")
    folder.rewind(2)
    assert folder.metrics.read_text() == "".join(before[:3])
    assert sorted(p.name for p in folder.episodes.iterdir()) == [
        f"step_00000{step}.{kind}" for step in (1, 2) for kind in ("jsonl.gz", "validation.jsonl.gz")
    ]


def test_later_evaluations_have_numbers(folder):
    names = [folder.write_evaluation(split, b"") for split in ("test", "test", "validation", "test")]
    assert names == [
        "0001_test.jsonl.gz", "0002_test.jsonl.gz", "0001_validation.jsonl.gz", "0003_test.jsonl.gz",
    ]  # fmt: skip


@pytest.mark.parametrize("left", [[".lock"], [".lock", ".config.gin.partial"], []])
def test_a_folder_of_a_run_that_was_killed_before_it_had_a_config_is_free(tmp_path, left):
    for name in left:
        (tmp_path / name).write_bytes(b"")
    folder = RunFolder(tmp_path)
    assert not folder.exists()
    folder.lock()


@pytest.mark.parametrize("name", ["a\0b", "a\udcff", "~nobody.at.all/run"])
def test_a_name_that_no_folder_can_have_is_refused(name):
    with pytest.raises(RunError, match=r"run_dir '.*' (has|is|names) .*; give another --run_dir"):
        RunFolder(name)


def test_what_is_in_the_way_of_a_folder_is_named(tmp_path):
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(RunError, match="a link to nothing"):
        RunFolder(tmp_path / "dangling").lock()
    for name in ("loop", "loop/run", "file/run", "x" * 300, "x" * 300 + "/run"):
        with pytest.raises((OSError, RunError)) as raised:
            folder = RunFolder(tmp_path / name)
            folder.exists()
            folder.lock()
        assert str(tmp_path / name.split("/")[0]) in str(raised.value), name


@pytest.mark.parametrize("replaced", [False, True])
def test_a_folder_that_was_taken_away_is_not_written_to(folder, tmp_path, replaced):
    folder.check_ours()
    shutil.rmtree(folder.path)
    if replaced:
        RunFolder(folder.path).lock()
    for write in (folder.check_ours, lambda: folder.write_episodes(1, b"")):
        with pytest.raises(RunError, match="was removed or replaced while this run was going on"):
            write()
    assert not folder.episodes.exists()


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("5", "not a JSON object"),
        ("{}", '"step" must be 1, not None'),
        ('{"step": "1"}', "'step' is no number but '1'"),
        ('{"step": true}', "'step' is no number"),
        ('{"step": 1.0}', '"step" must be 1, not 1.0'),
        ('{"step": 0}', '"step" must be 1, not 0'),
        ('{"step": 2}', '"step" must be 1, not 2'),
        ('{"step": 1, "x": null}', "'x' is no number but 'None'"),
        ('{"step": 1, "x": ' + "9" * 400 + "}", "'x' is no number"),
    ],
)
def test_a_bad_record_is_named(folder, line, says):
    folder.metrics.write_text('{"step": 0}\n' + line + '\n{"step": 2}\n')
    with pytest.raises(RunError, match=f"metrics.jsonl, line 2: {re.escape(says)}"):
        folder.read_metrics()
    folder.metrics.write_text('{"step": 0, "x": Infinity, "y": NaN, "z": 3}\n')
    assert folder.read_metrics()[0]["x"] == float("inf")


def test_rewind_leaves_alone_what_is_not_ours(folder):
    records(folder, 0, 1)
    kept = [
        "step_x", "step_", "step_notes.txt", "step_000002.jsonl", "step_2.jsonl.gz", "step_000001.jsonl.gz",
        "step_\u0661\u0661\u0661\u0661\u0661\u0661.jsonl.gz", "a.partial", ".b.partial",
        "step_000002.jsonl.gz.bak",
    ]  # fmt: skip
    folder.episodes.mkdir()
    for name in [*kept, "step_000002.jsonl.gz", "step_1000000.jsonl.gz"]:
        (folder.episodes / name).write_bytes(b"")
    (folder.episodes / "step_000003.jsonl.gz").mkdir()
    folder.rewind(1)
    assert {path.name for path in folder.episodes.iterdir()} == {*kept, "step_000003.jsonl.gz"}


def test_rewind_refuses_to_lose_what_is_there(folder):
    records(folder, 0, 1)
    with pytest.raises(
        RunError, match=r"has no line of step 2, but there is checkpoint 4; put the file back"
    ):
        folder.rewind(4)
    with pytest.raises(RunError, match=r"has metrics of 1 step but no checkpoint; put checkpoints/ back"):
        folder.rewind(-1)
    assert len(folder.read_metrics()) == 2
    folder.metrics.unlink()
    with pytest.raises(RunError, match=r"has no line of step 0, but there is checkpoint 4"):
        folder.rewind(4)
    records(folder, 0)
    folder.rewind(-1)  # killed between the scores of the start and its checkpoint
    assert folder.read_metrics() == []


def test_a_claim_looks_again_under_the_lock(tmp_path):
    """Between the first look and the lock another run has come and gone."""
    other = load("smoke.gin", ["experiment.Experiment.seed = 1"])

    class Late(RunFolder):
        def lock(self):
            self.path.mkdir()
            self.config.write_text(render(other))
            super().lock()

    with pytest.raises(
        RunError, match=r"holds a run of another config \(Experiment.seed = 1 there, 0 given\)"
    ):
        claim(Late(tmp_path / "run"), load("smoke.gin")).__enter__()
    assert load(str(tmp_path / "run" / "config.gin")) == other


def test_a_claim_leaves_nothing_in_a_folder_that_is_no_runs(tmp_path):
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(RunError, match="is not a run folder"):
        claim(RunFolder(tmp_path), load("smoke.gin")).__enter__()
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


def test_fewer_steps_than_are_done_are_refused_and_change_nothing(tmp_path):
    folder = RunFolder(tmp_path / "run")
    (folder.checkpoints / "6").mkdir(parents=True)
    folder.config.write_text(render(load("smoke.gin")))
    before = folder.config.read_bytes()
    with pytest.raises(
        RunError, match=r"holds 6 steps already, more than Experiment.steps = 4; ask for more"
    ):
        claim(folder, load("smoke.gin", ["experiment.Experiment.steps = 4"])).__enter__()
    assert folder.config.read_bytes() == before


@pytest.mark.parametrize(
    ("ends", "more"), [("steps = 2", "Experiment.steps = 3"), ("tokens = 150", "more Experiment.tokens")]
)
def test_a_run_is_not_ended_at_a_step_that_was_not_its_last(tmp_path, ends, more):
    """Nobody has played the test after it. Nothing is loaded or changed."""
    folder = RunFolder(tmp_path / "run")
    (folder.checkpoints / "2").mkdir(parents=True)
    folder.config.write_text(render(load("smoke.gin")))
    records = [{"step": 0}, {"step": 1, "rollout/tokens": 100}, {"step": 2, "rollout/tokens": 100}]
    folder.metrics.write_text("".join(json.dumps(record) + "\n" for record in records))
    ended = load("smoke.gin", [f"experiment.Experiment.{ends}"])
    before = folder.config.read_bytes()
    with pytest.raises(RunError, match=rf"holds step 2 already, .* a step more \({more}\), .*--step=2$"):
        claim(folder, ended).__enter__()
    assert folder.config.read_bytes() == before
    records[2]["test/success"] = 0.5
    folder.metrics.write_text("".join(json.dumps(record) + "\n" for record in records))
    with claim(folder, ended):
        pass


def test_a_run_goes_on_with_another_number_of_hosts_or_mesh_only_if_it_is_told_to(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    one = load("smoke.gin")
    two = dataclasses.replace(one, mesh=MeshConfig(data=2))
    settle(folder, two, None, 2, 0, False)
    settle(folder, two, two, 2, 4, False)
    assert [line["hosts"] for line in read_json_lines(folder.shapes)] == [2]
    with pytest.raises(RunError, match="made by 2 hosts, and now it would be 1; with --other_hosts"):
        settle(folder, two, two, 1, 4, False)
    with pytest.raises(RunError, match="MeshConfig.data = 2 there, 1 given.*or --other_hosts to go on"):
        settle(folder, one, two, 2, 4, False)
    with pytest.raises(RunError, match=r"Experiment.seed = 0 there, 3 given\); give another .*, or --from="):
        settle(folder, dataclasses.replace(one, seed=3), two, 2, 4, True)
    wider = dataclasses.replace(one, model=dataclasses.replace(one.model, mlp_width=96), seed=3)
    with pytest.raises(RunError, match=r"; Experiment.seed = 0 there, 3 given\); give another --run_dir$"):
        settle(folder, wider, two, 2, 4, True)  # weights of other sizes are no beginning
    settle(folder, one, two, 1, 4, True)
    lines = read_json_lines(folder.shapes)
    assert lines[1] == {"after_step": 4, "hosts": 1, "mesh": str(one.mesh), "before": two.identity()}
    assert earlier(folder) == (two.identity(),)


def test_a_run_of_one_host_has_no_record_of_hosts(tmp_path):
    folder = RunFolder(tmp_path)
    x = load("smoke.gin")
    settle(folder, x, None, 1, 0, False)
    settle(folder, x, x, 1, 3, False)
    assert not folder.shapes.exists() and earlier(folder) == ()
    with pytest.raises(RunError, match="made by 1 host, and now it would be 2"):
        settle(folder, x, x, 2, 3, False)


@pytest.mark.thorough
def test_a_run_trains_on_on_another_mesh_and_is_read_on_any(tmp_path):
    def given(*bindings):
        cache = f"warm_start.WarmStartConfig.cache_dir = '{tmp_path}'"
        return load("smoke.gin", ["warm_start.WarmStartConfig.steps = 1", cache, *bindings])

    folder = RunFolder(tmp_path / "run")
    with claim(folder, given("experiment.Experiment.steps = 1")) as x:
        train(x, folder)
    longer = given("experiment.Experiment.steps = 2", "mesh.MeshConfig.data = 2")
    with pytest.raises(RunError, match="--other_hosts"), claim(folder, longer):
        pass
    with claim(folder, longer, other_hosts=True) as x:
        train(x, folder)
    assert [record["step"] for record in folder.read_metrics()] == [0, 1, 2]
    meshes = None, MeshConfig(), MeshConfig(fsdp=2)
    for step in (1, 2):  # of before and after
        found = [jax.device_get(SavedRun(folder.path, mesh).weights(step)) for mesh in meshes]
        jax.tree.map(np.testing.assert_array_equal, *found[:2])
        jax.tree.map(np.testing.assert_array_equal, *found[1:])


def test_the_module_that_made_the_steps_stays_though_it_changes_twice(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    file, code = tmp_path / "changing_game.py", tmp_path / "code"
    game = "from atgrpo_jax.tasks.games.plan_path import PlanPath\nclass Changing(PlanPath):\n    pass\n"
    file.write_text(game)
    task = importlib.import_module("changing_game").Changing()
    settle_code(task, code, 0, changed=False)
    for text in ("# a try that ended before its first checkpoint\n", "# the next one\n"):
        file.write_text(game + text)
        settle_code(task, code, 20, changed=True)
    assert (code / "before_step_21" / "changing_game.py").read_text() == game
    assert (code / "changing_game.py").read_text() == file.read_text()


@pytest.mark.parametrize("inside", ["", ".venv/lib/site-packages"])
def test_the_commit_of_the_package_is_that_of_its_own_checkout(tmp_path, monkeypatch, inside):
    for words in (
        ["init", "-q"],
        ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "--allow-empty", "-m", "a"],
    ):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    package = tmp_path / inside / "atgrpo_jax"
    package.mkdir(parents=True)
    monkeypatch.setattr(environment.atgrpo_jax, "__file__", str(package / "__init__.py"))
    monkeypatch.chdir(tmp_path)
    assert set(environment._commits()) == ({"folder"} if inside else {"folder", "package"})
