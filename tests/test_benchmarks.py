"""The benchmarks run, on work items of a second: their figures are for people."""

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest
import transformers

from atgrpo_jax.models.hf import hf
from atgrpo_jax.tasks.games.plan_path import Instance

ROOT = Path(__file__).parents[1]
SIZES = {"layers": 1, "prompts": 2, "candidates": 2, "prompt_tokens": 8, "new_tokens": 4}
SMALL = [f"--{name}={size}" for name, size in (SIZES | {"warmup": 1, "steps": 1}).items()]


def lines(script, *more):
    path = ROOT / "benchmarks" / script
    done = subprocess.run([sys.executable, path, *SMALL, *more], capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.slow
@pytest.mark.long
def test_step_prints_a_json_line_a_phase():
    *phases, about = lines("step.py")
    assert [line["phase"] for line in phases] == ["rollout", "update", "step"]
    assert all(line["tokens_per_s"] > 0 for line in phases)
    assert about["compiles_after_warmup"] == 0


@pytest.mark.slow
@pytest.mark.long
def test_update_prints_one():
    (line,) = lines("update.py")
    assert line["tokens_per_s"] > 0 and line["share"] > 0 and line["compiles_after_warmup"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("flag", ["--item=tiny", "--item=skewed"])
@pytest.mark.long
def test_rollout_prints_one(flag):
    (line,) = lines("rollout.py", flag)
    assert ("of_memory" in line) == (flag == "--item=tiny") and 0 < line.get("of_memory", 1) <= 1
    assert line["tokens_per_s"] > 0 and 0 < line["occupancy"] <= 1
    assert 0 < line["prefill"] + line["decode"] <= 1
    assert line["compiles_after_warmup"] == 0


@pytest.mark.slow
@pytest.mark.long
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


@pytest.mark.slow
def test_hosts_print_efficiencies_and_what_settings_change():
    path = ROOT / "benchmarks" / "hosts.py"
    line = [sys.executable, path, "--case=v5e", "--hosts=1,2"]
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    curves = {(row["scaling"], row["hosts"]): row["efficiency"] for row in rows if "scaling" in row}
    assert curves["strong", 1] == curves["weak", 1] == 1
    assert 0.5 < curves["strong", 2] < curves["weak", 2] <= 1.01
    assert any(row.get("change", "").startswith("instances handed out") for row in rows)


def test_peers_get_the_same_model_and_prompts_of_the_items_length(tmp_path, monkeypatch):
    for folder in ("benchmarks", "benchmarks/peers"):
        monkeypatch.syspath_prepend(ROOT / folder)
    import run
    from items import ITEMS

    item = ITEMS["tiny"]
    run.export(item, tmp_path)
    assert hf.architecture(str(tmp_path)) == item.model
    ours = jax.eval_shape(lambda: run.init_params(run.transformer(item.model, 4096), jax.random.key(0)))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert theirs.num_parameters() == sum(leaf.size for leaf in jax.tree.leaves(ours))
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    about = json.loads((tmp_path / "item.json").read_text())
    model = json.loads(json.dumps(dataclasses.asdict(item.model)))  # a tuple is a list there
    assert about["model"] == model | {"dtype": "float32"}
    assert {len(tokenizer.encode(text)) for text in about["texts"]} == {item.prompt_tokens}


@pytest.mark.parametrize(("python", "code", "parts"), [("true", 0, 5), ("false", 1, 5)])
def test_the_gpus_script_names_each_part_and_goes_on_after_one_that_fails(python, code, parts, tmp_path):
    words = ["bash", ROOT / "benchmarks" / "gpu.sh", tmp_path]
    done = subprocess.run(
        words, env=os.environ | {"PYTHON": python}, capture_output=True, text=True, check=False
    )
    assert done.returncode == code
    assert done.stderr.count("$ ") == parts
    assert done.stderr.count("error: exit code 1 ") == code * parts


def test_the_least_that_decoding_reads(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    from items import ITEMS, decode_gb

    sizes = {
        "layers": 1,
        "width": 8,
        "mlp_width": 16,
        "heads": 2,
        "kv_heads": 1,
        "head_size": 4,
        "vocab_size": 32,
    }
    model = dataclasses.replace(ITEMS["tiny"].model, **sizes)
    item = dataclasses.replace(
        ITEMS["tiny"], model=model, prompts=3, candidates=2, prompt_tokens=8, new_tokens=4
    )
    weights = (8 * 8 + 2 * 8 * 4 + 8 * 8) + 3 * 8 * 16 + 8 * 32  # attention, MLP, head
    cache = 2 * 4 * 3 * (4 * 8 + 2 * 8)  # keys and values of a prompt four times, of half an answer as often
    assert decode_gb(item, 5) == pytest.approx(4 * (5 * weights + cache) / 1e9)


def benchmark(name):
    path = ROOT / "benchmarks" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_difference_names_run_step_kind_and_item():
    script = benchmark("same_bytes")
    one = {"smoke": {"3": {"rewards": {"a": "1", "b": "2"}, "metrics": {"loss": 0.5}}}}
    assert script.differences(one, one) == []
    other = {"smoke": {"3": {"rewards": {"a": "1", "c": "2"}, "metrics": {"loss": 0.25}}}}
    assert script.differences(one, other) == [
        "smoke, step 3, metrics: 1 of 1 differ: loss (0.5 -> 0.25)",
        "smoke, step 3, rewards: 2 of 3 differ: b (2 -> none), c (none -> 2)",
    ]
    assert script.differences(one, {}) == [
        "smoke, step 3, metrics: 1 of 1 differ: loss (0.5 -> none)",
        "smoke, step 3, rewards: 2 of 2 differ: a (1 -> none), b (2 -> none)",
    ]


@pytest.mark.slow
@pytest.mark.long
def test_a_run_leaves_digests_of_all_kinds(tmp_path):
    path = ROOT / "benchmarks" / "same_bytes.py"

    line = [sys.executable, path, "--runs=lora", "--out=first.json"]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    steps = json.loads((tmp_path / "first.json").read_text())["lora"]
    assert list(steps) == ["0", "1", "2", "3"]
    assert {"episodes", "rewards", "advantages", "metrics"} <= set(steps["1"])
    assert {"parameters and optimizer", "base of adapters"} <= set(steps["3"])


def test_structure_counts_by_hand(tmp_path):
    """Two columns: one checkout with each thing once, and one without any of them."""
    script = benchmark("structure")
    files = {
        "one": {
            "low.py": '"""Of this and that."""\na, b = 1, 2\n\n\nclass Step:\n    pass\n',
            "room/high.py": "from atgrpo_jax.low import a\nx = [[i for i in range(a)] for a in range(3)]\n",
            "low2.py": "from atgrpo_jax.room import high\n" + f"y = '{'y' * 100}'\n",
        },
        "other": {"low.py": '"""Holds one number."""\n\na = 1\n'},
    }
    for root, texts in files.items():
        for name, text in texts.items():
            place = tmp_path / root / "atgrpo_jax" / name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(text)
        (tmp_path / root / "tests").mkdir()
    ranks = "RANKS = [{'low', 'low2'}, {'room'}]\n"
    (tmp_path / "one" / "tests" / "test_layers.py").write_text(ranks)
    (tmp_path / "one" / "README.md").write_text("| " + "w" * 150 + " |\n" + "w" * 101 + "\nshort\n")
    one, other = (dict(script.table(tmp_path / root)) for root in files)
    assert (one["folders"], one["loose files on the top level"], one["rooms"]) == ("1", "2", "3")
    assert one["imports up against tests/test_layers.py"] == "1"  # low2 imports from a room above it
    assert one["arrows between rooms"] == "2" and one["arrows between rooms that close a circle"] == "0"
    assert one["uses of identifiers for another meaning"] == "1: class Step x1"
    assert one["clipped docstrings: first word"] == "1"
    assert one["tuple assignments per 1,000 lines"] == "100.0 (1)"  # of 10 lines
    assert one["comprehensions inside a comprehension"] == "1"
    assert one["lines over 100 columns, package"] == "1"
    assert one["README.md: prose, longest line; over 100"] == "101; 1"
    assert one["README.md: tables, longest line; over 100"] == "154; 1"
    assert other["uses of identifiers for another meaning"] == "0: none"
    counted = ("clipped docstrings: first word", "clipped docstrings: no verb", "rooms")
    assert [other[name] for name in counted] == ["0", "0", "1"]


def heard(task, *words):
    """Returns what the mover is shown after seer and third role said so, and what the third one earned."""
    state = task.initial(Instance(("..#", ".#.", "..."), (0, 0), (2, 2)))
    for role, text in zip(("seer", "third"), words, strict=True):
        step = task.act(state, role, text)
        state = step.state
    (message,) = task.prompt(state, "mover")
    return message["content"].split("\n"), step.reward.local


def test_the_third_role_is_idle_or_does_harm_by_how_it_is_made():
    """From (0, 0) one way of two is blocked on the map that the seer tells. A lie blocks the other one."""
    third = benchmark("alarms/third_role")
    shown = ["mover", "hears 11 02", "at 00", "goal 22", "list cells in brackets"]
    unheard, blind = third.ThirdRole(part="unheard"), third.ThirdRole(part="blind")
    assert heard(unheard, "[11 02]", "[10 20]")[0] == heard(unheard, "[11 02]", "")[0] == shown
    assert heard(blind, "[11 02]", "[10]")[0] == [*shown, "third 10"]
    assert heard(blind, "[11 02]", "")[0] == shown
    liar = third.ThirdRole(part="liar")
    told, honest = heard(liar, "[11 02]", "")
    assert told[1] == "hears 02 11" and honest == -0.5
    assert heard(liar, "[11 02]", "[22 11]")[0][1] == "hears 02 11"  # not the goal, and no word twice
    lied, harm = heard(liar, "[11 02]", "[10 20]")
    assert lied[1] == "hears 02 10 11" and harm > honest


def test_rows_say_which_role_rings():
    lost = {"lost_silent": -0.2, "lost_silent_low": -0.3, "lost_silent_high": -0.1, "idle_silent": 1.0}
    kept = {"lost_silent": 0.4, "lost_silent_low": 0.3, "lost_silent_high": 0.5, "idle_silent": 0.0}
    record = {f"role/{role}/{name}": value for role, given in (("third", lost), ("seer", kept))
              for name, value in {"sure": 0.0, **given}.items()}  # fmt: skip
    rows = benchmark("alarms").lines("liar", 3, record | {"success": 0.31})
    assert rows == [
        ("liar", "3", "31.0%", "third", "-20.0% (-30.0% to -10.0%)", "-", "-", "harm"),
        ("liar", "3", "31.0%", "seer", "+40.0% (+30.0% to +50.0%)", "-", "-", "-"),
    ]
