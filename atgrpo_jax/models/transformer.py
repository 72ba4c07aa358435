"""A decoder in the Qwen3 architecture: RMSNorm, rotary positions, grouped queries with QK-norm, SwiGLU,
tied embeddings. Flax linen; pure functions of (params, arrays).

The caller says how queries meet keys: ``attend(q, k, v, cache) -> (out, cache)`` is called once a layer,
so training, prefill and decoding share this file and differ only in the function they pass.
"""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from atgrpo_jax.models.config import ModelConfig

Attend = Callable[[jax.Array, jax.Array, jax.Array, Any], tuple[jax.Array, Any]]

_KERNEL = nn.initializers.variance_scaling(1.0, "fan_in", "normal")
# Into the residual stream: a fresh block hardly changes it, so that tokens are heard through all blocks.
_OUT_KERNEL = nn.initializers.variance_scaling(0.05**2, "fan_in", "normal")


class RMSNorm(nn.Module):
    epsilon: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        wide = x.astype(jnp.float32)
        mean_square = jnp.mean(wide * wide, axis=-1, keepdims=True)
        return (wide * jax.lax.rsqrt(mean_square + self.epsilon)).astype(x.dtype) * scale.astype(x.dtype)


def rotations(positions_BT: jax.Array, size: int, theta: float) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines [B, T, 1, H / 2] of the rotary angles (2104.09864); made once for all layers."""
    half = size // 2
    frequencies = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angles = positions_BT[..., None, None].astype(jnp.float32) * frequencies
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x_BTNH: jax.Array, rotation: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Turns the pairs (i, i + H/2) by their angles."""
    cos, sin = rotation
    first, second = jnp.split(x_BTNH.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x_BTNH.dtype)


class Block(nn.Module):
    config: ModelConfig

    @nn.compact
    def __call__(self, x_BTD, rotation, attend: Attend, cache):
        c = self.config
        dtype = jnp.dtype(c.dtype)

        def dense(name, features, init=_KERNEL):
            return nn.Dense(features, use_bias=False, dtype=dtype, kernel_init=init, name=name)

        def heads(name, count):
            y = dense(name, count * c.head_size)(h_BTD)
            return y.reshape(*y.shape[:-1], count, c.head_size)

        h_BTD = RMSNorm(c.rms_epsilon, name="attention_norm")(x_BTD)
        q_BTNH = RMSNorm(c.rms_epsilon, name="q_norm")(heads("q", c.heads))
        k_BTMH = RMSNorm(c.rms_epsilon, name="k_norm")(heads("k", c.kv_heads))
        v_BTMH = heads("v", c.kv_heads)
        q_BTNH = rotate(q_BTNH, rotation)
        k_BTMH = rotate(k_BTMH, rotation)
        out_BTNH, cache = attend(q_BTNH, k_BTMH, v_BTMH, cache)
        x_BTD += dense("o", c.width, _OUT_KERNEL)(out_BTNH.reshape(*out_BTNH.shape[:-2], -1))

        h_BTD = RMSNorm(c.rms_epsilon, name="mlp_norm")(x_BTD)
        gate_BTF = nn.silu(dense("gate", c.mlp_width)(h_BTD))
        up_BTF = dense("up", c.mlp_width)(h_BTD)
        x_BTD += dense("down", c.width, _OUT_KERNEL)(gate_BTF * up_BTF)
        return x_BTD, cache


class Transformer(nn.Module):
    config: ModelConfig
    vocab_size: int

    def setup(self):
        self.embedding = self.param(
            "embedding", nn.initializers.normal(0.02), (self.vocab_size, self.config.width)
        )
        self.blocks = [Block(self.config, name=f"layer_{i}") for i in range(self.config.layers)]
        self.norm = RMSNorm(self.config.rms_epsilon)

    def __call__(
        self,
        tokens_BT: jax.Array,
        positions_BT: jax.Array,
        attend: Attend,
        caches: Sequence[Any] | None = None,
    ) -> tuple[jax.Array, list[Any]]:
        """Final hidden states [B, T, D], and what ``attend`` returned as each layer's cache."""
        x_BTD = self.embedding[tokens_BT].astype(self.config.dtype)
        rotation = rotations(positions_BT, self.config.head_size, self.config.rope_theta)
        new_caches = []
        for block, cache in zip(self.blocks, caches or [None] * len(self.blocks), strict=True):
            x_BTD, cache = block(x_BTD, rotation, attend, cache)
            new_caches.append(cache)
        return self.norm(x_BTD), new_caches


def init_params(model: Transformer, key: jax.Array) -> Any:
    """Fresh parameters, float32."""
    tokens_BT = jnp.zeros((1, 1), jnp.int32)
    return model.init(key, tokens_BT, tokens_BT, lambda q, k, v, cache: (q, None))["params"]


def logits(params: Any, hidden: jax.Array) -> jax.Array:
    """Tied head, in float32: hidden [..., D] -> [..., V]."""
    return hidden.astype(jnp.float32) @ params["embedding"].T.astype(jnp.float32)
