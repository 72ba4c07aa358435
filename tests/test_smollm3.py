"""Layers without rotary positions, by SmolLM3: in rows, in scans, in the engine, at the gate, in folders."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from fakes import LOGITS, SMALL
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
    plain_logits,
)
from shared_learner import items, packed

from atgrpo_jax.arrays.mesh import MeshConfig
from atgrpo_jax.common.errors import RunError
from atgrpo_jax.models.config import Architecture, preset
from atgrpo_jax.models.families.table import transformer
from atgrpo_jax.models.hf import hf
from atgrpo_jax.models.lora import LoraConfig
from atgrpo_jax.update.batch import BatchConfig
from atgrpo_jax.update.learner import Learner, UpdateInputs
from atgrpo_jax.update.objectives import LossConfig
from atgrpo_jax.update.optimizer import OptimizerConfig
from atgrpo_jax.update.updates import STATE_FINITE

# No positions in the second layer.
NOPE = Architecture(
    layers=3, width=32, mlp_width=48, heads=4, kv_heads=2, head_size=8, family="smollm3",
    rotary=(True, False), rope_theta=1000.0,
)  # fmt: skip
MODEL = transformer(NOPE, 64)


@pytest.fixture(scope="module")
def params():
    return moved(MODEL)


def test_positions_are_told_by_layer():
    taking_turns = dataclasses.replace(NOPE, layers=4, rotary=(True, False) * 2)
    assert taking_turns.rotary == (True, False) and taking_turns.period == 2
    assert [taking_turns.rope(i) for i in range(4)] == [(1000.0, None), None] * 2
    assert dataclasses.replace(NOPE, rotary=(True, True)).rotary == ()
    assert dataclasses.replace(NOPE, layers=1).rotary == ()
    assert dataclasses.replace(NOPE, rotary=(False,)).rotary == (False,)
    both = dataclasses.replace(NOPE, layers=12, windows=(6, 0, 0), rotary=(True, False))
    assert both.period == 6


def test_runs_from_before_there_were_such_layers_are_known_by_the_same_text():
    """The identity of a run is made of it."""
    assert repr(SMALL).endswith("query_scalar=None, experts=None)")
    assert repr(NOPE).endswith("query_scalar=None, experts=None, rotary=(True, False))")
    assert eval(repr(NOPE)) == NOPE


def test_a_layer_without_positions_hears_no_order(params):
    """With such layers alone, tokens that are seen in another order are the same to the last one."""
    bag = transformer(dataclasses.replace(NOPE, layers=1, rotary=(False,)), 64)
    one = plain_logits(bag, params, np.array([5, 6, 7, 8]))
    other = plain_logits(bag, params, np.array([7, 5, 6, 8]))
    np.testing.assert_allclose(one[-1], other[-1], rtol=0, atol=1e-5)
    plain = transformer(dataclasses.replace(NOPE, layers=1), 64)
    one, other = (plain_logits(plain, params, np.array(row)) for row in ([5, 6, 7, 8], [7, 5, 6, 8]))
    assert jnp.abs(one[-1] - other[-1]).max() > 1e-2


@pytest.mark.parametrize("tokens", [48, 192], ids=["one tile", "three tiles"])
def test_packed_rows_are_as_if_each_were_alone(params, tokens):
    check_rows(MODEL, params, tokens)


@pytest.mark.thorough
def test_prefix_shared_equals_separate_rows(params):
    check_shared_prefixes(MODEL, params)


@pytest.mark.thorough
def test_periods_of_blocks_are_scanned():
    """Five layers: two periods, and one layer more."""
    check_scan(dataclasses.replace(NOPE, layers=5, rotary=(True, False)))


@pytest.mark.thorough
@pytest.mark.parametrize("mesh", [None, MeshConfig(data=2, tensor=2)], ids=["one device", "a mesh"])
def test_samples_have_the_learners_logprobs(params, mesh):
    assert len(check_samples(MODEL, params, mesh)) == 15


def test_the_gate_knows_such_layers(params):
    check_gate(MODEL, params)


def test_each_layer_matters(params):
    check_each_matters(NOPE, params, ({"rotary": ()}, {"rotary": (False, True)}, {"rope_theta": 10.0}))


@pytest.mark.thorough
@pytest.mark.parametrize("lora", [None, LoraConfig(rank=2)], ids=["all", "adapters"])
def test_an_update_moves_queries_and_keys_of_all_layers(params, lora):
    optimizer = OptimizerConfig(learning_rate=1e-2)
    learner = Learner(MODEL, optimizer, LossConfig().objective(), MeshConfig().build(), lora)
    state = learner.init(jax.random.key(0))
    before = jax.tree.map(np.asarray, state.params)
    batch = packed(items(lengths=((9, 3, 2), (4, 8, 5))), BatchConfig(row_tokens=48, rows=2))
    state, metrics = learner.update(state, UpdateInputs(batch, base=params if lora else None))
    assert metrics[STATE_FINITE]
    for layer in range(NOPE.layers):
        for name in ("q", "k", "o", "down"):
            was, now = (
                tree[f"layer_{layer}"][name]["b" if lora else "kernel"] for tree in (before, state.params)
            )
            assert jnp.abs(now - was).max() > 1e-4, (layer, name)


def assert_same_logits(root):
    tokens = np.random.default_rng(0).integers(0, 96, (2, 60))
    with torch.no_grad():
        expected = transformers.AutoModelForCausalLM.from_pretrained(root)(torch.tensor(tokens)).logits
    np.testing.assert_allclose(forward(*ours(root), jnp.asarray(tokens))[2], expected.numpy(), **LOGITS)


# Llama 3's scaling, from the length that the model has by another field.
SCALED = {name: value for name, value in LLAMA3.items() if not name.startswith("original")}


@pytest.mark.parametrize(
    ("fields", "rotary"),
    [
        ({}, (True, True, True, False)),
        ({"no_rope_layers": ...}, (True, True, True, False)),
        ({"no_rope_layers": None, "no_rope_layer_interval": 2}, (True, False)),
        ({"no_rope_layers": None, "no_rope_layer_interval": 1}, (False,)),
        ({"no_rope_layers": None, "no_rope_layer_interval": 9}, ()),
        ({"no_rope_layers": [0, 0, 1, 1, 0, 0]}, (False, False, True, True)),
        ({"rope_parameters": ..., "rope_theta": ...}, (True, True, True, False)),
        ({"rope_parameters": {"rope_type": "default"}}, (True, True, True, False)),
        ({"rope_parameters": ..., "rope_theta": 5e4}, (True, True, True, False)),
        ({"rope_parameters": LLAMA3}, (True, True, True, False)),
        ({"rope_parameters": SCALED, "max_position_embeddings": ...}, (True, True, True, False)),
        ({"tie_word_embeddings": ..., "pretraining_tp": 2, "layer_types": ...}, (True, True, True, False)),
    ],
    ids=str,
)
def test_what_a_config_says_is_what_transformers_takes(fields, rotary, tmp_path):
    make(tmp_path, *VARIANTS["smollm3"])
    edit(tmp_path, **fields)
    assert hf.architecture(str(tmp_path)).rotary == rotary
    assert_same_logits(tmp_path)


def test_heads_of_keys_are_four_where_nothing_is_said(tmp_path):
    make(tmp_path, "SmolLM3", {"num_attention_heads": 8, "num_key_value_heads": 4, "pad_token_id": 0})
    edit(tmp_path, num_key_value_heads=...)
    assert_same_logits(tmp_path)


@pytest.mark.parametrize("rope", [{"rope_type": "default"}, ...], ids=["without a base", "nothing"])
def test_an_exported_config_has_the_familys_own_base(rope, tmp_path):
    """Where the folder does not say it; older versions of ``transformers`` look for it beside the rest."""
    make(tmp_path / "in", *VARIANTS["smollm3"])
    edit(tmp_path / "in", rope_parameters=rope, rope_theta=...)
    _, params = ours(tmp_path / "in")
    hf.save(str(tmp_path / "out"), params, str(tmp_path / "in"))
    assert json.loads((tmp_path / "out" / "config.json").read_text())["rope_theta"] == 2e6
    assert hf.architecture(str(tmp_path / "out")) == hf.architecture(str(tmp_path / "in"))
    assert_same_logits(tmp_path / "out")


def test_a_random_one_is_written_as_one_that_transformers_loads(params, tmp_path):
    hf.save(str(tmp_path), params, hf.description(NOPE, 64, (7,)))
    assert hf.architecture(str(tmp_path)) == dataclasses.replace(NOPE, vocab_size=64)
    tokens = np.random.default_rng(0).integers(0, 64, (2, 40))
    with torch.no_grad():
        theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)(torch.tensor(tokens)).logits
    np.testing.assert_allclose(forward(*ours(tmp_path), jnp.asarray(tokens))[2], theirs.numpy(), **LOGITS)


# The config.json of HuggingFaceTB/SmolLM3-3B.
PUBLISHED = {
    "architectures": ["SmolLM3ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
    "bos_token_id": 128000, "eos_token_id": 128012, "hidden_act": "silu", "hidden_size": 2048,
    "initializer_range": 0.02, "intermediate_size": 11008, "layer_types": ["full_attention"] * 36,
    "max_position_embeddings": 65536, "max_window_layers": 28, "mlp_bias": False, "model_type": "smollm3",
    "no_rope_layer_interval": 4, "no_rope_layers": [1, 1, 1, 0] * 9, "num_attention_heads": 16,
    "num_hidden_layers": 36, "num_key_value_heads": 4, "pad_token_id": 128004, "pretraining_tp": 2,
    "rms_norm_eps": 1e-06, "rope_scaling": None, "rope_theta": 5000000.0, "sliding_window": None,
    "torch_dtype": "bfloat16", "use_cache": False, "use_sliding_window": False, "vocab_size": 128256,
}  # fmt: skip


def test_the_preset_is_the_published_one(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED))
    assert hf.architecture(str(tmp_path)) == preset("smollm3-3b")
    assert hf.end_ids(str(tmp_path)) == {128012}


def test_what_ends_a_sequence_where_nothing_is_said(tmp_path):
    make(tmp_path, *VARIANTS["smollm3"])
    edit(tmp_path, eos_token_id=...)
    (tmp_path / "generation_config.json").unlink(missing_ok=True)
    assert hf.end_ids(str(tmp_path)) == {transformers.AutoConfig.from_pretrained(tmp_path).eos_token_id}


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"no_rope_layers": [1, 0]}, r"no_rope_layers = \[1, 0\] .* expected 1 or 0 for each of 4 layers"),
        ({"no_rope_layers": [1, 2, 1, 0]}, r"no_rope_layers = \[1, 2, 1, 0\]"),
        ({"no_rope_layers": "1110"}, "no_rope_layers = '1110'"),
        ({"no_rope_layers": None, "no_rope_layer_interval": 0}, "no_rope_layer_interval = 0"),
        ({"use_sliding_window": True, "layer_types": None}, "use_sliding_window = True"),
        ({"layer_types": ["full_attention"] * 3 + ["sliding_attention"]}, "layer_types = .* full_attention"),
        ({"attention_bias": True}, "attention_bias = True"),
        ({"mlp_bias": True}, "mlp_bias = True"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "rope_parameters = 'yarn' .* default or"),
        ({"rope_theta": 5.0}, "rope_theta = 5.0 .* expected 2000000.0, as in rope_parameters"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(fields, says, tmp_path):
    make(tmp_path, *VARIANTS["smollm3"])
    edit(tmp_path, **fields)
    with pytest.raises(RunError, match=f"config.json: .*{says}|config.json: {says}") as error:
        hf.architecture(str(tmp_path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "wrong", [{"family": "llama"}, {"family": "gemma3_text"}, {"windows": (6,)}], ids=str
)
def test_an_architecture_that_no_family_has_is_refused(wrong):
    with pytest.raises(ValueError, match=r"Architecture\.(rotary|windows) = "):
        transformer(dataclasses.replace(NOPE, **wrong), 64)
