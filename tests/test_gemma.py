"""Layers with windows, by Gemma 3: in rows, in scans, in the engine, at the gate, and in folders."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from fakes import LOGITS, PARITY
from reference import VARIANTS, forward, make, ours
from shared_families import (
    check_each_matters,
    check_gate,
    check_rows,
    check_samples,
    check_scan,
    check_shared_prefixes,
    edit,
    micro_of,
    moved,
    plain_logits,
    rows_of,
)
from shared_learner import items, loss_of, packed
from shared_local import CONFIG, STOP, draw, request

from atgrpo_jax.arrays.mesh import MeshConfig
from atgrpo_jax.common.errors import RunError
from atgrpo_jax.engines.local.local import LocalEngine
from atgrpo_jax.models.attention import narrower
from atgrpo_jax.models.config import Architecture, Compute, RopeStretch
from atgrpo_jax.models.families.table import transformer
from atgrpo_jax.models.hf import hf
from atgrpo_jax.models.packed import Packed
from atgrpo_jax.models.transformer import PolicyWeights
from atgrpo_jax.update.batch import BatchConfig

# Windows of six tokens in the first and the last layer.
GEMMA = Architecture(
    layers=3, width=32, mlp_width=48, heads=4, kv_heads=2, head_size=8, family="gemma3_text",
    windows=(6, 0), rope_theta=1000.0, local_rope_theta=10.0, query_scalar=4,
)  # fmt: skip
MODEL = transformer(GEMMA, 64)


@pytest.fixture(scope="module")
def params():
    return moved(MODEL)


def test_windows_are_told_by_layer():
    assert [GEMMA.window(i) for i in range(4)] == [6, None, 6, None] and GEMMA.period == 2
    assert GEMMA.rope(0) == (10.0, None) and GEMMA.rope(1) == (1000.0, None)
    assert dataclasses.replace(GEMMA, windows=(6, 0) * 2).windows == (6, 0)
    assert dataclasses.replace(GEMMA, windows=(6, 6, 0, 6, 6)).windows == (6, 6, 0)
    assert dataclasses.replace(GEMMA, windows=(0, 0)).windows == ()
    assert dataclasses.replace(GEMMA, layers=1).windows == (6,)
    assert narrower(6, 6) is None and narrower(6, 7) == 6 and narrower(None, 7) is None


@pytest.mark.parametrize("tokens", [48, 192], ids=["one tile", "three tiles"])
def test_a_window_counts_positions_and_not_places(params, tokens):
    check_rows(MODEL, params, tokens)


@pytest.mark.thorough
def test_prefix_shared_equals_separate_rows(params):
    """The windows of rows of two tiles begin in the prompt."""
    check_shared_prefixes(MODEL, params)


@pytest.mark.thorough
def test_periods_of_blocks_are_scanned():
    """Five layers: two periods, and one layer more."""
    check_scan(dataclasses.replace(GEMMA, layers=5))


def test_norms_count_in_full_where_blocks_are_scanned(params):
    """As in the engine: 1 + scale is taken in float32, also if activations are bfloat16."""
    compute = Compute(dtype="bfloat16", scan=True)
    row = packed(items(lengths=((9, 3, 2),)), BatchConfig(row_tokens=32, rows=1))

    def logprobs(scale):
        def scaled(path, leaf):
            return (
                jnp.full_like(leaf, scale) if path[-1].key == "scale" and path[0].key == "layer_0" else leaf
            )

        own = jax.tree_util.tree_map_with_path(scaled, params)
        return loss_of(rows_of(transformer(GEMMA, 64, compute)), own, row)[0]

    assert logprobs(0.3) != logprobs(float(jnp.bfloat16(0.3)))


@pytest.mark.thorough
def test_kernels_are_taken_for_layers_without_a_window():
    """Interpreted: rows of two tiles, and answers in pages of sixteen."""
    wider = dataclasses.replace(GEMMA, layers=2, head_size=16)
    params = moved(transformer(wider, 64))
    micro = micro_of(items(lengths=((20, 30, 25),)), BatchConfig(row_tokens=128, rows=1))
    config = dataclasses.replace(CONFIG, page=16, prompt_cache=256)
    drawn = []
    found = []
    for attention in ("tiles", "fused"):
        model = transformer(wider, 64, Compute(attention=attention))
        rows = Packed(model, MeshConfig().build())
        program = jax.jit(rows.logprobs).lower(PolicyWeights(params), micro)
        found.append(program.compile()(PolicyWeights(params), micro)[0])
        engine = LocalEngine(model, (STOP,), config)
        engine.push_weights("shared", PolicyWeights(params), 7)
        drawn.append(draw(engine, request(range(4, 24), 0, max_tokens=20))[0])
        (shape,) = engine.shapes
        assert shape.sizes.fused == (attention == "fused")
    trained = micro.trained.weights > 0
    np.testing.assert_allclose(found[0][trained], found[1][trained], **PARITY)
    for one, other in zip(*drawn, strict=True):
        assert one.tokens == other.tokens
        np.testing.assert_allclose(one.logprobs, other.logprobs, **PARITY)


@pytest.mark.thorough
@pytest.mark.parametrize("mesh", [None, MeshConfig(data=2, tensor=2)], ids=["one device", "a mesh"])
def test_samples_have_the_learners_logprobs_across_the_windows_edge(params, mesh):
    """Prompts of less than a window to five of them; answers of up to two windows."""
    samples = check_samples(MODEL, params, mesh)
    assert sum(len(sample.tokens) > 6 for sample in samples) > 5


def test_the_gate_knows_windows(params):
    check_gate(MODEL, params)


def test_each_window_matters(params):
    changes = {"windows": ()}, {"windows": (7, 7, 0)}, {"local_rope_theta": 11.0}, {"query_scalar": 5}
    check_each_matters(GEMMA, params, changes)


def test_a_random_one_is_written_as_one_that_transformers_loads(params, tmp_path):
    hf.save(str(tmp_path), params, hf.description(GEMMA, 64, (7,)))
    assert hf.architecture(str(tmp_path)) == dataclasses.replace(GEMMA, vocab_size=64)
    tokens = np.random.default_rng(0).integers(0, 64, (2, 40))
    with torch.no_grad():
        theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)(torch.tensor(tokens)).logits
    _, read = ours(tmp_path)
    for row, expected in zip(tokens, theirs.numpy(), strict=True):
        np.testing.assert_allclose(plain_logits(MODEL, read, row), expected, **LOGITS)


OLD = {
    "rope_parameters": ..., "rope_theta": 3e4, "rope_local_base_freq": 100.0,
    "rope_scaling": {"type": "linear", "factor": 4.0},
}  # fmt: skip


@pytest.mark.parametrize(
    "fields",
    [OLD, {"layer_types": ..., "sliding_window_pattern": 2}, {"hidden_activation": ..., "rms_norm_eps": ...}],
    ids=["bases side by side", "a pattern", "defaults"],
)
def test_older_words_are_read_and_written(fields, tmp_path):
    theirs = make(tmp_path / "in", *VARIANTS["gemma 3 stretched"])
    edit(tmp_path / "in", **fields)
    _, params = ours(tmp_path / "in")
    hf.save(str(tmp_path / "out"), params, str(tmp_path / "in"))
    said = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (said["rope_theta"], said["rope_local_base_freq"]) == (3e4, 100.0)
    assert said["rope_scaling"] == {"rope_type": "linear", "factor": 4.0}
    tokens = np.random.default_rng(0).integers(0, 96, (1, 60))
    with torch.no_grad():
        expected = theirs(torch.tensor(tokens)).logits
        again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")(
            torch.tensor(tokens)
        ).logits
    np.testing.assert_allclose(again.numpy(), expected.numpy(), **LOGITS)
    np.testing.assert_allclose(
        forward(*ours(tmp_path / "out"), jnp.asarray(tokens))[2], expected.numpy(), **LOGITS
    )


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"model_type": "gemma3"}, "model_type = 'gemma3' is not supported; .* gemma3_text"),
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping = 30.0"),
        ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping = 50.0"),
        ({"use_bidirectional_attention": True}, "use_bidirectional_attention = True"),
        ({"hidden_activation": "silu"}, "hidden_activation = 'silu' .* expected 'gelu_pytorch_tanh'"),
        ({"layer_types": ["chunked_attention"] * 4}, "layer_types = .* expected sliding_attention or full"),
        ({"layer_types": ["full_attention"]}, "layer_types = .* for each of 4 layers"),
        ({"rope_parameters": {"rope_theta": 1e4}}, "rope_parameters = .* an object for full_attention"),
        ({"rope_theta": 5.0}, "rope_theta = 5.0 .* expected 30000.0, as in rope_parameters"),
        ({"rope_local_base_freq": 5.0}, "rope_local_base_freq = 5.0 .* expected 100.0"),
        ({"rope_scaling": {"rope_type": "yarn"}}, "rope_scaling: rope_type = 'yarn' .* default or linear"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "rope_parameters = .* what rope_scaling"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(fields, says, tmp_path):
    make(tmp_path, *VARIANTS["gemma 3 stretched"])
    edit(tmp_path, **fields)
    with pytest.raises(RunError, match=says) as error:
        hf.architecture(str(tmp_path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "wrong",
    [
        {"windows": (6, 7)},
        {"family": "qwen3"},
        {"windows": (-1,)},
        {"local_rope_theta": 0.0},
        {"local_rope_theta": None, "rope_scaling": RopeStretch(8.0)},
    ],
)
def test_an_architecture_that_no_family_has_is_refused(wrong):
    with pytest.raises(ValueError, match=r"Architecture\."):
        transformer(dataclasses.replace(GEMMA, **wrong), 64)
