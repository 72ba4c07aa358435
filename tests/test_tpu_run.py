"""A real team trains on a VM of the fake cloud, its folder in a bucket, and loses its machines twice."""

import json
import os
import subprocess
import sys

import fake_gcs
import pytest
from shared_tpu import ROOT, WHERE, Desk, wait_for

pytestmark = pytest.mark.slow

SHORT = [
    "--gin_file=smoke.gin",
    "--gin_param=experiment.Experiment.steps = 6",
    "--gin_param=experiment.Experiment.checkpoint_every = 1",
    "--gin_param=warm_start.WarmStartConfig.steps = 4",
    "--gin_param=evaluation.EvaluationConfig.instances = 2",
    "--gin_param=evaluation.EvaluationConfig.validation_instances = 2",
]


@pytest.fixture
def desk(tmp_path):
    desk = Desk(tmp_path, stand_in=False)
    with fake_gcs.serving(desk.cloud.folder / "buckets") as server:
        desk.environment |= fake_gcs.environment(server.url) | {
            name: value for name, value in os.environ.items() if name.startswith("JAX_")
        }
        yield desk
        desk.end()


def steps(folder):
    file = folder / "metrics.jsonl"
    return [json.loads(line)["step"] for line in file.read_text().splitlines()] if file.exists() else []


def without_times(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if not k.startswith("perf/")} for line in lines]


def half_saved(folder):
    """Whether a checkpoint is being written: it has arrays, and nothing that says that they are all there."""
    return any(
        list(place.glob("state.*")) and not (place / "saved.json").exists()
        for place in (folder / "checkpoints").glob("*")
    )


def test_a_team_that_loses_its_machines_learns_what_it_would_have_learned(desk, tmp_path):
    on_disk = tmp_path / "on_disk"
    cache = f'--gin_param=warm_start.WarmStartConfig.cache_dir = "{tmp_path / "cache"}"'
    train = [sys.executable, "-m", "atgrpo_jax.train", *SHORT, cache, f"--run_dir={on_disk}"]
    undisturbed = subprocess.run(train, cwd=ROOT, capture_output=True, text=True)
    assert undisturbed.returncode == 0, undisturbed.stderr

    run = desk.object("w/run")
    bucket = WHERE[1].partition("=")[2]
    cache = f'--gin_param=warm_start.WarmStartConfig.cache_dir = "{bucket}/cache"'
    up = desk.start("up", "w", "--type=v6e-8", *WHERE, "--spot", "--", *SHORT, cache)
    _, err = up.communicate(timeout=60)
    assert up.returncode == 0, err
    watch = desk.start("watch", "w", "--delete", "--every=0.5")
    wait_for(lambda: len(steps(run)) >= 2, seconds=240)
    desk.cloud.preempt("w")  # in the middle of the run: it hears SIGTERM, and saves if it has the time
    reached = steps(run)[-1]
    wait_for(lambda: steps(run)[-1] > reached, seconds=240)
    wait_for(lambda: half_saved(run), seconds=60)
    desk.cloud.preempt("w", grace_s=0.0)  # in a save, without a word
    out, err = watch.communicate(timeout=300)
    assert watch.returncode == 0, out + err
    assert out.count("the machines were taken away") == 2
    assert desk.cloud.resources() == {}

    assert without_times(run) == without_times(on_disk)
    for file in sorted((on_disk / "episodes").iterdir()):
        assert (run / "episodes" / file.name).read_bytes() == file.read_bytes()
    assert {place.name for place in (run / "checkpoints").iterdir()} == {
        place.name for place in (on_disk / "checkpoints").iterdir()
    }
    assert (run / "curves.png").exists() and not (run / ".lease").exists()
