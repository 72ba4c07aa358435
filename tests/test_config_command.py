"""python -m atgrpo_jax.config: the whole config, what each field means, and what has set it."""

import dataclasses
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from atgrpo_jax.common.errors import ConfigError
from atgrpo_jax.run.describing import description, meaning
from atgrpo_jax.run.experiment import Experiment
from atgrpo_jax.run.gin_config import load, read, render
from atgrpo_jax.run.gin_names import accepts, known_modules, part_fields
from atgrpo_jax.tasks.games.game import Game
from atgrpo_jax.tasks.games.plan_path import PlanPath

DOCS = Path(__file__).parents[1] / "docs" / "config.md"


def described(*files, bindings=()):
    """From a field to the lines above it."""
    text = description(*read(files, bindings))
    found = {}
    for block in re.findall(r"((?:^# .*\n)+)(^\S+) = ", text, re.MULTILINE):
        found[block[1]] = " ".join(line.lstrip("# ") for line in block[0].splitlines())
    return found


@pytest.mark.parametrize("file", ["smoke.gin", "plan.gin", "breadth.gin", "smoke_gemma.gin"])
def test_what_is_described_is_a_gin_file_of_the_same_experiment(file, tmp_path):
    experiment, values = read(file)
    assert experiment == load(file)
    text = description(experiment, values)
    without = "".join(line for line in text.splitlines(keepends=True) if not line.startswith("#"))
    assert without == render(experiment) and max(map(len, re.findall("^#.*", text, re.M))) <= 100
    (tmp_path / "config.gin").write_text(text)
    assert load(str(tmp_path / "config.gin")) == experiment


def test_where_each_value_comes_from(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.gin").write_text(
        'include "smoke.gin"\n\n\nSEED = 4\nexperiment.Experiment.seed = %SEED\nplan_path.PlanPath.size = 4\n'
    )
    found = described("mine.gin", bindings=["plan_path.PlanPath.seed = 9", "experiment.Experiment.steps = 3"])
    assert found["experiment.Experiment.steps"] == "of training [int; default 100; set in --gin_param]"
    assert found["plan_path.PlanPath.size"].endswith("[int; default 6; set in mine.gin, line 6]")
    assert found["experiment.Experiment.seed"].endswith(
        "set in mine.gin, line 5, by %SEED of mine.gin, line 4]"
    )
    assert re.search(
        r"default 10; set in smoke.gin, line \d+\]$", found["experiment.Experiment.checkpoint_every"]
    )
    assert found["experiment.Experiment.keep_checkpoints"].endswith("[int; default 2; not set]")
    assert found["experiment.Experiment.rollout"].endswith("not set, but fields of it are]")
    assert found["experiment.Experiment.gate"].endswith("[bool; default True; not set]")
    assert "without a default; set in smoke.gin" in found["experiment.Experiment.task"]
    assert "[Mapping[str, int]; default {}; not set]" in found["workflow.Workflow.seats"]


def test_defaults_of_a_field_and_parts_that_functions_make(tmp_path, monkeypatch):
    """The task's own workflow is another one than Workflow's defaults; a function reads a model folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "making.py").write_text(
        "from atgrpo_jax.models.config import Architecture\n\n\n"
        "def model(layers: int) -> Architecture:\n    return Architecture(layers=layers)\n"
    )
    (tmp_path / "mine.gin").write_text(
        "import making\nexperiment.Experiment.task = @math.Math()\n"
        "experiment.Experiment.model = @making.model()\nmaking.model.layers = 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    found = described("mine.gin")
    assert found["workflow.Workflow.order"].endswith(
        "not set, as in the default of Experiment.task.workflow]"
    )
    assert found["workflow.Workflow.seats"].endswith("default {}; not set]")
    assert found["config.Architecture.layers"].endswith("made by making.model (mine.gin, line 3)]")


SOURCE = '''
import dataclasses
from atgrpo_jax.tasks.games.plan_path import PlanPath
from atgrpo_jax.update.warm_start import WarmStartConfig


@dataclasses.dataclass(frozen=True)
class Part:
    """Says what a part is. And more."""


@dataclasses.dataclass(frozen=True)
class Mine(PlanPath):
    """Pays price * (what it costs) / turns.

    With ``loud``, it shouts. All of it is made up.
    """

    # Above one,
    # in two lines.
    above: int = 1
    beside: float = 2.0  # metres
    # Above this,
    both: int = 3  # and beside it

    # About nothing, as a blank line follows.

    loud: bool = False
    price: float = 1.0
    long: tuple[str, ...] = (
        "# no comment",  # within
    )
    part: Part = Part()
    bare: int = 0
    size: int = 5  # another one
    obstacles: float = 0.5
'''


def test_meanings_are_comments_or_what_docstrings_say(tmp_path, monkeypatch):
    (tmp_path / "meant.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    mine = importlib.import_module("meant").Mine()
    said = {field.name: meaning(type(mine), field.name, getattr(mine, field.name))
            for field in dataclasses.fields(mine)}  # fmt: skip
    assert said["above"] == "Above one, in two lines." and said["beside"] == "metres"
    assert said["both"] == "Above this, and beside it" and said["long"] == "within"
    assert (
        said["loud"] == "With ``loud``, it shouts."
        and said["price"] == "Pays price * (what it costs) / turns."
    )
    assert said["part"] == "Says what a part is." and said["bare"] == ""
    assert meaning(PlanPath, "size") == "cells on a side of the grid" and said["size"] == "another one"
    assert said["obstacles"] == meaning(PlanPath, "obstacles") == "probability that a cell is blocked"
    assert said["seed"] == meaning(Game, "seed") != ""


def parts():
    """All classes of the package that can be a part of an experiment."""
    modules = [importlib.import_module(name) for name in known_modules().values()]
    own = [c for m in modules for c in vars(m).values() if isinstance(c, type) and c.__module__ == m.__name__]
    own = [cls for cls in own if dataclasses.is_dataclass(cls)]
    found, new = set(), {Experiment}
    while new:
        found |= new
        hints = [hint for cls in new for hint in part_fields(cls).values()]
        new = {cls for cls in own if any(accepts(hint, cls) for hint in hints)} - found
    return sorted(found - {Game}, key=lambda cls: cls.__name__)  # games have it as a base


@pytest.mark.parametrize("cls", parts(), ids=lambda cls: cls.__name__)
def test_every_field_of_the_package_has_a_meaning(cls):
    for field in (field for field in dataclasses.fields(cls) if field.init):
        default = field.default_factory() if callable(field.default_factory) else field.default
        assert meaning(cls, field.name, default), f"write a comment beside {cls.__name__}.{field.name}"


def test_there_are_many_parts():
    assert len(parts()) > 30


@pytest.mark.parametrize(
    ("binding", "says"),
    [
        ("experiment.Experiment.speed = 3", "has no speed; did you mean seed"),
        ("experiment.Experiment.xyz = 3", "has no xyz; there are: batch, checkpoint_every, compute,"),
        ("experiment.Experiment.steps = fast",
         "fast is no value; write a text as 'fast', a part as @module.Class(), a macro as %NAME"),
        ('plan_path.PlanPath.size = "5"', "PlanPath.size = '5': expected int"),
        ("rollout.RolloutConfig.temperature = [1.0]", "RolloutConfig.temperature = [1.0]: expected float"),
        ('rollout.RolloutConfig.mode = "forest"', "RolloutConfig.mode = 'forest': expected one of 'tree'"),
    ],
)  # fmt: skip
def test_what_is_wrong_names_the_field_and_the_file(binding, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.gin").write_text(f'include "smoke.gin"\n{binding}\n')
    with pytest.raises(ConfigError) as raised:
        load("mine.gin")
    line = str(raised.value)
    assert line.startswith("mine.gin, line 2: ") and says in line and "\n" not in line and len(line) < 400


def ran(folder, *words, **variables):
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])} | variables
    command = [sys.executable, "-m", "atgrpo_jax.config", *words]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.slow
def test_the_command_prints_it_needs_no_device_and_leaves_nothing(tmp_path):
    """JAX would fail on this platform if it were asked for its devices."""
    device = {"JAX_PLATFORMS": "no_such_platform"}
    plain = ran(tmp_path, "--gin_file=smoke.gin", "--gin_param=experiment.Experiment.steps = 3", **device)
    assert (plain.returncode, plain.stderr) == (0, "")
    assert plain.stdout == render(load("smoke.gin", ["experiment.Experiment.steps = 3"]))
    full = ran(tmp_path, "smoke.gin", "--describe", **device)
    assert full.stdout == description(*read("smoke.gin"))
    wrong = ran(tmp_path, "smoke.gin", "--gin_param=experiment.Experiment.stpes = 3", **device)
    says = "error: --gin_param: experiment.Experiment has no stpes; did you mean steps?\n"
    assert (wrong.returncode, wrong.stdout, wrong.stderr) == (2, "", says)
    assert ran(tmp_path).stderr == "error: --gin_file is missing, e.g. --gin_file=plan.gin\n"
    assert list(tmp_path.iterdir()) == []


def test_the_page_shows_what_is_printed(tmp_path, monkeypatch):
    text = DOCS.read_text()
    lines = [line[4:] for line in text.splitlines() if line.startswith("    ")]
    shown = "\n".join(lines[lines.index("warm_start.WarmStartConfig.warmup = 20") - 2 :][:3])
    assert shown in description(*read("plan.gin"))
    monkeypatch.chdir(tmp_path)
    for number, binding in ((3, "experiment.Experiment.stpes = 3"), (4, 'plan_path.PlanPath.size = "5"')):
        (tmp_path / "mine.gin").write_text('include "smoke.gin"' + "\n" * (number - 1) + binding + "\n")
        with pytest.raises(ConfigError) as raised:
            load("mine.gin")
        assert f"error: {raised.value}" in lines
