import dataclasses

import pytest

import gin
from atgrpo_jax.config import load, render
from atgrpo_jax.errors import ConfigError
from atgrpo_jax.experiment import Experiment, difference
from atgrpo_jax.models.config import ModelConfig, RopeScaling
from atgrpo_jax.rollout import RolloutConfig
from atgrpo_jax.tasks.plan_path import PlanPath
from atgrpo_jax.team import Team


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
        "from atgrpo_jax.tasks.plan_path import PlanPath\n"
        "@dataclasses.dataclass(frozen=True)\n"
        "class Bigger(PlanPath):\n"
        "    size: int = 8\n"
    )
    (tmp_path / "my.gin").write_text(
        "from __gin__ import dynamic_registration\n"
        "from atgrpo_jax import experiment\n"
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
        ("base.Workflow.turns = 0", "Workflow.turns = 0: an episode needs at least one turn"),
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
    lines = "from __gin__ import dynamic_registration", "from atgrpo_jax import team", 'include "smoke.gin"'
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
    large = ModelConfig(layers=6, rope_scaling=RopeScaling(4.0))
    models = {"scout": ModelConfig(layers=3), "mover": large}
    experiment = dataclasses.replace(load("smoke.gin"), team=Team("full"), model=models)
    path = tmp_path / "config.gin"
    path.write_text(render(experiment))
    assert "mover/config.ModelConfig.layers = 6" in path.read_text()
    assert load(str(path)) == experiment


def test_difference_and_identity():
    base = load("smoke.gin")
    assert difference(base, base) is None
    longer = dataclasses.replace(base, steps=99, checkpoint_every=7)
    assert difference(base, longer) is None and base.identity() == longer.identity()
    other = load("smoke.gin", ["plan_path.PlanPath.seed = 4"])
    assert difference(other, base) == "PlanPath.seed = 0 there, 4 given"
    assert base.identity() != other.identity()
    bare = dataclasses.replace(base, warm_start=None)
    assert difference(bare, base).startswith("Experiment.warm_start = ")
