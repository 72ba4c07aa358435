"""Teams of one, several and mixed policies, from a Hugging Face folder."""

import dataclasses

import jax
import numpy as np
import pytest
from fakes import Longest
from reference import SIZES, make

from atgrpo_jax.arrays.mesh import MeshConfig
from atgrpo_jax.common.errors import RunError
from atgrpo_jax.models.hf import hf
from atgrpo_jax.rollout.team import Team
from atgrpo_jax.run.folder import RunFolder
from atgrpo_jax.run.gin_config import load
from atgrpo_jax.run.loop import one_step
from atgrpo_jax.run.stages import Stages


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    """smoke.gin on a random Qwen3 folder, and a task in which that earns something."""
    folder = str(tmp_path_factory.mktemp("model"))
    x = load("smoke.gin")
    options = {"num_hidden_layers": 1, "num_key_value_heads": 2, "vocab_size": x.tokenizer.vocab_size}
    make(folder, "Qwen3", SIZES | options)
    return dataclasses.replace(
        x,
        task=Longest(),
        model=hf.architecture(folder),
        pretrained=folder,
        warm_start=None,
        evaluation=dataclasses.replace(x.evaluation, instances=2, validation_instances=2, every=0),
        checkpoint_every=1,
        steps=2,
    )


def run(experiment, path, team, steps=2):
    """Host copies of the states at the start and after ``steps``, the team's base, and what was said."""
    x = dataclasses.replace(experiment, team=team)
    played = []
    with Stages(x, RunFolder(path)) as stages:
        team = stages.begin()
        start = jax.device_get(team.policies)
        for step in range(stages.done + 1, steps + 1):
            team, _ = one_step(stages, team, step)
            groups = [group for episode in stages.folder.read_episodes(step) for group in episode["groups"]]
            played.append([candidate["text"] for group in groups for candidate in group["candidates"]])
        return start, jax.device_get(team.policies), jax.device_get(team.base), played


def same(one, other):
    return all(jax.tree.leaves(jax.tree.map(np.array_equal, one, other)))


@pytest.mark.thorough
def test_all_policies_start_from_the_folder(experiment, tmp_path):
    start, *_ = run(experiment, tmp_path / "full", Team("full"), steps=0)
    shared, *_ = run(experiment, tmp_path / "shared", Team(), steps=0)
    assert same(start["scout"].params, start["mover"].params)
    assert same(start["scout"].params, shared["shared"].params)


@pytest.mark.thorough
def test_full_per_role_fed_the_same_data_equals_shared(experiment, tmp_path):
    """A mover alone, with a policy of its own and with the shared one."""
    workflow = dataclasses.replace(experiment.task.workflow, order=("mover",))
    alone = dataclasses.replace(experiment, task=Longest(workflow))
    _, own, _, played = run(alone, tmp_path / "own", Team("full"))
    _, shared, _, expected = run(alone, tmp_path / "shared", Team())
    assert played == expected
    assert same(own["mover"], shared["shared"])


@pytest.mark.thorough
def test_swapping_the_names_of_policies_swaps_the_results(experiment, tmp_path):
    one = Team({"scout": "full:a", "mover": "full:b"})
    other = Team({"scout": "full:b", "mover": "full:a"})
    _, first, _, played = run(experiment, tmp_path / "one", one)
    _, second, _, again = run(experiment, tmp_path / "other", other)
    assert played == again
    assert same(first["a"], second["b"]) and same(first["b"], second["a"])
    assert not same(first["a"].params, first["b"].params)


@pytest.mark.thorough
@pytest.mark.long
def test_adapters_move_and_their_base_stays_and_both_are_resumed(experiment, tmp_path):
    start, after, base, played = run(experiment, tmp_path / "lora", Team("lora"))
    shared, *_ = run(experiment, tmp_path / "shared", Team(), steps=0)
    assert same(base, shared["shared"].params)
    for role in ("scout", "mover"):
        assert not same(start[role].params, after[role].params)
    assert not same(after["scout"].params, after["mover"].params)
    # Untrained adapters play like their base.
    *_, unadapted = run(experiment, tmp_path / "plain", Team(), steps=1)
    assert played[0] == unadapted[0]
    run(experiment, tmp_path / "again", Team("lora"), steps=1)
    _, resumed, base_again, tail = run(experiment, tmp_path / "again", Team("lora"))
    assert same(resumed, after) and same(base_again, base) and tail == played[1:]


@pytest.mark.thorough
def test_a_mixture_of_an_adapter_and_a_full_policy(experiment, tmp_path):
    start, after, base, _ = run(experiment, tmp_path / "mixed", Team({"scout": "lora", "mover": "full"}))
    assert same(base, start["mover"].params)
    assert not same(base, after["mover"].params)
    assert jax.tree.structure(after["scout"].params) != jax.tree.structure(after["mover"].params)


@pytest.mark.thorough
@pytest.mark.long
def test_policies_on_meshes_of_their_own_are_the_same(experiment, tmp_path):
    experiment = dataclasses.replace(experiment, team=Team("full"))
    beside = dataclasses.replace(experiment, mesh=MeshConfig(policies=2))
    _, after, _, played = run(experiment, tmp_path / "one", Team("full"))
    _, own, _, again = run(beside, tmp_path / "two", Team("full"))
    assert played == again and same(after, own)
    with Stages(beside, RunFolder(tmp_path / "two")) as stages:
        team = stages.begin()
        scout, mover = (team.policies[name].params["embedding"] for name in ("scout", "mover"))
        assert scout.devices().isdisjoint(mover.devices())
        assert same(after, jax.device_get(team.policies))
    for team, says in ((Team(), "there are only: shared"), (Team("lora"), "adapters are on one base")):
        with pytest.raises(ValueError, match=f"policies=2.*: .*{says}"):
            dataclasses.replace(beside, team=team)


@pytest.mark.thorough
def test_optimizer_state_on_the_host_is_resumed(experiment, tmp_path):
    optimizer = dataclasses.replace(experiment.optimizer, offload=True)
    waiting = dataclasses.replace(experiment, optimizer=optimizer)
    _, after, _, played = run(experiment, tmp_path / "plain", Team())
    run(waiting, tmp_path / "host", Team(), steps=1)
    _, own, _, tail = run(waiting, tmp_path / "host", Team())
    assert same(after, own) and tail == played[1:]


@pytest.mark.thorough
def test_frozen_policies_and_those_whose_turn_it_is_not_stay(experiment, tmp_path):
    start, after, *_ = run(experiment, tmp_path / "frozen", Team("full", frozen=("mover",)))
    assert same(start["mover"], after["mover"]) and not same(start["scout"].params, after["scout"].params)
    start, after, *_ = run(experiment, tmp_path / "turns", Team("full", alternate=1), steps=1)
    assert same(start["scout"], after["scout"]) and not same(start["mover"].params, after["mover"].params)


@pytest.mark.thorough
def test_a_rate_of_a_policys_own_matters_to_it_alone(experiment, tmp_path):
    _, plain, *_ = run(experiment, tmp_path / "plain", Team("full"), steps=1)
    _, other, *_ = run(experiment, tmp_path / "rate", Team("full", rates={"mover": 0.5}), steps=1)
    assert same(plain["scout"], other["scout"]) and not same(plain["mover"].params, other["mover"].params)


def test_folders_by_policy(experiment, tmp_path):
    options = {
        "num_hidden_layers": 1,
        "num_key_value_heads": 2,
        "vocab_size": experiment.tokenizer.vocab_size,
    }
    make(tmp_path / "other", "Qwen3", SIZES | options | {"initializer_range": 0.1})
    make(tmp_path / "wrong", "Qwen3", SIZES | options | {"vocab_size": experiment.tokenizer.vocab_size + 1})
    folders = {"scout": experiment.pretrained, "mover": str(tmp_path / "other")}
    x = dataclasses.replace(experiment, pretrained=folders, team=Team("full"))
    start, *_ = run(x, tmp_path / "run", Team("full"), steps=0)
    assert not same(start["scout"].params, start["mover"].params)
    with pytest.raises(ValueError, match=r"Experiment.pretrained = .* must name exactly base"):
        dataclasses.replace(x, team=Team("lora"))
    x = dataclasses.replace(x, pretrained=folders | {"mover": str(tmp_path / "wrong")})
    with pytest.raises(RunError, match=r"embed_tokens.weight is \(372, 48\), expected \(371, 48\)"):
        run(x, tmp_path / "refused", Team("full"), steps=0)


@pytest.mark.thorough
@pytest.mark.long
def test_models_of_one_team_may_differ(experiment, tmp_path):
    """A Qwen3 scout and a Llama mover of its own size; or an adapter on that Llama."""
    options = {
        "num_hidden_layers": 2,
        "num_key_value_heads": 3,
        "vocab_size": experiment.tokenizer.vocab_size,
    }
    make(tmp_path / "llama", "Llama", SIZES | options)
    llama = hf.architecture(str(tmp_path / "llama"))
    for name, team in (("mover", Team("full")), ("base", Team({"scout": "full", "mover": "lora"}))):
        x = dataclasses.replace(
            experiment,
            team=team,
            model={"scout": experiment.model, name: llama},
            pretrained={"scout": experiment.pretrained, name: str(tmp_path / "llama")},
        )
        start, after, base, played = run(x, tmp_path / name, team)
        assert {layer for layer in start["scout"].params if "layer" in layer} == {"layer_0"}
        assert {layer for layer in start["mover"].params if "layer" in layer} == {"layer_0", "layer_1"}
        assert "q_norm" not in (base or start["mover"].params)["layer_0"]
        assert not any(same(start[role].params, after[role].params) for role in start)
    run(x, tmp_path / "again", team, steps=1)
    _, resumed, _, tail = run(x, tmp_path / "again", team)
    assert same(resumed, after) and tail == played[1:]
    with pytest.raises(ValueError, match=r"Experiment.model = .* must name exactly mover, scout"):
        dataclasses.replace(x, team=Team("full"))
