import asyncio
import json

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch
import transformers
from fakes import LOGITS, PARITY, credited, small_model
from peft import PeftModel, get_peft_model
from reference import VARIANTS, make, ours
from reference import forward as hf_forward

from atgrpo_jax.arrays.mesh import MeshConfig
from atgrpo_jax.common.errors import RunError
from atgrpo_jax.common.types import Address, GroupKey, Sampling
from atgrpo_jax.engines.local.local import LocalEngine, LocalEngineConfig
from atgrpo_jax.engines.protocol import Request
from atgrpo_jax.models.attention import masked_attention
from atgrpo_jax.models.hf.adapters import AdapterFolder, digest_of, load_adapter, read_about, save_adapter
from atgrpo_jax.models.layers import Linear
from atgrpo_jax.models.lora import LoraConfig, init_adapter, merge, stack
from atgrpo_jax.models.packed import Packed
from atgrpo_jax.models.transformer import PolicyWeights, apply, init_params, logits
from atgrpo_jax.update.batch import BatchConfig, pack
from atgrpo_jax.update.learner import Learner, UpdateInputs
from atgrpo_jax.update.objectives import cloning
from atgrpo_jax.update.optimizer import OptimizerConfig

MODEL = small_model()
ADAPTED = MODEL.family.adapted
batch_logprobs = jax.jit(Packed(MODEL, MeshConfig().build()).logprobs)
CONFIG = LoraConfig(rank=4, alpha=8.0)
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 64, (3, 10)))


@pytest.fixture(scope="module")
def params():
    return init_params(MODEL, jax.random.key(0))


def test_the_scale_of_an_adapter_is_not_rounded():
    """In bfloat16, 2/3 is 0.668, and 187 times that 124.9, which is rounded to 125; 187 * 2/3 is to 124.5."""
    one = jnp.ones((1, 1, 1))
    values = {"params": {"kernel": jnp.zeros((1, 1))}, "lora": {"a": one, "b": one}}
    layer = Linear(1, False, jax.nn.initializers.zeros, "float32")
    for dtype, expected in (("bfloat16", 124.5), ("float32", np.float32(187) * np.float32(2 / 3))):
        y = layer.apply(values, 187 * one.astype(dtype), jnp.full((1, 1), 2 / 3))
        assert y.dtype == dtype and y[0, 0, 0] == expected


def test_a_merged_kernel_is_as_exact_as_is_asked():
    """A step of bfloat16 is 2**-7 at 1, so the sum is 1 again where the base has that type."""
    params = {"layer_0": {"q": {"kernel": jnp.ones((1, 1), "bfloat16")}, "norm": jnp.ones(1, "bfloat16")}}
    own = {"layer_0": {"q": {"a": jnp.full((1, 1), 2.0**-10), "b": jnp.ones((1, 1))}}}
    for dtype, kernel in ((None, 1.0), ("float32", 1 + 2.0**-9)):
        merged = merge(params, own, 2.0, dtype)["layer_0"]
        assert merged["q"]["kernel"].dtype == (dtype or "bfloat16") and merged["q"]["kernel"][0, 0] == kernel
        assert merged["norm"] is params["layer_0"]["norm"]


def adapter(params, seed):
    """One that does something: b is not zero."""
    fresh = init_adapter(params, jax.random.key(seed), CONFIG.rank, ADAPTED)
    leaves, tree = jax.tree.flatten(fresh)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    return tree.unflatten(
        0.3 * jax.random.normal(k, leaf.shape) for k, leaf in zip(keys, leaves, strict=True)
    )


def forward(params, adapters=None, scale_BJ=None):
    def causal(q, k, v, *_):
        size = q.shape[1]
        return masked_attention(q, k, v, jnp.tril(jnp.ones((1, size, size), bool))), None

    positions = jnp.broadcast_to(jnp.arange(TOKENS.shape[1]), TOKENS.shape)
    hidden, _ = apply(MODEL, params, adapters, TOKENS, positions, causal, scale_BJ=scale_BJ)
    return logits(params, hidden)


@pytest.mark.thorough
def test_a_fresh_adapter_changes_nothing_bit_for_bit(params):
    fresh = stack([init_adapter(params, jax.random.key(s), CONFIG.rank, ADAPTED) for s in (1, 2)])
    scale_BJ = jnp.array([[2.0, 0.0], [0.0, 2.0], [0.0, 0.0]])
    np.testing.assert_array_equal(forward(params, fresh, scale_BJ), forward(params))


def test_each_row_has_its_own_adapter_and_merging_gives_the_same(params):
    one, other = adapter(params, 1), adapter(params, 2)
    scale = CONFIG.scale
    scale_BJ = scale * jnp.array([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    mixed = forward(params, stack([one, other]), scale_BJ)
    for row, alone in enumerate((merge(params, one, scale), merge(params, other, scale), params)):
        np.testing.assert_allclose(mixed[row], forward(alone)[row], **PARITY)
    assert jnp.abs(mixed[0] - forward(params)[0]).max() > 0.1


def learner(**lora):
    optimizer = OptimizerConfig(learning_rate=1e-2)
    return Learner(MODEL, optimizer, cloning, MeshConfig().build(), LoraConfig(**lora))


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    return pack([credited(rng, 5, [3, 4])], BatchConfig(row_tokens=16, rows=1), "candidate", 16)


@pytest.mark.thorough
def test_an_update_moves_the_adapter_and_nothing_else(params, batch):
    made = learner(rank=4, alpha=8.0)
    state = made.init(jax.random.key(1))
    fresh = jax.device_get(state.params)
    before = jax.device_get(params)
    weights = made.weights(state.params, params)
    micro = jax.tree.map(lambda x: x[0], batch)
    start, _ = batch_logprobs(weights, micro)
    plain, _ = batch_logprobs(PolicyWeights(params), micro)
    # Two programs, so not to the bit; in one they are (test_a_fresh_adapter_changes_nothing_bit_for_bit).
    np.testing.assert_allclose(start, plain, **PARITY)
    state, metrics = made.update(state, UpdateInputs(batch, base=params))
    assert metrics["grad_norm"] > 0
    jax.tree.map(np.testing.assert_array_equal, params, before)
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), state.params, fresh)
    # b is zero at first, so a has no gradient yet.
    assert all(layer["b"] > 0 for block in moved.values() for layer in block.values())
    after, _ = batch_logprobs(made.weights(state.params, params), micro)
    assert jnp.abs(after - plain).max() > 0


@pytest.mark.parametrize("alpha", [4.0, 10.0])
def test_a_policy_computes_with_its_adapter_times_alpha_over_rank(params, batch, alpha):
    """As the merged parameters do, of which there is no doubt. Rank 4, so the scale is 1 or 2.5."""
    config = LoraConfig(rank=4, alpha=alpha)
    micro = jax.tree.map(lambda x: x[0], batch)
    own = jax.tree.map(
        lambda x: x + 0.1, init_adapter(params, jax.random.key(3), 4, ADAPTED)
    )  # b is not zero
    weights = learner(rank=4, alpha=alpha).weights(own, params)
    logprobs, _ = batch_logprobs(weights, micro)
    merged, _ = batch_logprobs(PolicyWeights(merge(params, own, alpha / 4)), micro)
    np.testing.assert_allclose(logprobs, merged, **PARITY)
    plain, _ = batch_logprobs(PolicyWeights(params), micro)
    assert jnp.abs(merged - plain).max() > 0.1 and config.scale == alpha / 4


@pytest.mark.thorough
def test_the_rate_scales_an_update(params, batch):
    made, steps = learner(), []
    for rate in (1.0, 0.5):
        state = made.init(jax.random.key(1))
        fresh = jax.device_get(state.params)
        state, _ = made.update(state, UpdateInputs(batch, base=params, rate=rate))
        steps.append(jax.tree.map(lambda a, b: a - b, state.params, fresh))
    jax.tree.map(lambda one, half: np.testing.assert_allclose(half, 0.5 * one, **PARITY), *steps)


@pytest.mark.thorough
def test_adapters_share_a_lane_and_each_gives_what_it_gives_alone(params):
    engine = LocalEngine(MODEL, (3,), LocalEngineConfig(slots=12, page=8))
    policies = {"one": adapter(params, 1), "other": adapter(params, 2)}
    for name, own in policies.items():
        engine.push_weights(name, PolicyWeights(params, own, CONFIG.scale), 1)
    engine.push_weights("plain", PolicyWeights(params), 1)

    def draw(*names):
        key = GroupKey(1, "train", 0, 0, 0, "a")
        addresses = tuple(Address(0, key, i) for i in range(3))

        async def everything():
            requests = [Request(name, (1, 2, 5), addresses, Sampling(max_tokens=8)) for name in names]
            return await asyncio.gather(*map(engine.sample, requests))

        return asyncio.run(everything())

    together = draw("one", "other", "plain", "one")
    assert together == [draw(name)[0] for name in ("one", "other", "plain", "one")]
    assert together[0] == together[3] and together[0] != together[1] != together[2]
    lanes = {shape.policies for shape in engine.shapes}
    assert lanes == {("one", "other"), ("plain",)}
    for name, own in policies.items():  # a merged policy draws the same tokens
        engine.push_weights(name, PolicyWeights(merge(params, own, CONFIG.scale)), 1)
    merged = draw("one", "other")
    for mine, theirs in zip(together, merged, strict=False):
        assert [s.tokens for s in mine] == [s.tokens for s in theirs]


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore::FutureWarning")  # of transformers, about what peft calls
@pytest.mark.parametrize("variant", ["qwen3", "qwen2", "llama", "gemma 3", "mistral windowed", "smollm3"])
def test_peft_loads_an_exported_adapter_and_gives_our_logits(variant, tmp_path):
    make(tmp_path / "base", *VARIANTS[variant])
    model, params = ours(tmp_path / "base")
    own = adapter(params, 3)
    save_adapter(str(tmp_path / "adapter"), own, CONFIG, model.family, base=str(tmp_path / "base"))
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    theirs = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    tokens = np.random.default_rng(1).integers(0, 96, (2, 30))
    _, _, scores = hf_forward(model, merge(params, own, CONFIG.scale), jnp.asarray(tokens))
    with torch.no_grad():
        expected = theirs(torch.tensor(tokens)).logits.numpy()
    np.testing.assert_allclose(scores, expected, **LOGITS)
    assert np.abs(expected - hf_forward(model, params, jnp.asarray(tokens))[2]).max() > 0.1


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore")  # of peft and transformers, about each other
def test_an_adapter_that_peft_saved_is_read(tmp_path):
    make(tmp_path / "base", *VARIANTS["qwen3"])
    model, params = ours(tmp_path / "base")
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    modules = model.family.target_modules()
    theirs = get_peft_model(base, peft.LoraConfig(r=4, lora_alpha=10, target_modules=modules))
    with torch.no_grad():
        for name, values in theirs.named_parameters():
            if ".lora_B." in name:
                values.add_(0.1)
    theirs.save_pretrained(tmp_path / "saved")
    about = read_about(str(tmp_path / "saved"))
    assert about == AdapterFolder(LoraConfig(4, 10.0), str(tmp_path / "base"), "")
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        init_adapter(params, jax.random.key(0), 4, model.family.adapted),
    )
    own = load_adapter(str(tmp_path / "saved"), shapes, model.family)
    tokens = np.random.default_rng(1).integers(0, 96, (2, 30))
    _, _, scores = hf_forward(model, merge(params, own, about.config.scale), jnp.asarray(tokens))
    with torch.no_grad():
        expected = theirs.eval()(torch.tensor(tokens)).logits.numpy()
    np.testing.assert_allclose(scores, expected, **LOGITS)
    assert np.abs(expected - hf_forward(model, params, jnp.asarray(tokens))[2]).max() > 0.1


@pytest.fixture
def written(params, tmp_path):
    own = adapter(params, 3)
    save_adapter(str(tmp_path), own, CONFIG, MODEL.family, "../base", base_digest="abc")
    return tmp_path, own


def test_an_adapter_comes_back_as_it_was_written(params, written):
    folder, own = written
    assert read_about(str(folder)) == AdapterFolder(CONFIG, "../base", "abc")
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), own)
    found = load_adapter(str(folder), shapes, MODEL.family)
    jax.tree.map(np.testing.assert_array_equal, found, own)
    less = {layer: {n: ab for n, ab in of.items() if n != "q"} for layer, of in shapes.items()}
    with pytest.raises(RunError, match=r"tensor \S+layers.0.self_attn.q_proj.lora_A.weight, which is not of"):
        load_adapter(str(folder), less, MODEL.family)
    save_adapter(str(folder), {"layer_0": own["layer_0"]}, CONFIG, MODEL.family, "")
    with pytest.raises(RunError, match=r"lacks tensor \S+layers.1.mlp.down_proj.lora_A.weight"):
        load_adapter(str(folder), shapes, MODEL.family)


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("peft_type", "IA3", "peft_type = 'IA3' is not supported; expected LORA"),
        ("use_rslora", True, "use_rslora = True is not supported; expected False"),
        ("alora_invocation_tokens", [1, 2], r"alora_invocation_tokens = \[1, 2\] is not supported"),
        ("layer_replication", [[0, 1]], "layer_replication = .* is not supported"),
        ("rank_pattern", {"q_proj": 2}, "rank_pattern = {'q_proj': 2} is not supported"),
        ("modules_to_save", ["lm_head"], r"modules_to_save = \['lm_head'\] is not supported"),
        ("init_lora_weights", "pissa", "init_lora_weights = 'pissa' is not supported"),
        ("r", 0, "r = 0 is not supported; expected an integer from 1"),
    ],
)
def test_an_adapter_of_another_kind_is_refused(written, field, value, says):
    path = written[0] / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    with pytest.raises(RunError, match=says):
        read_about(str(written[0]))


def test_a_digest_is_of_the_numbers_whatever_type_holds_them(params):
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    assert digest_of(half) == digest_of(jax.tree.map(lambda leaf: leaf.astype(jnp.float32), half))
    assert digest_of(half) != digest_of(params)


@pytest.mark.parametrize("wrong", [{"rank": 0}, {"alpha": 0.0}])
def test_config_refuses(wrong):
    with pytest.raises(ValueError, match=r"LoraConfig\."):
        LoraConfig(**wrong)
