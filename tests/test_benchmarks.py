"""The benchmarks run, on work items of a second: their figures are for people."""

import json
import subprocess
import sys

import pytest

from atgrpo_jax.config import GIN_FOLDER

SMALL = ["--prompts=2", "--candidates=2", "--prompt_tokens=8", "--new_tokens=4", "--warmup=1", "--steps=1"]


def lines(script):
    path = GIN_FOLDER.parent / "benchmarks" / script
    done = subprocess.run([sys.executable, path, *SMALL], capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.slow
def test_step_prints_a_json_line_a_phase():
    *phases, about = lines("step.py")
    assert [line["phase"] for line in phases] == ["rollout", "update", "step"]
    assert all(line["tokens_per_s"] > 0 for line in phases)
    assert about["compiles_after_warmup"] == 0


@pytest.mark.slow
def test_update_prints_one():
    (line,) = lines("update.py")
    assert line["tokens_per_s"] > 0 and line["share"] > 0 and line["compiles_after_warmup"] == 0
