"""The benchmarks run, on work items of a second: their figures are for people."""

import json
import subprocess
import sys

import pytest

from atgrpo_jax.config import GIN_FOLDER


@pytest.mark.slow
def test_step_prints_a_json_line_a_phase():
    script = GIN_FOLDER.parent / "benchmarks" / "step.py"
    small = [
        "--prompts=2",
        "--candidates=2",
        "--prompt_tokens=8",
        "--new_tokens=4",
        "--warmup=1",
        "--steps=1",
    ]
    done = subprocess.run([sys.executable, script, *small], capture_output=True, text=True, check=True)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line.get("phase") for line in lines] == ["rollout", "update", "step", None]
    assert all(line["tokens_per_s"] > 0 for line in lines[:3])
    assert lines[3]["compiles_after_warmup"] == 0
