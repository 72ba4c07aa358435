"""Numbers that are not finite: whole small runs stop before anything is pushed, recorded or saved."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fakes import Longest

from atgrpo_jax.arrays import finite_trees
from atgrpo_jax.arrays.finite_trees import all_finite, check_tree, not_finite
from atgrpo_jax.common.errors import RunError
from atgrpo_jax.common.finite import NotFinite, check_finite
from atgrpo_jax.common.types import Outcome, Reward
from atgrpo_jax.engines.local.local import LocalEngine, LocalEngineConfig
from atgrpo_jax.models.config import Architecture
from atgrpo_jax.models.hf import hf
from atgrpo_jax.rollout.team import Team
from atgrpo_jax.run.checkpoint import Checkpoints
from atgrpo_jax.run.folder import RunFolder
from atgrpo_jax.run.gin_config import load, render
from atgrpo_jax.run.loop import one_step, train
from atgrpo_jax.run.saved import SavedRun
from atgrpo_jax.run.stages import Stages
from atgrpo_jax.run.team_learner import TeamLearner
from atgrpo_jax.tasks.protocol import Transition
from atgrpo_jax.update.warm_start import WarmStartConfig

MODEL = Architecture(layers=1, width=16, mlp_width=16, heads=2, kv_heads=1, head_size=8)
# Optimizers. After one update parameters are finite, and what they compute is not; some are infinite.
DIVERGES = {"learning_rate": 1e16}
OVERFLOWS = {"learning_rate": 3e38, "weight_decay": 40.0}


@pytest.fixture(scope="module")
def small():
    """smoke.gin with a smaller model, on a task in which a random policy earns something."""
    x = load("smoke.gin")
    return dataclasses.replace(
        x,
        task=Longest(),
        model=MODEL,
        warm_start=None,
        rollout=dataclasses.replace(x.rollout, instances=2, candidates=4),
        evaluation=dataclasses.replace(x.evaluation, instances=2, validation_instances=2, every=0),
        checkpoint_every=1,
        steps=2,
    )


@dataclasses.dataclass(frozen=True)
class Watched(LocalEngineConfig):
    """The in-process engine of an experiment. Policies and versions of what it is given are in ``pushed``."""

    pushed: list = dataclasses.field(default_factory=list, repr=False, compare=False)

    def build(self, served):
        engine = super().build(served)
        push = engine.push_weights

        def push_and_note(policy, weights, version):
            self.pushed.append((policy, version))
            push(policy, weights, version)

        engine.push_weights = push_and_note
        return engine


def changed(x, optimizer=None, loss=None, **fields):
    optimizer = dataclasses.replace(x.optimizer, **optimizer or {})
    loss = dataclasses.replace(x.loss, **loss or {})
    return dataclasses.replace(x, optimizer=optimizer, loss=loss, **fields)


def left(folder):
    """Steps that were recorded, that were saved, and files of training episodes."""
    steps = [record["step"] for record in folder.read_metrics()]
    saved = sorted(int(path.name) for path in folder.checkpoints.glob("[0-9]*"))
    return steps, saved, [path.name for path in folder.episodes.glob("step_??????.jsonl.gz")]


CORRECTED, ONE_UPDATE = {"correction": 2.0}, {"minibatches": 1}
UPDATE, TENSORS = r"step 1, policy \w+, update . of .: the ", r"update . of .: \d+ of \d+ tensors hold"
COMPUTED = r"^policy \w+, version 1: the policy's own weights give logprobs that are not finite"
SETTINGS = {
    "as it is": ({}, DIVERGES, UPDATE),
    "correction": ({"loss": CORRECTED}, OVERFLOWS, TENSORS),
    "no gate": ({"gate": False}, DIVERGES, UPDATE),
    "no gate, correction": ({"gate": False, "loss": CORRECTED}, DIVERGES, UPDATE),
    "one update, no gate": ({"gate": False, "loss": ONE_UPDATE | CORRECTED}, DIVERGES, COMPUTED),
    "one update": ({"loss": ONE_UPDATE}, OVERFLOWS, TENSORS),
    "a policy a role, one frozen": ({"team": Team("full", frozen=("scout",))}, DIVERGES, UPDATE),
}
SLOW = {
    "adapters, kl": ({"team": Team("lora"), "loss": {"kl": 0.1}, "gate": False}, OVERFLOWS, TENSORS),
    "the optimizer on the host": ({"gate": False}, OVERFLOWS | {"offload": True}, TENSORS),
}
CASES = [pytest.param(*case, id=name) for name, case in SETTINGS.items()]
CASES += [pytest.param(*case, id=name, marks=pytest.mark.slow) for name, case in SLOW.items()]


@pytest.mark.thorough
@pytest.mark.parametrize(("settings", "optimizer", "says"), CASES)
def test_an_update_that_diverges_stops_the_run_and_leaves_the_last_checkpoint(
    small, tmp_path, settings, optimizer, says
):
    x = changed(small, optimizer, **settings)
    x = dataclasses.replace(x, engine=Watched(**vars(x.engine)))
    folder = RunFolder(tmp_path)
    with Stages(x, folder) as stages:
        team = stages.begin()
        begun = list(x.engine.pushed)
        with pytest.raises(NotFinite, match=says) as raised:
            one_step(stages, team, 1)
        assert stages.done == 0
        with pytest.raises(NotFinite):  # whoever asks
            stages.checkpoint(1, poisoned(stages.learner.initial()))
    assert "engine" not in str(raised.value)
    assert x.engine.pushed == begun and left(folder) == ([0], [0], [])


def poisoned(team, value=float("nan")):
    """In a number of the first policy's."""
    name, state = next(iter(team.policies.items()))
    bad = state._replace(params=spoilt(state.params, value))
    return team._replace(policies={**team.policies, name: bad})


def spoilt(params, value):
    """With ``value`` in the last of its tensors."""
    leaves, structure = jax.tree.flatten(params)
    return jax.tree.unflatten(structure, [*leaves[:-1], leaves[-1].at[(0,) * leaves[-1].ndim].set(value)])


def test_a_run_that_diverges_ends_with_the_errors_words(small, tmp_path):
    folder = RunFolder(tmp_path)
    with pytest.raises(RunError, match=r"^step 1, policy shared, update \d of 2: the .* is (nan|inf), which"):
        train(changed(small, DIVERGES, loss=CORRECTED), folder)
    assert left(folder) == ([0], [0], []) and not folder.summary.exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_checkpoint_that_is_not_finite_is_not_gone_on_from_scored_or_exported(small, tmp_path, value):
    folder = RunFolder(tmp_path)
    x = dataclasses.replace(load("smoke.gin"), model=MODEL, warm_start=None, evaluation=small.evaluation)
    x = dataclasses.replace(x, gate=False, loss=dataclasses.replace(x.loss, correction=2.0))
    with Stages(x, folder) as stages:
        bad = poisoned(stages.begin(), value)
        Checkpoints(folder.checkpoints, x.identity()).save(1, bad.policies)
    folder.config.write_text(render(x))
    says = r"checkpoint 1, policy shared: 1 of \d+ tensors .* not finite, params/\S+ for one; delete that"
    with Stages(x, folder) as stages, pytest.raises(NotFinite, match=says):
        stages.begin()
    with pytest.raises(NotFinite, match=says):
        SavedRun(str(tmp_path)).weights(1)
    assert SavedRun(str(tmp_path)).weights(0)


def test_a_model_folder_that_is_not_finite_is_refused_by_tensor(small, tmp_path):
    policies = TeamLearner(small)
    params = policies.initial().policies["shared"].params
    source = hf.description(MODEL, small.tokenizer.vocab_size, small.tokenizer.stop_ids)
    hf.save(str(tmp_path / "model"), spoilt(params, float("nan")), source)
    x = changed(small, pretrained=str(tmp_path / "model"), gate=False, loss=CORRECTED)
    for team in (Team(), Team("full"), Team("lora")):
        start = dataclasses.replace(x, team=team, warm_start=WarmStartConfig(cache_dir=str(tmp_path / "no")))
        for own in (start, dataclasses.replace(start, warm_start=None)):
            with pytest.raises(RunError, match=r"model.norm.weight has 1 numbers that are not finite"):
                train(own, RunFolder(tmp_path / "run"))
    assert left(RunFolder(tmp_path / "run")) == ([], [], [])
    assert not (tmp_path / "no").exists() or not list((tmp_path / "no" / "warm_start").iterdir())
    hf.save(str(tmp_path / "right"), params, source)
    assert not not_finite(policies.load(str(tmp_path / "right"), "shared"))


@pytest.mark.thorough
@pytest.mark.parametrize("steps", [1, 2])
def test_a_warm_start_that_diverges_caches_nothing(small, tmp_path, steps):
    warm = WarmStartConfig(steps=steps, instances=2, candidates=2, warmup=0, **DIVERGES)
    x = changed(small, warm_start=dataclasses.replace(warm, cache_dir=str(tmp_path / "cache")), gate=False)
    says = "policy shared, version 0: the policy's own weights"
    if steps == 2:
        says = "warm start, step 2, policy shared, update 1 of 1: the loss is nan"
    with pytest.raises(NotFinite, match=says):
        train(x, RunFolder(tmp_path / "run"))
    kept = tmp_path / "cache" / "warm_start"
    assert not kept.exists() or not list(kept.iterdir())
    assert left(RunFolder(tmp_path / "run")) == ([], [], [])


@dataclasses.dataclass(frozen=True)
class Pays(Longest):
    """``pays`` for the second turn's mover on training instance 1, with a role that earns something else."""

    pays: float = 0.0

    def act(self, state, role, text):
        value = self.pays if len(state) == 3 else float(len(text))
        return Transition((*state, text), Reward.of(value, part=0.0), Outcome.OK, False, False)


@pytest.mark.parametrize(
    ("settings", "pays"),
    [
        ({}, float("nan")),
        ({"gate": False, "loss": CORRECTED}, float("-inf")),
        ({"team": Team("full")}, 1e308),
    ],
    ids=str,
)
def test_a_reward_that_is_not_finite_is_named(small, tmp_path, settings, pays):
    folder = RunFolder(tmp_path)
    x = changed(dataclasses.replace(small, task=Pays(pays=pays)), **settings)
    where = r"step 0, test instance 0, episode 0, turn 1, role mover: Pays.act gave Reward.team = "
    with pytest.raises(RunError, match=where + re.escape(str(pays))):
        train(x, folder)
    assert left(folder) == ([], [], [])


class Odd(LocalEngine):
    """Reports ``logprob`` of the first token of every sample of training."""

    logprob = float("nan")

    async def sample(self, request):
        samples = await super().sample(request)
        if request.addresses[0].group.split != "train":
            return samples
        return [dataclasses.replace(s, logprobs=(self.logprob, *s.logprobs[1:])) for s in samples]


@dataclasses.dataclass(frozen=True)
class OddConfig(LocalEngineConfig):
    def build(self, served):
        usual = served.longest_answer, served.candidates
        return Odd(served.models, served.stop_ids, self, served.meshes, served.decode, usual)


@pytest.mark.parametrize("settings", [{}, {"gate": False, "loss": CORRECTED}], ids=str)
def test_a_sampled_logprob_that_is_no_number_is_named(small, tmp_path, settings):
    folder, x = RunFolder(tmp_path), changed(small, engine=OddConfig(slots=32), **settings)
    says = (
        r"^step 1, train instance 0, .* role scout, candidate 0 of policy shared: the logprob of token 0 is"
    )
    with pytest.raises(NotFinite, match=says):
        train(x, folder)
    assert left(folder) == ([0], [0], [])


def test_the_first_number_that_is_not_finite_is_named():
    check_finite({"a": 1, "b": np.float32(2)}, "here", "do this")
    with pytest.raises(NotFinite, match="^here: b is inf, which is not a finite number; do this$"):
        check_finite({"a": 1.0, "b": np.float32(np.inf), "c": float("nan")}, "here", "do this")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_trees_are_looked_at_in_every_dtype(dtype, value):
    tree = {"a": jnp.ones((2, 3), dtype), "n": jnp.arange(3), "b": {"c": jnp.zeros(2, dtype)}}
    assert not_finite(tree) == [] and bool(jax.jit(all_finite)(tree))
    tree["b"]["c"] = jnp.asarray(np.array([0.0, value])).astype(dtype)
    assert not_finite(tree) == ["b/c"] and not bool(jax.jit(all_finite)(tree))
    with pytest.raises(
        NotFinite, match="here: 1 of 3 tensors hold numbers that are not finite, b/c for one; x"
    ):
        check_tree(tree, "here", "x")


def test_a_tree_is_looked_at_by_one_program(monkeypatch):
    """Devices of several hosts would wait for one another in different ones."""
    calls = []
    real = finite_trees._finite
    monkeypatch.setattr(finite_trees, "_finite", lambda leaves: calls.append(len(leaves)) or real(leaves))
    tree = {"b": jnp.ones(2), "a": jnp.array([1.0, jnp.nan]), "c": jnp.arange(3)}
    assert finite_trees.not_finite(tree) == ["a"] and calls == [2]
