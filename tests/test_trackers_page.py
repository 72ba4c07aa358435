"""docs/trackers.md: its own tracker works as it stands, and its commands and fields exist."""

import dataclasses
import re
import sys
from pathlib import Path

from shared_trainer import experiment, honest

from atgrpo_jax.run import gin_config
from atgrpo_jax.run.folder import RunFolder
from atgrpo_jax.run.loop import train
from atgrpo_jax.tracking.mlflow import _PATIENCE
from atgrpo_jax.tracking.trackers import Trackers
from atgrpo_jax.tracking.wandb import Wandb

PAGE = (Path(__file__).parents[1] / "docs" / "trackers.md").read_text()


def test_its_tracker_gets_a_run(tmp_path, monkeypatch):
    (python,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    (gin,) = re.findall(r"\n\n```\n(import.*?)```", PAGE, re.DOTALL)
    (tmp_path / "lines.py").write_text(python)
    (tmp_path / "lines.gin").write_text(gin)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    trackers = gin_config.load(["smoke.gin", "lines.gin"]).trackers
    assert list(trackers.chosen()) == ["tensorboard", "lines"]
    train(experiment(honest(), steps=2, trackers=trackers), RunFolder(tmp_path / "run"))
    assert Path("mine.txt").read_text().splitlines() == [
        "run has 3 candidates",
        "step 0: 6 rows of test",
        "step 1: 0.00",
        "step 2: 0.00",
        "step 2: 6 rows of test",
        "finished",
    ]
    del sys.modules["lines"]


def test_its_lines_are_gin():
    for line in re.findall(
        r"""`((?:trackers|wandb|mlflow|trackio)\.\w+\.\w+ = [^`]*)`|--gin_param="(.*)\"""", PAGE
    ):
        gin_config.load("smoke.gin", ["".join(line)])
    for name in re.findall(r"(trackers/\w+\.gin)", PAGE):
        assert (gin_config.gin_folder() / name).exists()
    fields = {field.name: field.default for field in dataclasses.fields(Trackers)}
    assert (fields["rows"], fields["letters"], Wandb().finish_s) == (50, 2000, 120.0)
    assert list(_PATIENCE.values()) == ["20", "2"]  # three tries
