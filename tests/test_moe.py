"""Mixtures of experts, by Qwen3-MoE: alone, in rows, on meshes, in updates, in the engine, in folders."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from fakes import LOGITS, PARITY
from reference import VARIANTS, forward, make, ours
from shared_learner import items, loss_of, packed
from shared_local import CONFIG, STOP, draw, request

from atgrpo_jax.arrays.mesh import MeshConfig, parameter_shardings
from atgrpo_jax.common.errors import RunError
from atgrpo_jax.engines.gate import Gate, push
from atgrpo_jax.engines.local.local import LocalEngine
from atgrpo_jax.models.config import Architecture, Compute, Experts, preset
from atgrpo_jax.models.experts import Stacks, by_experts
from atgrpo_jax.models.families.table import family_of, transformer
from atgrpo_jax.models.hf import hf
from atgrpo_jax.models.lora import LoraConfig
from atgrpo_jax.models.packed import Packed
from atgrpo_jax.models.transformer import PolicyWeights, init_params
from atgrpo_jax.planning.footprint import activations
from atgrpo_jax.planning.times import work
from atgrpo_jax.planning.workload import Workload
from atgrpo_jax.update.batch import BatchConfig
from atgrpo_jax.update.learner import Learner, UpdateInputs
from atgrpo_jax.update.objectives import LossConfig
from atgrpo_jax.update.optimizer import OptimizerConfig
from atgrpo_jax.update.updates import STATE_FINITE

MIXED = Architecture(
    layers=2, width=32, mlp_width=48, heads=4, kv_heads=2, head_size=8, family="qwen3_moe",
    experts=Experts(count=6, chosen=2, width=12),
)  # fmt: skip
MODEL = transformer(MIXED, 64)
BATCH = BatchConfig(row_tokens=48, rows=2)


@pytest.fixture(scope="module")
def params():
    """Experts that matter: fresh ones add a twentieth of what these do."""
    fresh = jax.jit(functools.partial(init_params, MODEL))(jax.random.key(0))
    grown = ("expert_down", "o/kernel")
    return jax.tree_util.tree_map_with_path(
        lambda path, x: 20 * x if any(name in jax.tree_util.keystr(path) for name in grown) else x, fresh
    )


def test_each_token_gets_the_experts_that_were_chosen_for_it():
    """Against a loop over tokens; the third expert is nobody's, and one token has one expert twice."""
    draw_ = functools.partial(jax.random.normal, dtype=jnp.float32)
    h_BTD, share_BTC = draw_(jax.random.key(0), (2, 3, 4)), draw_(jax.random.key(1), (2, 3, 2))
    gate, up, down = (draw_(jax.random.key(i), (4, 4, 4)) for i in (2, 3, 4))
    chosen_BTC = jnp.array([[[0, 1], [3, 0], [1, 1]], [[1, 3], [0, 3], [3, 1]]])

    def loop(h_BTD, share_BTC, gate, up, down):
        rows = []
        for h_D, share_C, chosen_C in zip(
            h_BTD.reshape(-1, 4), share_BTC.reshape(-1, 2), chosen_BTC.reshape(-1, 2), strict=True
        ):
            outs = [(jax.nn.silu(h_D @ gate[e]) * (h_D @ up[e])) @ down[e] for e in chosen_C]
            rows.append(share_C[0] * outs[0] + share_C[1] * outs[1])
        return jnp.stack(rows).reshape(h_BTD.shape)

    def sorted_(h_BTD, share_BTC, gate, up, down):
        return by_experts(None, jax.nn.silu, h_BTD, share_BTC, chosen_BTC, Stacks(gate, up, down))

    inputs = h_BTD, share_BTC, gate, up, down
    expected, pull = jax.vjp(loop, *inputs)
    found, our_pull = jax.vjp(jax.jit(sorted_), *inputs)
    np.testing.assert_allclose(found, expected, **PARITY)
    for gradient, reference in zip(our_pull(found), pull(found), strict=True):
        np.testing.assert_allclose(gradient, reference, **PARITY)


def test_each_setting_of_the_router_matters(params):
    tokens = jnp.arange(20)[None]
    base = forward(MODEL, params, tokens)[2]
    for changes in ({"chosen": 1}, {"normed": False}):
        other = dataclasses.replace(MIXED, experts=dataclasses.replace(MIXED.experts, **changes))
        assert jnp.abs(forward(transformer(other, 64), params, tokens)[2] - base).max() > 1e-2


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("mesh", "compute"),
    [
        (MeshConfig(data=2), Compute()),
        (MeshConfig(fsdp=2, tensor=2), Compute()),
        (MeshConfig(), Compute(remat="block", scan=True)),
    ],
    ids=["data", "fsdp and tensor", "scanned"],
)
def test_loss_and_gradient_are_the_same_however_they_are_computed(params, mesh, compute):
    batch = packed(items(lengths=((9, 3, 2), (4, 8, 5))), BATCH)
    plain = loss_of(Packed(MODEL, MeshConfig().build()), params, batch)
    built = mesh.build()
    placed = jax.device_put(params, parameter_shardings(params, built, MODEL.family.axes))
    other = loss_of(Packed(transformer(MIXED, 64, compute), built), placed, batch)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **PARITY), plain, other)


def updated(algorithm, lora=None, params=None):
    """Returns the trained part before and after one update, and the update's metrics."""
    optimizer = OptimizerConfig(algorithm=algorithm, learning_rate=1e-2)
    learner = Learner(MODEL, optimizer, LossConfig().objective(), MeshConfig().build(), lora)
    state = learner.init(jax.random.key(0))
    before = jax.tree.map(np.asarray, state.params)
    batch = packed(items(lengths=((9, 3, 2), (4, 8, 5))), BATCH)
    state, metrics = learner.update(state, UpdateInputs(batch, base=params))
    return before, state.params, metrics


@pytest.mark.thorough
@pytest.mark.parametrize("algorithm", ["adamw", "muon"])
def test_an_update_moves_router_and_experts(algorithm):
    before, after, metrics = updated(algorithm)
    assert metrics[STATE_FINITE] and metrics["grad_norm"] > 0
    for name in ("router", "expert_gate", "expert_up", "expert_down", "q"):
        moved = jnp.abs(after["layer_1"][name]["kernel"] - before["layer_1"][name]["kernel"])
        assert moved.max() > 1e-4, name
        if name.startswith("expert"):  # each expert has tokens
            assert (moved.max(axis=(1, 2)) > 1e-5).sum() >= 5, name


@pytest.mark.thorough
def test_adapters_are_on_attention(params):
    before, after, metrics = updated("adamw", LoraConfig(rank=2), params)
    assert set(before["layer_0"]) == {"q", "k", "v", "o"} and metrics[STATE_FINITE]
    assert all(jnp.abs(after["layer_0"][name]["b"]).max() > 0 for name in "qkvo")


@pytest.mark.thorough
@pytest.mark.parametrize("mesh", [None, MeshConfig(data=2, tensor=2)], ids=["one device", "a mesh"])
def test_the_engine_passes_the_gate(params, mesh):
    weights = {"shared": PolicyWeights(params)}
    engine = LocalEngine(MODEL, (STOP,), CONFIG, mesh and mesh.build())
    push(engine, weights, 1)
    metrics = Gate({"shared": MODEL}, (STOP,), 1.0, 1e-4, 0).check(engine, weights, 1)
    assert metrics["policy/shared/gate_gap"] < 1e-4


@pytest.mark.thorough
def test_a_sample_is_the_same_in_any_company(params):
    """To the last bit, though the tokens of all samples are sorted by expert."""

    def drawn(*requests):
        engine = LocalEngine(MODEL, (STOP,), CONFIG)
        engine.push_weights("shared", PolicyWeights(params), 1)
        return draw(engine, *requests)

    alone = drawn(request((5, 6, 7)))
    among = drawn(request((5, 6, 7)), *(request((8 + i, 9, 10 + i), i + 1) for i in range(6)))
    assert [s.tokens for s in alone[0]] == [s.tokens for s in among[0]]
    assert [s.logprobs for s in alone[0]] == [s.logprobs for s in among[0]]


@pytest.mark.thorough
def test_a_random_one_is_written_as_one_that_transformers_loads(params, tmp_path):
    hf.save(str(tmp_path), params, hf.description(MIXED, 64, (7,)))
    assert hf.architecture(str(tmp_path)) == dataclasses.replace(MIXED, vocab_size=64)
    tokens = np.random.default_rng(0).integers(0, 64, (2, 40))
    with torch.no_grad():
        theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)(torch.tensor(tokens)).logits
    scores = forward(*ours(tmp_path), jnp.asarray(tokens))[2]
    np.testing.assert_allclose(scores, theirs.numpy(), **LOGITS)


def test_devices_read_their_parts_of_each_expert(tmp_path):
    make(tmp_path, *VARIANTS["qwen3 moe"])
    _, whole = ours(tmp_path)
    _, parts = ours(tmp_path, MeshConfig(fsdp=2, tensor=2))
    shards = {
        name: own["kernel"].addressable_shards[0].data.shape
        for name, own in parts["layer_0"].items()
        if name.startswith("expert")
    }
    split = (5, 24, 14)
    assert shards == {"expert_gate": split, "expert_up": split, "expert_down": (5, 14, 24)}
    jax.tree.map(np.testing.assert_array_equal, whole, parts)


def test_the_older_name_of_the_number_is_read_and_written(tmp_path):
    make(tmp_path / "in", *VARIANTS["qwen3 moe"])
    path = tmp_path / "in" / "config.json"
    said = json.loads(path.read_text())
    count = said.pop("num_local_experts", None) or said.pop("num_experts")
    path.write_text(json.dumps(said | {"num_experts": count}))
    _, params = ours(tmp_path / "in")
    hf.save(str(tmp_path / "out"), params, str(tmp_path / "in"))
    out = json.loads((tmp_path / "out" / "config.json").read_text())
    assert count == out["num_experts"] == out["num_local_experts"] == 5


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"decoder_sparse_step": 2}, r"decoder_sparse_step = 2 is not supported; expected 1"),
        ({"mlp_only_layers": [0]}, r"mlp_only_layers = \[0\] is not supported; expected \[\]"),
        ({"use_sliding_window": True}, "use_sliding_window = True"),
        ({"num_experts_per_tok": 9}, "Experts.chosen = 9: must be at most count = 5"),
        (
            {"num_experts": 4, "num_local_experts": 5},
            "num_local_experts = 5 .* expected 4, as in num_experts",
        ),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_parameters = 'yarn'"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(fields, says, tmp_path):
    make(tmp_path, *VARIANTS["qwen3 moe"])
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    with pytest.raises(RunError, match=says) as error:
        hf.architecture(str(tmp_path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("wrong", [{"family": "qwen3"}, {"experts": None}, {"windows": (4, 0)}])
def test_an_architecture_that_no_family_has_is_refused(wrong):
    with pytest.raises(ValueError, match=r"Architecture\."):
        transformer(dataclasses.replace(MIXED, **wrong), 64)


def test_a_plan_counts_all_weights_and_the_products_of_the_chosen_experts():
    """By hand: attention 3,072, router 192, an expert 1,152."""
    family = family_of(MIXED)
    assert family.block_kernels(MIXED) == 3072 + 192 + 6 * 1152
    assert family.block_multiplied(MIXED) == 3072 + 192 + 2 * 1152
    assert family_of(preset("qwen3-8b")).block_multiplied(preset("qwen3-8b")) == 192_937_984
    large = dataclasses.replace(MIXED, experts=dataclasses.replace(MIXED.experts, count=60), vocab_size=64)
    small = dataclasses.replace(MIXED, vocab_size=64)
    workload = Workload(1, 8, 8, 8, 2, 8, 24)
    few, many = (work(model, Compute(), 64, workload, 1)["rollout"] for model in (small, large))
    assert many - few == 2 * MIXED.layers * 32 * 54 * 24  # the router alone: 54 columns, 24 tokens


def test_activations_of_a_device_shrink_with_the_experts_widths():
    model = dataclasses.replace(MIXED, vocab_size=64)
    whole = activations(model, Compute(), MeshConfig(), BATCH, 48)
    half = activations(model, Compute(), MeshConfig(tensor=2), BATCH, 48)
    assert half < whole
