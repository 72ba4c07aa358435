"""Every shipped gin file builds, says what it is, and has no macro or scope that nothing refers to."""

import itertools
import json
import re

import pytest
from reference import SIZES, make, make_tokenizer

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
TASKS, TEAMS = ("plan_path", "sokoban", "sudoku", "math", "code"), ("single", "shared", "lora", "roles")


def name_of(path):
    return str(path.relative_to(GIN_FOLDER))


def whole(path):
    """A file's text, and that of the files it includes."""
    text = path.read_text()
    return text + "".join(
        whole(GIN_FOLDER / name) for name in re.findall(r"^include ['\"](.*)['\"]", text, re.M)
    )


def test_there_is_one_for_every_cell():
    names = {name_of(path) for path in FILES}
    assert {"plan.gin", "plan_10x10.gin", "smoke.gin", "sokoban.gin", "sudoku.gin"} <= names
    cells = itertools.product(TASKS, TEAMS, ("1.7b", "8b"))
    assert {f"paper/{task}_{team}_{size}.gin" for task, team, size in cells} <= names
    tiny = {f"tiny/{task}_{team}.gin" for task in ("plan", *TASKS[1:]) for team in TEAMS}
    there = {
        "plan_shared",
        "sokoban_shared",
        "sudoku_shared",
        "math_lora",
        "code_lora",
    }  # the files above these
    assert tiny - {f"tiny/{name}.gin" for name in there} <= names
    assert {f"paper/math_aggregation_{agents}.gin" for agents in (3, 5, 7)} | {
        "tiny/math_aggregation.gin"
    } <= names
    used = set(re.findall(r"parts/\w+(?:\.\d+\w)?\.gin", "".join(map(whole, FILES))))
    assert used == set(map(name_of, PARTS))
    assert not (GIN_FOLDER / "__init__.py").exists()  # it would hide the gin library


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


def built(path, model_folder, problems):
    """Unused macros, scopes and parts are errors of load."""
    text = whole(path)
    bindings = [f"MODEL = '{model_folder}'"] if "%MODEL" in text else []
    bindings += [f"{s.upper()} = '{problems / s}.jsonl'" for s in SPLITS if f"%{s.upper()}" in text]
    return load(name_of(path), bindings)


@pytest.mark.parametrize("agents", [3, 5, 7])
def test_agents_of_the_aggregation(agents, model_folder, problems):
    x = built(GIN_FOLDER / f"paper/math_aggregation_{agents}.gin", model_folder, problems)
    *others, judge = x.task.workflow.order
    assert judge == "judge" and not x.task.workflow.parallel
    assert others == [f"{kind}{i + 1}" for kind in ("reasoner", "tool") for i in range(agents // 2)]


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_it_builds(path, tmp_path, model_folder, problems):
    experiment = built(path, model_folder, problems)
    copy = tmp_path / "copy.gin"
    copy.write_text(render(experiment))
    assert load(str(copy)) == experiment


@pytest.mark.thorough
def test_the_longest_fits_on_what_its_header_says_and_takes_no_longer(tmp_path, problems):
    name, config = "math_aggregation_7", preset("qwen3-8b")
    (tmp_path / "config.json").write_text(json.dumps(hf.description(config, config.vocab_size, (1,))))
    make_tokenizer(tmp_path)
    path = GIN_FOLDER / f"paper/{name}.gin"
    x, h100 = built(path, tmp_path, problems), device_named("h100")
    policies, workload = TeamLearner(x), workload_of(x)
    assert x.mesh.devices == 8 and footprint.fits(footprint.memory(x, policies, workload), h100)
    stages = times.seconds(x, policies, workload, h100, 0.4).values()
    hours = x.steps * sum(seconds for _, seconds, _ in stages) / 3600
    (said,) = re.findall(r"at most ([\d.]+) hours", path.read_text())
    assert float(said) == pytest.approx(hours, rel=0.1)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_its_header_says_what_it_is_and_how_to_run_it(path):
    header = path.read_text().split("\nfrom ")[0].split("\ninclude")[0]
    assert all(line.startswith("#") or not line for line in header.splitlines())
    assert f"--gin_file={name_of(path)}" in header
    assert "CPU" in header  # on what, and how long
