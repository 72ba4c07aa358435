"""A run whose folder is in a bucket leaves what it leaves on a disk, and goes on to it from any kill.

A kill leaves the objects that are there after some request. So one short run is recorded: after each request
that changes something, the objects are copied. What a start makes of each copy is looked at, and the run
goes on from every state among these that differs.

``python tests/test_bucket_runs.py`` goes on from all states; the test looks at two dozen copies, and goes on
from one.
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

import fake_gcs
import jax
import numpy as np
import pytest
from etils import epath
from test_kill_points import SHORT

from atgrpo_jax.common import buckets
from atgrpo_jax.common.files import names_in, read_file
from atgrpo_jax.run import gin_config
from atgrpo_jax.run.checkpoint import Checkpoints
from atgrpo_jax.run.folder import RunFolder
from atgrpo_jax.run.loop import train
from atgrpo_jax.run.saved import SavedRun, claim
from atgrpo_jax.run.team_learner import TeamLearner

pytestmark = pytest.mark.slow

BUCKET = "runs-of-us"
ROOT = epath.Path(f"gs://{BUCKET}/root")


class Recorder:
    """Copies a server's objects after each change, but the lease: its holder lives on in this process."""

    def __init__(self, server, place):
        self.server = server
        self.place = place
        self.count = 0

    def __call__(self):
        with self.server.store.lock:
            copy = self.place / f"{self.count:04d}"
            shutil.copytree(self.server.store.folder, copy, ignore=shutil.ignore_patterns(".lease"))
            self.count += 1


def experiment(place, cache):
    (place / "short.gin").write_text(SHORT)
    return gin_config.load(str(place / "short.gin"), [f'warm_start.WarmStartConfig.cache_dir = "{cache}"'])


def opened(x, root):
    """What the start of a run makes of ``root``: a digest of all but TensorBoard's and names of saves."""
    folder = RunFolder(root / "run")
    if not folder.exists():
        with claim(folder, x):
            pass
    checkpoints = Checkpoints(folder.checkpoints, x.identity(), x.keep_checkpoints)
    found = checkpoints.newest()
    folder.rewind(-1 if found is None else found)
    there = buckets.found(root)
    digest = hashlib.sha256()
    for name in sorted(there):
        place = Path(name).parent
        half = "state." in name and not any(f"{up}/saved.json" in there for up in place.parents)
        if "tensorboard" not in name and "/.lease" not in name and not half:
            name = re.sub(r"state\.[0-9a-f]+", "state", name)
            digest.update(re.sub(r"/d/[0-9a-f]+", "/d", name).encode())
    digest.update(read_file(folder.metrics) if "metrics.jsonl" in names_in(folder.path) else b"")
    return digest.hexdigest()


def left(x, folder):
    """What must be the same: metrics but for perf/, episodes, all arrays of the last checkpoint."""
    metrics = [{k: v for k, v in r.items() if not k.startswith("perf/")} for r in folder.read_metrics()]
    episodes = {name: read_file(folder.episodes / name) for name in names_in(folder.episodes)}
    checkpoints = Checkpoints(folder.checkpoints, x.identity(), read_only=True)
    team = TeamLearner(x).restore(checkpoints, x.steps)
    return metrics, episodes, checkpoints.steps(), jax.device_get(team)


def assert_same(found, expected):
    assert found[:3] == expected[:3]
    jax.tree.map(np.testing.assert_array_equal, found[3], expected[3])


def run(x, folder):
    with claim(folder, x) as begun:
        train(begun, folder)


def check(server, place, some=None):
    """Returns the number of copies, of states among them, and of those that a run went on from."""
    on_disk = experiment(place, place / "cache")
    run(on_disk, RunFolder(place / "run"))
    expected = left(on_disk, RunFolder(place / "run"))
    x = experiment(place, ROOT / "cache")
    (place / "copies").mkdir()
    server.changed = Recorder(server, place / "copies")
    run(x, RunFolder(ROOT / "run"))
    server.changed = lambda: None
    assert_same(left(x, RunFolder(ROOT / "run")), expected)
    assert not names_in(ROOT / "run") & {".lease"}
    saved = SavedRun(str(ROOT / "run"))  # as evaluate and export open it
    assert saved.newest() == x.steps and saved.weights(x.steps).keys() == set(x.policies)
    copies = sorted((place / "copies").iterdir())
    states = {}
    for copy in copies if some is None else copies[:: len(copies) // 24]:
        trial = place / "trial"
        shutil.copytree(copy, trial)
        server.store.folder = trial
        states.setdefault(opened(x, ROOT), copy)
        shutil.rmtree(trial)
    chosen = sorted(states.values())
    chosen = chosen if some is None else random.Random(0).sample(chosen, some)
    for copy in chosen:
        print(f"from {copy.name}", flush=True)
        server.store.folder = copy
        run(x, RunFolder(ROOT / "run"))
        assert_same(left(x, RunFolder(ROOT / "run")), expected)
    return len(copies), len(states), len(chosen)


@pytest.mark.long
def test_killed_after_any_request_it_goes_on_to_the_same_run():
    """In a process of its own: with the eight devices of these tests XLA sums in another order."""
    done = subprocess.run([sys.executable, __file__, "1"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    copies, states, chosen = map(int, re.findall(r"\d+", done.stdout.splitlines()[-1]))
    assert copies > 100 and states > 3 and chosen == 1


def main(some):
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        (place / "objects" / BUCKET).mkdir(parents=True)
        with fake_gcs.serving(place / "objects") as server:
            os.environ |= fake_gcs.environment(server.url)
            print("requests: {}, states: {}, gone on from: {}".format(*check(server, place, some)))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else None)
