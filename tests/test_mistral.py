"""Mistral, whose layers share a window, and Ministral, whose layers take turns: computed, read, written."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from fakes import LOGITS
from reference import LLAMA3, VARIANTS, forward, make, ours
from shared_families import (
    check_each_matters,
    check_gate,
    check_rows,
    check_samples,
    check_scan,
    check_shared_prefixes,
    edit,
    moved,
)

from atgrpo_jax.common.errors import RunError
from atgrpo_jax.models.config import Architecture, Experts, RopeStretch, preset
from atgrpo_jax.models.families.table import transformer
from atgrpo_jax.models.hf import hf

# Windows of six tokens in all layers, or in all but the first.
MISTRAL = Architecture(
    layers=3, width=32, mlp_width=48, heads=4, kv_heads=2, head_size=8, family="mistral",
    windows=(6,), rope_theta=1000.0, tied=False,
)  # fmt: skip
MINISTRAL = dataclasses.replace(MISTRAL, family="ministral", windows=(0, 6, 6))
MODEL = transformer(MISTRAL, 64)


@pytest.fixture(scope="module")
def params():
    return moved(MODEL)


@pytest.mark.parametrize("tokens", [48, 192], ids=["one tile", "three tiles"])
def test_packed_rows_are_as_if_each_were_alone(params, tokens):
    check_rows(MODEL, params, tokens)


@pytest.mark.thorough
def test_prefix_shared_equals_separate_rows(params):
    check_shared_prefixes(MODEL, params)


@pytest.mark.thorough
@pytest.mark.parametrize("architecture", [MISTRAL, dataclasses.replace(MINISTRAL, layers=7)], ids=str)
def test_periods_of_blocks_are_scanned(architecture):
    check_scan(architecture)


@pytest.mark.thorough
@pytest.mark.parametrize("architecture", [MISTRAL, MINISTRAL], ids=["mistral", "ministral"])
def test_samples_have_the_learners_logprobs_across_the_windows_edge(params, architecture):
    samples = check_samples(transformer(architecture, 64), params)
    assert sum(len(sample.tokens) > 6 for sample in samples) > 5


def test_the_gate_knows_windows(params):
    check_gate(MODEL, params)


def test_each_window_matters(params):
    check_each_matters(MISTRAL, params, ({"windows": ()}, {"windows": (7,)}, {"rope_theta": 10.0}))
    check_each_matters(MINISTRAL, params, ({"windows": (6, 6, 0)}, {"family": "mistral", "windows": (6,)}))


def assert_same_logits(root):
    """Of rows that are longer than the window, however the folder's config.json says what it is."""
    tokens = np.random.default_rng(0).integers(0, 96, (2, 60))
    with torch.no_grad():
        expected = transformers.AutoModelForCausalLM.from_pretrained(root)(torch.tensor(tokens)).logits
    np.testing.assert_allclose(forward(*ours(root), jnp.asarray(tokens))[2], expected.numpy(), **LOGITS)


# Llama 3's scaling, from the length that the model has by another field.
SCALED = {name: value for name, value in LLAMA3.items() if not name.startswith("original")}
TYPES = ["full_attention", "sliding_attention", "sliding_attention"]


@pytest.mark.parametrize(
    ("fields", "family", "windows"),
    [
        ({"sliding_window": None}, "mistral", ()),
        ({"sliding_window": ...}, "mistral", (4096,)),
        ({"head_dim": ..., "num_key_value_heads": 3}, "mistral", (24,)),
        ({"layer_types": TYPES}, "ministral", (0, 24, 24)),
        ({"layer_types": ["full_attention"] * 3}, "ministral", ()),
        ({"model_type": "ministral"}, "ministral", (24,)),
        ({"model_type": "ministral", "layer_types": TYPES}, "ministral", (0, 24, 24)),
        ({"rope_parameters": SCALED}, "mistral", (24,)),
        ({"rope_parameters": SCALED, "max_position_embeddings": ...}, "mistral", (24,)),
        ({"rope_parameters": ..., "rope_theta": 5e5}, "mistral", (24,)),
        ({"use_sliding_window": False, "attention_dropout": 0.1}, "mistral", (24,)),  # not read
    ],
    ids=str,
)
def test_what_a_config_says_is_what_transformers_takes(fields, family, windows, tmp_path):
    make(tmp_path, *VARIANTS["mistral windowed"])
    edit(tmp_path, **fields)
    found = hf.architecture(str(tmp_path))
    assert (found.family, found.windows) == (family, windows)
    assert_same_logits(tmp_path)


def test_heads_of_keys_are_eight_where_nothing_is_said(tmp_path):
    make(tmp_path, "Mistral", {"num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 4})
    edit(tmp_path, num_key_value_heads=...)
    assert_same_logits(tmp_path)


@pytest.mark.parametrize("architecture", [MISTRAL, MINISTRAL], ids=["mistral", "ministral"])
def test_a_random_one_is_written_as_one_that_transformers_loads(params, architecture, tmp_path):
    hf.save(str(tmp_path), params, hf.description(architecture, 64, (7,)))
    assert hf.architecture(str(tmp_path)) == dataclasses.replace(architecture, vocab_size=64)
    tokens = np.random.default_rng(0).integers(0, 64, (2, 40))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(theirs).__name__ == f"{architecture.family.capitalize()}ForCausalLM"
    with torch.no_grad():
        expected = theirs(torch.tensor(tokens)).logits.numpy()
    np.testing.assert_allclose(forward(*ours(tmp_path), jnp.asarray(tokens))[2], expected, **LOGITS)


def test_an_export_says_of_windows_what_its_source_says(tmp_path):
    make(tmp_path / "in", *VARIANTS["mistral windowed"])
    edit(tmp_path / "in", layer_types=TYPES)
    _, params = ours(tmp_path / "in")
    hf.save(str(tmp_path / "out"), params, str(tmp_path / "in"))
    assert hf.architecture(str(tmp_path / "out")) == hf.architecture(str(tmp_path / "in"))
    assert_same_logits(tmp_path / "out")


# The config.json of mistralai/Mistral-7B-Instruct-v0.3.
PUBLISHED = {
    "architectures": ["MistralForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 1, "eos_token_id": 2,
    "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 14336,
    "max_position_embeddings": 32768, "model_type": "mistral", "num_attention_heads": 32,
    "num_hidden_layers": 32, "num_key_value_heads": 8, "rms_norm_eps": 1e-05, "rope_theta": 1000000.0,
    "sliding_window": None, "tie_word_embeddings": False, "torch_dtype": "bfloat16", "use_cache": True,
    "vocab_size": 32768,
}  # fmt: skip


def test_the_preset_is_the_published_one(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED))
    assert hf.architecture(str(tmp_path)) == preset("mistral-7b-v0.3")
    assert hf.end_ids(str(tmp_path)) == {2}


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"model_type": "ministral3"}, "model_type = 'ministral3' .* mistral, ministral"),
        ({"sliding_window": 0}, "sliding_window = 0 .* an integer from 1"),
        ({"sliding_window": "24"}, "sliding_window = '24'"),
        (
            {"sliding_window": None, "layer_types": TYPES},
            "sliding_window = None .* expected a size, as",
        ),
        ({"layer_types": ["chunked_attention"] * 3}, "layer_types = .* expected sliding_attention or full"),
        ({"layer_types": TYPES[:1]}, "layer_types = .* for each of 3 layers"),
        ({"layer_types": 3}, "layer_types = 3 .* for each of 3 layers"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
        ({"attention_bias": True}, "attention_bias = True"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_parameters = 'yarn' .* default or llama3"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, "rope_parameters = .* one for all"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(fields, says, tmp_path):
    make(tmp_path, *VARIANTS["mistral windowed"])
    edit(tmp_path, **fields)
    with pytest.raises(RunError, match=f"config.json: .*{says}|config.json: {says}") as error:
        hf.architecture(str(tmp_path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "wrong",
    [
        {"windows": (6, 0)},
        {"windows": (6, 7), "family": "ministral"},
        {"local_rope_theta": 10.0},
        {"query_scalar": 4},
        {"experts": Experts()},
        {"rotary": (True, False)},
        {"rope_scaling": RopeStretch()},
    ],
    ids=str,
)
def test_an_architecture_that_no_mistral_has_is_refused(wrong):
    with pytest.raises(ValueError, match=f"Architecture.{next(iter(wrong))} = "):
        transformer(dataclasses.replace(MISTRAL, **wrong), 64)
