"""Parts that have values find their fields; None and another choice drop them."""

import dataclasses
import typing

import pytest

from atgrpo_jax.arrays.mesh import MeshConfig
from atgrpo_jax.common.errors import ConfigError
from atgrpo_jax.engines.local.local import LocalEngineConfig
from atgrpo_jax.engines.sglang.sglang import SGLangConfig
from atgrpo_jax.models.config import Architecture, RopeScaling
from atgrpo_jax.run.experiment import Experiment
from atgrpo_jax.run.gin_config import load, render
from atgrpo_jax.run.gin_names import known_modules, part_fields
from atgrpo_jax.sandbox.pool import SandboxConfig
from atgrpo_jax.tasks.workflow import Workflow
from atgrpo_jax.update.warm_start import WarmStartConfig

SMOKE = load("smoke.gin")


def test_a_parameter_reaches_a_part_that_no_file_names():
    assert load("plan.gin", ["pool.SandboxConfig.workers = 2"]).sandbox == SandboxConfig(workers=2)
    scaled = load("smoke.gin", ["config.RopeScaling.factor = 4.0"])
    assert scaled.model == dataclasses.replace(SMOKE.model, rope_scaling=RopeScaling(4.0))


def test_a_parameter_reaches_every_field():
    """Each is set to the value that it has, and nothing else changes."""
    values = [line for line in render(SMOKE).splitlines() if " = " in line and "@" not in line]
    assert len(values) > 100 and "experiment.Experiment.warm_start = None" not in values
    assert load("smoke.gin", values) == SMOKE


@pytest.mark.parametrize("said", ["", "experiment.Experiment.mesh = @mesh.MeshConfig()\n"])
def test_a_mesh_is_the_learners_unless_a_file_says_that_it_is_the_engines(tmp_path, said):
    (tmp_path / "apart.gin").write_text(
        f'include "smoke.gin"\n{said}'
        "mesh.MeshConfig.data = 2\n"
        "local.LocalEngineConfig.mesh = @drawing/mesh.MeshConfig()\n"
        "drawing/mesh.MeshConfig.data = 4\n"
        "local.LocalEngineConfig.first_device = 2\n"
    )
    apart = load(str(tmp_path / "apart.gin"))
    assert (apart.mesh, apart.engine.mesh) == (MeshConfig(data=2), MeshConfig(data=4))
    assert load("smoke.gin", ["mesh.MeshConfig.data = 2"]).engine.mesh is None


def test_what_is_not_set_is_as_in_the_fields_default(tmp_path):
    """The task's own workflow is another one than Workflow's defaults."""
    (tmp_path / "small.gin").write_text(
        "experiment.Experiment.task = @math.Math()\nworkflow.Workflow.turns = 1\n"
    )
    task = load(str(tmp_path / "small.gin")).task
    assert task.workflow == Workflow(order=(("tool", "reasoner"),), turns=1)


def test_a_file_that_refers_to_its_parts_keeps_its_meaning(tmp_path):
    """A written reference is a new part, with the class's own defaults."""
    (tmp_path / "old.gin").write_text(
        "from __gin__ import dynamic_registration\n"
        "from atgrpo_jax.run import experiment\n"
        "from atgrpo_jax.tasks import workflow\n"
        "from atgrpo_jax.tasks.math import math\n"
        "experiment.Experiment.task = @math.Math()\n"
        "math.Math.workflow = @workflow.Workflow()\n"
        'workflow.Workflow.order = ("tool", "reasoner")\n'
    )
    assert load(str(tmp_path / "old.gin")).task.workflow.stages == (("tool",), ("reasoner",))


def test_the_one_candidate_with_values_is_taken(tmp_path):
    (tmp_path / "task.gin").write_text("sudoku.Sudoku.size = 4\nsglang.SGLangConfig.command = 'x'\n")
    experiment = load(str(tmp_path / "task.gin"), ["experiment.Experiment.steps = 1"])
    assert type(experiment.task).__name__ == "Sudoku"
    assert experiment.engine == SGLangConfig(command="x")


def test_of_two_candidates_the_error_names_both():
    with pytest.raises(ConfigError) as raised:
        load("smoke.gin", ['sglang.SGLangConfig.command = "x"'])
    engine = "experiment.Experiment.engine"
    assert str(raised.value) == (
        f"local.LocalEngineConfig and sglang.SGLangConfig have values, and {engine} can be only one of them; "
        f"write {engine} = @local.LocalEngineConfig() or {engine} = @sglang.SGLangConfig()"
    )


def test_a_choice_drops_the_values_of_the_others():
    chosen = load("smoke.gin", ["experiment.Experiment.engine = @sglang.SGLangConfig()"])
    assert chosen.engine == SGLangConfig()
    assert load("smoke.gin").engine == LocalEngineConfig(slots=32)


def test_a_choice_does_not_hide_values_beside_it():
    """Those of the same file, and those that come after it, are a mistake."""
    choice = "experiment.Experiment.engine = @sglang.SGLangConfig()"
    for bindings in (
        ["local.LocalEngineConfig.slots = 8", choice],
        [choice, "local.LocalEngineConfig.slots = 8"],
    ):
        with pytest.raises(ConfigError) as raised:
            load("smoke.gin", bindings)
        assert "local.LocalEngineConfig has values but nothing refers to it" in str(raised.value)
        assert "write experiment.Experiment.engine = @local.LocalEngineConfig()" in str(raised.value)


def test_none_drops_a_part_with_its_values():
    bare = load("smoke.gin", ["experiment.Experiment.warm_start = None"])
    assert bare == dataclasses.replace(SMOKE, warm_start=None)


def test_none_drops_a_part_that_a_file_refers_to(tmp_path):
    lines = ('include "smoke.gin"', "experiment.Experiment.warm_start = @warm_start.WarmStartConfig()", "")
    (tmp_path / "old.gin").write_text("\n".join(lines))
    mine = str(tmp_path / "old.gin")
    assert load(mine) == SMOKE and load(mine, ["experiment.Experiment.warm_start = None"]).warm_start is None


def test_every_field_that_may_be_none_can_be_dropped():
    fields = {name for name, hint in part_fields(Experiment).items() if type(None) in typing.get_args(hint)}
    fields |= {
        name for name, hint in part_fields(Architecture).items() if type(None) in typing.get_args(hint)
    }
    assert fields == {"warm_start", "rope_scaling", "experts"}
    values = ["config.RopeScaling.factor = 4.0", "config.Architecture.rope_scaling = None"]
    assert load("smoke.gin", values) == SMOKE
    assert load("smoke.gin", ["config.Experts.count = 4", "config.Architecture.experts = None"]) == SMOKE


def test_values_after_none_set_the_part_again():
    again = load(
        "smoke.gin", ["experiment.Experiment.warm_start = None", "warm_start.WarmStartConfig.steps = 3"]
    )
    assert again.warm_start == WarmStartConfig(steps=3)  # and none of the file's values


def test_a_dropped_part_takes_its_own_parts_with_it(tmp_path):
    (tmp_path / "long.gin").write_text("config.RopeScaling.factor = 4.0\n")
    files = ["smoke.gin", str(tmp_path / "long.gin")]
    assert load(files).model.rope_scaling == RopeScaling(4.0)
    with pytest.raises(ConfigError, match=r"^--gin_param: hf.architecture needs a folder"):
        load(files, ["experiment.Experiment.model = @hf.architecture()"])


def test_a_part_without_a_field_is_refused():
    with pytest.raises(
        ConfigError, match="game.Game has values but nothing refers to it: .* is another part"
    ):
        load("smoke.gin", ["game.Game.prompts = 'x'"])
    with pytest.raises(
        ConfigError, match="splits.in_split has values .* no part of the experiment has a field"
    ):
        load("smoke.gin", ["splits.in_split.split = 'train'"])


TWO_FIELDS = """
import dataclasses
from atgrpo_jax.tasks.games.plan_path import PlanPath
from atgrpo_jax.sandbox.pool import SandboxConfig

@dataclasses.dataclass(frozen=True)
class Doubled(PlanPath):
    inner: SandboxConfig = SandboxConfig(workers=3)
"""


def test_a_part_that_fits_two_fields_is_refused(tmp_path, monkeypatch):
    (tmp_path / "doubled.py").write_text(TWO_FIELDS)
    (tmp_path / "doubled.gin").write_text("import doubled\nexperiment.Experiment.task = @doubled.Doubled()\n")
    monkeypatch.syspath_prepend(tmp_path)
    mine = str(tmp_path / "doubled.gin")
    with pytest.raises(ConfigError) as raised:
        load(mine, ["pool.SandboxConfig.workers = 2"])
    assert "can be experiment.Experiment.sandbox or doubled.Doubled.inner" in str(raised.value)
    chosen = load(mine, ["pool.SandboxConfig.workers = 2", "doubled.Doubled.inner = @pool.SandboxConfig()"])
    assert (chosen.task.inner.workers, chosen.sandbox) == (2, SandboxConfig())


def test_words_are_found_without_a_list():
    known = known_modules()
    assert known["pool"] == "atgrpo_jax.sandbox.pool" and known["code"] == "atgrpo_jax.tasks.code.code"
    assert known["tokens"] == "atgrpo_jax.tokens.tokens"  # the types of fields, and not those of answers/
    assert "stages" not in known and "train" not in known
