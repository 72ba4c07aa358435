"""Whole runs as a user starts them: real processes, killed and resumed."""

import dataclasses
import json
import re
import resource
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
import transformers

from atgrpo_jax.models.families.table import transformer
from atgrpo_jax.models.hf import hf
from atgrpo_jax.run import gin_config
from atgrpo_jax.run.checkpoint import Checkpoints
from atgrpo_jax.run.folder import RunFolder
from atgrpo_jax.update.learner import Learner

pytestmark = pytest.mark.slow

STEPS = 8  # of a run of smoke.gin, unless a test says otherwise


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A working directory, and a cache of its own for warm starts and compiled code."""
    return tmp_path_factory.mktemp("work")


def start(place, *args, module="train"):
    return subprocess.Popen(
        [sys.executable, "-m", f"atgrpo_jax.{module}", *args],
        cwd=place, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def train(place, name, *params):
    cache = f'warm_start.WarmStartConfig.cache_dir = "{place / "cache"}"'
    return start(
        place, "--gin_file=smoke.gin", f"--run_dir={name}",
        *(f"--gin_param={p}" for p in (cache, f"experiment.Experiment.steps = {STEPS}", *params)),
    )  # fmt: skip


def finish(process, code=0):
    out, err = process.communicate(timeout=240)
    assert process.returncode == code, err
    return out, err


@pytest.fixture(scope="module")
def whole(place):
    """An uninterrupted run of smoke.gin: its folder and what it printed."""
    out, err = finish(train(place, "whole"))
    return RunFolder(place / "whole"), out, err


def parameters(folder, step):
    x = gin_config.load(str(folder.config))
    learner = Learner(
        transformer(x.model, x.tokenizer.vocab_size), x.optimizer, x.loss.objective(), x.mesh.build()
    )
    checkpoints = Checkpoints(folder.checkpoints, x.identity(), read_only=True)
    return checkpoints.restore(step, dict.fromkeys(x.policies, learner.shapes))[0]


def metrics(folder):
    return [
        {name: value for name, value in record.items() if not name.startswith("perf/")}
        for record in folder.read_metrics()
    ]


def episodes(folder, pattern="*"):
    return {p.name: p.read_bytes() for p in sorted(folder.episodes.glob(pattern))}


def assert_same_run(one, other, step=STEPS):
    assert metrics(one) == metrics(other)
    assert episodes(one) == episodes(other)
    jax.tree.map(np.testing.assert_array_equal, parameters(one, step), parameters(other, step))


def test_a_run_leaves_what_it_says(whole, place):
    folder, out, err = whole
    assert re.search(r"before +\d+\.\d%", out) and re.search(r"after +\d+\.\d%", out)
    assert f"Run folder: {place / 'whole'}" in out
    assert f"train {STEPS}/{STEPS}" in err and "\r" not in err  # plain lines without a terminal
    names = {p.name for p in folder.path.iterdir()}
    assert names >= {
        "config.gin", "metrics.jsonl", "tensorboard", "episodes", "checkpoints", "summary.json",
        "curves.png", "report.html",
    }  # fmt: skip
    assert list(folder.tensorboard.iterdir())
    records = folder.read_metrics()
    assert [r["step"] for r in records] == list(range(STEPS + 1))
    assert "test/success" in records[0] and "test/success" in records[STEPS]
    assert all(r["policy/shared/logprob_gap"] < 1e-4 for r in records[1:])


def test_episodes_hold_every_group_of_the_step(whole):
    folder, _, _ = whole
    records = folder.read_metrics()
    for step in range(1, STEPS + 1):
        played = list(folder.read_episodes(step))
        assert {episode["instance"] for episode in played} == set(range((step - 1) * 8, step * 8))
        assert sum(episode["solved"] for episode in played) / 8 == records[step]["rollout/success"]
        groups = [group for episode in played for group in episode["groups"]]
        assert len(groups) == records[step]["groups/total"]
        assert {g["version"] for g in groups} == {step - 1}
        for g in groups:
            assert len(g["candidates"]) == 4
            drawn = {tuple(c["tokens"]) for c in g["candidates"]}
            assert len(drawn) > 1 or len(g["candidates"][0]["tokens"]) < 3


def test_the_next_run_takes_the_warm_start_from_the_cache_and_equals_the_first(whole, place):
    folder, _, err = whole
    assert "warm start 60/60" in err
    _, err = finish(train(place, "again"))
    assert "warm start: from the cache" in err and "warm start 60/60" not in err
    assert_same_run(RunFolder(place / "again"), folder)


def test_evaluations_keep_their_episodes(whole):
    folder = whole[0]
    for record in folder.read_metrics():
        for split in ("validation", "test"):
            if f"{split}/success" in record:
                played = list(folder.read_episodes(record["step"], split))
                solved = [episode["solved"] for episode in played]
                assert sum(solved) / len(solved) == pytest.approx(record[f"{split}/success"])
                (candidate,) = played[0]["groups"][0]["candidates"]
                assert candidate["text"] and candidate["advantage"] is None and not candidate["trained"]


@pytest.fixture(scope="module")
def other(place):
    """Another seed, no gate, and what sampler and learner differ by corrected."""
    switches = "Experiment.seed = 1", "Experiment.gate = False", "Experiment.steps = 4"
    finish(
        train(
            place, "other", *(f"experiment.{s}" for s in switches), "objectives.LossConfig.correction = 2.0"
        )
    )
    return RunFolder(place / "other")


def test_another_seed_is_another_run(whole, other):
    theirs = episodes(whole[0])
    ours = episodes(other, "step_??????.jsonl.gz")
    assert ours and all(content != theirs[name] for name, content in ours.items())


def test_gate_and_correction_are_switches(whole, other):
    with_gate, without = whole[0].read_metrics(), other.read_metrics()
    assert all("policy/shared/gate_gap" in r and "policy/shared/correction" not in r for r in with_gate[1:])
    assert all("policy/shared/gate_gap" not in r for r in without)
    assert all(r["policy/shared/correction"] == pytest.approx(1.0, abs=1e-4) for r in without[1:])


def test_evaluate_repeats_the_runs_own_scores(whole, place):
    folder, _, _ = whole
    for step, args in ((STEPS, ()), (0, ("--step=0",))):
        out, _ = finish(start(place, f"--run_dir={folder.path}", *args, module="evaluate"))
        expected = folder.read_metrics()[step]["test/success"]
        assert out.startswith(f"test after step {step}: {expected:.1%} of 20")
    records = [json.loads(line) for line in folder.evaluations.read_text().splitlines()]
    assert [r["step"] for r in records] == [STEPS, 0]


def test_evaluate_plays_a_run_on_another_task_than_it_was_trained_on(whole, place):
    folder, _, _ = whole
    args, one = (
        (f"--run_dir={folder.path}", "--instances=3"),
        "--gin_param=plan_path.PlanPath.obstacles = 0.0",
    )
    before = len(folder.evaluations.read_text().splitlines())
    out, _ = finish(start(place, *args, one, module="evaluate"))
    assert out.startswith("test after step") and " of 3 (" in out
    (record,) = map(json.loads, folder.evaluations.read_text().splitlines()[before:])
    assert record["gin_param"] == ["plan_path.PlanPath.obstacles = 0.0"] and record["instances"] == 3
    for more, says in (
        (
            "--gin_param=optimizer.OptimizerConfig.learning_rate = 1.0",
            "may change the task and the evaluation",
        ),
        ("--gin_file=smoke.gin", "has a config of its own: no --gin_file"),
    ):
        _, err = finish(start(place, *args, more, module="evaluate"), code=2)
        assert says in err


def test_a_run_that_started_from_no_folder_is_exported_as_one(whole, place):
    finish(start(place, "--run_dir=whole", "--out=exported", module="export"))
    x = gin_config.load("smoke.gin")
    read = hf.architecture(str(place / "exported" / "shared"))
    assert read == dataclasses.replace(x.model, vocab_size=x.tokenizer.vocab_size)
    assert transformers.AutoModelForCausalLM.from_pretrained(place / "exported" / "shared").num_parameters()


def test_killed_while_it_saves_and_resumed_it_is_the_same_run(whole, place):
    """A real kill -9. What each call that changes a file leaves is in test_kill_points.py."""
    folder = RunFolder(place / "killed")
    while not killed_while_saving(process := train(place, "killed"), folder):
        finish(process)  # it got to the end first: over again
        assert_same_run(folder, whole[0])
        shutil.rmtree(folder.path)
    finish(train(place, "killed"))
    assert_same_run(folder, whole[0])


def killed_while_saving(process, folder):
    """Kills a run while a checkpoint is half written; false if the process ends before."""
    while process.poll() is None:
        if list(folder.checkpoints.glob(".*.partial")):
            process.send_signal(signal.SIGKILL)
            process.communicate()
            return process.returncode == -signal.SIGKILL
        time.sleep(0.002)
    return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda n: n.name)
def test_a_signal_saves_the_last_complete_step_and_says_how_to_go_on(whole, place, number):
    folder = RunFolder(place / number.name)
    long = "experiment.Experiment.checkpoint_every = 100"
    process = train(place, number.name, long)
    while len(folder.read_metrics()) < 3:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(number)
    _, err = finish(process, 128 + number)
    last = folder.read_metrics()[-1]["step"]
    assert f"stopped after step {last}, which is saved; the same command goes on" in err
    assert "Traceback" not in err
    assert (folder.checkpoints / str(last)).exists()
    _, err = finish(train(place, number.name, long))
    assert f"going on after step {last}" in err
    assert_same_run(folder, whole[0])


def test_a_finished_run_can_be_made_longer(whole, place):
    finish(train(place, "longer", "experiment.Experiment.steps = 4"))
    finish(train(place, "longer"))
    ours, theirs = metrics(RunFolder(place / "longer")), metrics(whole[0])
    assert [r["rollout/success"] for r in ours[1:]] == [r["rollout/success"] for r in theirs[1:]]
    trained = "step_??????.jsonl.gz"
    assert episodes(RunFolder(place / "longer"), trained) == episodes(whole[0], trained)


@pytest.mark.parametrize(
    ("params", "changes"),
    [
        (['team.Team.sharing = "full"'], {"policy/mover/loss", "policy/scout/loss"}),
        (['team.Team.sharing = "lora"'], {"policy/mover/loss", "policy/scout/loss"}),
    ],
    ids=["a policy a role", "an adapter a role"],
)
@pytest.mark.long
def test_variants_run_and_resume(place, params, changes):
    name = "variant_" + params[0].split("=")[1].strip(' "')
    params = [*params, "warm_start.WarmStartConfig.steps = 30"]
    args = ["--gin_file=smoke.gin", *(f"--gin_param={p}" for p in params)]
    finish(start(place, *args, f"--run_dir={name}", "--gin_param=experiment.Experiment.steps = 3"))
    finish(start(place, *args, f"--run_dir={name}", "--gin_param=experiment.Experiment.steps = 4"))
    assert changes <= {key for record in RunFolder(place / name).read_metrics() for key in record}


def test_bad_input_is_one_line_and_a_code(place, whole):
    folder, _, _ = whole
    (place / "letters").mkdir()
    (place / "letters" / "dear.txt").write_text("dear")
    for args, says in (
        ([], "--gin_file is missing"),
        (["--gin_file=nope.gin"], "gin file 'nope.gin' not found; looked for"),
        (["--gin_file=smoke.gin", "extra"], "unexpected argument 'extra'"),
        (["--gin_file=smoke.gin", "--gin_param=a.B.c = 1"], "there is no a.B"),
        (["--gin_file=smoke.gin", "--run_dir=letters"], "is not a run folder"),
        (
            ["--gin_file=smoke.gin", f"--run_dir={folder.path}",
             "--gin_param=plan_path.PlanPath.size = 4"],
            "holds a run of another config (PlanPath.size = 3 there, 4 given)",
        ),
    ):  # fmt: skip
        out, err = finish(start(place, *args), 2)
        assert says in err and err.startswith("error: ") and err.count("\n") == 1
        assert out == ""


def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_takes_over(whole, place):
    folder = RunFolder(place / "damaged")
    shutil.copytree(whole[0].path, folder.path)
    newest = folder.checkpoints / str(STEPS)
    for path in newest.rglob("*"):
        if path.is_file() and "/d/" in str(path):
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    _, err = finish(start(place, "--run_dir=damaged", f"--step={STEPS}", module="evaluate"), 2)
    assert err.startswith(f"error: checkpoint {STEPS} in") and "is damaged" in err and err.count("\n") == 1
    _, err = finish(train(place, "damaged"))
    assert f"checkpoint {STEPS} in" in err and f"moved to {STEPS}.damaged, step {STEPS - 2} is taken" in err
    assert f"going on after step {STEPS - 2}" in err and "Traceback" not in err
    assert_same_run(folder, whole[0])


def test_a_full_disk_is_one_line(place, whole):
    """The metrics file cannot grow: /dev/full in its place."""
    folder = RunFolder(place / "full")
    finish(train(place, "full", "experiment.Experiment.steps = 2"))
    assert folder.metrics.exists()
    (folder.path / ".metrics.jsonl.partial").symlink_to("/dev/full")
    _, err = finish(train(place, "full", "experiment.Experiment.steps = 4"), 2)
    assert "No space left on device" in err and "Traceback" not in err
    finish(train(place, "full", "experiment.Experiment.steps = 4"))


@pytest.mark.long
def test_a_disk_that_is_full_while_arrays_are_written_is_one_line_and_the_same_command_goes_on(place):
    params = ("experiment.Experiment.steps = 1", "warm_start.WarmStartConfig.steps = 1")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16_384, before[1]))  # bytes a file, for what is started now
    try:
        process = train(place, "small", *params)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    _, err = finish(process, 2)
    assert "Traceback" not in err
    assert re.fullmatch(r"error: cannot write .*/warm_start/\w+: File too large", err.splitlines()[-1])
    finish(train(place, "small", *params))
