import dataclasses
import typing
from typing import Any

import numpy as np
import pytest
from fuzz import fuzz
from hypothesis import assume, given, strategies

from atgrpo_jax.arrays.mesh import MeshConfig
from atgrpo_jax.common.errors import ConfigError
from atgrpo_jax.common.literals import shortened
from atgrpo_jax.common.types import hash_bytes
from atgrpo_jax.credit.groups import CreditConfig
from atgrpo_jax.engines.sglang.sglang import SGLangConfig
from atgrpo_jax.models.config import Architecture, RopeScaling
from atgrpo_jax.rollout.curriculum import CurriculumConfig
from atgrpo_jax.rollout.evaluation import EvaluationConfig
from atgrpo_jax.rollout.rollout import RolloutConfig
from atgrpo_jax.rollout.team import Team
from atgrpo_jax.run.agreement import check_precision
from atgrpo_jax.run.experiment import Experiment, experiment_difference
from atgrpo_jax.run.gin_config import load, render
from atgrpo_jax.run.gin_names import GONE, name_of, parameters
from atgrpo_jax.sandbox.pool import SandboxConfig
from atgrpo_jax.tasks.games.plan_path import PlanPath
from atgrpo_jax.tasks.workflow import Workflow
from atgrpo_jax.tokens.tokens import TinyTokenizer
from atgrpo_jax.update.objectives import LossConfig
from atgrpo_jax.update.optimizer import OptimizerConfig
from atgrpo_jax.update.warm_start import WarmStartConfig

# Of the defaults of all parts of an experiment, as the first runs wrote them.
DEFAULTS = "dca881b065f53324eaf9ababb6ba139c"


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
        ("plan_path.PlanPath.sise = 3", "plan_path.PlanPath has no sise; did you mean size?"),
        ("plan_path.PlanPat.size = 3", "there is no plan_path.PlanPat; did you mean plan_path.PlanPath"),
        ("plan_pat.PlanPath.size = 3", "there is no plan_pat.PlanPath; did you mean plan_path.PlanPath?"),
        ("PlanPath.size = 3", "there is no PlanPath; did you mean plan_path.PlanPath?"),
        (
            "workflow.Workflow.parallel = True",
            "workflow.Workflow has no parallel any more: if it is True, write workflow.Workflow.order = "
            '(("a", "b"),) for what was ("a", "b"); then, or if it is False, delete it (docs/workflows.md)',
        ),
        ("splits.in_split.x = 1", "splits.in_split has no x; there are: instance, split"),
        (
            "experiment.Experiment.task = @sudoku.Sudok()",
            "there is no sudoku.Sudok; did you mean sudoku.Sudoku",
        ),
        ("experiment.Experiment.task = @sudoku.Sudoku", "lacks its brackets; write @sudoku.Sudoku()"),
        ("experiment.Experiment.steps =", "Unable to parse value"),
        ("experiment.Experiment.steps = (1,", "EOF in multi-line statement"),
        ("STEPS = 9", "macro STEPS is set but nothing uses it"),
        ("experiment.Experiment.steps = %STEPS", "macro STEPS is not set"),
        (
            "experiment.Experiment.tokenizer = @tokens.FolderTokenizer()",
            "tokens.FolderTokenizer needs a folder",
        ),
        ("mover/rollout.RolloutConfig.candidates = 3", "scope mover of RolloutConfig is not used"),
        (
            "local.LocalEngineConfig.mesh = @a/b/mesh.MeshConfig()\nb/mesh.MeshConfig.data = 2",
            "scope b of MeshConfig is not used; there are: a, a/b",
        ),
        (
            "local.LocalEngineConfig.mesh = @a/mesh.MeshConfig()\na/rollout.RolloutConfig.candidates = 3",
            "a/rollout.RolloutConfig has values, and no rollout.RolloutConfig is in scope a",
        ),
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
    assert message.startswith("--gin_param") and says in message
    assert "\n" not in message and len(message) < 400


def test_what_is_said_to_be_gone_is_gone():
    for name in GONE:
        *_, kind, field = name.split(".")
        maker = {"Workflow": Workflow}[kind]
        assert name == f"{name_of(maker)}.{field}" and field not in parameters(maker)


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        (["", "plan_path.PlanPath.sise = 3"], ", line 2: plan_path.PlanPath has no sise; did you mean size?"),
        (["", "", "plan_path.PlanPath.size = 1"], ", line 3: PlanPath.size = 1: must be at least 2"),
        (["experiment.Experiment.steps ="], ", line 1: Unable to parse value"),
        (["import no_such_module"], ", line 1: import no_such_module: No module named 'no_such_module'"),
        (["import math", "math.sqroot.x = 1"], ", line 2: there is no math.sqroot; did you mean math.sqrt"),
        (['include "plam.gin"'], ", line 1: gin file 'plam.gin' not found; looked for "),
        (["MODLE = 1", "plan_path.PlanPath.size = %MODEL"],
         "macro MODLE is set but nothing uses it; did you mean MODEL?"),
        (["SIZE = 1", "plan_path.PlanPath.size = %SISE", "plan_path.PlanPath.seed = %SIZE"],
         ", line 2: macro SISE is not set; did you mean SIZE?"),
        (["A = %B", "B = %A", "plan_path.PlanPath.size = %A"], "macro A is its own value"),
        (["tiny/config.Architecture.layers = 1", "experiment.Experiment.model = @tin/config.Architecture()"],
         ", line 1: scope tiny of Architecture is not used; did you mean tin?"),
        (["from __gin__ import other"], "from __gin__ import other is not known here"),
    ],
)  # fmt: skip
def test_an_error_names_the_file_and_line_at_fault(lines, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.gin").write_text("\n".join([*lines, ""]))
    with pytest.raises(ConfigError) as raised:
        load(["smoke.gin", "mine.gin"], ["experiment.Experiment.steps = 3"])
    assert str(raised.value).startswith("mine.gin") and says in str(raised.value)


def test_a_word_that_a_file_imports_hides_no_part(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.gin").write_text('import math\ninclude "smoke.gin"\n')
    tools = ["experiment.Experiment.task = @math.Math()", 'workflow.Workflow.order = ("tool", "reasoner")']
    assert type(load("mine.gin", tools).task).__name__ == "Math"


def test_a_file_cannot_include_itself(tmp_path):
    path = tmp_path / "ring.gin"
    path.write_text(f"include {str(path)!r}\n")
    with pytest.raises(ConfigError, match=r"ring.gin, line 1: .*ring.gin includes itself"):
        load(str(path))


def test_later_files_win_and_bindings_after_them(tmp_path):
    (tmp_path / "later.gin").write_text("experiment.Experiment.steps = 7\nplan_path.PlanPath.seed = 7\n")
    later = str(tmp_path / "later.gin")
    both = load(["smoke.gin", later], ["plan_path.PlanPath.seed = 8"])
    assert (both.steps, both.task.seed, both.task.size) == (7, 8, 3)
    assert load([later, "smoke.gin"]).steps == load("smoke.gin").steps


def test_an_unknown_file_says_where_it_looked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as raised:
        load("plam.gin")
    message = str(raised.value)
    assert f"{tmp_path}/plam.gin" in message and "/gin/plam.gin; did you mean plan.gin" in message
    with pytest.raises(ConfigError, match="did you mean paper/math.gin"):
        load("paper/maths.gin")
    with pytest.raises(ConfigError, match=r"shipped: .*code_model.gin, compare_at_grpo.gin"):
        load("quite_another_name")


def test_a_file_without_an_experiment_is_refused(tmp_path):
    path = tmp_path / "empty.gin"
    path.write_text("")
    with pytest.raises(ConfigError, match="configures no experiment.Experiment"):
        load(str(path))


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


def test_runs_from_before_are_known_by_the_same_text():
    """A field that comes later is told only if it is set (``common.literals.told``)."""
    fields = [field for field in dataclasses.fields(Experiment) if field.repr]
    defaults = {field.name: repr(field.default) for field in fields if field.name != "task"}
    assert hash_bytes("\n".join(map(" ".join, sorted(defaults.items())))).hex() == DEFAULTS
    later = {
        "rollout": dataclasses.replace(RolloutConfig(), least_signal=3),
        "credit": CreditConfig(leave_one_out=True),
        "evaluation": EvaluationConfig(influence_every=20),
        "mesh": MeshConfig(expert=2),
        "model": Architecture(rotary=(True, False)),
    }
    assert all(repr(value) != defaults[name] for name, value in later.items())
    assert repr(RolloutConfig(first_candidates=2)) != defaults["rollout"]
    assert repr(RolloutConfig(curriculum=CurriculumConfig())) != defaults["rollout"]


def test_three_differences_are_shown_in_short_and_the_others_counted():
    base = load("smoke.gin")
    bindings = ["plan_path.PlanPath.seed = 4", "experiment.Experiment.seed = 1", "team.Team.alpha = 2.0"]
    three = load("smoke.gin", bindings)
    assert experiment_difference(three, base) == (
        "PlanPath.seed = 0 there, 4 given; Team.alpha = 1.0 there, 2.0 given; "
        "Experiment.seed = 0 there, 1 given"
    )
    five = load("smoke.gin", [*bindings, "rollout.RolloutConfig.candidates = 3", "mesh.MeshConfig.data = 2"])
    told = experiment_difference(five, base)
    assert told.count(" there, ") == 3 and told.endswith("; and 2 more")
    words = TinyTokenizer(tuple(f"word{i}" for i in range(99)))
    told = experiment_difference(base, dataclasses.replace(base, tokenizer=words))
    assert told.startswith("TinyTokenizer.words = (") and "word5" in told and "word6" not in told


def test_short_texts_of_two_values_differ():
    one = tuple(range(99))
    assert shortened(3, 4) == ("3", "4")
    assert shortened(one, ()) == ("(0, 1, 2, 3, 4, 5, ...)", "()")
    mine, yours = shortened(one, (*one[:50], -7, *one[51:]))
    assert mine.startswith("...") and ", 49, 50, 51, " in mine and ", 49, -7, 51, " in yours
    assert len(mine) == len(yours) == 63
    assert shortened(one, one)[0] == shortened(one, one)[1]


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
        "evaluation": filled(
            EvaluationConfig,
            every=strategies.sampled_from([1, 4, 20]),
            influence_every=strategies.sampled_from([0, 20, 40]),
        ),
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


@pytest.mark.parametrize(
    ("params", "says"),
    [
        ((), "and shared trains parameters"),
        (("team.Team.sharing = 'full'", "team.Team.frozen = ('scout',)"), "and mover trains parameters"),
        (("team.Team.sharing = 'lora'",), "and the warm start trains parameters"),
        (("team.Team.sharing = 'lora'", "experiment.Experiment.warm_start = None"), None),
    ],
)
def test_parameters_of_half_precision_are_only_played(params, says):
    x = load("smoke.gin", ["config.Compute.param_dtype = 'bfloat16'", *params])
    if says is None:
        return check_precision(x)  # adapters, on a base that is only read
    with pytest.raises(ConfigError, match=f'Compute.param_dtype = "bfloat16" is to play a model, {says}'):
        check_precision(x)
