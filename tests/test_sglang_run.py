"""A whole run with an SGLang server that it initial_names, on this machine's CPU."""

import json
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from atgrpo_jax.run.gin_config import gin_folder

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]


def run(folder, engine, *params):
    """smoke.gin on the engine given as lines of gin."""
    text = (gin_folder() / "smoke.gin").read_text()
    if engine:
        text = re.sub(r"(?m)^.*local.*$", "", text) + engine
    (folder / "run.gin").write_text(text)
    command = [sys.executable, "-m", "atgrpo_jax.train", "--gin_file=run.gin", *params]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = (folder / "runs" / "run" / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines][1:]


def test_smoke_trains_on_a_server_that_it_starts_with_the_same_curve(tmp_path):
    engine = f"""
from atgrpo_jax.engines.sglang import sglang
experiment.Experiment.engine = @sglang.SGLangConfig()
sglang.SGLangConfig.command = "bash {ROOT}/launch/serve_sglang.sh"
"""
    records = {}
    for name, lines in (("sglang", engine), ("local", "")):
        (tmp_path / name).mkdir()
        records[name] = run(tmp_path / name, lines, "--gin_param=experiment.Experiment.steps=12")
    for record in records["sglang"]:
        assert record["policy/shared/gate_gap"] < 1e-4 and record["policy/shared/logprob_gap"] < 1e-4
        assert record["perf/push_s"] > 0
    first = [records[name][0]["policy/shared/entropy"] for name in records]
    assert first[0] == pytest.approx(first[1], abs=0.1)  # of one policy; what it learns goes its own way
    for metric in ("role/scout/local", "role/mover/local", "role/mover/tokens"):
        both = [np.array([record[metric] for record in records[name]]) for name in records]
        error = math.sqrt(sum(values.var(ddof=1) / len(values) for values in both))
        assert abs(both[0].mean() - both[1].mean()) < 5 * error, metric
