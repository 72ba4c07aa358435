"""What other tools leave in a model folder: read as ``transformers`` reads it, or refused by name."""

import json
import os

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from fakes import LOGITS
from reference import LLAMA3, VARIANTS, forward, make, ours
from safetensors.torch import load_file, save_file

from atgrpo_jax.arrays.mesh import MeshConfig
from atgrpo_jax.common.errors import RunError
from atgrpo_jax.models.hf import hf

TOKENS = np.arange(9)[None]


def edit_tensors(root, change):
    tensors = load_file(root / hf.SINGLE)
    change(tensors)
    save_file(tensors, root / hf.SINGLE, metadata={"format": "pt"})


def write_config(root, **fields):
    """Fields of config.json; an ellipsis removes one."""
    path = root / "config.json"
    said = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({name: value for name, value in said.items() if value is not ...}))


def assert_same_logits(root):
    with torch.no_grad():
        theirs = transformers.AutoModelForCausalLM.from_pretrained(root, dtype=torch.float32)
        expected = theirs(torch.tensor(TOKENS)).logits.numpy()
    np.testing.assert_allclose(forward(*ours(root), jnp.asarray(TOKENS))[2], expected, **LOGITS)


def test_buffers_of_older_versions_are_left_out_and_other_tensors_are_not(tmp_path):
    make(tmp_path, *VARIANTS["llama"])
    layer = "model.layers.1.self_attn"
    names = (f"{layer}.rotary_emb.inv_freq", "model.rotary_emb.inv_freq", f"{layer}.rotary_emb.cos_cached")
    names += ("model.layers.0.attn.bias", "model.layers.0.attn.masked_bias")
    edit_tensors(tmp_path, lambda t: t.update({name: torch.ones(4) for name in names}))
    assert_same_logits(tmp_path)
    edit_tensors(tmp_path, lambda t: t.update({f"{layer}.q_proj.bias": torch.ones(48)}))
    with pytest.raises(RunError, match="has tensor model.layers.1.self_attn.q_proj.bias, which the model"):
        ours(tmp_path)


def test_a_tied_head_may_be_there_twice_or_under_its_other_name_but_not_be_another(tmp_path):
    make(tmp_path, *VARIANTS["llama 3"])
    embedding, head = "model.embed_tokens.weight", "lm_head.weight"
    edit_tensors(tmp_path, lambda t: t.update({head: t[embedding].clone()}))
    assert_same_logits(tmp_path)
    edit_tensors(tmp_path, lambda t: t.pop(embedding))
    assert_same_logits(tmp_path)
    edit_tensors(tmp_path, lambda t: t.update({embedding: t[head] + 1e-6}))
    with pytest.raises(
        RunError, match="lm_head.weight differs from model.embed_tokens.weight, but config.json"
    ):
        ours(tmp_path)
    write_config(tmp_path, tie_word_embeddings=False)
    assert_same_logits(tmp_path)


def shard(root):
    """The single file as two, each with half of the tensors, and their index."""
    tensors = load_file(root / hf.SINGLE)
    names = [f"model-{n:05d}-of-00002.safetensors" for n in (1, 2)]
    index = {tensor: names[i % 2] for i, tensor in enumerate(sorted(tensors))}
    for name in names:
        save_file({t: tensors[t] for t in index if index[t] == name}, root / name, metadata={"format": "pt"})
    (root / hf.INDEX).write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return index


def test_an_old_index_gives_way_to_a_single_file_and_two_sets_of_files_are_refused(tmp_path):
    make(tmp_path, *VARIANTS["llama"])
    index = shard(tmp_path)
    with pytest.raises(RunError, match="has both model.safetensors and model-00001-of-00002.safetensors"):
        ours(tmp_path)
    single = (tmp_path / hf.SINGLE).rename(tmp_path / "aside")
    wrong = dict.fromkeys(index, "model-00001-of-00002.safetensors") | {
        "x": "model-00002-of-00002.safetensors"
    }
    (tmp_path / hf.INDEX).write_text(json.dumps({"metadata": {}, "weight_map": wrong}))
    assert_same_logits(tmp_path)  # files say themselves what they hold
    for name in set(index.values()):
        (tmp_path / name).unlink()
    with pytest.raises(RunError, match="model-00001-of-00002.safetensors cannot be read"):
        ours(tmp_path)
    single.rename(tmp_path / hf.SINGLE)
    assert_same_logits(tmp_path)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{}", "weight_map is missing or empty"),
        ('{"weight_map": []}', "weight_map = .* expected an object"),
        ('{"weight_map": {"a": 7}}', "weight_map names 7"),
        ('{"weight_map": {"a": "../x.safetensors"}}', "expected a .safetensors file of the folder"),
        ('{"weight_map": {"a": "/tmp/x.safetensors"}}', "expected a .safetensors file of the folder"),
        ('{"weight_map": {"a": "model.bin"}}', "expected a .safetensors file of the folder"),
        ('{"weight_map": {"a": "b.safetensors"}}', "b.safetensors cannot be read"),
        ("[1]", "no JSON object but"),
        ("[" * 100_000, "no JSON: "),
        ('{"a": ' + "9" * 5000 + "}", "no JSON: "),
        (b"\xff\xfe{}", "'utf-8' codec"),
    ],
)
def test_an_odd_index_is_refused_by_name(text, says, tmp_path):
    make(tmp_path, *VARIANTS["llama"])
    (tmp_path / hf.SINGLE).unlink()
    (tmp_path / hf.INDEX).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(RunError, match=says) as error:
        ours(tmp_path)
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


@pytest.mark.parametrize(
    ("variant", "fields"),
    [
        ("qwen3", {"rms_norm_eps": ..., "hidden_act": ...}),
        ("qwen3", {"use_sliding_window": True, "layer_types": None, "max_window_layers": 3}),
        ("qwen2", {"attention_bias": True, "mlp_bias": True}),  # that family reads neither
        ("llama", {"num_key_value_heads": None, "head_dim": None, "rope_parameters": ...}),
        ("llama", {"rope_parameters": None, "rope_scaling": None, "rope_theta": 5e5}),
        ("llama", {"rope_parameters": ..., "rope_scaling": {**LLAMA3, "type": "llama3", "rope_type": ...}}),
        ("llama 3", {"rope_parameters": {**LLAMA3, "original_max_position_embeddings": ...}}),
        ("llama 3", {"original_max_position_embeddings": 32}),
        ("llama 3", {"rope_parameters": {**LLAMA3, "rope_theta": ...}, "rope_theta": 5e5}),
        ("llama 3", {"rope_parameters": {**LLAMA3, "type": "yarn"}}),
    ],
)
def test_what_a_config_leaves_out_is_what_transformers_takes(variant, fields, tmp_path):
    make(tmp_path, *VARIANTS[variant])
    clean = {
        n: {k: v for k, v in f.items() if v is not ...} if isinstance(f, dict) else f
        for n, f in fields.items()
    }
    write_config(tmp_path, **clean)
    assert_same_logits(tmp_path)


def test_a_head_of_qwen3_has_128_dimensions_where_nothing_is_said(tmp_path):
    make(tmp_path, "Qwen3", {"num_key_value_heads": 2, "head_dim": 128, "tie_word_embeddings": True})
    write_config(tmp_path, head_dim=...)
    assert_same_logits(tmp_path)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"num_attention_heads": 0}, "num_attention_heads = 0"),
        ({"num_attention_heads": -6}, "num_attention_heads = -6"),
        ({"num_attention_heads": 7, "num_key_value_heads": 2}, "Architecture.heads = 7: must be a multiple"),
        ({"num_key_value_heads": 0}, "num_key_value_heads = 0"),
        ({"head_dim": 7}, "Architecture.head_size = 7: must be even"),
        ({"vocab_size": 10**15}, "vocab_size = 1000000000000000"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers = 1000000000"),
        ({"hidden_size": 48.0}, "hidden_size = 48.0"),
        ({"hidden_size": "48"}, "hidden_size = '48'"),
        ({"hidden_size": True}, "hidden_size = True"),
        ({"tie_word_embeddings": "false"}, "tie_word_embeddings = 'false' .* true or false"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps = nan"),
        ({"rms_norm_eps": 0}, "rms_norm_eps = 0"),
        ({"rms_norm_eps": 10**400}, "rms_norm_eps = 1000"),
        ({"hidden_act": ["silu"]}, "hidden_act"),
        ({"mlp_bias": True}, "mlp_bias = True"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5"),
        ({"layer_types": "full_attention"}, "layer_types = 'full_attention'"),
        ({"rope_parameters": {"rope_type": "llama3"}}, "low_freq_factor is missing"),
        ({"rope_parameters": {**LLAMA3, "factor": "8"}}, "factor = '8'"),
        ({"rope_parameters": {**LLAMA3, "low_freq_factor": 4.0}}, "RopeScaling.low = 4.0"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, "expected one for all layers"),
        ({"rope_parameters": 5}, "rope_parameters = 5 .* an object"),
        ({"rope_scaling": {**LLAMA3, "factor": 2.0}}, "rope_parameters = .* expected what rope_scaling says"),
        ({"rope_theta": 5e5}, "rope_theta = 500000.0 .* expected 10000.0, as in rope_parameters"),
        ({"model_type": ["llama"]}, "model_type"),
        ({"torch_dtype": "float64", "dtype": None}, "torch_dtype = 'float64'"),
        ({"dtype": 16}, "dtype = 16"),
        ({"quantization_config": {}}, "quantization_config"),
    ],
)
def test_a_value_that_no_model_has_is_refused_by_field(fields, says, tmp_path):
    make(tmp_path, *VARIANTS["llama 3"])
    write_config(tmp_path, **fields)
    with pytest.raises(RunError, match=f"config.json: .*{says}|config.json: {says}") as error:
        hf.architecture(str(tmp_path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_tensor_that_is_not_finite_is_named(value, dtype, tmp_path):
    make(tmp_path, *VARIANTS["llama"], dtype=dtype)
    name = "model.layers.1.mlp.down_proj.weight"
    edit_tensors(tmp_path, lambda t: t[name].view(-1)[5:7].fill_(value))
    for mesh in (None, MeshConfig(fsdp=4)):
        with pytest.raises(RunError, match=f"tensor {name} has [12] numbers that are not finite"):
            ours(tmp_path, mesh)


@pytest.mark.parametrize("word", ["torch.bfloat16", "bfloat16", "float16", "auto", None])
def test_the_dtype_is_that_of_the_folder_in_any_spelling(word, tmp_path):
    make(tmp_path / "in", *VARIANTS["llama 3"])
    write_config(tmp_path / "in", dtype=..., torch_dtype=word)
    _, params = ours(tmp_path / "in")
    hf.save(str(tmp_path / "out"), params, str(tmp_path / "in"))
    said = json.loads((tmp_path / "out" / "config.json").read_text())
    written = (word or "auto").removeprefix("torch.").replace("auto", "float32")
    assert said["torch_dtype"] == written and "dtype" not in said
    assert str(load_file(tmp_path / "out" / hf.SINGLE)["model.norm.weight"].dtype) == f"torch.{written}"


def test_a_weight_that_float16_cannot_hold_is_named(tmp_path):
    make(tmp_path / "in", *VARIANTS["llama"])
    write_config(tmp_path / "in", dtype="float16")
    edit_tensors(tmp_path / "in", lambda t: t["model.norm.weight"].fill_(1e5))
    _, params = ours(tmp_path / "in")
    with pytest.raises(RunError, match="tensor model.norm.weight has numbers up to 1e[+]05, which float16"):
        hf.save(str(tmp_path / "out"), params, str(tmp_path / "in"))


@pytest.mark.parametrize("variant", ["llama", "llama 3"])
def test_an_exported_config_has_the_rotary_base_in_both_spellings(variant, tmp_path):
    make(tmp_path / "in", *VARIANTS[variant])
    rope = json.loads((tmp_path / "in" / "config.json").read_text())["rope_parameters"] | {"rope_theta": 5e5}
    write_config(tmp_path / "in", rope_parameters=rope, rope_theta=...)
    _, params = ours(tmp_path / "in")
    hf.save(str(tmp_path / "out"), params, str(tmp_path / "in"))
    assert hf.architecture(str(tmp_path / "out")) == hf.architecture(str(tmp_path / "in"))
    assert_same_logits(tmp_path / "out")
    said = json.loads((tmp_path / "out" / "config.json").read_text())
    scaling = None if variant == "llama" else {k: v for k, v in rope.items() if k != "rope_theta"}
    assert (said["rope_theta"], said["rope_scaling"]) == (5e5, scaling)  # all that versions before 5 look at
    write_config(tmp_path / "out", rope_parameters=...)
    assert_same_logits(tmp_path / "out")


def test_what_is_no_folder_of_a_model_is_said(tmp_path):
    make(tmp_path, *VARIANTS["llama"])
    (tmp_path / "adapter_config.json").write_text("{}")
    for read in (hf.architecture, ours):
        with pytest.raises(RunError, match="holds an adapter .*; merge it"):
            read(str(tmp_path))
    (tmp_path / "adapter_config.json").unlink()
    weights = tmp_path / hf.SINGLE
    weights.rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(RunError, match="pytorch_model.bin is not read; save the model as safetensors"):
        ours(tmp_path)
    weights.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(RunError, match="is a pointer of Git LFS"):
        ours(tmp_path)
    weights.unlink()
    os.mkfifo(weights)
    with pytest.raises(RunError, match="no regular file"):
        ours(tmp_path)
    config = tmp_path / "config.json"
    for target, says in (
        ("/dev/zero", "no regular file"),
        (str(tmp_path), "no regular file"),
        ("config.json", "oops|link"),
    ):
        config.unlink()
        config.symlink_to(target)
        with pytest.raises(RunError, match=f"config.json cannot be read .*({says})"):
            hf.architecture(str(tmp_path))
