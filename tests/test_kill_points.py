"""A run goes on to the same bytes from whatever kill -9 leaves, at every call that changes a file.

One short run is recorded: before each of these calls, Python's or TensorStore's, its folder and cache are
copied (snapshots.c), which is what a kill there would leave. What a start makes of each copy is looked at,
and the run goes on from every state among these that differs.

``python tests/test_kill_points.py`` goes on from all states; the test, from three of them.
"""

import hashlib
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import numpy as np
import pytest

from atgrpo_jax.arrays import trees
from atgrpo_jax.run import gin_config
from atgrpo_jax.run.checkpoint import Checkpoints
from atgrpo_jax.run.folder import RunFolder
from atgrpo_jax.run.loop import train
from atgrpo_jax.run.saved import claim
from atgrpo_jax.run.team_learner import TeamLearner

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler for snapshots.c"),
]

SHORT = """
from __gin__ import dynamic_registration
from atgrpo_jax.credit import groups
from atgrpo_jax.rollout import evaluation
from atgrpo_jax.run import experiment
from atgrpo_jax.rollout import rollout
from atgrpo_jax.rollout import team
from atgrpo_jax.update import warm_start
from atgrpo_jax.models import config
include "smoke.gin"
experiment.Experiment.team = @team.Team()
experiment.Experiment.steps = 2
experiment.Experiment.checkpoint_every = 1
experiment.Experiment.keep_checkpoints = 1
team.Team.sharing = "lora"
groups.CreditConfig.baseline = "running"
groups.CreditConfig.normalise = "mean"
config.Architecture.layers = 1
rollout.RolloutConfig.instances = 2
evaluation.EvaluationConfig.instances = 1
evaluation.EvaluationConfig.validation_instances = 1
evaluation.EvaluationConfig.every = 0
warm_start.WarmStartConfig.steps = 1
warm_start.WarmStartConfig.instances = 2
"""


def experiment(place, root):
    """The short run, with its cache in ``root``."""
    (place / "short.gin").write_text(SHORT)
    return gin_config.load(
        str(place / "short.gin"), [f'warm_start.WarmStartConfig.cache_dir = "{root / "cache"}"']
    )


def record(place):
    """A run in ``place``/root, its copies in ``place``/copies; returns both."""
    root, copies, library = place / "root", place / "copies", place / "snapshots.so"
    source = Path(__file__).with_name("snapshots.c")
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
    experiment(place, root)
    root.mkdir()
    copies.mkdir()
    preloaded = {"LD_PRELOAD": str(library), "SNAPSHOT_ROOT": str(root), "SNAPSHOT_OUT": str(copies)}
    subprocess.run(
        [
            sys.executable, "-m", "atgrpo_jax.train",
            f"--gin_file={place / 'short.gin'}", f"--run_dir={root / 'run'}",
            f'--gin_param=warm_start.WarmStartConfig.cache_dir = "{root / "cache"}"',
        ],
        env=os.environ | preloaded, check=True, capture_output=True,
    )  # fmt: skip
    return root, sorted(copies.iterdir())


def opened(x, root):
    """What the start of a run makes of ``root``: a digest of all that is left of it but TensorBoard's."""
    folder = RunFolder(root / "run")
    if not folder.exists():  # a config that is there is read when the run goes on, below
        with claim(folder, x):
            pass
    checkpoints = Checkpoints(folder.checkpoints, x.identity(), x.keep_checkpoints)
    found = checkpoints.newest()
    folder.rewind(-1 if found is None else found)
    trees.clean(root / "cache" / "warm_start")
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        if path.is_file() and "tensorboard" not in name:
            digest.update(f"{name} {path.stat().st_size}\n".encode() + path.read_bytes())
    replaced = {
        ".summary.json.partial",
        ".curves.png.partial",
        ".report.html.partial",
        ".state.json.partial",  # of trackers
    }  # at the end, when they are written again
    assert litter(root) <= replaced
    return digest.hexdigest()


def litter(root):
    return {path.name for path in root.rglob("*") if "partial" in path.name or "damaged" in path.name}


def left(x, root):
    """What must be the same: metrics but for perf/, episodes, all numbers of the last checkpoint."""
    folder = RunFolder(root / "run")
    metrics = [{k: v for k, v in r.items() if not k.startswith("perf/")} for r in folder.read_metrics()]
    episodes = {path.name: path.read_bytes() for path in folder.episodes.iterdir()}
    checkpoints = Checkpoints(folder.checkpoints, x.identity(), read_only=True)
    team = TeamLearner(x).restore(checkpoints, x.steps)
    kept = sorted(path.name for path in folder.checkpoints.iterdir())
    return metrics, episodes, kept, jax.device_get(team)


def check(place, some=None):
    """Returns the number of copies, of states among them, and of those that a run went on from."""
    root, copies = record(place)
    x = experiment(place, root)
    expected = left(x, root)
    assert expected[2] == ["0", str(x.steps)]
    states = {}
    for copy in copies:
        trial = place / "trial"
        shutil.copytree(copy, trial)
        states.setdefault(opened(x, trial), copy)
        shutil.rmtree(trial)
    chosen = sorted(states.values())
    chosen = chosen if some is None else random.Random(0).sample(chosen, some)
    for copy in chosen:
        print(f"from {copy.name}", flush=True)
        x, folder = experiment(place, copy), RunFolder(copy / "run")
        with claim(folder, x):
            train(x, folder)
        found = left(x, copy)
        assert found[:3] == expected[:3], copy.name
        jax.tree.map(np.testing.assert_array_equal, found[3], expected[3])
        assert folder.summary.is_file() and folder.curves.is_file() and not litter(copy)
    return len(copies), len(states), len(chosen)


def test_killed_at_any_call_it_goes_on_to_the_same_run():
    """In a process of its own: with the eight devices of these tests XLA sums in another order."""
    command = [sys.executable, __file__, "3"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    copies, states, chosen = map(int, re.findall(r"\d+", done.stdout.splitlines()[-1]))
    assert copies > 300 and states > 10 and chosen == 3  # the recording has seen TensorStore's calls, too


if __name__ == "__main__":
    some = int(sys.argv[1]) if len(sys.argv) > 1 else None
    with tempfile.TemporaryDirectory() as folder:
        print("calls: {}, states: {}, gone on from: {}".format(*check(Path(folder), some)))
