"""Runs of two processes, each with a device: they leave what one process with two devices leaves."""

import functools
import json
import random
import re
import signal
import time

import jax
import numpy as np
import pytest
from shared_hosts import ended, free_port, process, start, until

from atgrpo_jax.run.saved import SavedRun

STEPS = 4
BINDINGS = (
    "experiment.Experiment.checkpoint_every = 1",
    "mesh.MeshConfig.data = 2",
    "objectives.LossConfig.minibatches = 1",
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
    return ["--gin_file=smoke.gin", *(f"--gin_param={one}" for one in own), f"--run_dir={folder}/run"]


def lines(folder):
    """Returns how many steps a run has recorded."""
    metrics = folder / "run" / "metrics.jsonl"
    return len(metrics.read_text().splitlines()) if metrics.exists() else 0


def under_way(folder, steps, started):
    return lines(folder) > steps or any(process.poll() is not None for process in started)


def left(folder):
    """Returns what a run leaves: metrics that do not depend on the machine, and the bytes of episodes."""
    records = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    for record in records:
        for name in [name for name in record if name.startswith("perf/")]:
            del record[name]
    episodes = {path.name: path.read_bytes() for path in (folder / "run" / "episodes").iterdir()}
    return records, episodes


def weights(folder):
    saved = SavedRun(str(folder / "run"))
    return [np.asarray(leaf) for leaf in jax.tree.leaves(saved.weights(saved.newest()))]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The folder of the same run by one process, with two devices."""
    folder = tmp_path_factory.mktemp("alone")
    assert ended([process(folder / "alone.txt", *arguments(folder))]) == [0]
    return folder


def check_same(folder, alone):
    records, episodes = left(folder)
    expected, expected_episodes = left(alone)
    assert records == expected
    assert episodes == expected_episodes
    for ours, theirs in zip(weights(folder), weights(alone), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.slow
def test_two_processes_leave_the_bytes_of_one_whatever_ends_them(tmp_path, alone):
    """A SIGTERM to host 1 and kill -9 of either host come at random moments of a step."""
    rng = random.Random(time.time_ns())
    harm = [(1, signal.SIGTERM, 1), (1, signal.SIGKILL, 2), (0, signal.SIGKILL, 3)]
    for number, (host, signum, after) in enumerate(harm):
        started = start(2, tmp_path, *arguments(tmp_path))
        until(functools.partial(under_way, tmp_path, after, started), 120)
        wait = rng.uniform(0, 1)
        time.sleep(wait)
        started[host].send_signal(signum)
        sent = time.monotonic()
        codes = ended(started)
        output = [(tmp_path / f"host_{i}.txt").read_text()[-2000:] for i in range(2)]
        where = number, wait, codes, output
        assert time.monotonic() - sent < 30, where
        expected = {signal.SIGTERM: (143, 143), signal.SIGKILL: (-9, -6) if host == 0 else (-6, -9)}
        assert tuple(codes) == expected[signum], where
    assert ended(start(2, tmp_path, *arguments(tmp_path))) == [0, 0]
    check_same(tmp_path, alone)


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
