"""A task to begin with: what is written passes its test and the checker, trains, and learns."""

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from atgrpo_jax.common.errors import ConfigError
from atgrpo_jax.run.gin_config import load
from atgrpo_jax.tools import new_task

FILES = ["mine.py", "mine.gin", "test_mine.py", "mine_prompts/sorter.txt", "mine_prompts/picker.txt"]


def files_in(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_what_is_written(tmp_path):
    assert new_task.write("mine", tmp_path) == FILES and files_in(tmp_path) == sorted(FILES)
    for name in FILES:
        text = (tmp_path / name).read_text()
        assert "$" not in text and max(map(len, text.splitlines())) <= 110
        assert len(text.splitlines()) < 110, "short enough to be read"
    for command in ("check --select=E,F,B,UP,SIM,RUF --ignore=RUF009", "format --check"):
        words = [*command.split(), "--isolated", "--line-length=110", "."]
        subprocess.run([sys.executable, "-m", "ruff", *words], cwd=tmp_path, check=True)


@pytest.mark.parametrize("name", ["my_game", "none", "state", "task2"])
def test_any_name_makes_a_task(name, tmp_path, monkeypatch):
    new_task.write(name, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    task = load(f"{name}.gin").task
    assert type(task).__name__ == "".join(map(str.capitalize, name.split("_"))) + "Task"
    assert task.prompts == str(tmp_path / f"{name}_prompts") and task.prompts_digest
    tests = importlib.import_module(f"test_{name}")
    for test in (value for key, value in vars(tests).items() if key.startswith("test_")):
        test()


@pytest.mark.parametrize("name", ["class", "None", "2nd", "my-game", "my.game", "a b", "", "_mine", "größe"])
def test_what_is_no_name_of_a_module_is_one_line(name, tmp_path):
    with pytest.raises(ConfigError) as raised:
        new_task.write(name, tmp_path)
    assert str(raised.value) == (
        f"{name!r} is no name of a Python module; a module's name has letters, digits and _, and begins with "
        "a letter, e.g. my_game"
    )
    assert files_in(tmp_path) == []


@pytest.mark.parametrize("there", FILES)
def test_files_are_never_overwritten(there, tmp_path):
    (tmp_path / there).parent.mkdir(exist_ok=True)
    (tmp_path / there).write_text("mine\n")
    with pytest.raises(ConfigError, match=f"^{re.escape(there)} is here already; nothing was written"):
        new_task.write("mine", tmp_path)
    assert files_in(tmp_path) == [there] and (tmp_path / there).read_text() == "mine\n"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("json", r"there is a module json already \(.*json/__init__.py\); give another name"),
        ("sys", r"there is a module sys already \(built-in\)"),
        ("numpy", r"there is a module numpy already"),
        ("atgrpo_jax", r"there is a module atgrpo_jax already"),
        ("checks", r"there is a module test_checks already \(.*tests/test_checks.py\)"),
        ("plan_path", r"plan_path means atgrpo_jax.tasks.games.plan_path in gin files; give another name"),
        ("math", r"math means atgrpo_jax.tasks.math.math in gin files"),
        ("experiment", r"experiment means atgrpo_jax.run.experiment in gin files"),
    ],
)
def test_a_name_that_hides_a_module_is_one_line(name, says, tmp_path):
    with pytest.raises(ConfigError, match=f"^{says}"):
        new_task.write(name, tmp_path)
    assert files_in(tmp_path) == []


def ran(folder, *words, **variables):
    environment = {k: v for k, v in os.environ.items() if k != "JAX_DISABLE_MOST_OPTIMIZATIONS"}
    root = str(Path(new_task.__file__).parents[2])
    environment |= {"JAX_PLATFORMS": "cpu", "HOME": str(folder), "PYTHONPATH": root, **variables}
    return subprocess.run(
        [sys.executable, "-m", *words], cwd=folder, env=environment, capture_output=True, text=True
    )


@pytest.mark.slow
@pytest.mark.long
def test_the_command_and_what_it_prints_as_next_in_an_empty_directory(tmp_path):
    """The last lines that it prints are commands, and they work as they stand: about a minute of a core."""
    done = ran(tmp_path, "atgrpo_jax.tools.new_task", "mine")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"Written: {', '.join(FILES)}\nNext:\n")
    printed = re.findall(r"^  \S+ -m (.*?)\s+# ", done.stdout, re.MULTILINE)
    assert [line.split()[0] for line in printed] == [
        "atgrpo_jax.tools.check_task",
        "atgrpo_jax.train",
        "pytest",
    ]
    checked, trained, tested = (ran(tmp_path, *line.split()) for line in printed)
    assert checked.stdout.endswith("MineTask keeps the contract\n"), checked.stdout + checked.stderr
    assert tested.returncode == 0 and "4 passed" in tested.stdout, tested.stdout
    before, after = map(float, re.findall(r"^  (?:before|after) +([\d.]+)%", trained.stdout, re.MULTILINE))
    assert after > before + 30, trained.stdout + trained.stderr
    line = (tmp_path / "runs" / "mine" / "metrics.jsonl").read_text().splitlines()[-1]
    assert '"role/sorter/task/in_place": ' in line


@pytest.mark.slow
def test_wrong_words_are_one_line_and_code_2(tmp_path):
    needed = r"error: one name is needed, e\.g\. \S+ -m atgrpo_jax\.tools\.new_task my_game\n"
    for words, says in (
        ((), needed),
        (("a", "b"), needed),
        (("a-b",), "error: 'a-b' is no name of a Python module;"),
    ):
        done = ran(tmp_path, "atgrpo_jax.tools.new_task", *words)
        assert done.returncode == 2 and re.match(says, done.stderr) and done.stderr.count("\n") == 1
    assert files_in(tmp_path) == []
