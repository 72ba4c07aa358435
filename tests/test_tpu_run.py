"""A real team trains on VMs of the fake cloud, its folder in a bucket, and loses its machines.

On one VM with two devices, and on two VMs with one each: both leave what one undisturbed process leaves.
"""

import json
import os
import subprocess
import sys

import fake_gcs
import pytest
from shared_tpu import BUCKET, ROOT, WHERE, Desk, wait_for

pytestmark = pytest.mark.slow

SHORT = [
    "--gin_file=smoke.gin",
    "--gin_param=mesh.MeshConfig.data = 2",
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


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The folder of a run that nothing happens to."""
    folder = tmp_path_factory.mktemp("undisturbed")
    cache = f'--gin_param=warm_start.WarmStartConfig.cache_dir = "{folder / "cache"}"'
    train = [sys.executable, "-m", "atgrpo_jax.train", *SHORT, cache, f"--run_dir={folder / 'run'}"]
    done = subprocess.run(train, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / "run"


def begin(desk, kind):
    """Starts a run on machines of a type, and `watch` for it. Returns the process of that and the folder."""
    cache = f'--gin_param=warm_start.WarmStartConfig.cache_dir = "{BUCKET}/cache"'
    up = desk.start("up", "w", f"--type={kind}", *WHERE, "--spot", "--", *SHORT, cache)
    _, err = up.communicate(timeout=60)
    assert up.returncode == 0, err
    return desk.start("watch", "w", "--delete", "--every=0.5"), desk.object("w/run")


def ends(desk, watch, losses):
    out, err = watch.communicate(timeout=480)
    assert watch.returncode == 0, out + err
    assert out.count("the machines were taken away") == losses
    assert desk.cloud.resources() == {}


def assert_same_bytes(run, undisturbed):
    assert without_times(run) == without_times(undisturbed)
    for file in sorted((undisturbed / "episodes").iterdir()):
        assert (run / "episodes" / file.name).read_bytes() == file.read_bytes()
    assert {place.name for place in (run / "checkpoints").iterdir()} == {
        place.name for place in (undisturbed / "checkpoints").iterdir()
    }
    assert (run / "curves.png").exists() and not (run / ".lease").exists()


@pytest.mark.long
def test_a_team_that_loses_its_machines_learns_what_it_would_have_learned(desk, undisturbed):
    watch, run = begin(desk, "v6e-8")
    wait_for(lambda: len(steps(run)) >= 2, seconds=480)
    desk.cloud.preempt("w")  # in the middle of the run: it hears SIGTERM, and saves if it has the time
    reached = steps(run)[-1]
    wait_for(lambda: steps(run)[-1] > reached, seconds=480)
    wait_for(lambda: half_saved(run), seconds=60)
    desk.cloud.preempt("w", grace_s=0.0)  # in a save, without a word
    ends(desk, watch, losses=2)
    assert_same_bytes(run, undisturbed)


@pytest.mark.long
def test_a_team_on_two_vms_learns_what_it_would_have_learned_on_one(desk, undisturbed):
    watch, run = begin(desk, "v5p-16")
    wait_for(lambda: len(steps(run)) >= 2, seconds=480)
    desk.cloud.preempt("w")
    ends(desk, watch, losses=1)
    assert_same_bytes(run, undisturbed)
