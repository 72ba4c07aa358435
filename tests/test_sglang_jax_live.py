"""The tests of the sglang-jax engine with sglang-jax itself: in a Python that has it, made for them."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def _bash(line):
    # Not the cache of what this process compiles: the JAX there is another, and compiled code is its own.
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "PYTEST_"))
    }
    return subprocess.run(
        ["bash", "-c", line], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900
    )


@pytest.mark.slow
def test_its_tests_pass_with_it():
    found = _bash('source launch/common.sh; find_python "3, 12" "3, 14"')
    if found.returncode:
        pytest.skip(found.stderr.strip())
    ended = _bash("bash launch/test_sglang_jax.sh -q")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "skipped" not in ended.stdout, ended.stdout
