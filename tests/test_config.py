import dataclasses
import typing
from typing import Any

import numpy as np
import pytest
from fuzz import fuzz
from hypothesis import assume, given, strategies

import gin
from atgrpo_jax.common.errors import ConfigError
from atgrpo_jax.engines.sglang.sglang import SGLangConfig
from atgrpo_jax.models.config import Architecture, RopeScaling
from atgrpo_jax.rollout.evaluation import EvaluationConfig
from atgrpo_jax.rollout.rollout import RolloutConfig
from atgrpo_jax.rollout.team import Team
from atgrpo_jax.run.experiment import Experiment, experiment_difference
from atgrpo_jax.run.gin_config import load, render
from atgrpo_jax.sandbox.pool import SandboxConfig
from atgrpo_jax.tasks.games.plan_path import PlanPath
from atgrpo_jax.tasks.workflow import Workflow
from atgrpo_jax.update.objectives import LossConfig
from atgrpo_jax.update.optimizer import OptimizerConfig
from atgrpo_jax.update.warm_start import WarmStartConfig


def test_bindings_come_after_the_file():
    experiment = load("smoke.gin", ["experiment.Experiment.steps = 3", "plan_path.PlanPath.seed = 9"])
    assert (experiment.steps, experiment.task.seed) == (3, 9)
    assert load("smoke.gin").steps != 3


def test_gin_files_are_found_in_the_working_directory_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "smoke.gin").write_text('include "plan.gin"\nexperiment.Experiment.steps = 1\n')
    assert load("smoke.gin").steps == 1


def test_a_user_task_of_ones_own(tmp_path, monkeypatch):
    """A task in the working directory, named in a gin file there: nothing of ours is edited."""
    (tmp_path / "mytask.py").write_text(
        "import dataclasses\n"
        "from atgrpo_jax.tasks.games.plan_path import PlanPath\n"
        "@dataclasses.dataclass(frozen=True)\n"
        "class Bigger(PlanPath):\n"
        "    size: int = 8\n"
    )
    (tmp_path / "my.gin").write_text(
        "from __gin__ import dynamic_registration\n"
        "from atgrpo_jax.run import experiment\n"
        "import mytask\n"
        "experiment.Experiment.task = @mytask.Bigger()\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    experiment = load("my.gin")
    assert experiment.task.size == 8
    again = tmp_path / "again.gin"
    again.write_text(render(experiment))
    assert load(str(again)) == experiment


@pytest.mark.parametrize(
    ("binding", "says"),
    [
        ("plan_path.PlanPath.sise = 3", "'plan_path.PlanPath' doesn't have a parameter named 'sise'"),
        ("plan_path.PlanPat.size = 3", "No configurable matching 'plan_path.PlanPat'"),
        ("experiment.Experiment.steps =", "Unable to parse value"),
        ("STEPS = 9", "macro STEPS is set but nothing uses it; misspelt?"),
        ("experiment.Experiment.steps = %STEPS", "No bindings specified for 'STEPS/gin.macro'"),
        ("mover/rollout.RolloutConfig.candidates = 3", "scope mover of RolloutConfig is not used"),
        ('experiment.Experiment.steps = "three"', "Experiment.steps = 'three': expected int"),
        ("rollout.RolloutConfig.candidates = 1", "RolloutConfig.candidates = 1: a baseline needs"),
        ("workflow.Workflow.turns = 0", "Workflow.turns = 0: an episode needs at least one turn"),
        ("plan_path.PlanPath.obstacles = 0.9999", "no solvable 3x3 grid"),
        ("plan_path.PlanPath.size = 1", "PlanPath.size = 1: must be at least 2"),
        ("experiment.Experiment.seed = -1", "Experiment.seed = -1: must not be negative"),
        ('rollout.RolloutConfig.mode = "trajectories"', "every baseline would have one member"),
        ("experiment.Experiment.mesh = None", "Experiment.mesh = None: expected mesh.MeshConfig"),
        ("experiment.Experiment.team = 3", "Experiment.team = 3: expected team.Team"),
        ("experiment.Experiment.credit = @rollout.RolloutConfig()", "Experiment.credit = RolloutConfig"),
    ],
)
def test_bad_bindings_are_one_clear_line(binding, says):
    with pytest.raises(ConfigError) as raised:
        load("smoke.gin", [binding])
    message = str(raised.value)
    assert message.startswith("smoke.gin: ") and says in message
    assert "\n" not in message and len(message) < 400


def test_a_part_that_nothing_refers_to_is_refused(tmp_path):
    path = tmp_path / "lost.gin"
    lines = (
        "from __gin__ import dynamic_registration",
        "from atgrpo_jax.rollout import team",
        'include "smoke.gin"',
    )
    path.write_text("\n".join([*lines, "team.Team.alpha = 2.0\n"]))
    with pytest.raises(ConfigError, match="Team has values but nothing refers to it"):
        load(str(path))


def test_an_unknown_file_says_where_it_looked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as raised:
        load("plam.gin")
    message = str(raised.value)
    assert f"{tmp_path}/plam.gin" in message and "/gin/plam.gin" in message
    assert "plan.gin" in message


def test_a_file_without_an_experiment_is_refused(tmp_path):
    path = tmp_path / "empty.gin"
    path.write_text("")
    with pytest.raises(ConfigError, match="configures no experiment.Experiment"):
        load(str(path))


def test_nothing_is_left_in_gin():
    load("smoke.gin")
    assert gin.config_str().strip() == ""
    with pytest.raises(ConfigError):
        load("smoke.gin", ["nonsense.X.y = 1"])
    assert gin.config_str().strip() == ""


def test_render_names_every_field_and_loads_to_the_same(tmp_path):
    experiment = load("smoke.gin")
    text = render(experiment)
    path = tmp_path / "config.gin"
    path.write_text(text)
    assert load(str(path)) == experiment
    for cls in (Experiment, RolloutConfig, PlanPath):
        for field in dataclasses.fields(cls):
            assert (f"{cls.__name__}.{field.name} = " in text) == field.init


def test_parts_in_a_mapping_are_written_as_scopes_of_their_keys(tmp_path):
    large = Architecture(layers=6, rope_scaling=RopeScaling(4.0))
    models = {"scout": Architecture(layers=3), "mover": large}
    experiment = dataclasses.replace(load("smoke.gin"), team=Team("full"), model=models)
    path = tmp_path / "config.gin"
    path.write_text(render(experiment))
    assert "mover/config.Architecture.layers = 6" in path.read_text()
    assert load(str(path)) == experiment


def test_difference_and_identity():
    base = load("smoke.gin")
    assert experiment_difference(base, base) is None
    longer = dataclasses.replace(base, steps=99, checkpoint_every=7)
    assert experiment_difference(base, longer) is None and base.identity() == longer.identity()
    other = load("smoke.gin", ["plan_path.PlanPath.seed = 4"])
    assert experiment_difference(other, base) == "PlanPath.seed = 0 there, 4 given"
    assert base.identity() != other.identity()
    bare = dataclasses.replace(base, warm_start=None)
    assert experiment_difference(bare, base).startswith("Experiment.warm_start = ")


def read_again(experiment, tmp_path):
    path = tmp_path / "config.gin"
    path.write_text(render(experiment))
    return load(str(path))


def filled(cls, **more):
    """Instances of a config class with values that its annotations allow and that it does not refuse."""
    kinds = {
        int: strategies.integers(1, 64),
        float: strategies.floats(1e-300, 1, exclude_max=True),
        bool: strategies.booleans(),
        str: strategies.text(max_size=20),
    }
    hints = typing.get_type_hints(cls)
    fields = [field for field in dataclasses.fields(cls) if field.init and hints[field.name] in kinds]
    given = {field.name: kinds[hints[field.name]] for field in fields}

    @strategies.composite
    def draw(draw):
        needed = {field.name for field in dataclasses.fields(cls) if field.default is dataclasses.MISSING}
        chosen = [name for name in given | more if name in needed or draw(strategies.booleans())]
        values = {name: draw((given | more)[name]) for name in chosen}
        try:
            return cls(**values)
        except ValueError:
            assume(False)

    return draw()


def experiments():
    names = strategies.text(max_size=9)
    parts = {
        "team": filled(
            Team, rates=strategies.dictionaries(strategies.just("shared"), strategies.floats(0, 9))
        ),
        "evaluation": filled(EvaluationConfig),
        "optimizer": filled(OptimizerConfig, clip_norm=strategies.none() | strategies.floats(0.1, 9)),
        "warm_start": strategies.none() | filled(WarmStartConfig),
        "sandbox": filled(SandboxConfig),
        "loss": filled(LossConfig, dual_clip=strategies.none() | strategies.floats(1.1, 9)),
        "engine": filled(SGLangConfig, urls=strategies.lists(names, max_size=3).map(tuple)),
        "task": filled(
            PlanPath,
            prompts=strategies.just("plan_path/full"),
            obstacles=strategies.just(0.1),
            size=strategies.integers(3, 9),
            seed=strategies.integers(-9, 9),
        ),
    }
    return filled(Experiment, **parts)


@fuzz(20)
@given(experiment=experiments())
def test_what_is_rendered_loads_to_the_same(experiment, tmp_path_factory):
    assert read_again(experiment, tmp_path_factory.getbasetemp()) == experiment


TWO_OF_ONE_CLASS = """
import dataclasses
from collections.abc import Mapping
from atgrpo_jax.tasks.workflow import Workflow
from atgrpo_jax.tasks.games.plan_path import PlanPath

@dataclasses.dataclass(frozen=True)
class Several(PlanPath):
    other: PlanPath = PlanPath(size=4, workflow=Workflow(order=("mover",)))
    mapped: Mapping[str, Workflow] = dataclasses.field(
        default_factory=lambda: {"a b": Workflow(order=("x",)), "a_b": Workflow(order=("y",), turns=2)}
    )
"""


def test_parts_of_one_class_keep_their_own_values(tmp_path, monkeypatch):
    (tmp_path / "several.py").write_text(TWO_OF_ONE_CLASS)
    monkeypatch.syspath_prepend(tmp_path)
    import several

    task = several.Several(other=PlanPath(size=5, workflow=Workflow(order=("mover",))))
    experiment = dataclasses.replace(load("smoke.gin"), task=task)
    assert read_again(experiment, tmp_path) == experiment


@dataclasses.dataclass(frozen=True)
class Odd(PlanPath):
    """A task whose field cannot be written down."""

    thing: Any = None


@pytest.mark.parametrize(
    ("thing", "says"),
    [
        ((float("nan"),), "Odd.thing is a tuple"),
        ({"a": (1, float("inf"))}, "Odd.thing is a dict"),
        (np.float64(0.5), "Odd.thing is a float64"),
        (len, "Odd.thing is a builtin_function_or_method"),
        ((PlanPath(),), "Odd.thing is a tuple"),
    ],
)
def test_what_would_not_load_to_the_same_is_refused(thing, says):
    with pytest.raises(ConfigError, match=says):
        render(dataclasses.replace(load("smoke.gin"), task=Odd(thing=thing)))


def test_a_class_that_another_process_cannot_import_is_refused(tmp_path):
    """As one that is written in the script that starts the run."""
    Local = dataclasses.make_dataclass("Local", [], bases=(PlanPath,), frozen=True)
    Local.__module__ = "nowhere"
    with pytest.raises(ConfigError, match="nowhere"):
        render(dataclasses.replace(load("smoke.gin"), task=Local()))
