"""Layers with windows, by Gemma 3: in rows, in scans, in the engine, at the gate, and in folders."""

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
from shared_learner import items, loss_of, packed, separate_rows
from shared_local import CONFIG, STOP, draw, request

from atgrpo_jax.arrays.mesh import MeshConfig
from atgrpo_jax.common.errors import RunError
from atgrpo_jax.common.types import Candidate, Group, Origin, Outcome
from atgrpo_jax.credit.groups import Credited
from atgrpo_jax.engines.gate import next_logprobs
from atgrpo_jax.engines.local.local import LocalEngine
from atgrpo_jax.models.attention import causal_mask, masked_attention, narrower
from atgrpo_jax.models.config import Architecture, Compute
from atgrpo_jax.models.families.table import transformer
from atgrpo_jax.models.hf import hf
from atgrpo_jax.models.packed import Packed
from atgrpo_jax.models.transformer import PolicyWeights, init_params, logits
from atgrpo_jax.update.batch import BatchConfig, pack

# Windows of six tokens in the first and the last layer.
GEMMA = Architecture(
    layers=3, width=32, mlp_width=48, heads=4, kv_heads=2, head_size=8, family="gemma3_text",
    windows=(6, 0), rope_theta=1000.0, local_rope_theta=10.0, query_scalar=4,
)  # fmt: skip
MODEL = transformer(GEMMA, 64)
LONGEST = 48  # tokens of a plain row
PACKED = Packed(MODEL, MeshConfig().build())
batch_logprobs = jax.jit(PACKED.logprobs)


def moved(model):
    """Fresh parameters, but norms after attention and MLP start small; here all blocks are heard."""

    def move(path, x):
        if x.ndim > 1:
            return x
        return x + 0.3 * jnp.cos(jnp.arange(x.size, dtype=x.dtype)) + 0.9 * ("out_norm" in str(path))

    fresh = jax.jit(functools.partial(init_params, model))(jax.random.key(0))
    return jax.tree_util.tree_map_with_path(move, fresh)


@pytest.fixture(scope="module")
def params():
    return moved(MODEL)


@functools.partial(jax.jit, static_argnums=0)
def _plain_logits(model, params, tokens_BT):
    def attend(q, k, v, _, window):
        return masked_attention(q, k, v, causal_mask(jnp.arange(LONGEST)[None], window)), None

    hidden, _ = model.apply({"params": params}, tokens_BT, jnp.arange(LONGEST)[None], attend)
    return logits(params, hidden)[0]


def plain_logits(model, params, tokens):
    """Of one row, by a mask; at one length, so that little is compiled."""
    padded = np.zeros((1, LONGEST), np.int32)
    padded[0, : len(tokens)] = tokens
    return _plain_logits(model, params, padded)[: len(tokens)]


def micro_of(groups, config):
    (micro,) = [jax.tree.map(lambda x: x[0], packed(groups, config))]
    return micro


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
    """Rows with a prompt and branches, of one tile and of more, give each candidate's own row's logprobs."""
    lengths = (3, 9, 12) if tokens == 48 else (20, 30, 25)
    groups = items(lengths=(lengths, (1, 2, 3)))
    micro = micro_of(groups, BatchConfig(row_tokens=tokens, rows=1) if tokens > 100 else BatchConfig(48, 2))
    logprobs, _ = batch_logprobs(PolicyWeights(params), micro)
    found = np.asarray(logprobs)[micro.trained.weights > 0]
    expected = []
    for item in groups:
        prompt = item.group.origin.prompt_ids
        for candidate in item.group.candidates:
            row = [*prompt, *candidate.sample.tokens]
            scores = jax.nn.log_softmax(plain_logits(MODEL, params, row))[len(prompt) - 1 : -1]
            expected.append(scores[np.arange(len(candidate.sample.tokens)), candidate.sample.tokens])
    np.testing.assert_allclose(np.sort(found), np.sort(np.concatenate(expected)), **PARITY)


@pytest.mark.thorough
def test_prefix_shared_equals_separate_rows(params):
    """Loss and gradient, on rows of two tiles, whose windows begin in the prompt."""
    groups = items(lengths=((20, 30, 25), (9, 8, 7)))
    shared = packed(groups, BatchConfig(row_tokens=128, rows=1))
    separate = packed(separate_rows(groups), BatchConfig(row_tokens=64, rows=2))
    one, other = (loss_of(PACKED, params, batch) for batch in (shared, separate))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **PARITY), one, other)


@pytest.mark.thorough
def test_periods_of_blocks_are_scanned():
    """Five layers: two periods, and one layer more."""
    longer = dataclasses.replace(GEMMA, layers=5)
    params = moved(transformer(longer, 64))
    batch = packed(items(lengths=((9, 3, 2),)), BatchConfig(row_tokens=32, rows=1))

    def loss(compute):
        rows = Packed(transformer(longer, 64, compute), MeshConfig().build())
        return loss_of(rows, params, batch)

    plain = loss(Compute())
    scanned = loss(Compute(remat="block", scan=True))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **PARITY), plain, scanned)


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
    """Prompts of less than a window to five of them, in pages of eight; answers of up to two windows."""
    engine = LocalEngine(MODEL, (STOP,), CONFIG, mesh and mesh.build())
    engine.push_weights("shared", PolicyWeights(params), 7)
    requests = [request(range(4, 4 + n), n, max_tokens=14) for n in (3, 5, 8, 13, 30)]
    beyond = 0
    for one, samples in zip(requests, draw(engine, *requests), strict=True):
        origin = Origin(one.addresses[0].group, one.prompt_ids, "", "shared", 7, one.sampling)
        members = tuple(Candidate(origin, s, "", Outcome.OK, None) for s in samples)
        item = Credited(Group(members, 0), np.ones(3, np.float32), np.ones(3, bool))
        micro = jax.tree.map(lambda x: x[0], pack([item], BatchConfig(128, 1), "token", 1))
        logprobs, _ = batch_logprobs(PolicyWeights(params), micro)
        trained = micro.trained.weights > 0
        np.testing.assert_allclose(
            np.asarray(logprobs)[trained], micro.trained.old_logprobs[trained], rtol=0, atol=1e-4
        )
        beyond += sum(len(sample.tokens) > 6 for sample in samples)
    assert beyond > 5  # answers that are longer than a window


def test_the_gate_knows_windows(params):
    tokens = np.random.default_rng(0).integers(0, 64, (2, 16))
    found = next_logprobs(MODEL, PolicyWeights(params), tokens, 1.0)
    for row, logprobs in zip(tokens, found, strict=True):
        expected = jax.nn.log_softmax(plain_logits(MODEL, params, row)[-1])
        np.testing.assert_allclose(logprobs, expected, **PARITY)


def test_each_window_matters(params):
    tokens = np.random.default_rng(0).integers(0, 64, 30)
    base = plain_logits(MODEL, params, tokens)
    for changes in (
        {"windows": ()},
        {"windows": (7, 7, 0)},
        {"local_rope_theta": 11.0},
        {"query_scalar": 5},
    ):
        other = transformer(dataclasses.replace(GEMMA, **changes), 64)
        assert jnp.abs(plain_logits(other, params, tokens) - base).max() > 1e-3


def test_a_random_one_is_written_as_one_that_transformers_loads(params, tmp_path):
    hf.save(str(tmp_path), params, hf.description(GEMMA, 64, (7,)))
    assert hf.architecture(str(tmp_path)) == dataclasses.replace(GEMMA, vocab_size=64)
    tokens = np.random.default_rng(0).integers(0, 64, (2, 40))
    with torch.no_grad():
        theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)(torch.tensor(tokens)).logits
    _, read = ours(tmp_path)
    for row, expected in zip(tokens, theirs.numpy(), strict=True):
        np.testing.assert_allclose(plain_logits(MODEL, read, row), expected, **LOGITS)


def edit(folder, **fields):
    path = folder / "config.json"
    said = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({name: value for name, value in said.items() if value is not ...}))


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
    [{"windows": (6, 7)}, {"family": "qwen3"}, {"windows": (-1,)}, {"local_rope_theta": 0.0}],
)
def test_an_architecture_that_no_family_has_is_refused(wrong):
    with pytest.raises(ValueError, match=r"Architecture\."):
        transformer(dataclasses.replace(GEMMA, **wrong), 64)
