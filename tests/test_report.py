import json
import math

import pytest

from atgrpo_jax.common.errors import RunError
from atgrpo_jax.run.folder import RunFolder
from atgrpo_jax.run.gin_config import load
from atgrpo_jax.run.report import plot_curves, summarise, summary_text


def test_summary_and_curves_from_metrics_alone(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.lock()
    score = {"test/low": 0.1, "test/high": 0.3, "test/turns": 3.0}
    lines = [
        {"step": 0, "test/success": 0.25, "validation/success": 0.2} | score,
        {"step": 1, "rollout/success": 0.5, "policy/shared/entropy": 1.0, "perf/step_s": 30.0},
        {"step": 2, "rollout/success": 0.75, "test/success": 0.9, "perf/step_s": 40.0} | score,
    ]
    folder.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    summary = summarise(load("smoke.gin", ["experiment.Experiment.steps = 2"]), folder)
    assert summary == json.loads(folder.summary.read_text())
    text = summary_text(summary)
    assert "before  25.0% (95 % interval 10.0% to 30.0%)" in text
    assert "after   90.0%" in text and "2 steps, 1 min 10 s of training" in text
    assert str(folder.path) in text and "python -m atgrpo_jax.evaluate" in text
    assert folder.curves.read_bytes().startswith(b"\x89PNG")
    assert not list(folder.path.glob("*.partial*"))


def test_scores_that_are_not_there_are_named(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.lock()
    x = load("smoke.gin", ["experiment.Experiment.steps = 1"])
    score = {"test/success": 0.25, "test/low": 0.1, "test/high": 0.3, "test/turns": 3.0}
    some = {name: value for name, value in score.items() if name != "test/low"}
    for second in ({"step": 1}, {"step": 1} | some):
        folder.metrics.write_text("".join(json.dumps(r) + "\n" for r in ({"step": 0} | score, second)))
        with pytest.raises(RunError, match="metrics.jsonl has no test scores of step 1 "):
            summarise(x, folder)
    assert not folder.summary.exists()


def test_curves_of_a_folder_of_any_name_and_of_any_numbers(tmp_path):
    path = tmp_path / "curves.png"
    records = [
        {"step": step, "rollout/success": value} for step, value in enumerate((0.5, math.inf, -math.inf))
    ]
    plot_curves(records, "$\\frac$ {a}_[1]", path)
    assert path.read_bytes().startswith(b"\x89PNG")
