"""The README's commands, as they stand: every file and flag exists, and the sequence of use runs."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from atgrpo_jax.run.gin_config import gin_folder

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()
QUICK = "JAX_DISABLE_MOST_OPTIMIZATIONS"
AS_USERS = {name: value for name, value in os.environ.items() if name != QUICK}
COMMANDS = [
    line for block in re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL) for line in block.splitlines()
]


def test_it_opens_with_the_two_commands():
    assert COMMANDS[:2] == ["bash launch/local.sh --gin_file=plan.gin", "bash launch/test.sh"]
    assert TEXT.index("```bash") < 500


def test_every_file_it_names_exists():
    for name in re.findall(r"`(\w+\.gin)`", TEXT):
        assert (gin_folder() / name).exists() or name == "config.gin", name
    for link in re.findall(r"\]\(([\w/.]+)\)", TEXT):
        assert (ROOT / link).exists(), link
    for path in re.findall(r"`((?:atgrpo_jax|launch|docs|tests)/[\w/.]+)`", TEXT):
        assert (ROOT / path).exists(), path


def test_every_file_is_in_the_page_about_the_code():
    tree = (ROOT / "docs" / "code.md").read_text()
    for path in (ROOT / "atgrpo_jax").rglob("*.py"):
        if path.name != "__init__.py":
            assert re.search(rf"\b{path.name}\b", tree), path


@pytest.mark.slow
def test_the_python_commands_run_in_an_empty_directory(tmp_path):
    """With smoke.gin for plan.gin, and a grid that fits it."""
    ran = 0
    for command in COMMANDS:
        if command.startswith("python -m"):
            words = shlex.split(command.replace("plan.gin", "smoke.gin").replace("= 5", "= 4"))
            environment = os.environ | {"HOME": str(tmp_path)}
            subprocess.run([sys.executable, *words[1:]], cwd=tmp_path, env=environment, check=True)
            ran += 1
    assert ran == 3
    assert {p.name for p in (tmp_path / "runs").iterdir()} == {"smoke", "small"}


@pytest.mark.slow
def test_the_launch_script_trains_in_the_environment_it_is_given(tmp_path):
    """launch/local.sh as the README has it; the environment that runs the tests is already made."""
    environment = AS_USERS | {"ATGRPO_VENV": sys.prefix, "JAX_PLATFORMS": "cpu", "HOME": str(tmp_path)}
    done = subprocess.run(
        ["bash", str(ROOT / "launch" / "local.sh"), "--gin_file=smoke.gin",
         "--gin_param=experiment.Experiment.steps = 3"],
        cwd=tmp_path, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Held-out success on 20 test instances" in done.stdout
    assert Path(tmp_path / "runs" / "smoke" / "curves.png").exists()
