"""What the tests of families share: models that are heard; what holds of rows, scans and the engine."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
from fakes import PARITY
from shared_learner import items, loss_of, packed, separate_rows
from shared_local import CONFIG, STOP, draw, request

from atgrpo_jax.arrays.mesh import MeshConfig
from atgrpo_jax.common.types import Candidate, Group, Origin, Outcome
from atgrpo_jax.credit.groups import Credited
from atgrpo_jax.engines.gate import next_logprobs
from atgrpo_jax.engines.local.local import LocalEngine
from atgrpo_jax.models.attention import causal_mask, masked_attention
from atgrpo_jax.models.config import Compute
from atgrpo_jax.models.families.table import transformer
from atgrpo_jax.models.packed import Packed
from atgrpo_jax.models.transformer import PolicyWeights, init_params, logits
from atgrpo_jax.update.batch import BatchConfig, pack

LONGEST = 48  # tokens of a plain row


def moved(model):
    """Fresh parameters, but layers that add to the stream start small; here all blocks are heard."""

    def move(path, x):
        name = jax.tree_util.keystr(path)
        if x.ndim > 1:
            return x * 10 if "'o'" in name or "'down'" in name else x
        return x + 0.3 * jnp.cos(jnp.arange(x.size, dtype=x.dtype)) + 0.9 * ("out_norm" in name)

    fresh = jax.jit(functools.partial(init_params, model))(jax.random.key(0))
    return jax.tree_util.tree_map_with_path(move, fresh)


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


def rows_of(model):
    return Packed(model, MeshConfig().build())


def check_rows(model, params, tokens):
    """Rows with a prompt and branches, of one tile and of more, give each candidate's own row's logprobs."""
    lengths = (3, 9, 12) if tokens == 48 else (20, 30, 25)
    groups = items(lengths=(lengths, (1, 2, 3)))
    micro = micro_of(groups, BatchConfig(row_tokens=tokens, rows=1) if tokens > 100 else BatchConfig(48, 2))
    logprobs, _ = jax.jit(rows_of(model).logprobs)(PolicyWeights(params), micro)
    found = np.asarray(logprobs)[micro.trained.weights > 0]
    expected = []
    for item in groups:
        prompt = item.group.origin.prompt_ids
        for candidate in item.group.candidates:
            row = [*prompt, *candidate.sample.tokens]
            scores = jax.nn.log_softmax(plain_logits(model, params, row))[len(prompt) - 1 : -1]
            expected.append(scores[np.arange(len(candidate.sample.tokens)), candidate.sample.tokens])
    np.testing.assert_allclose(np.sort(found), np.sort(np.concatenate(expected)), **PARITY)


def check_shared_prefixes(model, params):
    """Loss and gradient, on rows of two tiles, are those of a row for each candidate."""
    groups = items(lengths=((20, 30, 25), (9, 8, 7)))
    shared = packed(groups, BatchConfig(row_tokens=128, rows=1))
    separate = packed(separate_rows(groups), BatchConfig(row_tokens=64, rows=2))
    one, other = (loss_of(rows_of(model), params, batch) for batch in (shared, separate))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **PARITY), one, other)


def check_scan(architecture):
    """Periods of blocks are scanned, and the layers after the last whole one are not."""
    batch = packed(items(lengths=((9, 3, 2),)), BatchConfig(row_tokens=32, rows=1))
    params = moved(transformer(architecture, 64))
    computes = Compute(), Compute(remat="block", scan=True)
    plain, scanned = (loss_of(rows_of(transformer(architecture, 64, c)), params, batch) for c in computes)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **PARITY), plain, scanned)


def check_samples(model, params, mesh=None):
    """Samples have the learner's logprobs, by prompts of 3 to 30 tokens, in pages of 8. Returns them."""
    engine = LocalEngine(model, (STOP,), CONFIG, mesh and mesh.build())
    engine.push_weights("shared", PolicyWeights(params), 7)
    requests = [request(range(4, 4 + n), n, max_tokens=14) for n in (3, 5, 8, 13, 30)]
    batch_logprobs = jax.jit(rows_of(model).logprobs)
    drawn = draw(engine, *requests)
    for one, samples in zip(requests, drawn, strict=True):
        origin = Origin(one.addresses[0].group, one.prompt_ids, "", "shared", 7, one.sampling)
        members = tuple(Candidate(origin, s, "", Outcome.OK, None) for s in samples)
        item = Credited(Group(members, 0), np.ones(3, np.float32), np.ones(3, bool))
        micro = jax.tree.map(lambda x: x[0], pack([item], BatchConfig(128, 1), "token", 1))
        logprobs, _ = batch_logprobs(PolicyWeights(params), micro)
        trained = micro.trained.weights > 0
        np.testing.assert_allclose(
            np.asarray(logprobs)[trained], micro.trained.old_logprobs[trained], rtol=0, atol=1e-4
        )
    return [sample for samples in drawn for sample in samples]


def check_gate(model, params):
    """What the gate computes is what a plain forward pass does."""
    tokens = np.random.default_rng(0).integers(0, 64, (2, 16))
    found = next_logprobs(model, PolicyWeights(params), tokens, 1.0)
    for row, logprobs in zip(tokens, found, strict=True):
        expected = jax.nn.log_softmax(plain_logits(model, params, row)[-1])
        np.testing.assert_allclose(logprobs, expected, **PARITY)


def check_each_matters(architecture, params, changes):
    """Each change of the architecture changes the logits."""
    tokens = np.random.default_rng(0).integers(0, 64, 30)
    base = plain_logits(transformer(architecture, 64), params, tokens)
    for change in changes:
        other = transformer(dataclasses.replace(architecture, **change), 64)
        assert jnp.abs(plain_logits(other, params, tokens) - base).max() > 1e-3, change


def edit(folder, **fields):
    """Fields of config.json; an ellipsis removes one."""
    path = folder / "config.json"
    said = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({name: value for name, value in said.items() if value is not ...}))
