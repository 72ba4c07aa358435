"""The package as others get it: an sdist, the wheel made from it, and that wheel alone in an empty folder."""

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

import atgrpo_jax
from atgrpo_jax.common.errors import ConfigError
from atgrpo_jax.run.gin_config import gin_folder

ROOT = Path(__file__).parents[1]
FOLDERS = ("atgrpo_jax", "benchmarks", "docs", "gin", "launch", "studies", "tests")
FILES = ("AGENTS.md", "BUILD.md", "CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "LICENSE", "MANIFEST.in",
         "README.md", "pyproject.toml", "setup.py")  # fmt: skip
NAME = f"atgrpo_jax-{atgrpo_jax.__version__}"
SHORT = (
    "config.Architecture.layers = 1",
    "workflow.Workflow.turns = 1",
    "rollout.RolloutConfig.instances = 4",
    "objectives.LossConfig.minibatches = 1",
    "experiment.Experiment.steps = 2",
    "warm_start.WarmStartConfig.steps = 2",
    "evaluation.EvaluationConfig.instances = 2",
    "evaluation.EvaluationConfig.validation_instances = 2",
)


def run(*command, cwd, **variables):
    """What a command prints. It must end with 0, and say nothing of errors."""
    own = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd, env=own | variables, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "Traceback" not in done.stderr
    return done.stdout


def files_below(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A copy of the checkout, so that building leaves nothing in it."""
    folder = tmp_path_factory.mktemp("source")
    for name in FOLDERS:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    for name in FILES:
        shutil.copyfile(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def built(source, tmp_path_factory):
    """A folder with the sdist of a checkout, and with the wheel that was made from the sdist alone."""
    before = files_below(source)
    folder = tmp_path_factory.mktemp("built")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ".", cwd=source)
    assert {file for file in files_below(source) - before if ".egg-info/" not in file} == set()
    assert files_below(folder) == {f"{NAME}.tar.gz", f"{NAME}-py3-none-any.whl"}
    return folder


@pytest.fixture(scope="module")
def python(built, tmp_path_factory):
    """A Python that finds the wheel, and what the tests' own Python has installed, but no checkout."""
    environment, target = tmp_path_factory.mktemp("environment"), tmp_path_factory.mktemp("target")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    wheel = built / f"{NAME}-py3-none-any.whl"
    run(*pip, "install", "--no-deps", "--no-index", "--target", target, wheel, cwd=environment)
    venv.create(environment, with_pip=False, symlinks=True)
    (packages,) = environment.glob("lib/python3*/site-packages")
    # Folders in a .pth file are searched, but their own .pth files, those of editable installs, are not read.
    others = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    (packages / "found.pth").write_text("\n".join([str(target), *others]))
    return environment / "bin" / "python", target


@pytest.mark.slow
def test_the_sdist_holds_all_that_builds_and_tests_need(source, built):
    with tarfile.open(built / f"{NAME}.tar.gz") as archive:
        packed = {file.name.removeprefix(f"{NAME}/") for file in archive if file.isfile()}
    made = {file for file in packed if file.startswith("atgrpo_jax.egg-info/")} | {"PKG-INFO", "setup.cfg"}
    kept = {file for file in files_below(source) if ".egg-info/" not in file}
    assert packed - made == kept
    assert {"tests/conftest.py", "tests/pairs/sudoku.jsonl", "launch/test.sh"} <= kept


@pytest.mark.slow
def test_the_wheel_holds_the_package_with_its_data_and_nothing_else(source, built):
    with zipfile.ZipFile(built / f"{NAME}-py3-none-any.whl") as archive:
        packed = {file for file in archive.namelist() if not file.startswith(f"{NAME}.dist-info/")}
        (licence,) = [file for file in archive.namelist() if file.endswith("/licenses/LICENSE")]
        metadata = archive.read(f"{NAME}.dist-info/METADATA").decode()
        assert archive.read(licence) == (source / "LICENSE").read_bytes()
    package = {f"atgrpo_jax/{file}" for file in files_below(source / "atgrpo_jax")}
    assert packed == package | {f"atgrpo_jax/gin/{file}" for file in files_below(source / "gin")}
    assert {"atgrpo_jax/py.typed", "atgrpo_jax/tasks/templates/code/full/coder.txt"} <= package
    assert "atgrpo_jax/gin/paper/qwen3_8b.gin" in packed
    assert f"\nVersion: {atgrpo_jax.__version__}\n" in metadata


@pytest.mark.slow
def test_the_wheel_alone_trains_and_checks_a_task(python, tmp_path):
    python, target = python
    found = (
        "import gin, atgrpo_jax.run.gin_config as c\n"
        "print(c.__file__, c.gin_folder(), hasattr(gin, 'parse_config'))"
    )
    config, folder, library = run(python, "-c", found, cwd=tmp_path).split()
    assert Path(config) == target / "atgrpo_jax" / "run" / "gin_config.py"
    assert Path(folder) == target / "atgrpo_jax" / "gin" and library == "True"

    variables = {"HOME": str(tmp_path / "home")}
    short = [f"--gin_param={line}" for line in SHORT]
    run(python, "-m", "atgrpo_jax.train", "--gin_file=smoke.gin", *short, cwd=tmp_path, **variables)
    folder = tmp_path / "runs" / "smoke"
    there = {path.name for path in folder.iterdir()}
    assert {
        "config.gin",
        "metrics.jsonl",
        "episodes",
        "checkpoints",
        "summary.json",
        "curves.png",
        "report.html",
    } <= there
    steps = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert max(steps) == 2

    check = (python, "-m", "atgrpo_jax.tools.check_task", "--gin_file=smoke.gin", "--instances=2")
    assert "PlanPath keeps the contract" in run(*check, cwd=tmp_path, **variables)


def test_gin_files_are_found_inside_a_package_or_beside_it(tmp_path):
    """The folder of the gin library, which has the same name, is never taken for ours."""
    package = tmp_path / "site-packages" / "atgrpo_jax"
    library = package.parent / "gin"
    for folder in (package, library):
        folder.mkdir(parents=True)
    (library / "__init__.py").touch()
    with pytest.raises(ConfigError, match=f"looked in {package / 'gin'} and {library}"):
        gin_folder(package)
    (library / "plan.gin").touch()
    assert gin_folder(package) == library  # a checkout
    (package / "gin").mkdir()
    (package / "gin" / "plan.gin").touch()
    assert gin_folder(package) == package / "gin"  # installed
    assert gin_folder() == ROOT / "gin"


def test_the_version_is_cheap_to_ask_for(tmp_path):
    line = (
        "import sys, atgrpo_jax; print(atgrpo_jax.__version__, *{'jax', 'numpy', 'gin'} & set(sys.modules))"
    )
    assert run(sys.executable, "-c", line, cwd=tmp_path).split() == [atgrpo_jax.__version__]


def test_the_change_log_opens_with_this_version():
    first, *_ = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert first == atgrpo_jax.__version__
