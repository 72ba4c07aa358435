"""What ``plan`` says against what a run really holds."""

import dataclasses
import subprocess
import sys

import jax
import pytest

from atgrpo_jax.arrays.mesh import MeshConfig, parse_mesh
from atgrpo_jax.common.errors import ConfigError
from atgrpo_jax.common.types import Address, GroupKey
from atgrpo_jax.engines.local.decoding import programs
from atgrpo_jax.engines.local.local import LocalEngineConfig
from atgrpo_jax.engines.local.settings import Company, lane_sizes
from atgrpo_jax.engines.protocol import Request
from atgrpo_jax.models.config import Architecture, Compute, preset
from atgrpo_jax.models.families.table import transformer
from atgrpo_jax.models.transformer import join_layers
from atgrpo_jax.planning import devices, footprint, times, tpu_compiler
from atgrpo_jax.planning.workload import Workload, workload_of
from atgrpo_jax.rollout.team import Team
from atgrpo_jax.run.gin_config import load
from atgrpo_jax.run.team_learner import TeamLearner
from atgrpo_jax.update.batch import BatchConfig, pack
from atgrpo_jax.update.learner import Learner, UpdateInputs
from atgrpo_jax.update.objectives import LossConfig
from atgrpo_jax.update.optimizer import OptimizerConfig


@pytest.mark.parametrize("mesh", [MeshConfig(), MeshConfig(data=2, fsdp=2, tensor=2)], ids=str)
@pytest.mark.parametrize("sharing", ["shared", "lora", "full"])
def test_parameters_and_optimizer_are_those_of_a_run_to_the_byte(sharing, mesh):
    model = Architecture(layers=1, width=32, mlp_width=48, heads=4, kv_heads=2, head_size=8, vocab_size=400)
    batch = BatchConfig(row_tokens=64, rows=4)
    x = dataclasses.replace(load("smoke.gin"), mesh=mesh, team=Team(sharing), model=model, warm_start=None)
    policies = TeamLearner(dataclasses.replace(x, batch=batch))
    said = footprint.memory(x, policies, workload_of(x, instances=2))
    team = policies.initial()

    for name, state in team.policies.items():
        assert said[f"parameters, {name}"] == held(state.params)
        assert said[f"optimizer, {name}"] == held(state.opt_state)
    if sharing == "lora":
        assert said["parameters, base of adapters"] == held(team.base)


def test_a_warm_start_under_adapters_takes_what_training_their_base_takes():
    x = dataclasses.replace(load("smoke.gin"), team=Team("lora"))
    base = TeamLearner(x)
    longest = dataclasses.replace(workload_of(x, instances=2), longest_demonstrated=300)
    warm = footprint.of_warm_start(x, base, longest)
    whole = dataclasses.replace(x, team=Team("shared"), warm_start=None)
    alike = dataclasses.replace(longest, longest_group=longest.longest_demonstrated)
    expected = footprint.of_steps(whole, TeamLearner(whole), alike)
    assert warm == {
        f"{name.replace('shared', 'base')}, in the warm start": size
        for name, size in expected.items()
        if "rollout" not in name
    }
    steps = footprint.of_steps(x, base, longest)
    assert "parameters, base of adapters" in steps
    assert footprint.memory(x, base, longest) == max(steps, warm, key=footprint.total)
    without = dataclasses.replace(x, warm_start=None)
    assert footprint.of_warm_start(without, base, longest) == {}
    assert footprint.memory(without, base, longest) == steps


def test_what_the_compiler_said_stands_in_the_place_of_estimates_also_in_a_warm_start():
    x = load("smoke.gin")
    warm = footprint.measured(footprint.of_warm_start(x, TeamLearner(x), workload_of(x, instances=2)), 7)
    assert list(warm) == [
        "parameters, shared, in the warm start",
        "optimizer, shared, in the warm start",
        "the update beside its state, as compiled, in the warm start",
    ]


def held(tree):
    """Bytes on the first device."""
    first = jax.devices()[0]
    shards = (s for leaf in jax.tree.leaves(tree) for s in leaf.addressable_shards)
    return sum(shard.data.nbytes for shard in shards if shard.device == first)


@pytest.mark.parametrize("mesh", [MeshConfig(), MeshConfig(data=2, fsdp=2, tensor=2)], ids=str)
@pytest.mark.parametrize("answer_cache", [0, 64])
def test_the_engines_pages_are_those_of_a_run_to_the_byte(answer_cache, mesh):
    model = Architecture(layers=2, width=32, mlp_width=48, heads=4, kv_heads=2, head_size=8, vocab_size=400)
    engine = LocalEngineConfig(slots=8, max_prompt=128, prompt_cache=256, answer_cache=answer_cache)
    x = dataclasses.replace(load("smoke.gin"), mesh=mesh, model=model, warm_start=None, engine=engine)
    x = dataclasses.replace(x, batch=BatchConfig(row_tokens=64, rows=4))
    policies = TeamLearner(x)
    said = footprint.memory(x, policies, workload_of(x, instances=2))["cache of the rollout"]
    policy, whole = policies.names[0], transformer(model, 400)
    key = GroupKey(0, "train", 0, 0, 0, "role")
    request = Request(policy, (1,), (Address(0, key, 0),), x.rollout.sampling)
    sizes = lane_sizes(engine, Company((policy,), whole, None, None), request, policies.meshes[policy])
    state = programs(whole, sizes, policies.meshes[policy]).empty()
    logits = 3 * 4 * sizes.slots * 400
    assert said - logits == held((state.prompts, state.answers))


@pytest.mark.thorough
def test_the_second_copy_of_a_small_model_is_counted_where_the_engine_keeps_one():
    x = dataclasses.replace(load("smoke.gin"), warm_start=None)
    policies = TeamLearner(x)
    params = policies.initial().policies[policies.names[0]].params
    made = [
        part
        for name, part in join_layers(params, policies.models[policies.names[0]].family.joined).items()
        if name.startswith("layer_")
    ]
    new = sum(
        held(module) for part in made for name, module in part.items() if "_" in name and "norm" not in name
    )

    def said(x):
        workload = workload_of(x, instances=2)
        return footprint.memory(x, TeamLearner(x), workload).get(
            "parameters arranged for the rollout, shared"
        )

    assert said(x) == new > 0
    assert said(dataclasses.replace(x, engine=dataclasses.replace(x.engine, joined_mb=0.0))) is None
    assert said(dataclasses.replace(x, mesh=MeshConfig(fsdp=2))) is None


def test_meshes_side_by_side_hold_a_policy_each_and_work_at_the_same_time():
    x = dataclasses.replace(load("smoke.gin"), team=Team("full"), warm_start=None)
    beside = dataclasses.replace(x, mesh=MeshConfig(policies=2))
    workload, v5e = workload_of(x, instances=2), devices.DEVICES["v5e"]

    def planned(x):
        policies = TeamLearner(x)
        seconds = times.seconds(x, policies, workload, v5e, 0.4)
        return footprint.memory(x, policies, workload), seconds["update"][1], seconds["rollout"][1]

    lines, update, rollout = planned(x)
    own, side_update, side_rollout = planned(beside)
    first = {name: size for name, size in lines.items() if "scout" not in name}
    assert own == first != lines
    assert side_update == pytest.approx(update / 2) and side_rollout == pytest.approx(rollout)


def test_offloaded_optimizer_state_is_the_hosts():
    x = dataclasses.replace(load("smoke.gin"), mesh=MeshConfig(data=2, fsdp=2), warm_start=None)
    x = dataclasses.replace(x, batch=BatchConfig(64, 4), engine=LocalEngineConfig(slots=4))
    offload = dataclasses.replace(x.optimizer, offload=True)
    stays, waits = TeamLearner(x), TeamLearner(dataclasses.replace(x, optimizer=offload))
    held = [footprint.bytes_a_device(policies.shapes["shared"].opt_state) for policies in (stays, waits)]
    counters = 16  # bytes: numbers of updates, at most four of them
    assert 0 < held[1] <= counters < held[0] / 100
    assert footprint.bytes_on_hosts(waits.shapes) == 4 * (held[0] - held[1])
    assert footprint.bytes_on_hosts(stays.shapes) == 0


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("changes", "mesh"),
    [
        ({}, MeshConfig()),
        ({"remat": "dots", "scan": True}, MeshConfig()),
        ({"remat": "block", "scan": True}, MeshConfig(data=2, tensor=2)),
    ],
    ids=str,
)
@pytest.mark.long
def test_activations_are_those_of_the_compiled_update(changes, mesh):
    """By what sixteen rows more take: within 15 %. (Without ``scan`` XLA's CPU compiler undoes remat.)"""
    config = Architecture(layers=4, width=128, mlp_width=384, heads=4, kv_heads=2, vocab_size=256)
    compute = Compute(**changes)
    model = transformer(config, 256, compute)
    learner = Learner(model, OptimizerConfig(), LossConfig().objective(), mesh.build())

    def compiled(rows):
        (update,) = learner.compile(UpdateInputs(pack([], BatchConfig(256, rows), "token", 1), None))
        return update.memory_analysis().temp_size_in_bytes

    def said(rows):
        return footprint.activations(config, compute, mesh, BatchConfig(256, rows), 256)

    assert (said(32) - said(16)) / (compiled(32) - compiled(16)) == pytest.approx(1, abs=0.15)


@pytest.mark.slow
@pytest.mark.parametrize(("device", "mesh"), [("v5e", MeshConfig(fsdp=2, tensor=2)), ("v6e", MeshConfig(4))])
@pytest.mark.parametrize("sharing", ["shared", "lora"])
def test_the_update_compiles_for_a_tpu(device, mesh, sharing):
    """By the compiler that a TPU has, with our kernels in it."""
    model = Architecture(
        layers=1, width=256, mlp_width=256, heads=4, kv_heads=2, head_size=64, vocab_size=400
    )
    compute = Compute(dtype="bfloat16", scan=True, remat="block")
    x = dataclasses.replace(load("smoke.gin"), mesh=mesh, team=Team(sharing), model=model, warm_start=None)
    x = dataclasses.replace(x, compute=compute)
    x = dataclasses.replace(x, batch=BatchConfig(row_tokens=320, rows=4))
    policies = TeamLearner(x, devices=tpu_compiler.tpus(device, 4))
    (update,) = policies.compile(policies.names[0], pack([], x.batch, "token", 1))
    assert update.as_text().count('custom_call_target="tpu_custom_call"') >= 3
    gradients = footprint.bytes_a_device(policies.shapes[policies.names[0]].params)
    assert footprint.update_bytes(x, policies, 320) > gradients


def test_what_cannot_be_compiled_ahead(monkeypatch):
    with pytest.raises(ConfigError, match="there is a compiler for v5e, v6e, v5p, not for h100"):
        tpu_compiler.tpus("h100", 8)
    with pytest.raises(ConfigError, match="up to 64 chips of v5e, not 65"):
        tpu_compiler.tpus("v5e", 65)
    monkeypatch.setitem(sys.modules, "libtpu", None)  # as if it were not installed
    with pytest.raises(ConfigError, match="pip install libtpu"):
        tpu_compiler.tpus("v5e", 8)


def test_work_by_hand():
    """One layer of width 4 with one head: 2 x (4 x 16 + 3 x 32) FLOP a token in the block."""
    config = Architecture(layers=1, width=4, mlp_width=8, heads=1, kv_heads=1, head_size=4)
    workload = Workload(
        groups=3, prompt=10, longest_prompt=12, new=2, candidates=5, longest_answer=2, longest_group=22
    )
    block, head = 2 * (4 * 16 + 3 * 32), 2 * 4 * 100
    seen = 10 * 10 / 2 + 10 * (10 + 2 / 2)
    forward = block * 20 + 16 * seen + head * 10
    assert times.work(config, Compute(), 100, workload, 1) == {"rollout": forward, "update": 3 * forward}
    again = Compute(remat="block")
    assert times.work(config, again, 100, workload, 2)["update"] == 2 * (3 * forward + block * 20 + 16 * seen)


def test_a_window_is_less_work():
    """By hand: of a prompt of 10, a window of 4 sees 4 x 4 / 2 + 6 x 4; each of 10 new tokens sees 4."""
    config = Architecture(
        layers=2, width=4, mlp_width=8, heads=1, kv_heads=1, head_size=4, family="gemma3_text", windows=(4, 0)
    )
    workload = Workload(
        groups=3, prompt=10, longest_prompt=12, new=2, candidates=5, longest_answer=2, longest_group=22
    )
    block, head = 2 * (4 * 16 + 3 * 32), 2 * 4 * 100
    seen = (4 * 4 / 2 + 6 * 4 + 10 * 4) + (10 * 10 / 2 + 10 * (10 + 2 / 2))
    forward = 2 * block * 20 + 16 * seen + head * 10
    assert times.work(config, Compute(), 100, workload, 1)["rollout"] == forward


@pytest.mark.thorough
def test_qwen3_sizes():
    """Parameters of the published models, in billions, and Adam's two moments."""
    for name, billions in (("qwen3-1.7b", 1.72), ("qwen3-8b", 8.19)):
        compute = Compute(dtype="bfloat16", scan=True)
        x = dataclasses.replace(load("smoke.gin"), model=preset(name), compute=compute, warm_start=None)
        x = dataclasses.replace(x, mesh=MeshConfig(fsdp=8), batch=BatchConfig(64, 8))
        said = footprint.memory(x, TeamLearner(x), workload_of(x, instances=2))
        assert said["parameters, shared"] == pytest.approx(billions * 4e9 / 8, rel=0.01)
        assert said["optimizer, shared"] == pytest.approx(2 * billions * 4e9 / 8, rel=0.01)


@pytest.mark.parametrize("text", ["fsdp", "fsdp=0", "fsdp=2;data=2", "rows=2", ""])
def test_a_bad_mesh_is_named(text):
    with pytest.raises(ConfigError, match=f"--mesh={text}: "):
        parse_mesh(text)


def test_an_unknown_device_is_named():
    with pytest.raises(ConfigError, match="--device=v9: expected one of .*, as in --device_gb=24"):
        devices.device_named("v9")


@pytest.mark.slow
@pytest.mark.long
def test_the_command(tmp_path):
    def plan(*flags):
        line = [sys.executable, "-m", "atgrpo_jax.plan", "--gin_file=plan.gin", *flags]
        return subprocess.run(line, cwd=tmp_path, capture_output=True, text=True)

    compiled = plan("--device=v6e", "--compile", "--gin_param=config.Architecture.layers = 1")
    assert compiled.returncode == 0, compiled.stderr
    assert "the update beside its state, as compiled" in compiled.stdout and "GB: fits" in compiled.stdout
    assert "TFLOP" in compiled.stdout
    large = plan("--device=v5e", "--preset=qwen3-1.7b", "--hosts=1")
    assert large.returncode == 1 and "GB: does not fit" in large.stdout
    assert "over 1 host with 1 device each, if answers have 5 tokens" in large.stdout
    for flags, says in (
        (["--mesh=fsdp=8"], "must be a multiple of mesh data x fsdp = 8"),
        (
            ["--mesh=tensor=5", "--gin_param=config.Architecture.vocab_size = 384"],
            "does not divide; the nearest possible is data = 1, fsdp = 1, tensor = 4",
        ),
        (
            ["--hosts=3"],
            "--hosts=3: mesh data = 1, fsdp = 1, tensor = 1 has 1 device, not as many on each host",
        ),
        (["--preset=qwen9"], "--preset=qwen9: expected one of"),
        (["--device=v5e", "--device_gb=24"], "--device and --device_gb both say what the device is"),
    ):
        refused = plan(*flags)
        assert refused.returncode == 2 and says in refused.stderr, refused.stderr
