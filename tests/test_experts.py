"""Experts that are dealt to devices: each on its own one, no token dropped, and the same numbers."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from fakes import LOGITS, PARITY, small_model
from reference import MIXED as MIXED_FOLDER
from reference import forward, make, ours
from shared_learner import MIXTURE as MODEL
from shared_learner import OPTIMIZER, assert_same, items, learner, loss_of, packed
from shared_local import CONFIG, STOP, draw, request

from atgrpo_jax.arrays.mesh import MeshConfig, check_mesh, copied, parameter_shardings
from atgrpo_jax.arrays.trees import read_tree, write_tree
from atgrpo_jax.common.errors import ConfigError
from atgrpo_jax.engines.gate import Gate, push
from atgrpo_jax.engines.local.local import LocalEngine
from atgrpo_jax.models import experts
from atgrpo_jax.models.config import Compute, Experts
from atgrpo_jax.models.divided import divided
from atgrpo_jax.models.experts import Stacks, by_experts
from atgrpo_jax.models.families.table import transformer
from atgrpo_jax.models.hf import hf
from atgrpo_jax.models.lora import LoraConfig
from atgrpo_jax.models.packed import Packed
from atgrpo_jax.models.transformer import PolicyWeights, init_params
from atgrpo_jax.planning.footprint import bytes_a_device, memory
from atgrpo_jax.planning.workload import workload_of
from atgrpo_jax.run.gin_config import load
from atgrpo_jax.run.team_learner import TeamLearner
from atgrpo_jax.update.batch import BatchConfig
from atgrpo_jax.update.learner import Learner, UpdateInputs
from atgrpo_jax.update.objectives import LossConfig

ARCHITECTURE = MODEL.architecture
BATCH = packed(items(lengths=((9, 3, 2), (4, 8, 5), (3, 3, 3), (2, 6))), BatchConfig(row_tokens=48, rows=4))
DEALT = MeshConfig(fsdp=2, expert=2)
MESHES = [
    MeshConfig(expert=2),
    MeshConfig(expert=4),
    MeshConfig(data=2, expert=2, tensor=2),
    MeshConfig(fsdp=2, expert=2, tensor=2),
]


@pytest.fixture(scope="module")
def params():
    """Experts that matter: fresh ones add a twentieth of what these do."""
    fresh = jax.jit(functools.partial(init_params, MODEL))(jax.random.key(0))
    grown = ("expert_down", "o/kernel")
    return jax.tree_util.tree_map_with_path(
        lambda path, x: 20 * x if any(name in jax.tree_util.keystr(path) for name in grown) else x, fresh
    )


def on(mesh, tree):
    return copied(tree, mesh.build(), MODEL.family.axes)


@functools.lru_cache
def layer(chosen):
    """The inputs of a layer with 64 tokens, 8 experts of width 8, and two of them for each token."""
    draw_ = functools.partial(jax.random.normal, dtype=jnp.float32)
    keys = jax.random.split(jax.random.key(1), 6)
    shape = (8, 8, 2)
    chosen_BTC = {
        "any": jax.lax.top_k(draw_(keys[5], (8, 8, 8)), 2)[1],
        "those of one device": jnp.broadcast_to(jnp.array([1, 0]), shape),
        "all but some": jnp.broadcast_to(jnp.array([7, 3]), shape),
    }[chosen]
    shapes = zip(keys[2:5], [(8, 4, 8), (8, 4, 8), (8, 8, 4)], strict=True)
    stacks = Stacks(*(draw_(key, own) / 3 for key, own in shapes))
    return draw_(keys[0], (8, 8, 4)), draw_(keys[1], shape), chosen_BTC, stacks


def output_and_gradients(mesh, h_BTD, share_BTC, chosen_BTC, stacks):
    def output(h_BTD, share_BTC, stacks):
        return by_experts(mesh, jax.nn.silu, h_BTD, share_BTC, chosen_BTC, stacks)

    def both(*inputs):
        found, pull = jax.vjp(output, *inputs)
        return found, pull(found)

    return jax.jit(both)(h_BTD, share_BTC, stacks)


@pytest.mark.parametrize("mesh", MESHES, ids=str)
@pytest.mark.parametrize("chosen", ["any", "those of one device", "all but some"])
def test_a_layer_is_the_same_however_its_experts_are_dealt(mesh, chosen):
    """Also if all tokens want the experts of one device: none is dropped."""
    inputs = layer(chosen)
    expected = output_and_gradients(None, *inputs)
    assert jnp.abs(expected[0]).min(axis=-1).all()  # each token has an output
    assert_same(output_and_gradients(mesh.build(), *inputs), expected)


def test_blocks_hold_each_pair_once():
    """By hand: of 6 pairs, device 1 of 2 has experts 2 and 3; blocks have 2 tokens."""
    chosen_BTC = jnp.array([[[2, 0], [2, 3], [1, 2]]])
    blocks = experts._Blocks(2, 2, 2, chosen_BTC)
    assert blocks.count == 3
    found = [[np.asarray(x).tolist() for x in blocks(i)] for i in range(3)]
    # Expert 2 has the pairs 0, 2 and 5, of the tokens 0, 1 and 2; expert 3 has 3. There is no pair 6.
    assert found == [[0, [0, 2], [0, 1]], [0, [5, 6], [2, 3]], [1, [3, 6], [1, 3]]]


@functools.cache
def folder_model(tmp):
    """A model of ``transformers``, its folder, and tokens."""
    options = MIXED_FOLDER | {"num_experts": 8, "norm_topk_prob": True, "num_experts_per_tok": 2}
    model = make(tmp, "Qwen3Moe", options)
    return model, np.random.default_rng(0).integers(0, 96, (4, 20))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("moe")


@pytest.mark.thorough
@pytest.mark.parametrize("mesh", [MeshConfig(), MeshConfig(expert=2), MeshConfig(expert=4)], ids=str)
def test_logits_and_gradients_are_those_of_transformers(folder, mesh):
    theirs, tokens_BT = folder_model(folder)
    model, params = ours(folder, mesh)
    model = model.clone(mesh=mesh.build())

    def loss(params):
        logits_BTV = forward(model, params, jnp.asarray(tokens_BT))[2]
        logp_BTV = jax.nn.log_softmax(logits_BTV[:, :-1])
        return -jnp.take_along_axis(logp_BTV, tokens_BT[:, 1:, None], axis=-1).mean(), logits_BTV

    (value, logits_BTV), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    theirs.zero_grad()
    out = theirs(torch.tensor(tokens_BT), labels=torch.tensor(tokens_BT))
    out.loss.backward()
    np.testing.assert_allclose(logits_BTV, out.logits.detach().numpy(), **LOGITS)
    np.testing.assert_allclose(value, out.loss.item(), **LOGITS)
    asked = dict(theirs.named_parameters())
    for number in range(3):
        own = gradients[f"layer_{number}"]
        of_layer = asked[f"model.layers.{number}.mlp.experts.gate_up_proj"].grad.numpy()
        gate_EDF, up_EDF = np.split(of_layer.transpose(0, 2, 1), 2, axis=-1)
        down_EFD = asked[f"model.layers.{number}.mlp.experts.down_proj"].grad.numpy().transpose(0, 2, 1)
        router_DE = asked[f"model.layers.{number}.mlp.gate.weight"].grad.numpy().T
        q_DN = asked[f"model.layers.{number}.self_attn.q_proj.weight"].grad.numpy().T
        expected = {
            "expert_gate": gate_EDF,
            "expert_up": up_EDF,
            "expert_down": down_EFD,
            "router": router_DE,
            "q": q_DN,
        }
        for name, gradient in expected.items():
            assert np.abs(gradient).max() > 1e-3, name
            np.testing.assert_allclose(own[name]["kernel"], gradient, **LOGITS)


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("mesh", "compute"),
    [*((mesh, Compute()) for mesh in MESHES[1:]), (DEALT, Compute(remat="block", scan=True))],
    ids=str,
)
def test_loss_and_gradient_are_the_same_however_they_are_computed(params, mesh, compute):
    plain = loss_of(Packed(MODEL, MeshConfig().build()), params, BATCH)
    other = loss_of(Packed(transformer(ARCHITECTURE, 64, compute), mesh.build()), on(mesh, params), BATCH)
    assert_same(jax.device_get(plain), jax.device_get(other))


@pytest.mark.thorough
@pytest.mark.long
def test_a_device_updates_its_own_experts_only():
    """Parameters and the optimizer's moments lie where the experts are, before and after an update."""

    def updated(mesh):
        ours = learner(mesh=mesh, model=MODEL)
        return ours.update(ours.init(jax.random.key(0)), UpdateInputs(BATCH))

    plain, metrics = updated(MeshConfig())
    state, others = updated(DEALT)
    moments = state.opt_state[1][0].mu
    for tree in (state.params, moments):
        own = tree["layer_1"]
        assert own["expert_gate"]["kernel"].addressable_shards[0].data.shape == (4, 16, 12)
        assert own["expert_down"]["kernel"].addressable_shards[3].data.shape == (4, 12, 16)
        assert own["q"]["kernel"].addressable_shards[0].data.shape == (16, 32)  # copied along ``expert``
    assert_same(jax.device_get(plain.params), jax.device_get(state.params))
    assert_same(jax.device_get(metrics), jax.device_get(others))


@pytest.mark.thorough
def test_adapters_learn_on_experts_that_are_dealt(params):
    def updated(mesh):
        ours = Learner(MODEL, OPTIMIZER, LossConfig().objective(), mesh.build(), LoraConfig(rank=2))
        state, metrics = ours.update(ours.init(jax.random.key(0)), UpdateInputs(BATCH, base=on(mesh, params)))
        return jax.device_get((state.params, metrics))

    assert_same(updated(MeshConfig()), updated(DEALT))


def engine(params, mesh):
    built = LocalEngine(MODEL, (STOP,), CONFIG, mesh.build())
    push(built, {"shared": PolicyWeights(params)}, 1)
    return built


@pytest.mark.thorough
@pytest.mark.parametrize("mesh", [MeshConfig(expert=4), MeshConfig(data=2, expert=2, tensor=2)], ids=str)
def test_the_engine_passes_the_gate(params, mesh):
    placed = on(mesh, params)
    weights = {"shared": PolicyWeights(placed)}
    metrics = Gate({"shared": MODEL}, (STOP,), 1.0, 1e-4, 0).check(engine(placed, mesh), weights, 1)
    assert metrics["policy/shared/gate_gap"] < 1e-4


@pytest.mark.thorough
def test_a_sample_is_the_same_in_any_company(params):
    """To the last bit, though devices gather the tokens of all samples."""
    placed = on(MeshConfig(expert=4), params)
    alone = draw(engine(placed, MeshConfig(expert=4)), request((5, 6, 7)))
    others = [request((8 + i, 9, 10 + i), i + 1) for i in range(6)]
    among = draw(engine(placed, MeshConfig(expert=4)), request((5, 6, 7)), *others)
    assert [s.tokens for s in alone[0]] == [s.tokens for s in among[0]]
    assert [s.logprobs for s in alone[0]] == [s.logprobs for s in among[0]]
    one = draw(engine(params, MeshConfig()), request((5, 6, 7)))
    assert [s.tokens for s in one[0]] == [s.tokens for s in alone[0]]
    for ours_, theirs in zip(one[0], alone[0], strict=True):
        np.testing.assert_allclose(ours_.logprobs, theirs.logprobs, **PARITY)


def test_what_is_saved_on_one_mesh_is_read_on_another(params, tmp_path):
    about = {"step": 1}
    write_tree(tmp_path / "saved", on(DEALT, params), about)
    for mesh in (MeshConfig(), MeshConfig(expert=4), MeshConfig(data=2, fsdp=2)):
        shardings = parameter_shardings(params, mesh.build(), MODEL.family.axes)
        shapes = jax.tree.map(
            lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), params, shardings
        )
        found = read_tree(tmp_path / "saved", shapes)
        jax.tree.map(np.testing.assert_array_equal, jax.device_get(found), jax.device_get(params))


def test_folders_are_read_and_written_in_parts(params, tmp_path):
    """Each device reads its own experts, and the same files are written from any mesh."""
    about = hf.description(ARCHITECTURE, 64, (7,))
    hf.save(str(tmp_path / "one"), params, about)
    hf.save(str(tmp_path / "dealt"), on(DEALT, params), about)
    one, dealt = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "dealt"))
    assert one == dealt
    _, found = ours(tmp_path / "one", MeshConfig(fsdp=2, expert=4))
    shards = found["layer_0"]["expert_up"]["kernel"].addressable_shards
    assert {shard.data.shape for shard in shards} == {(2, 16, 12)}
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(found), jax.device_get(params))


def test_a_mesh_that_does_not_fit_is_refused():
    six = transformer(dataclasses.replace(ARCHITECTURE, experts=Experts(6, 2, 12)), 64)
    dense = small_model()
    check_mesh(MeshConfig(data=2, expert=4), 8, divided({"a": MODEL}))
    with pytest.raises(ConfigError) as raised:
        check_mesh(MeshConfig(expert=4), 8, divided({"a": six}))
    assert str(raised.value) == (
        "mesh data = 1, fsdp = 1, tensor = 1, expert = 4: Experts.count of a has size 6, which expert = 4 "
        "does not divide; the nearest possible is data = 1, fsdp = 1, tensor = 1, expert = 3"
    )
    says = "b, a model without experts, has size 1, which expert = 2 does not divide; .* tensor = 1$"
    with pytest.raises(ConfigError, match=says):
        check_mesh(MeshConfig(data=2, expert=2), 8, divided({"a": MODEL, "b": dense}))


def held(mesh):
    """Bytes on a device: of parameters and optimizer, and of all that the compiled update is given."""
    sizes = dataclasses.replace(ARCHITECTURE, experts=Experts(8, 2, 32))
    ours = learner(mesh=mesh, model=transformer(sizes, 64))
    (program,) = ours.compile(UpdateInputs(BATCH))
    return bytes_a_device(ours.shapes), program.memory_analysis().argument_size_in_bytes


@pytest.mark.thorough
@pytest.mark.long
def test_a_device_holds_its_part_of_the_experts():
    """By hand: 2 layers x 3 matrices x 8 experts x 32 x 32, as parameters and two moments, float32."""
    whole, whole_compiled = held(MeshConfig())
    half, half_compiled = held(MeshConfig(expert=2))
    dealt = 2 * 3 * 8 * 32 * 32 * 3 * 4
    assert whole - half == dealt / 2
    rows = sum(x.nbytes for x in jax.tree.leaves(BATCH)) / 2
    assert whole_compiled - half_compiled == pytest.approx(dealt / 2 + rows, rel=0.01)


def planned(mesh, dtype="float32"):
    x = dataclasses.replace(
        load("smoke.gin"),
        warm_start=None,
        model=ARCHITECTURE,
        mesh=mesh,
        batch=BatchConfig(row_tokens=128, rows=8),
        compute=Compute(dtype=dtype),
    )
    return memory(x, TeamLearner(x), workload_of(x, instances=2))


def test_a_plan_has_the_share_of_a_device():
    """By hand: 8 experts of 3 x 32 x 12 in 2 layers; 8 rows of 128 tokens."""
    whole, dealt = planned(MeshConfig()), planned(MeshConfig(expert=4))
    experts_of_all = 2 * 8 * 3 * 32 * 12 * 4
    assert whole["parameters, shared"] - dealt["parameters, shared"] == experts_of_all * 3 / 4
    assert dealt["activations of the update"] == whole["activations of the update"] / 4
    line = "tokens and gradients of a layer's experts"
    # Two arrays of tokens and a gradient in float32; the gradients of a device's experts.
    assert whole[line] == 32 * (8 * 128 * 12 + 3 * 8 * 12 * 4)
    assert dealt[line] == 32 * (8 * 128 * 12 + 3 * 2 * 12 * 4)
    half, half_dealt = (planned(mesh, "bfloat16") for mesh in (MeshConfig(), MeshConfig(expert=4)))
    line = "parameters in bfloat16, gathered"
    assert half[line] - half_dealt[line] == experts_of_all / 2 * 3 / 4
