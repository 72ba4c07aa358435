"""Runs of two processes, each with a device: they leave what one process with two devices leaves."""

import functools
import json
import os
import random
import re
import signal
import time

import numpy as np
import pytest
from shared_hosts import LENGTHS, ended, free_port, left, process, start, until, weights

STEPS = 4
BINDINGS = (
    "experiment.Experiment.checkpoint_every = 1",
    "mesh.MeshConfig.data = 2",
    'groups.CreditConfig.baseline = "running"',  # which every host remembers by itself
    'groups.CreditConfig.normalise = "mean"',
    "curriculum.CurriculumConfig.pool = 20",  # so do they what instances taught
    'curriculum.CurriculumConfig.by = "success"',
    "objectives.LossConfig.minibatches = 1",
    "rollout.RolloutConfig.instances = 9",  # one of two hosts plays more of them, and runs more programs
    "evaluation.EvaluationConfig.instances = 2",
    "evaluation.EvaluationConfig.validation_instances = 2",
    "warm_start.WarmStartConfig.steps = 2",
)


def arguments(folder, *bindings, steps=STEPS):
    own = (
        *BINDINGS,
        f"experiment.Experiment.steps = {steps}",
        f"warm_start.WarmStartConfig.cache_dir = '{folder}/cache'",
        *bindings,
    )
    files = ["--gin_file=smoke.gin", f"--gin_file={LENGTHS}"]
    return [*files, *(f"--gin_param={one}" for one in own), f"--run_dir={folder}/run"]


def under_way(folder, stage, started):
    """Whether host 0 has said a word of a stage, or somebody has ended."""
    ended_early = any(process.poll() is not None for process in started)
    return stage in (folder / "host_0.txt").read_text() or ended_early


def done(folder):
    """The newest step that is complete; -1 before the first scores."""
    metrics = folder / "run" / "metrics.jsonl"
    return len(metrics.read_text().splitlines()) - 1 if metrics.exists() else -1


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The folder of the same run by one process, with two devices."""
    folder = tmp_path_factory.mktemp("alone")
    assert ended([process(folder / "alone.txt", *arguments(folder))]) == [0]
    return folder


def check_same(folder, alone):
    records, episodes = left(folder)
    expected, expected_episodes = left(alone)
    assert [record["policy/shared/updates"] for record in expected[1:]] == [1.0] * STEPS
    assert records == expected
    assert episodes == expected_episodes
    for ours, theirs in zip(weights(folder), weights(alone), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    about = [checkpoint(place) for place in (folder, alone)]
    assert about[0]["lessons"] == about[1]["lessons"] and len(about[0]["lessons"]) > 9
    assert about[0]["memory"] == about[1]["memory"] and about[0]["memory"].keys() == {"scout", "mover"}


def checkpoint(folder):
    saved = folder / "run" / "checkpoints" / str(STEPS) / "saved.json"
    return json.loads(saved.read_text())["about"]


@pytest.mark.slow
def test_two_processes_leave_the_bytes_of_one_whatever_ends_them(tmp_path, alone):
    """A SIGTERM to host 1 or kill -9 of any host comes at a random moment: of the warm start, of the first
    scores or of a step (rollout, update, push, save). Each time it is another one.

    In the run that ends by itself, nothing of JAX compares or gathers arrays of all hosts: what waits for
    other hosts are the meetings, and the programs that all of them run. It is in lockstep, and the other
    one is not.
    """
    host, signum, codes = random.choice(
        [(1, signal.SIGTERM, [143, 143]), (0, signal.SIGKILL, [-9, -6]), (1, signal.SIGKILL, [-6, -9])]
    )
    stage = random.choice(["warm start 1/", "validation after step 0", "train 1/"])
    started = start(2, tmp_path, *arguments(tmp_path))
    until(functools.partial(under_way, tmp_path, stage, started), 400)
    wait_s = random.uniform(0, 2)
    at = time.monotonic() + wait_s
    until(lambda: time.monotonic() > at or done(tmp_path) >= 1, 10)  # two steps at least are left
    started[host].send_signal(signum)
    sent = time.monotonic()
    found = ended(started)
    output = [(tmp_path / f"host_{i}.txt").read_text()[-2000:] for i in range(2)]
    assert found == codes and time.monotonic() - sent < 30, (stage, host, signum, wait_s, found, output)
    words = [*arguments(tmp_path), "--gather=cpu", "--lockstep"]
    assert ended(start(2, tmp_path, *words, counted=True)) == [0, 0]
    check_same(tmp_path, alone)
    counted = "".join((tmp_path / f"collectives_{i}.txt").read_text() for i in range(2))
    assert set(counted.splitlines()) == {"idle"}, counted


@pytest.mark.slow
@pytest.mark.parametrize(
    ("folder", "binding", "says"),
    [
        ("", "seed = 1", "host 1 has experiment.Experiment.seed 1, host 0 has 0; they must be the same"),
        (
            "elsewhere",
            "seed = 0",
            "host 1 does not see .* of host 0; the run folder must be on a disk that all",
        ),
    ],
)
def test_a_host_with_another_config_or_folder_is_one_line(tmp_path, folder, binding, says):
    """Every host prints it, and ends with 2."""
    port = free_port()
    started = start(2, tmp_path, *arguments(tmp_path), only=0, port=port)
    *own, _ = arguments(tmp_path, f"experiment.Experiment.{binding}")
    started += start(2, tmp_path, *own, f"--run_dir={tmp_path}/{folder}/run", only=1, port=port)
    assert ended(started) == [2, 2]
    for index in range(2):
        *_, last = (tmp_path / f"host_{index}.txt").read_text().splitlines()
        assert re.fullmatch(f"error: {says}.*", last), last


FAULTY = """
import os
import time

from atgrpo_jax.tasks.games.plan_path import PlanPath


class Faulty(PlanPath):
    def act(self, *args):
        if os.environ["FAULT"] == "raise":
            raise ValueError("no such cell")
        if os.environ["FAULT"] == "sleep":
            time.sleep(600)
        return super().act(*args)
"""


@pytest.mark.slow
def test_a_task_that_fails_or_hangs_on_one_host_ends_all_and_is_named(tmp_path):
    """One of the two each time; hosts that are threads try both (test_hosts_meetings.py)."""
    hung = r"(did not come to '.*' for \d+ s|no meeting for \d+ s after 'latest'; this host is at).*"
    fault, patience, code, says = random.choice(
        [("raise", 300, 1, "ValueError: no such cell; see its own output"), ("sleep", 20, 3, hung)]
    )
    (tmp_path / "faulty.py").write_text(FAULTY)
    (tmp_path / "faulty.gin").write_text(
        'include "smoke.gin"\nimport faulty\nexperiment.Experiment.task = @faulty.Faulty()\n'
    )
    words = ["--gin_file=faulty.gin", f"--patience={patience}", *arguments(tmp_path)[2:]]
    words.append("--gin_param=experiment.Experiment.warm_start = None")
    port = free_port()
    started = []
    for index, own in enumerate(["none", fault]):
        env = {"FAULT": own, "PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"}
        started += start(2, tmp_path, *words, env=env, only=index, port=port)
    assert ended(started) == [code] * 2
    *_, last = (tmp_path / "host_0.txt").read_text().splitlines()
    assert re.fullmatch(f"error: host 1: {says}", last), last
    own = (tmp_path / "host_1.txt").read_text()
    assert re.search(hung if fault == "sleep" else "no such cell", own), own
