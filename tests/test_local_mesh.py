"""The in-process engine on the learner's mesh, with the learner's arrays, and on one of its own."""

import asyncio
import collections
import dataclasses
import threading
import time

import jax
import numpy as np
import pytest
from fakes import PARITY
from shared_local import CONFIG, MODEL, STOP, draw, many, params, request  # noqa: F401  (params: a fixture)
from shared_trainer import Paid, experiment

from atgrpo_jax.arrays.mesh import MeshConfig, copied, parameter_shardings
from atgrpo_jax.common.errors import ConfigError, RunError
from atgrpo_jax.common.types import Outcome, Reward
from atgrpo_jax.engines.local.lanes import Lane
from atgrpo_jax.engines.local.local import LocalEngine, LocalEngineConfig
from atgrpo_jax.engines.protocol import Served
from atgrpo_jax.models.lora import LoraConfig, init_adapter
from atgrpo_jax.models.transformer import PolicyWeights
from atgrpo_jax.planning import footprint
from atgrpo_jax.planning.workload import workload_of
from atgrpo_jax.rollout.team import Team
from atgrpo_jax.run.folder import RunFolder
from atgrpo_jax.run.gin_config import load
from atgrpo_jax.run.loop import one_step
from atgrpo_jax.run.stages import Stages
from atgrpo_jax.run.team_learner import TeamLearner
from atgrpo_jax.tasks.protocol import Transition

LEARNERS = MeshConfig(fsdp=2, tensor=2)
APART = dataclasses.replace(CONFIG, mesh=MeshConfig(data=2), first_device=4)


def built(config, policies=("shared",), initial=None, mesh=LEARNERS):
    initial = initial or {name: name for name in policies}
    learners = mesh.build()
    return config.build(
        Served(
            models=dict.fromkeys(policies, MODEL),
            meshes=dict.fromkeys(policies, learners),
            sources={},
            stop_ids=(STOP,),
            decode=str,
            initial_names=initial,
            lora=LoraConfig(),
            longest_answer=16,
            candidates=3,
        )
    )


def on(mesh, tree):
    return copied(tree, mesh.build(), MODEL.family.axes)


def devices_of(tree):
    return set().union(*(leaf.devices() for leaf in jax.tree.leaves(tree)))


@pytest.mark.thorough
def test_an_engine_on_other_devices_draws_the_same_from_a_copy_of_its_own(params):  # noqa: F811
    plain = LocalEngine(MODEL, (STOP,), CONFIG, default_shape=(16, 3))
    plain.push_weights("shared", PolicyWeights(params), 7)
    expected = draw(plain, *many(5))
    pushed = on(LEARNERS, params)
    engine = built(APART)
    engine.push_weights("shared", PolicyWeights(pushed), 7)
    jax.tree.map(lambda leaf: leaf.delete(), pushed)  # as an update does
    engine.release()
    assert devices_of(engine.parameters("shared")) == set(jax.devices()[4:6])
    for ours, theirs in zip(draw(engine, *many(5)), expected, strict=True):
        for sample, same in zip(ours, theirs, strict=True):
            assert (sample.tokens, sample.receipt) == (same.tokens, same.receipt)
            np.testing.assert_allclose(sample.logprobs, same.logprobs, **PARITY)


def test_three_devices_draw_the_same(params):  # noqa: F811
    """Three divide none of the sizes that all shards share."""
    plain = LocalEngine(MODEL, (STOP,), CONFIG, default_shape=(16, 3))
    plain.push_weights("shared", PolicyWeights(params), 7)
    three = MeshConfig(data=3)
    engine = LocalEngine(MODEL, (STOP,), CONFIG, three.build(), default_shape=(16, 3))
    engine.push_weights("shared", PolicyWeights(on(three, params)), 7)
    for ours, theirs in zip(draw(engine, *many(5)), draw(plain, *many(5)), strict=True):
        for sample, same in zip(ours, theirs, strict=True):
            assert (sample.tokens, sample.receipt) == (same.tokens, same.receipt)
            np.testing.assert_allclose(sample.logprobs, same.logprobs, **PARITY)


@pytest.mark.parametrize("source", [MeshConfig(), MeshConfig(data=2), LEARNERS], ids=str)
@pytest.mark.parametrize("mesh", [MeshConfig(), MeshConfig(data=4), MeshConfig(tensor=2)], ids=str)
def test_a_copy_lives_on_when_its_source_is_freed(params, source, mesh):  # noqa: F811
    pushed = on(source, params)
    copy = copied(pushed, mesh.build(), MODEL.family.axes)
    jax.tree.map(lambda leaf: leaf.delete(), pushed)
    jax.tree.map(np.testing.assert_array_equal, copy, params)


def test_adapters_on_one_base_share_its_copy(params):  # noqa: F811
    base = on(LEARNERS, params)
    engine = built(APART, ("a", "b"), {"a": "base", "b": "base"})
    for k, name in enumerate(("a", "b")):
        adapter = on(LEARNERS, init_adapter(params, jax.random.key(k), 2, MODEL.family.adapted))
        engine.push_weights(name, PolicyWeights(base, adapter, 2.0), 0)
    copy = engine.parameters("a")
    assert copy is engine.parameters("b") is not base
    engine.push_weights("a", PolicyWeights(base, adapter, 2.0), 1)
    assert engine.parameters("a") is copy  # the base was not pushed anew


@pytest.mark.thorough
def test_an_engine_that_shares_arrays_gives_them_up_before_an_update(params):  # noqa: F811
    engine = built(dataclasses.replace(CONFIG, joined_mb=0.0), mesh=MeshConfig())
    engine.push_weights("shared", PolicyWeights(params), 7)
    assert engine.parameters("shared") is params

    async def released_while_it_draws():
        drawing = asyncio.create_task(engine.sample(request([1, 2], max_tokens=16)))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        with pytest.raises(RunError, match="an update would free weights that the engine is drawing from"):
            engine.release()
        return await drawing

    assert len(asyncio.run(released_while_it_draws())) == 3
    engine.release()
    with pytest.raises(RunError, match="no weights were pushed for policy 'shared'"):
        draw(engine, request([1, 2]))
    engine.push_weights("shared", PolicyWeights(params), 8)
    assert {sample.version for sample in draw(engine, request([1, 2]))[0]} == {8}


def test_lanes_of_one_mesh_take_turns(params, monkeypatch):  # noqa: F811
    """Three policies on two meshes: programs of one mesh may exchange something, so they never meet."""
    config = MeshConfig(data=2, policies=2)
    meshes = {name: config.build(place=place) for place, name in enumerate(("x", "y", "z"))}
    assert meshes["x"] == meshes["z"] != meshes["y"]
    engine = LocalEngine(MODEL, (STOP,), CONFIG, meshes)
    for name, mesh in meshes.items():
        own = jax.device_put(params, parameter_shardings(params, mesh, MODEL.family.axes))
        engine.push_weights(name, PolicyWeights(own), 7)
    lock, active, most, draw_ = threading.Lock(), collections.Counter(), collections.Counter(), Lane.draw

    def drawing(self, weights, *rest):
        devices = frozenset(jax.tree.leaves(weights)[0].sharding.device_set)
        with lock:
            active[devices] += 1
            most[devices] = max(most[devices], active[devices])
        time.sleep(0.05)
        found = draw_(self, weights, *rest)
        with lock:
            active[devices] -= 1
        return found

    monkeypatch.setattr(Lane, "draw", drawing)
    draw(engine, *(request([1, 2], number, policy=name) for number, name in enumerate("xz")))
    assert list(most.values()) == [1]


def test_a_mesh_that_does_not_fit_is_refused():
    with pytest.raises(ConfigError, match=r"LocalEngineConfig.mesh data = 8.*: needs 8 devices, 4 found"):
        built(dataclasses.replace(CONFIG, slots=16, mesh=MeshConfig(data=8), first_device=4))
    with pytest.raises(ConfigError, match="has size .*, which tensor = 3 does not divide"):
        built(dataclasses.replace(CONFIG, mesh=MeshConfig(tensor=3)))
    with pytest.raises(ValueError, match=r"LocalEngineConfig.slots = 12: must be a multiple .* = 8"):
        dataclasses.replace(CONFIG, mesh=MeshConfig(data=8)).check(MeshConfig())
    with pytest.raises(ValueError, match="first_device = 1: is for a mesh of the engine's own"):
        LocalEngineConfig(first_device=1)


@dataclasses.dataclass(frozen=True)
class Lettered(Paid):
    """Every text is paid by its letters, so that groups of random texts have a signal."""

    def act(self, state, role, text):
        reward = Reward.of(0.0, letters=float(sum(map(ord, text)) % 7))
        return Transition((*state, text), reward, Outcome.OK, False, False)


@pytest.mark.thorough
def test_steps_with_an_engine_apart_are_the_same_steps(tmp_path):
    """Episodes, metrics and parameters to the byte, over an update that frees the pushed arrays."""
    x = experiment(steps=2)
    x = dataclasses.replace(x, task=Lettered(), engine=LocalEngineConfig(slots=8))
    apart = dataclasses.replace(x, engine=dataclasses.replace(x.engine, mesh=MeshConfig(), first_device=1))

    def stepped(x, name):
        folder = RunFolder(tmp_path / name)
        with Stages(x, folder) as stages:
            team = stages.begin()
            records = []
            for step in (1, 2):
                team, record = one_step(stages, team, step)
                records.append({key: n for key, n in record.items() if not key.startswith("perf/")})
            episodes = [
                path.read_bytes() for path in sorted(folder.path.glob("episodes/step_??????.jsonl.gz"))
            ]
            return jax.device_get(team.policies["shared"].params), records, episodes

    ours, records, episodes = stepped(x, "one")
    theirs, same_records, same_episodes = stepped(apart, "two")
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    assert records == same_records and episodes == same_episodes and len(episodes) == 2
    assert all(record["policy/shared/updates"] > 0 for record in records)


def test_an_engines_own_devices_are_asked_for():
    mesh = MeshConfig(data=4)
    assert LocalEngineConfig().devices_needed(mesh) == 4
    beside = LocalEngineConfig(mesh=MeshConfig(data=2), first_device=4)
    within = LocalEngineConfig(mesh=MeshConfig(data=2))
    assert (beside.devices_needed(mesh), within.devices_needed(mesh)) == (6, 4)
    assert (beside.apart(mesh), within.apart(mesh), LocalEngineConfig().apart(mesh)) == (True, False, False)


def test_plan_counts_a_base_once_and_an_engine_apart_by_itself():
    x = dataclasses.replace(load("smoke.gin"), warm_start=None, team=Team("lora"))

    def lines(**engine):
        planned = dataclasses.replace(x, engine=dataclasses.replace(x.engine, mesh=MeshConfig(), **engine))
        return footprint.memory(planned, TeamLearner(planned), workload_of(planned, instances=2))

    copied = [name for name in lines() if "copied" in name]
    assert copied == ["parameters copied for the rollout, base of adapters"]
    apart = lines(first_device=1)  # the fuller side: here the learner's, whose logits are three chunks
    assert not any("rollout" in name for name in apart) and "activations of the update" in apart


@pytest.mark.thorough
def test_plan_counts_the_copy():
    x = dataclasses.replace(load("smoke.gin"), warm_start=None)
    apart = dataclasses.replace(x, engine=dataclasses.replace(x.engine, mesh=MeshConfig(fsdp=2)))
    learners = TeamLearner(apart)
    lines = footprint.memory(apart, learners, workload_of(apart, instances=2))
    engine = learners.engine()
    team = learners.initial()
    engine.push_weights("shared", learners.weights(team)["shared"], 0)
    device = jax.devices()[0]
    shards = [s for leaf in jax.tree.leaves(engine.parameters("shared")) for s in leaf.addressable_shards]
    held = sum(shard.data.nbytes for shard in shards if shard.device == device)
    assert lines["parameters copied for the rollout, shared"] == held
