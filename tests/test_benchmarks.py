"""The benchmarks run, on work items of a second: their figures are for people."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import jax
import pytest
import transformers

from atgrpo_jax.models import hf

ROOT = Path(__file__).parents[1]
SIZES = {"layers": 1, "prompts": 2, "candidates": 2, "prompt_tokens": 8, "new_tokens": 4}
SMALL = [f"--{name}={size}" for name, size in (SIZES | {"warmup": 1, "steps": 1}).items()]


def lines(script, *more):
    path = ROOT / "benchmarks" / script
    done = subprocess.run([sys.executable, path, *SMALL, *more], capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.slow
def test_step_prints_a_json_line_a_phase():
    *phases, about = lines("step.py")
    assert [line["phase"] for line in phases] == ["rollout", "update", "step"]
    assert all(line["tokens_per_s"] > 0 for line in phases)
    assert about["compiles_after_warmup"] == 0


@pytest.mark.slow
def test_update_prints_one():
    (line,) = lines("update.py")
    assert line["tokens_per_s"] > 0 and line["share"] > 0 and line["compiles_after_warmup"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("flag", ["--item=tiny", "--item=skewed"])
def test_rollout_prints_one(flag):
    (line,) = lines("rollout.py", flag)
    assert line["tokens_per_s"] > 0 and 0 < line["occupancy"] <= 1
    assert 0 < line["prefill"] + line["decode"] <= 1
    assert line["compiles_after_warmup"] == 0


@pytest.mark.slow
def test_a_short_soak_finds_nothing_wrong_and_nothing_lost():
    path = ROOT / "benchmarks" / "soak.py"
    done = subprocess.run([sys.executable, path, "--seconds=5"], capture_output=True, text=True, check=True)
    line = json.loads(done.stdout)
    assert line["wrong"] == 0 and line["lost"] == [] and line["pushes"] > 3
    assert line["requests"] > line["cancelled"] > 0


@pytest.mark.slow
def test_the_sandbox_under_a_short_soak():
    path = ROOT / "benchmarks" / "sandbox.py"
    done = subprocess.run([sys.executable, path, "--soak=100"], capture_output=True, text=True, check=True)
    line = json.loads(done.stdout)
    assert (line["wrong"], line["replaced"], line["closed"]["processes"], line["file_left"]) == (
        0,
        0,
        0,
        False,
    )
    assert line["ends"]["honest, ok"] > 70 and len(line["ends"]) > 2


@pytest.mark.slow
def test_generators_print_a_line_a_game():
    path = ROOT / "benchmarks" / "generators.py"
    done = subprocess.run(
        [sys.executable, path, "--seconds=0.05"], capture_output=True, text=True, check=True
    )
    games = [json.loads(line) for line in done.stdout.splitlines()]
    assert {game["game"] for game in games} == {"PlanPath", "Sokoban", "Sudoku"}
    assert [game["boxes"] for game in games if game["boxes"]] == [1, 2, 3, 4]
    assert all(game["instances_per_s"] > 0 and game["oracle_ms"] <= game["oracle_ms_most"] for game in games)


def test_peers_get_the_same_model_and_prompts_of_the_items_length(tmp_path, monkeypatch):
    for folder in ("benchmarks", "benchmarks/peers"):
        monkeypatch.syspath_prepend(ROOT / folder)
    import run
    from items import ITEMS

    item = ITEMS["tiny"]
    run.export(item, tmp_path)
    assert hf.model_config(str(tmp_path), dtype="float32") == item.model
    ours = jax.eval_shape(lambda: run.init_params(run.Transformer(item.model, 4096), jax.random.key(0)))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert theirs.num_parameters() == sum(leaf.size for leaf in jax.tree.leaves(ours))
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    about = json.loads((tmp_path / "item.json").read_text())
    assert about["model"] == dataclasses.asdict(item.model)
    assert {len(tokenizer.encode(text)) for text in about["texts"]} == {item.prompt_tokens}
