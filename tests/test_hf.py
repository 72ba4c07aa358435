"""Against ``transformers``, in float32: small random models of every architecture and variant."""

import dataclasses
import errno
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from fakes import LOGITS
from reference import VARIANTS, forward, make, ours
from safetensors import SafetensorError

from atgrpo_jax.arrays.mesh import MeshConfig
from atgrpo_jax.common.errors import RunError
from atgrpo_jax.models.config import PRESETS, Architecture, preset
from atgrpo_jax.models.families.table import parameters, transformer
from atgrpo_jax.models.hf import hf
from atgrpo_jax.models.hf.rounded import rounding
from atgrpo_jax.models.transformer import init_params


@pytest.mark.parametrize("variant", VARIANTS)
def test_layers_and_logits_are_those_of_transformers(variant, tmp_path):
    theirs = make(tmp_path, *VARIANTS[variant])
    model, params = ours(tmp_path)
    tokens = np.random.default_rng(0).integers(0, 96, (2, 200))
    blocks, hidden, scores = forward(model, params, jnp.asarray(tokens))
    with torch.no_grad():
        expected = theirs(torch.tensor(tokens), output_hidden_states=True)
    states = expected.hidden_states  # embedding, blocks, and the last after the final norm
    for mine, theirs_ in zip([*blocks[:-1], hidden], states[1:], strict=True):
        np.testing.assert_allclose(mine, theirs_.numpy(), **LOGITS)
    np.testing.assert_allclose(scores, expected.logits.numpy(), **LOGITS)
    assert expected.logits.std() > 0.3  # the comparison is one of numbers that differ


def test_rope_scaling_matters(tmp_path):
    make(tmp_path, *VARIANTS["llama 3"])
    model, params = ours(tmp_path)
    plain = transformer(dataclasses.replace(model.architecture, rope_scaling=None), 96)
    tokens = jnp.arange(50)[None]
    assert jnp.abs(forward(model, params, tokens)[2] - forward(plain, params, tokens)[2]).max() > 1e-2


@pytest.mark.parametrize(
    "variant", ["qwen3 untied", "qwen2", "llama", "gemma 3", "qwen3 moe", "ministral", "smollm3"]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_a_round_trip_is_bit_exact_and_transformers_loads_it(variant, dtype, tmp_path):
    kind, options = VARIANTS[variant]
    before = make(tmp_path / "in", kind, options, dtype)
    _, params = ours(tmp_path / "in")
    hf.save(str(tmp_path / "out"), params, source=str(tmp_path / "in"), shard_bytes=60_000)
    assert len(list((tmp_path / "out").glob("model-*-of-*.safetensors"))) > 1
    after = getattr(transformers, f"{kind}ForCausalLM").from_pretrained(tmp_path / "out")
    assert after.dtype == dtype
    weights = after.state_dict()
    assert weights.keys() == before.state_dict().keys()
    for name, value in before.state_dict().items():
        assert torch.equal(value, weights[name]), name


@pytest.mark.parametrize("mesh", [MeshConfig(fsdp=4), MeshConfig(tensor=2, fsdp=2)], ids=str)
def test_every_device_reads_its_own_part(mesh, tmp_path):
    make(tmp_path, *VARIANTS["qwen3 untied"])
    _, whole = ours(tmp_path)
    _, parts = ours(tmp_path, mesh)
    jax.tree.map(np.testing.assert_array_equal, whole, parts)
    kernel = parts["layer_0"]["gate"]["kernel"]
    assert kernel.sharding.num_devices == 4
    assert kernel.addressable_shards[0].data.size == kernel.size // 4


def edit(folder, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"model_type": "gpt2"}, "model_type = 'gpt2' is not supported; expected one of qwen3, qwen2, llama"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu' is not supported; expected 'silu'"),
        ({"attention_bias": True}, "attention_bias = True"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"use_sliding_window": True}, "use_sliding_window"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_parameters = 'yarn' .* default or llama3"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling = 'linear'"),
        ({"layer_types": ["sliding_attention"]}, "layer_types"),
        ({"intermediate_size": None}, "intermediate_size is missing"),
    ],
)
def test_a_config_that_cannot_be_honoured_is_refused_by_field(fields, says, tmp_path):
    make(tmp_path, *VARIANTS["llama"])
    if "rope_scaling" in fields:
        edit(tmp_path, rope_parameters=None)
    edit(tmp_path, **fields)
    with pytest.raises(RunError, match=says):
        hf.architecture(str(tmp_path))


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"num_hidden_layers": 4}, r"lacks tensor model.layers.3.input_layernorm.weight \(9 such\)"),
        ({"num_hidden_layers": 2}, "has tensor model.layers.2.input_layernorm.weight, which"),
        ({"intermediate_size": 81}, r"layers.0.mlp.down_proj.weight is \(48, 80\), expected \(48, 81\)"),
    ],
)
def test_a_missing_extra_or_misshapen_tensor_is_named(fields, says, tmp_path):
    make(tmp_path, *VARIANTS["llama"])
    edit(tmp_path, **fields)
    with pytest.raises(RunError, match=says):
        ours(tmp_path)


def test_a_file_cut_short_a_wrong_dtype_and_no_file_are_named(tmp_path):
    make(tmp_path, *VARIANTS["qwen2"])
    path = tmp_path / hf.SINGLE
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(RunError, match=r"model.safetensors cannot be read .*; is the folder complete"):
        ours(tmp_path)
    path.write_bytes(whole.replace(b'"dtype":"F32"', b'"dtype":"I32"', 1))
    with pytest.raises(RunError, match=r"has dtype I32, expected a float one"):
        ours(tmp_path)
    path.unlink()
    with pytest.raises(RunError, match=r"model.safetensors cannot be read"):
        ours(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(RunError, match=r"config.json cannot be read"):
        hf.architecture(str(tmp_path))


PUBLISHED = {
    "qwen3-0.6b": 596_049_920, "qwen3-8b": 8_190_735_360, "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-7b": 7_615_616_512, "llama-3.2-1b": 1_235_814_400, "llama-3.1-8b": 8_030_261_248,
    "smollm2-135m": 134_515_008, "gemma-3-270m": 268_098_176, "gemma-3-1b": 999_885_952,
    "qwen3-30b-a3b": 30_532_122_624, "mistral-7b-v0.3": 7_248_023_552, "smollm3-3b": 3_075_098_624,
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_presets_have_the_published_numbers_of_parameters(name):
    config = PRESETS[name]
    model = transformer(config, config.vocab_size)
    shapes = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == parameters(config) == PUBLISHED[name]


@pytest.mark.parametrize("name", [name for name in PRESETS if name != "tiny"])
def test_a_description_is_read_back_as_the_config(name, tmp_path):
    config = preset(name)
    (tmp_path / "config.json").write_text(json.dumps(hf.description(config, config.vocab_size, (7,))))
    assert hf.architecture(str(tmp_path)) == config


def test_leaves_are_taken_when_they_are_written(tmp_path):
    """Then somebody who has them in pieces need not have them whole all at once."""
    config = Architecture(layers=1, width=32, mlp_width=48, heads=4, kv_heads=2, head_size=16, vocab_size=50)
    shapes = jax.eval_shape(lambda: init_params(transformer(config, 50), jax.random.key(0)))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.standard_normal(x.shape, np.float32), shapes)
    files = []  # that are there when a leaf is taken

    def leaves():
        for leaf in jax.tree.leaves(params):
            files.append(len(list(tmp_path.glob("*.safetensors"))))
            yield leaf

    hf.save(str(tmp_path), shapes, hf.description(config, 50, (7,)), shard_bytes=9_000, whole=leaves())
    jax.tree.map(np.testing.assert_array_equal, ours(tmp_path)[1], params)
    assert files == sorted(files) and {0, 1, 2, 3} < set(files)


@pytest.mark.thorough
def test_a_model_that_comes_from_no_folder_is_written_as_one_that_transformers_loads(tmp_path):
    config = Architecture(layers=2, width=32, mlp_width=48, heads=4, kv_heads=2, head_size=16, vocab_size=50)
    params = init_params(transformer(config, 50), jax.random.key(0))
    hf.save(str(tmp_path), params, hf.description(config, 50, (7,)))
    tokens = np.random.default_rng(0).integers(0, 50, (2, 20))
    with torch.no_grad():
        theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)(torch.tensor(tokens)).logits
    _, _, scores = forward(*ours(tmp_path), jnp.asarray(tokens))
    np.testing.assert_allclose(scores, theirs.numpy(), **LOGITS)


def test_what_ends_a_sequence_is_that_of_both_files_and_what_is_asked_for(tmp_path):
    """A server stops at all of them, so the weights that it is given name the run's and no others."""
    source, out = tmp_path / "in", tmp_path / "out"
    make(source, "Llama", {})
    (source / "generation_config.json").write_text('{"eos_token_id": [5, 6], "top_p": 0.9}')
    config = json.loads((source / "config.json").read_text())
    for said, found in ((4, {4, 5, 6}), ([3], {3, 5, 6}), (None, {5, 6})):
        (source / "config.json").write_text(json.dumps(config | {"eos_token_id": said}))
        assert hf.end_ids(str(source)) == found
    _, params = ours(source)
    hf.save(str(out), params, str(source), stop_ids=(9,))
    assert hf.end_ids(str(out)) == {9}
    assert json.loads((out / "generation_config.json").read_text()) == {"eos_token_id": [9], "top_p": 0.9}
    hf.save(str(out), params, str(source))
    assert hf.end_ids(str(out)) == {5, 6}
    del config["eos_token_id"]
    (source / "config.json").write_text(json.dumps(config))
    theirs = transformers.AutoConfig.from_pretrained(source).eos_token_id
    assert hf.end_ids(str(source)) == {theirs, 5, 6}


def test_a_full_disk_is_said_as_one(tmp_path, monkeypatch):
    def full(*_args, **_kwargs):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(hf, "save_file", full)
    config = Architecture(layers=1, width=8, mlp_width=8, heads=2, kv_heads=2, head_size=4, vocab_size=9)
    params = init_params(transformer(config, 9), jax.random.key(0))
    with pytest.raises(OSError, match="No space left") as error:
        hf.save(str(tmp_path), params, hf.description(config, 9, (7,)))
    assert error.value.errno == errno.ENOSPC and error.value.filename.endswith(hf.SINGLE)


def test_what_rounding_takes_is_counted_by_hand():
    before = {"a": np.array([1.0, 2.0, 3.0], np.float32), "b": np.array([4.0], np.float32)}
    after = {"a": np.array([1.0, 2.0 + 2**-20, 3.5], np.float32), "b": np.array([4.0], np.float32)}
    assert rounding(before, after, "bfloat16") == (
        "50.0% of its numbers were changed by training; as bfloat16, 25.0% still are (rounding undid the "
        "rest; --dtype=float32 keeps all)"
    )
    for other, dtype, share in ((after, "float32", "50.0%"), (before, "float16", "0.0%")):
        said = f"{share} of its numbers were changed by training; as {dtype}, nothing is rounded"
        assert rounding(before, other, dtype) == said
    moved = before | {"b": np.array([5.0 + 2**-20], np.float32)}
    assert "as bfloat16, 25.0% still are (rounding undid none; --" in rounding(before, moved, "bfloat16")
