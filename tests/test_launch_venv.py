"""launch/common.sh: the virtual environment that the scripts make, with a Python that is a script."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# A Python as of Debian without python3-venv: it makes half of an environment, and fails. With the file
# "whole" beside it, it makes all of it. The Python of a whole environment has pip.
PYTHON = """\
#!/bin/bash
here="$(dirname "$0")"
case "$1 $2" in
  "-c import pip") [ -e "$here/pip" ] ;;
  "-c "*) exec {python} -S "$@" ;;
  "-m venv")
    mkdir -p "$3/bin" "$3/lib" && cp "$0" "$3/bin/python"
    echo asked >> "$here/asked"
    [ -e "$here/whole" ] && touch "$3/bin/pip" && exit
    echo "ensurepip is not available"
    exit 1 ;;
  "-m pip") [ -e "$here/pip" ] || {{ echo "No module named pip" >&2; exit 1; }} ;;
esac
"""


class Checkout:
    """A checkout with launch/common.sh, beside a Python that cannot make environments yet."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.venv = folder / "checkout" / ".venv"
        (folder / "checkout" / "launch").mkdir(parents=True)
        for name in ("common.sh", "serve_sglang.sh"):
            shutil.copy(ROOT / "launch" / name, folder / "checkout" / "launch")
        (folder / "checkout" / "setup.py").write_text("")
        (folder / "bin").mkdir()
        (folder / "bin" / "python3").write_text(PYTHON.format(python=sys.executable))
        (folder / "bin" / "python3").chmod(0o755)

    def run(self, script: str) -> tuple[int, str]:
        """Returns the exit code of a script that has read common.sh, and what it says of errors."""
        done = subprocess.run(
            ["bash", "-c", f"set -euo pipefail; source launch/common.sh; {script}; echo installed >&2"],
            cwd=self.folder / "checkout", env={"PATH": f"{self.folder}/bin:/usr/bin:/bin"},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        return done.returncode, done.stderr

    def mend(self) -> None:
        """apt install python3-venv."""
        (self.folder / "bin" / "whole").touch()

    def kept(self) -> set[str]:
        return {path.name for path in self.venv.iterdir()}


@pytest.fixture
def checkout(tmp_path):
    return Checkout(tmp_path)


INSTALL = 'install_checkout ""'
LOCKED = 'one_at_a_time "$venv" install_checkout ""'


@pytest.mark.parametrize("script", [INSTALL, LOCKED])
def test_a_start_after_python3_venv_was_installed(checkout, script):
    code, err = checkout.run(script)
    assert code == 1 and "(on Debian or Ubuntu: apt install python3-venv)" in err
    # The lock is not removed: another process may wait for it.
    assert not checkout.venv.exists() if script == INSTALL else checkout.kept() == {".lock"}
    checkout.mend()
    code, err = checkout.run(script)
    assert (code, err.splitlines()[-1]) == (0, "installed")
    assert (checkout.folder / "bin" / "asked").read_text() == "asked\n" * 2
    assert checkout.run(script) == (0, "installed\n")


def test_an_empty_folder_stays_one(checkout):
    checkout.venv.mkdir()
    assert checkout.run(INSTALL)[0] == 1
    assert checkout.kept() == set()


@pytest.mark.parametrize("linked", [False, True])
def test_what_was_in_the_folder_before_is_not_removed(checkout, linked):
    """Half of an environment is left in it then, and the next start says so."""
    if linked:
        (checkout.folder / "elsewhere").mkdir()
        checkout.venv.symlink_to(checkout.folder / "elsewhere")
    else:
        checkout.venv.mkdir()
    (checkout.venv / "notes.txt").write_text("mine")
    assert checkout.run(INSTALL)[0] == 1
    assert {"notes.txt", "bin"} <= checkout.kept()
    checkout.mend()
    code, err = checkout.run(INSTALL)
    assert code == 1
    assert err == (
        f"error: {checkout.venv} has no pip (it may be half of an environment): remove it, or install pip "
        "there, and start again\n"
    )


def test_no_python_at_all(checkout):
    code, err = checkout.run(f"ATGRPO_PYTHON=/nowhere/python {INSTALL}")
    assert code == 1 and err == "error: no Python >= 3.11 and < 4.0 found; set ATGRPO_PYTHON to one\n"
    assert not checkout.venv.exists()


def test_a_python_whose_path_has_a_space(checkout):
    checkout.mend()
    (checkout.folder / "bin").rename(checkout.folder / "my bin")
    python = f"{checkout.folder}/my bin/python3"
    assert checkout.run(f'export ATGRPO_PYTHON="{python}"; {INSTALL}')[0] == 0
    assert (checkout.folder / "my bin" / "asked").read_text() == "asked\n"


def test_a_relative_python_and_environments_are_of_the_folder_of_the_call(checkout):
    """launch/test.sh goes to the checkout, and starts another script there."""
    checkout.mend()
    (checkout.folder / "my bin").mkdir()
    (checkout.folder / "bin" / "python3").rename(checkout.folder / "my bin" / "python3")
    (checkout.folder / "bin" / "whole").rename(checkout.folder / "my bin" / "whole")
    given = "export ATGRPO_PYTHON='my bin/python3' ATGRPO_VENV='my venv' ATGRPO_SGLANG_VENV=sglang"
    script = 'cd checkout; "$venv/bin/python" -m pip; bash launch/serve_sglang.sh --install'
    done = subprocess.run(
        ["bash", "-c", f"set -euo pipefail; {given}; source checkout/launch/common.sh; {INSTALL}; {script}"],
        cwd=checkout.folder, env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for name in ("my venv", "sglang"):
        assert (checkout.folder / name / "bin" / "python").exists()


def test_the_environment_of_sglang(checkout):
    """It is made anew by each start until it is complete, and its lock is in it."""
    checkout.venv = checkout.folder / "checkout" / ".venv-sglang"
    for _ in range(2):
        code, err = checkout.run("bash launch/serve_sglang.sh --install")
        assert code == 1 and "apt install python3-venv" in err
        assert checkout.kept() == {".lock"}
    checkout.mend()
    assert checkout.run("bash launch/serve_sglang.sh --install")[0] == 0
