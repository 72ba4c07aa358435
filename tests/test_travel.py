"""A run folder holds what it takes to go on elsewhere, and notices what has changed since it began."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from reference import VARIANTS, make, make_tokenizer
from shared_hosts import left, weights

from atgrpo_jax.common.errors import RunError
from atgrpo_jax.run import changes, gin_config
from atgrpo_jax.run.experiment import experiment_difference
from atgrpo_jax.run.folder import RunFolder
from atgrpo_jax.run.kept_files import by_content, came_from, check_kept, differences, keep, paths_of
from atgrpo_jax.run.saved import claim
from atgrpo_jax.tasks.math.math import Math

TEMPLATES = Path(sys.modules[Math.__module__].__file__).parents[1] / "templates" / "math" / "full"
MINE = """
import dataclasses

import helper
from atgrpo_jax.tasks.math.math import Math


@dataclasses.dataclass(frozen=True)
class Mine(Math):
    def act(self, state, role, text, runs=()):
        step = super().act(state, role, text, runs)
        return dataclasses.replace(step, reward=helper.paid(text))
"""
FILES = "problems.jsonl", "prompts/reasoner.txt", "model/tokenizer.json"  # that a run reads
HELPER = """
from atgrpo_jax.common.types import Reward


def paid(text):
    return Reward.of(0.0, length=float(len(text.encode())))
"""
GIN = """
from __gin__ import dynamic_registration
import mine

include "parts/model.gin"

MODEL = "model"

experiment.Experiment.task = @mine.Mine()
experiment.Experiment.steps = 2
experiment.Experiment.checkpoint_every = 1
experiment.Experiment.warm_start = None
mine.Mine.files = {"train": "problems.jsonl", "validation": "valid.jsonl", "test": "held.jsonl"}
mine.Mine.prompts = "prompts"
mine.Mine.workflow = @workflow.Workflow()
workflow.Workflow.order = ("reasoner",)
workflow.Workflow.turns = 1
local.LocalEngineConfig.max_prompt = 1024
rollout.RolloutConfig.instances = 2
rollout.RolloutConfig.candidates = 3
rollout.RolloutConfig.max_tokens = 6
batch.BatchConfig.row_tokens = 1024
evaluation.EvaluationConfig.instances = 2
evaluation.EvaluationConfig.every = 0
"""


def write_home(home):
    """Makes what a run reads: modules, gin file, problems, prompts and a model folder."""
    home.mkdir(parents=True)
    (home / "mine.py").write_text(MINE)
    (home / "helper.py").write_text(HELPER)
    (home / "mine.gin").write_text(GIN)
    rows = [{"question": f"{i} + {i}", "answer": str(2 * i)} for i in range(10)]
    for name, own in (("problems", rows[:6]), ("held", rows[6:8]), ("valid", rows[8:])):
        (home / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in own))
    shutil.copytree(TEMPLATES, home / "prompts")
    (home / "model").mkdir()
    kind, options = VARIANTS["llama"]
    make(home / "model", kind, options | {"vocab_size": 257})
    make_tokenizer(home / "model")


def command(home, name, *words):
    path = os.pathsep.join(filter(None, [str(home), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"PYTHONPATH": path, "JAX_NUM_CPU_DEVICES": "1"}
    return subprocess.run(
        [sys.executable, "-m", f"atgrpo_jax.{name}", *words],
        cwd=home,
        env=environment,
        capture_output=True,
        text=True,
    )


def trained(home, *words):
    ran = command(home, "train", *words)
    assert ran.returncode == 0, ran.stderr[-3000:]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A home with two runs: ``runs/whole`` of four steps and ``runs/half``, the first two of them."""
    home = tmp_path_factory.mktemp("travel") / "home"
    write_home(home)
    trained(
        home, "--gin_file=mine.gin", "--run_dir=runs/whole", "--gin_param=experiment.Experiment.steps = 4"
    )
    trained(home, "--gin_file=mine.gin", "--run_dir=runs/half")
    return home


def training(folder):
    """Returns what ``left`` does, without scores: a run is scored where it ends."""
    records, episodes = left(folder)
    kept = [
        {name: v for name, v in one.items() if name.split("/")[0] not in ("test", "validation")}
        for one in records
    ]
    return kept, {name: content for name, content in episodes.items() if name.count(".") == 2}


@pytest.mark.slow
def test_a_run_goes_on_elsewhere_with_nothing_but_its_folder(made, tmp_path):
    elsewhere = tmp_path / "it's elsewhere"
    elsewhere.mkdir()
    shutil.copytree(made / "runs" / "half", elsewhere / "run")
    away = made.rename(made.with_name("away"))
    try:
        trained(
            elsewhere,
            "--gin_file=run/config.gin",
            "--run_dir=run",
            "--gin_param=experiment.Experiment.steps = 4",
        )
        for name, words in (
            ("evaluate", ["--run_dir=run", "--step=3", "--instances=2"]),
            ("export", ["--run_dir=run", "--out=out"]),
            ("replay", ["--run_dir=run", "--random=2"]),
            ("report", ["--run_dir=run"]),
        ):
            ran = command(elsewhere, name, *words)
            assert ran.returncode == 0, (name, ran.stderr[-3000:])
    finally:
        away.rename(made)
    whole = made / "runs"
    (whole / "run").symlink_to(whole / "whole")  # where ``left`` looks
    assert training(elsewhere) == training(whole)
    for ours, theirs in zip(weights(elsewhere), weights(whole), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert (elsewhere / "out" / "reasoner" / "tokenizer.json").is_file()
    first, second = map(json.loads, (elsewhere / "run" / "environment.jsonl").read_text().splitlines())
    assert (first["after_step"], second["after_step"]) == (-1, 2)
    assert first["folder"] == str(made) and second["folder"] == str(elsewhere)
    assert first["versions"]["jax"] and first["machine"]["devices"]


@pytest.mark.slow
def test_the_same_command_goes_on_as_long_as_nothing_has_changed(made, tmp_path):
    home = tmp_path / "home"
    shutil.copytree(made, home, symlinks=True)
    again = ["--gin_file=mine.gin", "--run_dir=runs/half", "--gin_param=experiment.Experiment.steps = 3"]
    before = {name: (home / name).read_text() for name in FILES}
    for changed in (FILES[:2], FILES[2:]):  # a refusal names three fields, and two belong to the prompts
        for name in changed:
            text = before[name]
            text = text.replace("1 + 1", "1 + 2") if name == "problems.jsonl" else text + "\n"
            (home / name).write_text(text)
        ran = command(home, "train", *again)
        assert ran.returncode == 2 and "holds a run of another config" in ran.stderr, ran.stderr
        assert all(name.partition("/")[0] in ran.stderr for name in changed), ran.stderr
        for name in changed:
            (home / name).write_text(before[name])

    (home / "helper.py").write_text(HELPER + "# another one\n")
    ran = command(home, "train", *again)
    assert ran.returncode == 2
    assert "helper.py has changed since the run began" in ran.stderr and "--changed_code" in ran.stderr
    trained(home, *again, "--changed_code")
    code = home / "runs" / "half" / "code"
    before = code / "before_step_3" / "helper.py"
    assert (code / "helper.py").read_text() != before.read_text() == HELPER
    trained(home, *again)  # that one is the run's now


@pytest.fixture
def home(tmp_path):
    write_home(tmp_path / "home")
    return tmp_path / "home"


LINES = (
    "from atgrpo_jax.tasks.math import math",
    "from atgrpo_jax.tokens import tokens",
    "experiment.Experiment.task = @math.Math()",
    "experiment.Experiment.tokenizer = @tokens.FolderTokenizer()",
    "workflow.Workflow.order = ('reasoner',)",
)


def loaded(home):
    files = {
        split: f"{home}/{'problems' if split == 'train' else 'held'}.jsonl" for split in ("train", "test")
    }
    own = (f"math.Math.files = {files!r}", f"math.Math.prompts = '{home}/prompts'")
    model = f"tokens.FolderTokenizer.folder = '{home}/model'"
    return gin_config.load("smoke.gin", [*LINES, *own, model])


def test_files_count_by_content_wherever_they_are(home, tmp_path):
    here = loaded(home)
    assert {Path(path).name for path in paths_of(here)} == {
        "problems.jsonl",
        "held.jsonl",
        "prompts",
        "model",
    }
    other = tmp_path / "other"
    shutil.copytree(home, other)
    there = loaded(other)
    assert here.identity() == there.identity() and experiment_difference(here, there) is None
    models = {"of a role": here.tokenizer}, {"of a role": there.tokenizer}  # also inside of other values
    assert not list(differences("models", *models))
    (other / "model" / "tokenizer_config.json").write_text("{} ")
    assert [name for name, *_ in differences("models", *models)] == ["models"]
    there = loaded(other)
    (other / "held.jsonl").write_text((other / "held.jsonl").read_text() + "\n")
    there = loaded(other)
    assert here.identity() != there.identity()
    assert experiment_difference(here, there).startswith("Math.files = ")


def test_a_chat_template_of_ones_own_is_kept(home, tmp_path):
    (home / "mine.jinja").write_text("{{ messages[0].content }}<|end|>")
    plain = loaded(home)
    own = dataclasses.replace(plain.tokenizer, chat_template=f"{home}/mine.jinja", thinking=None)
    here = dataclasses.replace(plain, tokenizer=own)
    assert f"{home}/mine.jinja" in paths_of(here) and here.identity() != plain.identity()
    kept = keep(here, tmp_path / "kept")
    assert kept.tokenizer.chat_template == str(tmp_path / "kept" / "mine.jinja")
    assert kept.identity() == here.identity() and kept.tokenizer.digest() == own.digest()
    (home / "mine.jinja").write_text("{{ messages[0].content }}")
    changed = dataclasses.replace(here, tokenizer=dataclasses.replace(own))
    assert changed.identity() != kept.identity() and changed.tokenizer.digest() != own.digest()
    shutil.rmtree(home)
    text = gin_config.render(kept)
    (tmp_path / "again.gin").write_text(text)
    assert gin_config.load(str(tmp_path / "again.gin")).tokenizer == kept.tokenizer


def test_the_config_before_a_change_reads_the_same_files(home, tmp_path):
    here = loaded(home)
    faster = dataclasses.replace(here, optimizer=dataclasses.replace(here.optimizer, learning_rate=0.5))
    folder = RunFolder(tmp_path / "run")
    with claim(folder, here):
        pass
    with claim(folder, faster, change=True):
        pass
    folder.path.rename(tmp_path / "moved")
    shutil.rmtree(home)
    moved = RunFolder(tmp_path / "moved")
    before, now = changes.experiment_at(moved, 0), changes.experiment_at(moved, 1)
    assert (before.optimizer, now.optimizer) == (here.optimizer, faster.optimizer)
    for one in (before, now):
        assert len(paths_of(one)) == 4 and all(p.startswith(f"{moved.path}/kept/") for p in paths_of(one))


def test_a_folder_right_below_the_root_counts_but_not_the_root():
    assert by_content("/etc") != "/etc" and by_content("/") == "/" and by_content("/no_think") == "/no_think"


def test_what_is_kept_is_the_same_without_weights(home, tmp_path):
    here = loaded(home)
    kept = keep(here, tmp_path / "kept")
    assert here.identity() == kept.identity()
    assert all(path.startswith(str(tmp_path / "kept")) for path in paths_of(kept))
    assert not list((tmp_path / "kept" / "model").glob("*.safetensors"))
    assert kept.tokenizer.digest() == here.tokenizer.digest()
    again = keep(kept, tmp_path / "fork")  # a copy of a copy
    for folder in (home / "model", kept.tokenizer.folder, again.tokenizer.folder):
        assert came_from(str(folder)) == f"{home}/model"
    shutil.rmtree(home)
    assert kept.task.instance("train", 0) and kept.identity() == keep(kept, tmp_path / "again").identity()
    check_kept(tmp_path / "kept")
    (tmp_path / "kept" / "prompts" / "reasoner.txt").write_text("{{ question }}")
    with pytest.raises(
        RunError, match=r".*/kept/prompts/reasoner.txt is missing or has changed since the run began"
    ):
        check_kept(tmp_path / "kept")


def test_a_config_is_read_wherever_its_folder_is(home, tmp_path):
    for name in ("run", "a 'quoted' \"one\"", "ümlaut\\n"):
        folder = RunFolder(tmp_path / "runs" / name)
        with claim(folder, loaded(home)):
            pass
        assert "$HERE/kept/problems.jsonl" in folder.config.read_text()
        moved = tmp_path / f"moved_{len(name)}"
        folder.path.rename(moved)
        read = gin_config.load(str(moved / "config.gin"))
        assert read.identity() == loaded(home).identity()
        assert all(path.startswith(str(moved)) for path in paths_of(read))
