"""Defines what families with one MLP a block share: its layers, their names, axes and sizes.

Axis letters beyond the package's: J adapters, X = N H.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from atgrpo_jax.common.jsonfile import Fields
from atgrpo_jax.models.config import Architecture, Compute
from atgrpo_jax.models.layers import KERNEL, OUT_KERNEL, Linear, rotate

QKV = "q", "k", "v"
GATE_UP = "gate", "up"
LINEAR = (*QKV, "o", *GATE_UP, "down")
SLIDING = "sliding_attention"  # a type of layers that see a window
FULL = "full_attention"
MODULES = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "q_norm": "self_attn.q_norm",
    "k_norm": "self_attn.k_norm",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
    "norm": "model.norm",
    "embedding": "model.embed_tokens",
    "head": "lm_head",
}
# The axes of each parameter, by the end of its path. The package's docstring explains the letters.
AXES = (
    (r"embedding$", "VD"),
    (r"head$", "DV"),
    (r"(q|k|v)/kernel$", "DN"),
    (r"(q|k|v)/bias$", "N"),
    (r"o/kernel$", "ND"),
    (r"(gate|up)/kernel$", "DF"),
    (r"down/kernel$", "FD"),
    # Adapters. Their rank R is not split: every device has all of it.
    (r"(q|k|v|gate|up)/a$", "DR"),
    (r"o/a$", "NR"),
    (r"down/a$", "FR"),
    (r"(q|k|v)/b$", "RN"),
    (r"(gate|up)/b$", "RF"),
    (r"(o|down)/b$", "RD"),
)


def kernels(c: Architecture) -> dict[str, tuple[int, int]]:
    """Returns [in, out] of the linear layers of a block."""
    q = c.heads * c.head_size
    kv = c.kv_heads * c.head_size
    return {
        "q": (c.width, q),
        "k": (c.width, kv),
        "v": (c.width, kv),
        "o": (q, c.width),
        "gate": (c.width, c.mlp_width),
        "up": (c.width, c.mlp_width),
        "down": (c.mlp_width, c.width),
    }


def windows(said: Fields, types: Any, size: int) -> tuple[int, ...]:
    """Returns the window of each layer of a config.json, by the types of its layers."""
    layers = said.whole("num_hidden_layers", 2**12)
    if type(types) is not list or len(types) != layers or set(map(str, types)) - {SLIDING, FULL}:
        raise said.refuse("layer_types", types, f"{SLIDING} or {FULL} for each of {layers} layers")
    return tuple(size if kind == SLIDING else 0 for kind in types)


def layer_types(c: Architecture) -> list[str]:
    """Returns what a config.json says of each layer's window."""
    return [FULL if c.window(layer) is None else SLIDING for layer in range(c.layers)]


class DenseBlock(nn.Module):
    """Computes the parts of a block. What a subclass puts between them makes its family."""

    architecture: Architecture
    compute: Compute
    joined: bool = False
    mesh: Mesh | None = None

    def linear(
        self, name: str, x: jax.Array, scale_BJ: Any, features: int, init: Any = KERNEL, bias: bool = False
    ) -> jax.Array:
        return Linear(features, bias, init, self.compute.param_dtype, name=name)(x, scale_BJ)

    def together(self, names: tuple[str, ...], x: jax.Array, scale_BJ: Any, bias: bool = False) -> list:
        """Applies linear layers with the same input, as one if they are ``joined``."""
        sizes = [kernels(self.architecture)[name][1] for name in names]
        if not self.joined:
            return [
                self.linear(n, x, scale_BJ, size, bias=bias) for n, size in zip(names, sizes, strict=True)
            ]
        all_ = self.linear("_".join(names), x, scale_BJ, sum(sizes), bias=bias)
        return jnp.split(all_, np.cumsum(sizes)[:-1], axis=-1)

    def attention(
        self,
        h_BTD: jax.Array,
        rotation: tuple[jax.Array, jax.Array] | None,
        scale_BJ: Any,
        cache: Any,
        attend: Callable,
        norm: Callable[[str], Callable] | None = None,
        bias: bool = False,
    ) -> tuple[jax.Array, Any]:
        """Returns what attention adds to a block, and its cache. ``norm`` norms queries and keys."""
        c = self.architecture
        counts = c.heads, c.kv_heads, c.kv_heads
        projected = self.together(QKV, h_BTD, scale_BJ, bias)
        q_BTNH, k_BTMH, v_BTMH = (
            y.reshape(*y.shape[:-1], count, c.head_size) for y, count in zip(projected, counts, strict=True)
        )
        if norm is not None:
            q_BTNH = norm("q_norm")(q_BTNH)
            k_BTMH = norm("k_norm")(k_BTMH)
        if c.query_scalar is not None:  # ``attend`` divides by the root of the head size
            q_BTNH *= jnp.asarray((c.head_size / c.query_scalar) ** 0.5, q_BTNH.dtype)
        q_BTNH = rotate(q_BTNH, rotation)
        k_BTMH = rotate(k_BTMH, rotation)
        out_BTNH, cache = attend(q_BTNH, k_BTMH, v_BTMH, cache)
        out_BTX = out_BTNH.reshape(*out_BTNH.shape[:-2], -1)
        return self.linear("o", out_BTX, scale_BJ, c.width, OUT_KERNEL), cache

    def mlp(self, h_BTD: jax.Array, scale_BJ: Any, activation: Callable) -> jax.Array:
        """Returns what the MLP adds to a block."""
        gate_BTF, up_BTF = self.together(GATE_UP, h_BTD, scale_BJ)
        h_BTF = activation(gate_BTF) * up_BTF
        return self.linear("down", h_BTF, scale_BJ, self.architecture.width, OUT_KERNEL)
