"""Runs in the shape of pods: hosts between which the learner's parameters are split, one update each."""

import json

import pytest
from shared_hosts import LENGTHS, ended, left, process, start, weights

# The smallest run that makes an update: no warm start, one instance for each score.
BINDINGS = (
    "experiment.Experiment.steps = 1",
    "experiment.Experiment.warm_start = None",
    "config.Architecture.layers = 1",
    "config.Architecture.vocab_size = 372",  # which tensor divides; the tokenizer has 371
    "workflow.Workflow.turns = 1",
    "objectives.LossConfig.minibatches = 1",
    "evaluation.EvaluationConfig.instances = 1",
    "evaluation.EvaluationConfig.validation_instances = 1",
)
FOUR = {"DATA": 2, "FSDP": 2, "COPIES": 4, "TENSOR": 1}


def arguments(folder, **numbers):
    """Returns the arguments of a run in ``folder``, with pod.gin's numbers."""
    own = [*BINDINGS, "ROWS = 4", *(f"{name} = {number}" for name, number in numbers.items())]
    files = ["smoke.gin", LENGTHS, "parts/pod.gin"]
    words = [*(f"--gin_file={one}" for one in files), *(f"--gin_param={one}" for one in own)]
    return [*words, f"--run_dir={folder}/run"]


def check_updated(folder):
    *_, last = (json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines())
    assert (last["step"], last["policy/shared/updates"]) == (1, 1.0)


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    """Makes a run of four processes with a device each; groups of two have all parameters between them."""

    def make(name):
        folder = tmp_path_factory.mktemp(name)
        assert ended(start(4, folder, "--heartbeat=60", *arguments(folder, **FOUR))) == [0] * 4
        check_updated(folder)
        return folder

    return make


@pytest.fixture(scope="module")
def once(four):
    return four("once")


@pytest.mark.slow
@pytest.mark.thorough
@pytest.mark.long
def test_four_processes_draw_the_bytes_of_one(once, tmp_path):
    assert ended([process(tmp_path / "alone.txt", *arguments(tmp_path, **FOUR))]) == [0]
    drawn = "step_000001.jsonl.gz"  # before the update, which adds up in another order
    assert left(once)[1][drawn] == left(tmp_path)[1][drawn]


@pytest.mark.slow
@pytest.mark.thorough
@pytest.mark.long
def test_four_processes_leave_the_same_bytes_twice(once, four):
    again = four("again")
    assert left(once) == left(again)
    for one, other in zip(weights(once), weights(again), strict=True):
        assert one.tobytes() == other.tobytes()


@pytest.mark.slow
@pytest.mark.thorough
@pytest.mark.long
def test_two_processes_with_two_devices_each_split_what_learns_and_hold_whole_what_draws(tmp_path):
    """The parameters are split over four devices of both; a copy that draws is on the two of a process."""
    words = arguments(tmp_path, DATA=1, FSDP=4, COPIES=2, TENSOR=2)
    assert ended(start(2, tmp_path, "--heartbeat=60", *words)) == [0, 0]
    check_updated(tmp_path)
