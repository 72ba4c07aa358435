"""The model against a plain NumPy version written from the architecture's description, token by token."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fakes import PARITY, SMALL

from atgrpo_jax.models.attention import masked_attention
from atgrpo_jax.models.config import Architecture, Compute, Experts
from atgrpo_jax.models.families.table import FAMILIES, transformer
from atgrpo_jax.models.transformer import init_params, join_layers, logits

CONFIG = dataclasses.replace(SMALL, rms_epsilon=1e-3)  # one that shows
MODEL = transformer(CONFIG, 64)
TOKENS = np.random.default_rng(0).integers(0, 64, (2, 9)).astype(np.int32)


@pytest.fixture(scope="module")
def params():
    fresh = init_params(MODEL, jax.random.key(0))
    # Norm scales start at one; move them, so that a forgotten scale shows.
    return jax.tree.map(
        lambda x: x + 0.1 * jnp.cos(jnp.arange(x.size, dtype=x.dtype)) if x.ndim == 1 else x, fresh
    )


def causal(q, k, v, *_):
    size = q.shape[1]
    return masked_attention(q, k, v, jnp.tril(jnp.ones((1, size, size), bool))), None


def positions(tokens):
    return np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)


def numpy_logits(p, tokens):
    c = CONFIG

    def norm(x, scale):
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + c.rms_epsilon) * scale

    def rope(x, t):
        half = c.head_size // 2
        angle = t * c.rope_theta ** (-np.arange(half) / half)
        a, b = x[:half], x[half:]
        return np.concatenate([a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)])

    x = [p["embedding"][t] for t in tokens]
    for i in range(c.layers):
        w = p[f"layer_{i}"]
        keys, values = [], []
        for t in range(len(tokens)):
            h = norm(x[t], w["attention_norm"]["scale"])
            q = (h @ w["q"]["kernel"]).reshape(c.heads, -1)
            k = (h @ w["k"]["kernel"]).reshape(c.kv_heads, -1)
            q = [rope(norm(head, w["q_norm"]["scale"]), t) for head in q]
            keys.append([rope(norm(head, w["k_norm"]["scale"]), t) for head in k])
            values.append((h @ w["v"]["kernel"]).reshape(c.kv_heads, -1))
            out = []
            for n in range(c.heads):
                m = n // (c.heads // c.kv_heads)
                scores = np.array([q[n] @ key[m] for key in keys]) / np.sqrt(c.head_size)
                probs = np.exp(scores - scores.max())
                probs /= probs.sum()
                out.append(sum(pr * value[m] for pr, value in zip(probs, values, strict=True)))
            x[t] = x[t] + np.concatenate(out) @ w["o"]["kernel"]
        for t in range(len(tokens)):
            h = norm(x[t], w["mlp_norm"]["scale"])
            gate = h @ w["gate"]["kernel"]
            silu = gate / (1 + np.exp(-gate))
            x[t] = x[t] + (silu * (h @ w["up"]["kernel"])) @ w["down"]["kernel"]
    return np.stack([norm(h, p["norm"]["scale"]) @ p["embedding"].T for h in x])


@pytest.mark.thorough
@pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["eager", "jitted"])
def test_against_numpy(params, transform):
    def forward(params, tokens_BT):
        hidden_BTD, _ = MODEL.apply({"params": params}, tokens_BT, positions(TOKENS), causal)
        return logits(params, hidden_BTD)

    ours = transform(forward)(params, TOKENS)
    wide = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    for row, tokens in zip(ours, TOKENS, strict=True):
        np.testing.assert_allclose(row, numpy_logits(wide, tokens), **PARITY)


def test_later_tokens_change_nothing_before_them(params):
    changed = TOKENS.copy()
    changed[:, -1] += 1
    one, _ = MODEL.apply({"params": params}, TOKENS, positions(TOKENS), causal)
    other, _ = MODEL.apply({"params": params}, changed % 64, positions(TOKENS), causal)
    np.testing.assert_array_equal(one[:, :-1], other[:, :-1])
    assert (one[:, -1] != other[:, -1]).any()


@pytest.mark.parametrize("family", FAMILIES)
def test_joined_layers_give_the_same(family):
    experts = Experts(count=4, chosen=2, width=8) if family == "qwen3_moe" else None
    model = transformer(dataclasses.replace(CONFIG, family=family, experts=experts), 64)
    params = init_params(model, jax.random.key(1))
    params = jax.tree.map(
        lambda x: x + 0.1 * jnp.cos(jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape), params
    )
    plain, _ = model.apply({"params": params}, TOKENS, positions(TOKENS), causal)
    fused, _ = model.clone(joined=True).apply(
        {"params": join_layers(params, model.family.joined)}, TOKENS, positions(TOKENS), causal
    )
    np.testing.assert_allclose(fused, plain, **PARITY)


def test_only_distances_between_positions_matter(params):
    one, _ = MODEL.apply({"params": params}, TOKENS, positions(TOKENS), causal)
    far, _ = MODEL.apply({"params": params}, TOKENS, positions(TOKENS) + 100, causal, limit=109)
    np.testing.assert_allclose(one, far, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "wrong", [{"heads": 4, "kv_heads": 3}, {"head_size": 7}, {"layers": 0}, {"family": "gpt2"}]
)
def test_an_architecture_that_there_cannot_be_is_refused(wrong):
    with pytest.raises(ValueError, match=r"Architecture\."):
        transformer(Architecture(**wrong), 64)


@pytest.mark.parametrize("wrong", [{"dtype": "float16"}, {"remat": "all"}, {"attention": "fast"}])
def test_what_cannot_be_computed_is_refused(wrong):
    with pytest.raises(ValueError, match=r"Compute\."):
        Compute(**wrong)
