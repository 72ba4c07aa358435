"""What ``import atgrpo_jax`` offers: experiments without gin, also with a task that a notebook defines."""

import ast
import contextlib
import dataclasses
import linecache
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest

import atgrpo_jax
from atgrpo_jax.common.errors import ConfigError
from atgrpo_jax.run import python
from atgrpo_jax.run.gin_config import load, render
from atgrpo_jax.run.kept_source import kept
from atgrpo_jax.run.starts import Asked

ROOT = Path(__file__).parents[1]
CELL = '''
import dataclasses
import random
from atgrpo_jax import Outcome, Reward, Transition, Workflow

GOAL = 3

@dataclasses.dataclass(frozen=True)
class Said:
    number: int = 0

def right(number):
    return number == GOAL

@dataclasses.dataclass(frozen=True)
class Three:
    """Both roles are to say 3."""

    workflow: Workflow = Workflow(order=("a", "b"), turns=1)
    bonus: float = 0.5

    def instance(self, split, index):
        return f"{split} {index}"

    def initial(self, instance):
        return Said()

    def prompt(self, state, role):
        return [{"role": "user", "content": f"{role} {state.number}"}]

    def act(self, state, role, text):
        number = len(text) % 7
        solved = right(number) and role == "b"
        reward = Reward.of(float(solved), near=self.bonus * (number > 1))
        return Transition(Said(number), reward, Outcome.OK, solved, solved)

    def demonstration(self, state, role, rng):
        return "333"
'''


def test_the_names_that_are_offered_are_those_that_type_checkers_see():
    tree = ast.parse(Path(atgrpo_jax.__file__).read_text())
    checked = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.asname for node in checked.body for alias in node.names}
    assert seen | {"__version__"} == set(atgrpo_jax.__all__) == set(dir(atgrpo_jax))
    assert all(getattr(atgrpo_jax, name) is not None for name in atgrpo_jax.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'Trainer'"):
        atgrpo_jax.Trainer  # noqa: B018


def test_the_readmes_script_is_the_smoke_run():
    text = (ROOT / "README.md").read_text()
    (script,) = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    before, _, after = script.partition("summary = ")
    assert "train_team(" in after and script.count("\n") <= 18
    names = {}
    exec(before, names)
    assert names["experiment"] == load("smoke.gin")


def test_importing_the_package_imports_no_jax():
    code = "import sys, atgrpo_jax; dir(atgrpo_jax); print('jax' in sys.modules)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert ended.stdout == "False\n"


@pytest.fixture
def cell(monkeypatch):
    """Runs a text as a cell of a notebook: in ``__main__``, with its lines where IPython puts them.

    A cell that is run again has the same file. IPython lists all that it was given.
    """
    main = types.ModuleType("__main__")
    main._ih = []
    monkeypatch.setitem(sys.modules, "__main__", main)

    def run(text):
        name = f"/nowhere/cell-{hash(text)}.py"
        monkeypatch.setitem(linecache.cache, name, (len(text), None, text.splitlines(True), name))
        main._ih.append(text)
        exec(compile(text, name, "exec"), vars(main))
        return main

    return run


def test_a_task_of_a_cell_is_kept_with_all_that_it_uses(cell, tmp_path):
    task = cell(CELL).Three(bonus=0.25)
    again = kept(task, tmp_path)
    assert type(again) is not type(task) and type(again).__module__.startswith("kept_")
    assert repr(again) == repr(task)
    assert (
        again.act(again.initial("x"), "b", "abc").solved
        and not again.act(again.initial("x"), "a", "b").solved
    )
    assert kept(again, tmp_path) is again  # any process can import it
    (file,) = tmp_path.glob("kept_*.py")
    assert "GOAL = 3" in file.read_text() and "random" not in file.read_text()


def test_another_definition_is_another_class(cell, tmp_path):
    first = kept(cell(CELL).Three(), tmp_path)
    second = kept(cell(CELL.replace("GOAL = 3", "GOAL = 4")).Three(), tmp_path)
    assert type(first).__module__ != type(second).__module__
    assert not second.act(second.initial("x"), "b", "abc").solved


def test_a_class_without_functions_is_kept_as_the_cell_that_ran_last_has_it(cell, tmp_path):
    """Its own class does not say in which cell it was defined. The same cell may run twice."""
    said = "import dataclasses\n@dataclasses.dataclass(frozen=True)\nclass Said:\n    number: int = {}\n"
    for number in (1, 2, 1):
        main = cell(said.format(number))
    with pytest.raises(SyntaxError):
        cell("class Said:\n")
    assert kept(main.Said(), tmp_path).number == 1
    (file,) = tmp_path.glob("kept_*.py")
    assert "number: int = 1" in file.read_text()


def test_a_class_whose_source_nobody_has_is_named(cell, tmp_path):
    main = cell("text = 'import dataclasses\\n@dataclasses.dataclass\\nclass Said: pass'\nexec(text)")
    with pytest.raises(ConfigError, match="the source of Said is not known"):
        kept(main.Said(), tmp_path)


TWO = """
from __future__ import annotations
import dataclasses
from atgrpo_jax import LossConfig

def even(n) -> bool:
    return n == 0 or odd(n - 1)

def odd(n):
    return n != 0 and even(n - 1)

@dataclasses.dataclass(frozen=True)
class Inner(LossConfig):
    def like(self, other: Inner) -> Inner:
        return other if even(other.minibatches) else self

@dataclasses.dataclass(frozen=True)
class Outer:
    inner: object = Inner()
    many: object = None
"""


def test_parts_in_parts_and_functions_that_use_each_other_are_kept(cell, tmp_path):
    main = cell(TWO)
    again = kept(main.Outer(many={"a": main.Inner(epochs=3)}), tmp_path)
    inner = again.inner
    assert all(type(part).__module__.startswith("kept_") for part in (again, inner, again.many["a"]))
    assert again.many["a"].epochs == 3 and inner.like(inner) is inner
    assert isinstance(inner, atgrpo_jax.LossConfig)


def test_a_whole_experiment_without_such_parts_stays_as_it_is(tmp_path):
    experiment = load("smoke.gin")
    assert kept(experiment, tmp_path / "code") is experiment and not list(tmp_path.iterdir())


def test_a_class_that_is_not_at_the_top_is_named(cell, tmp_path):
    text = "import dataclasses\ndef made():\n    @dataclasses.dataclass\n    class Hidden: pass\n"
    main = cell(text + "    return Hidden()")
    with pytest.raises(ConfigError, match=r"made.<locals>.Hidden is not defined at the top"):
        kept(main.made(), tmp_path)


def test_a_config_with_a_class_of_a_script_is_not_written(cell):
    """Else it would be read again here, and nowhere else."""
    experiment = load("smoke.gin")
    mine = cell(TWO).Inner()
    with pytest.raises(ConfigError, match="Inner is defined in a script or notebook"):
        render(dataclasses.replace(experiment, loss=mine))


def test_what_cannot_be_kept_is_named(cell, tmp_path):
    main = cell(CELL.replace("GOAL = 3", "GOAL = object()"))
    with pytest.raises(ConfigError, match="right uses GOAL, a object of this notebook or script"):
        kept(main.Three(), tmp_path)


def test_what_train_team_is_told_is_what_the_command_is_told(tmp_path, monkeypatch):
    told = {}

    @contextlib.contextmanager
    def claim(folder, given, **rest):
        told.update(rest, folder=folder.path)
        yield given

    monkeypatch.setattr(python, "claim", claim)
    monkeypatch.setattr(python, "train", lambda experiment, folder, may_exit: {"may_exit": may_exit})
    x = load("smoke.gin")
    more = {"change": True, "other_hosts": True, "changed_code": True}
    assert atgrpo_jax.train_team(x, tmp_path, tmp_path / "a", 100, **more) == {"may_exit": False}
    asked = Asked.parse(str(tmp_path / "a"), "100")
    assert told == more | {"folder": tmp_path, "asked": asked}
    atgrpo_jax.train_team(x, tmp_path)
    assert told == dict.fromkeys(more, False) | {"folder": tmp_path, "asked": None}
    with pytest.raises(ConfigError, match="from_step needs begin_from, e.g. begin_from="):
        atgrpo_jax.train_team(x, tmp_path, from_step="best")


NOTEBOOK = """
import asyncio, linecache, sys
import atgrpo_jax as at
text = open("cell.py").read()
linecache.cache["/nowhere/cell.py"] = len(text), None, text.splitlines(True), "/nowhere/cell.py"
_ih = [text]
exec(compile(text, "/nowhere/cell.py", "exec"), globals())

async def notebook():
    experiment = at.Experiment(
        task=Three(),
        model=at.Architecture(layers=1, width=16, mlp_width=16, heads=1, kv_heads=1, head_size=16),
        engine=at.LocalEngineConfig(slots=8, max_prompt=64, prompt_cache=256),
        rollout=at.RolloutConfig(instances=2, candidates=4, max_tokens=4),
        batch=at.BatchConfig(row_tokens=64, rows=2),
        warm_start=None, evaluation=at.EvaluationConfig(instances=2, validation_instances=2), steps=2,
    )
    return at.train_team(experiment, "mine")

print(asyncio.run(notebook())["steps"])
"""


@pytest.mark.slow
def test_a_run_from_a_notebook_is_read_by_every_command(tmp_path):
    """Under an event loop, with a task that only the notebook knows; it goes on, and is scored elsewhere."""
    (tmp_path / "cell.py").write_text(CELL)
    (tmp_path / "notebook.py").write_text(NOTEBOOK)

    def ran(*line):
        ended = subprocess.run([sys.executable, *line], cwd=tmp_path, capture_output=True, text=True)
        assert ended.returncode == 0, ended.stderr
        return ended.stdout + ended.stderr

    assert "2\n" in ran("notebook.py")
    assert "2\n" in ran("notebook.py")  # the same cell: the run is there, and complete
    score = ran("-m", "atgrpo_jax.evaluate", "--run_dir=mine")
    assert "test after step 2" in score
    ran("-m", "atgrpo_jax.train", "--gin_file=mine/config.gin", "--run_dir=mine")
