"""Every shipped gin file builds, alone or with the files that it is for, and says what it is."""

import itertools
import json
import re
from pathlib import Path

import pytest
from reference import SIZES, make, make_tokenizer

from atgrpo_jax.arrays.mesh import MeshConfig
from atgrpo_jax.common.errors import ConfigError
from atgrpo_jax.models.config import preset
from atgrpo_jax.models.hf import hf
from atgrpo_jax.planning import footprint, times
from atgrpo_jax.planning.devices import device_named
from atgrpo_jax.planning.workload import workload_of
from atgrpo_jax.run.gin_config import gin_folder, load, render
from atgrpo_jax.run.team_learner import TeamLearner
from atgrpo_jax.tasks.splits import SPLITS

GIN_FOLDER = gin_folder()
PARTS = sorted(GIN_FOLDER.glob("parts/*.gin"))
FILES = sorted(set(GIN_FOLDER.rglob("*.gin")) - set(PARTS))
ALONE = [path for path in FILES if path.parent == GIN_FOLDER]
SMALL = ("plan", "sokoban", "sudoku", "math_model", "code_model", "search", "search_model",
         "reasoning_gym", "frozen_lake")  # fmt: skip
TASKS = ("plan_path", "sokoban", "sudoku", "math", "code")
TEAMS = ("single", "shared", "lora", "roles")
PAIRS = [(f"{task}.gin", f"teams/{team}.gin") for task, team in itertools.product(SMALL, TEAMS)]
TRACKERS = ("wandb", "mlflow", "trackio")
PAIRS += [("smoke.gin", f"trackers/{tracker}.gin") for tracker in TRACKERS]
CREDIT = ("dr_grpo", "rloo", "role_wise", "dr_mas", "rae", "maxrl", "outcome", "counterfactual")
PAIRS += [("smoke.gin", f"credit/{rule}.gin") for rule in CREDIT]
PAIRS += [("math_model.gin", f"teams/{team}.gin") for team in ("aggregation", "debate", "maker_checker")]
CELLS = [
    *itertools.product(TASKS, TEAMS, ("1.7b", "8b")),
    *(("math", f"aggregation_{n}", "8b") for n in (3, 5, 7)),
]
TABLE = (Path(__file__).parents[1] / "docs" / "paper.md").read_text()


def name_of(path):
    return str(path.relative_to(GIN_FOLDER))


def files_of(cell):
    task, team, size = cell
    return f"paper/{task}.gin", f"paper/{team}.gin", f"paper/qwen3_{size}.gin"


def id_of(files):
    return "-".join(map(str, files))


def test_there_is_one_for_every_cell():
    assert len(CELLS) == 43
    paper = set().union(*map(files_of, CELLS))
    teams = {team for _, team in PAIRS}
    assert set(map(name_of, FILES)) == paper | teams | set(map(name_of, ALONE)) and len(paper) == 14
    used = re.findall(r'^include "(parts/.*)"', "".join(path.read_text() for path in (*FILES, *PARTS)), re.M)
    assert set(used) | {"parts/pod.gin"} == set(map(name_of, PARTS))  # that one comes after a run's own files
    assert not (GIN_FOLDER / "__init__.py").exists()  # it would hide the gin library


def test_the_settings_for_several_hosts_are_for_the_machine_that_they_name():
    """All 16 devices learn and draw; a copy of the weights fits on one host of four."""
    bindings = ["local.LocalEngineConfig.slots = 64"]
    pod = load(["plan.gin", "parts/pod.gin"], bindings)
    assert pod.mesh.devices == pod.engine.mesh.devices == 16
    assert 4 % (pod.engine.mesh.fsdp * pod.engine.mesh.tensor) == 0
    two = load(["plan.gin", "parts/pod.gin"], [*bindings, "FSDP = 2", "COPIES = 2", "TENSOR = 1", "ROWS = 8"])
    assert (two.mesh, two.engine.mesh, two.batch.rows) == (MeshConfig(fsdp=2), MeshConfig(data=2), 8)


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    make(folder, "Qwen3", SIZES | {"vocab_size": 300, "num_key_value_heads": 2})
    make_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def problems(tmp_path_factory):
    """A file for each split, with a problem that is mathematical and a program."""
    folder = tmp_path_factory.mktemp("problems")
    for split in SPLITS:
        row = {"question": split, "answer": "1", "test_input": ["1"], "test_output": ["1"]}
        (folder / f"{split}.jsonl").write_text(json.dumps(row))
    return folder


def whole(name):
    """A file's text, and that of the files it includes."""
    text = (GIN_FOLDER / name).read_text()
    return text + "".join(map(whole, re.findall(r'^include "(.*)"', text, re.M)))


def built(files, model_folder, problems):
    """Unused macros, scopes and parts are errors of load."""
    text = "".join(map(whole, files))
    bindings = [f"MODEL = '{model_folder}'"] if "%MODEL" in text else []
    bindings += [f"{s.upper()} = '{problems / s}.jsonl'" for s in SPLITS if f"%{s.upper()}" in text]
    return load(files, bindings)


@pytest.mark.parametrize("files", [(name_of(path),) for path in ALONE] + PAIRS, ids=id_of)
def test_it_builds(files, tmp_path, model_folder, problems):
    experiment = built(files, model_folder, problems)
    copy = tmp_path / "copy.gin"
    copy.write_text(render(experiment))
    assert load(str(copy)) == experiment


@pytest.mark.parametrize("path", ALONE, ids=name_of)
def test_a_parameter_reaches_the_sandbox_of_every_file(path, model_folder):
    bindings = [f"MODEL = '{model_folder}'"] if "%MODEL" in whole(name_of(path)) else []
    assert load(name_of(path), ["pool.SandboxConfig.workers = 2", *bindings]).sandbox.workers == 2


@pytest.mark.parametrize("cell", CELLS, ids=id_of)
def test_a_cell_of_the_paper_is_composed(cell, model_folder, problems):
    task, team, size = cell
    x = built(files_of(cell), model_folder, problems)
    kinds = {"single": "shared", "shared": "shared", "lora": "lora", "roles": "full"}
    order = x.task.workflow.speakers
    assert x.mesh.devices == 8 and x.steps == 400 and x.warm_start is None
    assert x.team.sharing == kinds.get(team, "shared")
    assert x.policies == (tuple(sorted(order)) if x.team.sharing in ("lora", "full") else ("shared",))
    assert x.optimizer.offload == ((team, size) == ("roles", "8b") and task in ("math", "code"))
    if team == "single":
        assert len(order) == x.task.workflow.turns == 1
    if team.startswith("aggregation"):
        *others, judge = order
        half = len(others) // 2
        assert (
            judge == "judge"
            and x.task.workflow.stages == (tuple(others), ("judge",))
            and len(order) == int(team[-1])
        )
        assert others == [f"{kind}{i + 1}" for kind in ("reasoner", "tool") for i in range(half)]


@pytest.fixture(scope="module")
def planned():
    """Returns the least seconds of a step. Equal experiments, and equal tasks, are measured once."""
    plans = {}
    workloads = {}

    def plan(x):
        text = render(x)
        if text not in plans:
            task = repr(x.task)
            if task not in workloads:
                workloads[task] = workload_of(x, instances=1)
            stages = times.seconds(x, TeamLearner(x), workloads[task], device_named("h100"), 0.4)
            plans[text] = sum(seconds for _, seconds, _ in stages.values())
        return plans[text]

    return plan


@pytest.mark.thorough
@pytest.mark.parametrize("task", TASKS)
def test_every_cell_of_the_paper_is_planned(task, model_folder, problems, planned):
    """With a tiny model, by which both sizes are as fast. A team of two takes longer than an agent of one."""
    cells = [cell for cell in CELLS if cell[0] == task]
    seconds = {cell[1:]: planned(built(files_of(cell), model_folder, problems)) for cell in cells}
    assert all(seconds["single", size] < seconds[team, size] for team, size in seconds if team != "single")
    agents = [seconds[f"aggregation_{n}", "8b"] for n in (3, 5, 7) if task == "math"]
    assert agents == sorted(agents)


def test_a_cell_without_its_size_says_what_is_missing(problems):
    with pytest.raises(ConfigError, match=r"^parts/qwen3.gin, line \d+: macro MODEL is not set"):
        load(["paper/plan_path.gin", "paper/lora.gin"])


def said_hours(cell):
    """The hours in the table's row of a cell."""
    task, team, size = cell
    (row,) = re.findall(rf"^\| `{task}` \| `{team}` \|(.*)$", TABLE, re.M)
    small, _, large, _, _ = row.split("|")
    return float(small if size == "1.7b" else large)


@pytest.mark.thorough
@pytest.mark.parametrize("cell", [("plan_path", "single", "1.7b"), ("code", "shared", "1.7b")], ids=id_of)
def test_the_table_says_the_hours_that_plan_estimates(cell, tmp_path, problems):
    x = true_size(cell, tmp_path, problems)
    assert said_hours(cell) == pytest.approx(hours(x, TeamLearner(x), workload_of(x)), rel=0.1)


@pytest.mark.thorough
def test_the_longest_fits_and_takes_no_longer_than_the_table_says(tmp_path, problems):
    cell = ("math", "aggregation_7", "8b")
    x = true_size(cell, tmp_path, problems)
    policies, workload = TeamLearner(x), workload_of(x)
    memory = footprint.memory(x, policies, workload)
    assert x.mesh.devices == 8 and footprint.fits(memory, device_named("h100"))
    assert said_hours(cell) == pytest.approx(hours(x, policies, workload), rel=0.1)


def true_size(cell, folder, problems):
    config = preset(f"qwen3-{cell[2]}")
    (folder / "config.json").write_text(json.dumps(hf.description(config, config.vocab_size, (1,))))
    make_tokenizer(folder)
    return built(files_of(cell), folder, problems)


def hours(x, policies, workload):
    stages = times.seconds(x, policies, workload, device_named("h100"), 0.4).values()
    return x.steps * sum(seconds for _, seconds, _ in stages) / 3600


def test_the_table_has_a_row_for_every_cell():
    assert all(said_hours(cell) > 0 for cell in CELLS)
    assert min(map(said_hours, CELLS)) == 0.7 and max(map(said_hours, CELLS)) == 181


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_its_header_says_what_it_is_and_how_to_run_it(path):
    header = path.read_text().split("\n\n")[0]
    assert all(line.startswith("#") for line in header.splitlines())
    assert f"--gin_file={name_of(path)}" in header
    assert "CPU" in header  # on what, and how long


def test_a_macro_is_for_other_files_only_if_one_of_them_uses_it(tmp_path):
    (tmp_path / "a.gin").write_text('include "smoke.gin"\nLAYERS = 1\n')
    mine = str(tmp_path / "a.gin")
    with pytest.raises(ConfigError, match="macro LAYERS is set but nothing uses it"):
        load(mine)
    (tmp_path / "b.gin").write_text("config.Architecture.layers = %LAYERS\n")
    assert load(mine).model.layers == 2
    assert load([mine, str(tmp_path / "b.gin")]).model.layers == 1
    with pytest.raises(ConfigError, match="macro LAYER is set but nothing uses it"):
        load(mine, ["LAYER = 1"])
