"""What the tests of the in-process engine share: a small engine, and requests to it."""

import asyncio
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fakes import small_model

from atgrpo_jax.arrays.mesh import MeshConfig
from atgrpo_jax.common.types import Address, GroupKey, Sampling
from atgrpo_jax.engines.local.local import LocalEngine, LocalEngineConfig
from atgrpo_jax.engines.protocol import Request
from atgrpo_jax.models.attention import masked_attention
from atgrpo_jax.models.packed import Packed
from atgrpo_jax.models.transformer import PolicyWeights, init_params, logits

MODEL = small_model()
STOP = 3
batch_logprobs = jax.jit(Packed(MODEL, MeshConfig().build()).logprobs)
CONFIG = LocalEngineConfig(slots=12, page=8, max_prompt=32, prompt_cache=256, prefill=16)


@pytest.fixture(scope="module")
def params():
    return init_params(MODEL, jax.random.key(0))


@pytest.fixture
def engine(params):
    engine = LocalEngine(MODEL, (STOP,), CONFIG)
    engine.push_weights("shared", PolicyWeights(params), version=7)
    return engine


def request(prompt, instance=0, k=3, step=1, seed=0, policy="shared", **sampling):
    key = GroupKey(step, "train", instance, 0, 0, "a")
    addresses = tuple(Address(seed, key, i) for i in range(k))
    return Request(policy, tuple(prompt), addresses, Sampling(**({"max_tokens": 8} | sampling)))


def draw(engine, *requests):
    async def everything():
        return await asyncio.gather(*map(engine.sample, requests))

    return asyncio.run(everything())


@jax.jit
def _forward(params, ids, positions):
    def causal(q, k, v, *_):
        size = q.shape[1]
        return masked_attention(q, k, v, jnp.tril(jnp.ones((1, size, size), bool))), None

    hidden, _ = MODEL.apply({"params": params}, ids, positions, causal)
    return logits(params, hidden)


def next_logits(params, tokens):
    """After ``tokens``, by one plain forward pass."""
    ids = np.zeros((1, 16), np.int32)  # one shape for all lengths
    ids[0, : len(tokens)] = tokens
    positions = np.arange(16, dtype=np.int32)[None]
    return _forward(params, ids, positions)[0, len(tokens) - 1]


def many(n=11):
    rng = random.Random(0)
    return [request([rng.randrange(64) for _ in range(rng.randint(1, 20))], i) for i in range(n)]
