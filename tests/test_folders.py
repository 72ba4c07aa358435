"""A user's path with a model folder: train adapters on it, export, load elsewhere, compare."""

import contextlib
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from fakes import LOGITS, Longest, of_policy
from peft import PeftModel
from reference import SIZES, forward, make, make_tokenizer, ours
from safetensors import safe_open

from atgrpo_jax.common.errors import ConfigError
from atgrpo_jax.engines import gate
from atgrpo_jax.rollout.evaluation import evaluate
from atgrpo_jax.run import gin_config
from atgrpo_jax.run.episodes import written
from atgrpo_jax.run.experiment import Experiment
from atgrpo_jax.run.folder import RunFolder
from atgrpo_jax.run.folder_teams import bases, cast, played, team_weights
from atgrpo_jax.run.saved import SavedRun
from atgrpo_jax.run.team_learner import TeamLearner
from atgrpo_jax.tokens.tokens import FolderTokenizer
from atgrpo_jax.viewing.contents import evaluations

TASK = '''
"""Every text is paid for its different letters, so that any two answers are likely to be told apart."""

import dataclasses

from atgrpo_jax.tasks.protocol import Transition
from atgrpo_jax.tasks.workflow import Workflow
from atgrpo_jax.common.types import Outcome, Reward


@dataclasses.dataclass(frozen=True)
class Letters:
    workflow: Workflow = Workflow(order=("scout", "mover"), turns=2)

    def instance(self, split, index):
        return f"{split} {index}"

    def initial(self, instance):
        return (instance,)

    def prompt(self, state, role):
        return [{"role": "user", "content": f"{role} {state[0]} {len(state)}"}]

    def act(self, state, role, text):
        solved = role == "mover" and len(text) > 9
        reward = Reward.of(float(solved), letters=len(set(text)) / 10)
        return Transition((*state, text), reward, Outcome.OK, solved, solved)

    def demonstration(self, state, role, rng):
        return rng.choice(("a", "ab", "abc"))
'''
GIN = """
from __gin__ import dynamic_registration
import letters
from atgrpo_jax.rollout import evaluation
from atgrpo_jax.run import experiment
from atgrpo_jax.update import optimizer
from atgrpo_jax.rollout import rollout
from atgrpo_jax.update import warm_start
include 'parts/model.gin'
experiment.Experiment.task = @letters.Letters()
rollout.RolloutConfig.instances = 2
optimizer.OptimizerConfig.learning_rate = 3e-2
evaluation.EvaluationConfig.instances = 3
evaluation.EvaluationConfig.validation_instances = 2
warm_start.WarmStartConfig.steps = 2
warm_start.WarmStartConfig.instances = 2
warm_start.WarmStartConfig.cache_dir = "cache"
experiment.Experiment.steps = 2
"""


def command(place, module, *args, code=0):
    line = [sys.executable, "-m", f"atgrpo_jax.{module}", *args]
    done = subprocess.run(line, cwd=place, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    return done.stdout, done.stderr


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("place")
    make(place / "model", "Qwen3", SIZES | {"vocab_size": 300, "num_key_value_heads": 2})
    make_tokenizer(place / "model")
    (place / "letters.py").write_text(TASK)
    (place / "mine.gin").write_text(GIN)
    param = "--gin_param=MODEL = 'model'"
    out, _ = command(place, "train", "--gin_file=mine.gin", param, "--run_dir=run")
    assert "Held-out success on 3 test instances" in out
    return place


@pytest.mark.slow
def test_both_adapters_were_trained(place):
    """Or whatever is said of them below would be said of adapters that are zero, at any scale."""
    records = [json.loads(line) for line in (place / "run" / "metrics.jsonl").read_text().splitlines()]
    for role in ("scout", "mover"):
        assert all(of_policy(record, role, "updates") > 0 for record in records[1:])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning")  # of transformers, about what peft calls
def test_an_exported_team_is_the_same_for_transformers_and_peft(place):
    command(place, "export", "--run_dir=run", "--out=lora")
    command(place, "export", "--run_dir=run", "--out=merged", "--merge")
    tokens = np.random.default_rng(0).integers(0, 300, (2, 20))
    base = transformers.AutoModelForCausalLM.from_pretrained
    whole = FolderTokenizer(str(place / "model"))
    for role in ("scout", "mover"):
        merged = base(place / "merged" / role)
        about = json.loads((place / "lora" / role / "adapter_config.json").read_text())
        assert about["base_model_name_or_path"] == "../base_of_adapters"  # so that the team can be moved
        under = base(place / "lora" / "base_of_adapters")  # which the warm start has moved
        adapted = PeftModel.from_pretrained(under, place / "lora" / role).eval()
        model, params = ours(place / "merged" / role)
        scores = forward(model, params, jnp.asarray(tokens))[2]
        with torch.no_grad():
            for theirs in (merged, adapted):
                np.testing.assert_allclose(scores, theirs(torch.tensor(tokens)).logits.numpy(), **LOGITS)
            with adapted.disable_adapter():
                bare = adapted(torch.tensor(tokens)).logits.numpy()
        assert np.abs(scores - bare).max() > 0.05  # another scale would show
        for kind in ("merged", "lora"):
            assert FolderTokenizer(str(place / kind / role)).digest() == whole.digest()


@pytest.mark.slow
@pytest.mark.long
def test_an_exported_team_of_adapters_plays_as_the_run_does(place, monkeypatch):
    """To the byte, where it plays the same step; and its command scores the same where it draws greedily."""
    command(place, "export", "--run_dir=run", "--out=played")
    monkeypatch.chdir(place)
    monkeypatch.syspath_prepend(place)
    saved = SavedRun("run")
    x = gin_config.load("mine.gin", ["MODEL = 'model'"])
    team = cast(x, "--model", "mover=played/mover,scout=played/scout")
    under = bases([team], None)
    folders = played(x, [team], under)
    learner = TeamLearner(folders)
    found = [
        episodes_of(saved.experiment, saved.learner, saved.weights(2)),
        episodes_of(folders, learner, team_weights(learner, folders, team, under)),
        episodes_of(saved.experiment, saved.learner, saved.weights(0)),
    ]
    assert found[0] == found[1] != found[2]
    greedy = ("--temperature=0", "--instances=8")
    of_run, _ = command(place, "evaluate", "--run_dir=run", *greedy)
    told = [
        "--gin_file=mine.gin",
        "--gin_param=MODEL = 'model'",
        "--model=mover=played/mover,scout=played/scout",
    ]
    of_folders, err = command(place, "evaluate", *told, *greedy)
    assert of_run.partition(": ")[2] == of_folders.partition(": ")[2] and "other numbers" not in err
    (place / "played").rename(place / "moved")
    (place / "moved" / "base_of_adapters").rename(place / "under")
    told[2] = told[2].replace("played", "moved")
    _, err = command(place, "evaluate", *told, *greedy, code=2)
    assert "its base, /" in err and err.endswith("--base=FOLDER\n")
    again, err = command(place, "evaluate", *told, *greedy, "--base=under")
    assert again.partition(": ")[2] == of_run.partition(": ")[2] and "other numbers" not in err
    _, err = command(place, "evaluate", *told, *greedy, "--base=model")  # without the warm start
    assert "model has other numbers than moved/mover was trained on: it was rounded" in err


def episodes_of(experiment, learner, weights):
    """What is written down of six episodes with these weights."""
    with contextlib.closing(learner.engine()) as engine:
        gate.push(engine, weights, 2)
        score = evaluate(
            experiment.task, experiment.team, experiment.tokenizer, engine, experiment.evaluated(),
            seed=0, step=2, split="test", instances=6,
        )  # fmt: skip
    return written(2, score.episodes, (), experiment.tokenizer, experiment.alphas)


@pytest.mark.slow
@pytest.mark.long
def test_export_rounds_as_it_is_asked_and_says_what_that_took(place):
    shares = {}
    for dtype in ("float32", "bfloat16"):
        out, _ = command(place, "export", "--run_dir=run", f"--out={dtype}", "--merge", f"--dtype={dtype}")
        lines = [line for line in out.splitlines() if "step 2 against step 0" in line]
        assert len(lines) == 2 and all(f"; as {dtype}, " in line for line in lines)
        shares[dtype] = [float(re.findall(r"([\d.]+)% (?:of its|still)", line)[-1]) for line in lines]
        assert all(("nothing is rounded" in line) == (dtype == "float32") for line in lines)
        state = ours(place / dtype / "mover")[1]
        assert json.loads((place / dtype / "mover" / "config.json").read_text())["dtype"] == dtype
        half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16).astype(leaf.dtype), state)
        same = jax.tree.leaves(jax.tree.map(lambda a, b: bool((a == b).all()), half, state))
        assert all(same) == (dtype == "bfloat16")
    assert all(0 < half < whole for half, whole in zip(shares["bfloat16"], shares["float32"], strict=True))
    out, _ = command(place, "export", "--run_dir=run", "--out=start", "--step=0", "--dtype=bfloat16")
    assert "against" not in out
    adapter = safe_open(place / "start" / "mover" / "adapter_model.safetensors", "pt")
    assert {adapter.get_slice(name).get_dtype() for name in adapter.keys()} == {"BF16"}  # noqa: SIM118


@pytest.mark.slow
@pytest.mark.long
def test_adapters_name_the_folder_that_they_were_trained_on_while_it_is_there(place):
    bare = "--gin_param=experiment.Experiment.warm_start = None"
    args = ["--gin_file=mine.gin", "--gin_param=MODEL = 'model'", bare, "--run_dir=unwarmed"]
    command(place, "train", *args, "--gin_param=experiment.Experiment.steps = 1")
    command(place, "export", "--run_dir=unwarmed", "--out=near")
    about = json.loads((place / "near" / "mover" / "adapter_config.json").read_text())
    assert about["base_model_name_or_path"] == str(place / "model")
    assert not (place / "near" / "base_of_adapters").exists()
    card = (place / "near" / "mover" / "README.md").read_text()
    assert "adapter on `model` that speaks for mover" in card and str(place) not in card
    (place / "model").rename(place / "elsewhere")
    try:
        command(place, "export", "--run_dir=unwarmed", "--out=far")
    finally:
        (place / "elsewhere").rename(place / "model")
    about = json.loads((place / "far" / "mover" / "adapter_config.json").read_text())
    assert about["base_model_name_or_path"] == "../base_of_adapters"
    (written,) = (place / "far" / "base_of_adapters").glob("*.safetensors")
    assert written.stat().st_mode & 0o777 == 0o644


@pytest.mark.slow
@pytest.mark.long
def test_the_commands_of_the_page_run(place):
    page = (Path(__file__).parents[1] / "docs" / "models.md").read_text().replace("\\\n", "")
    for there, here in (
        ("runs/plan_model", "run"),
        ("plan_model.gin", "mine.gin"),
        ("smollm2-135m", "model"),
    ):
        page = page.replace(there, here)
    lines = re.findall(r"^    python -m atgrpo_jax\.((?:export|evaluate) .*)", page, re.MULTILINE)
    for line in lines:
        command(place, *shlex.split(line))
    assert len(lines) == 4


@pytest.mark.slow
def test_every_folder_has_a_card_without_paths_or_secrets(place):
    _, _ = command(place, "evaluate", "--run_dir=run", "--gin_param=experiment.Experiment.seed = 0")
    command(place, "export", "--run_dir=run", "--out=carded")
    for name in ("scout", "mover", "base_of_adapters"):
        card = (place / "carded" / name / "README.md").read_text()
        assert card.startswith("---\nlibrary_name: ") and f"# {name}\n" in card
        assert str(place) not in card and "/tmp" not in card and "MODEL" not in card
        assert "It started from `model`, with a warm start of 2 steps." in card
        assert "| steps | 2 of 2 |" in card and "| task | Letters |" in card
        assert re.search(r"\| test \| 0 \| [\d.]+% \| [\d.]+% to [\d.]+% \| in training \|", card)
        assert re.search(r"\| test \| 2 \| [\d.]+% \| .* \| 3 instances, temperature 1, with another", card)
    assert (
        'AutoModelForCausalLM.from_pretrained("base_of_adapters")'
        in (place / "carded" / "mover" / "README.md").read_text()
    )
    assert "it was asked by the chat template in this folder, without thinking." in card.lower()


@pytest.mark.slow
@pytest.mark.long
def test_a_folder_is_scored_alone_and_against_another(place):
    command(place, "export", "--run_dir=run", "--out=other", "--merge")
    args = ["--model=model", "--gin_file=mine.gin", "--gin_param=MODEL = 'model'", "--episodes=2"]
    out, _ = command(place, "evaluate", *args, "--against=other/mover")
    first, second, paired = out.splitlines()
    assert first.startswith("test after model: ")
    assert " of 3 x 2 episodes (95 " in first and "%), pass@2 " in first
    assert second.startswith("test after other/mover: ")
    assert paired.startswith("difference to other/mover: ")
    again, _ = command(place, "evaluate", *args, "--against=model")
    assert again.splitlines()[0] == first
    assert "better on 0 instances, worse on 0" in again.splitlines()[2]


@pytest.mark.slow
@pytest.mark.long
def test_an_exported_team_is_scored_as_the_team_that_it_is(place):
    """The moved team draws what the run's own team draws, but for the last digits of the merged weights."""
    command(place, "export", "--run_dir=run", "--out=team", "--merge", "--dtype=float32")
    (place / "team").rename(place / "elsewhere")
    args = ["--gin_file=mine.gin", "--gin_param=MODEL = 'elsewhere/mover'", "--temperature=0"]
    team = "mover=elsewhere/mover,scout=elsewhere/scout"
    out, err = command(place, "evaluate", f"--model={team}", "--against=model", *args)
    assert out.startswith(f"test after {team}: ") and "do not count" not in err
    run, _ = command(place, "evaluate", "--run_dir=run", "--temperature=0")
    assert out.splitlines()[0].split(": ")[1] == run.splitlines()[0].split(": ")[1]
    out, err = command(place, "evaluate", "--model=model", *args)
    assert "model speaks for scout, mover; the models and the sharing of the gin files do not count" in err
    assert "--model=mover=FOLDER,scout=FOLDER" in err


@pytest.mark.slow
def test_a_score_of_zero_comes_with_what_was_asked_and_said(place):
    args = ["--gin_file=mine.gin", "--gin_param=MODEL = 'model'", "--model=model"]
    out, _ = command(place, "evaluate", *args, "--gin_param=rollout.RolloutConfig.max_tokens = 3")
    lines = out.splitlines()
    assert lines[0].startswith("test after model: 0.0%")
    assert lines[1].startswith("nothing was solved; scout was first asked")
    assert lines[2] == "  'user:scout test 0 1assistant:'"
    assert re.fullmatch(r"and it began with \(\w+\):", lines[3]) and len(lines) == 5


@pytest.mark.slow
def test_a_run_is_scored_against_an_earlier_step_of_its_own(place):
    out, _ = command(place, "evaluate", "--run_dir=run", "--against=0")
    assert [line.split(":")[0] for line in out.splitlines()] == [
        "test after step 2", "test after step 0", "difference to step 0",
    ]  # fmt: skip
    records = [json.loads(line) for line in (place / "run" / "evaluations.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records][-2:] == [2, 0]


@pytest.mark.slow
def test_the_roles_of_a_run_speak_with_each_others_adapters(place):
    out, _ = command(place, "evaluate", "--run_dir=run", "--swap=scout,mover", "--against=2")
    assert [line.split(":")[0] for line in out.splitlines()] == [
        "test after step 2, scout and mover swapped", "test after step 2", "difference to step 2",
    ]  # fmt: skip
    lines = (place / "run" / "evaluations.jsonl").read_text().splitlines()
    exchanged, own = map(json.loads, lines[-2:])
    assert exchanged["swap"] == ["scout", "mover"] and "swap" not in own and own["flags"] == {}

    def said(record):
        played = RunFolder(place / "run").read_evaluation(record["episodes"].partition("/")[2])
        return [group["candidates"][0]["tokens"] for episode in played for group in episode["groups"]]

    assert said(exchanged) != said(own)
    assert evaluations(RunFolder(place / "run"))[-2].how == " at temperature 1, scout and mover swapped"


@pytest.mark.slow
def test_bad_input_is_one_line(place):
    mine = ["--gin_file=mine.gin", "--gin_param=MODEL = 'model'"]
    for module, args, says in (
        ("export", ["--run_dir=run", "--out=model"], "model exists; give another --out"),
        ("export", ["--run_dir=run"], "--run_dir and --out are needed"),
        ("export", ["--run_dir=run", "--out=x", "--step=7"], "there is no checkpoint 7"),
        ("evaluate", ["--model=model"], "--model needs the --gin_file"),
        ("evaluate", ["--model=model", "--run_dir=run"], "give either --run_dir or --model"),
        ("evaluate", ["--model=model", "--step=1", *mine], "--step is for --run_dir"),
        (
            "evaluate",
            ["--model=model", "--mesh=data=64", *mine],
            "must be a multiple of mesh data x fsdp = 64",
        ),
        ("evaluate", ["--run_dir=run", "--against=model"], "it is a step of that run"),
        ("evaluate", ["--model=mover=model", *mine], "--model names no folder for scout"),
        ("evaluate", ["--model=Qwen/Qwen3-8B", *mine], "hf download Qwen/Qwen3-8B --local-dir Qwen/Qwen3-8B"),
        ("export", ["--run_dir=run", "--out=x", "--dtype=int8"], "value should be one of"),
    ):
        _, err = command(place, module, *args, code=2)
        assert err.startswith("error: ") and err.count("\n") == 1 and says in err


@pytest.mark.slow
def test_a_bad_folder_is_one_line_for_every_command(place):
    (place / "bad").mkdir()
    (place / "bad" / "config.json").write_text(
        '{"model_type": "llama", "hidden_size": 8, "num_attention_heads": 0}'
    )
    for module, *args in (
        ("evaluate", "--model=bad", "--gin_file=mine.gin", "--gin_param=MODEL = 'model'"),
        ("train", "--gin_file=mine.gin", "--gin_param=MODEL = 'bad'", "--run_dir=other_run"),
    ):
        _, err = command(place, module, *args, code=2)
        assert err.startswith("error: ") and err.count("\n") == 1 and "num_attention_heads = 0" in err


def templated(folder, template):
    make_tokenizer(folder)
    (folder / "chat_template.jinja").write_text(template)
    return FolderTokenizer(str(folder))


def test_a_run_goes_on_on_the_day_on_which_it_began(tmp_path):
    tokenizer = templated(tmp_path, "{{ strftime_now('%Y-%m-%d') }} {{ messages[0].content }}")
    first = Experiment(Longest(), tokenizer=FolderTokenizer(str(tmp_path), "2024-02-29"))
    given = Experiment(Longest(), tokenizer=tokenizer)
    assert given.begun(first).tokenizer.date == "2024-02-29"
    begun = given.begun()
    assert begun.tokenizer.date == tokenizer.dated().date is not None
    assert begun.tokenizer.prompt_ids([{"role": "user", "content": "a"}]) == tokenizer.prompt_ids(
        [{"role": "user", "content": "a"}]
    )
    assert f"FolderTokenizer.date = {begun.tokenizer.date!r}" in gin_config.render(begun)
    assert Experiment(Longest()).begun(first) == Experiment(Longest())


def test_a_run_whose_prompts_show_nothing_is_refused(tmp_path):
    tokenizer = templated(tmp_path, "always this")
    with pytest.raises(ValueError, match="Experiment.tokenizer = .* does not show what a message says"):
        Experiment(Longest(), tokenizer=tokenizer)


def test_what_a_folder_says_is_a_line_through_gin_too(tmp_path):
    (tmp_path / "config.json").write_text(
        '{"model_type": "llama", "hidden_size": 8, "num_attention_heads": 0}'
    )
    with pytest.raises(ConfigError, match="config.json: num_attention_heads = 0 is not supported") as error:
        gin_config.load("plan_model.gin", [f"MODEL = {str(tmp_path)!r}"])
    assert "\n" not in str(error.value)
