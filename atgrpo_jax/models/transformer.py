"""Defines the decoder of Qwen3, Qwen2 and Llama in Flax, as pure functions of (params, arrays).

It has RMSNorm, rotary positions, grouped queries and SwiGLU. QK-norm, biases and an untied head are
there where the config says so. The caller says how queries meet keys: ``attend(q, k, v, cache) ->
(out, cache)`` is called once a layer. Training, prefill and decoding share this file and differ
only in the function that they pass.

Axis letters beyond the package's: J adapters, R their rank, X = B T. In ``Linear`` and ``linear``,
D and F are the inputs and outputs of any layer.
"""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from atgrpo_jax.models.config import ModelConfig, RopeScaling
from atgrpo_jax.models.head import table, tied

Attend = Callable[[jax.Array, jax.Array, jax.Array, Any], tuple[jax.Array, Any]]

_KERNEL = nn.initializers.variance_scaling(1.0, "fan_in", "normal")
# For layers that add to the residual stream: fresh blocks hardly change it, so that tokens are
# still recognised after all blocks.
_OUT_KERNEL = nn.initializers.variance_scaling(0.05**2, "fan_in", "normal")


class RMSNorm(nn.Module):
    epsilon: float
    param_dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), jnp.dtype(self.param_dtype))
        wide = x.astype(jnp.float32)
        mean_square = jnp.mean(wide * wide, axis=-1, keepdims=True)
        return (wide * jax.lax.rsqrt(mean_square + self.epsilon)).astype(x.dtype) * scale.astype(x.dtype)


def frequencies(size: int, theta: float, scaling: RopeScaling | None = None) -> np.ndarray:
    """Returns radians per position of the H / 2 rotary pairs (2104.09864), scaled if asked."""
    half = size // 2
    plain = theta ** (-np.arange(half) / half)
    if scaling is None:
        return plain.astype(np.float32)
    cycles = scaling.original * plain / (2 * np.pi)  # full cycles within the first training's context
    keep = np.clip((cycles - scaling.low) / (scaling.high - scaling.low), 0, 1)
    return (keep * plain + (1 - keep) * plain / scaling.factor).astype(np.float32)


def rotations(positions_BT: jax.Array, frequencies: np.ndarray, limit: int) -> tuple[jax.Array, jax.Array]:
    """Returns cosines and sines [B, T, 1, H / 2] of the rotary angles at positions below ``limit``.

    They are looked up: XLA would compute sines again at every use of them, once a head.
    """
    angles = np.arange(limit, dtype=np.float32)[:, None] * frequencies
    return jnp.asarray(np.cos(angles))[positions_BT, None], jnp.asarray(np.sin(angles))[positions_BT, None]


def rotate(x_BTNH: jax.Array, rotation: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotates the pairs (i, i + H / 2) by their angles."""
    cos, sin = rotation
    first, second = jnp.split(x_BTNH.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x_BTNH.dtype)


@jax.custom_vjp
def linear(x_BTD: jax.Array, kernel_DF: jax.Array) -> jax.Array:
    """Returns x @ kernel, and makes the kernel's gradient in the kernel's layout.

    JAX's own gradient is made transposed, which costs a third more on a CPU.
    """
    return x_BTD @ kernel_DF


def _linear_backward(kept, d_y_BTF):
    x_BTD, kernel_DF = kept
    x_XD, d_y_XF = (x.reshape(-1, x.shape[-1]) for x in (x_BTD, d_y_BTF))
    return d_y_BTF @ kernel_DF.T, jax.lax.dot_general(x_XD, d_y_XF, (((0,), (0,)), ((), ())))


linear.defvjp(lambda x, kernel: (x @ kernel, (x, kernel)), _linear_backward)


class Linear(nn.Module):
    """Computes a dense layer and, if there are any, the adapters of its rows.

    Adapters are in the collection "lora"; see lora.py.
    """

    features: int
    bias: bool
    initializer: Any
    param_dtype: str

    @nn.compact
    def __call__(self, x_BTD: jax.Array, scale_BJ: jax.Array | None) -> jax.Array:
        shape = (x_BTD.shape[-1], self.features)
        param_dtype = jnp.dtype(self.param_dtype)
        y_BTF = linear(x_BTD, self.param("kernel", self.initializer, shape, param_dtype).astype(x_BTD.dtype))
        if self.bias:
            y_BTF += self.param("bias", nn.initializers.zeros, shape[1:], param_dtype).astype(x_BTD.dtype)
        if scale_BJ is None:
            return y_BTF
        a_JDR, b_JRF = (self.get_variable("lora", name).astype(x_BTD.dtype) for name in "ab")
        # Applies all adapters to all rows, times 0 where an adapter is not the row's own: this is
        # exact, and cheap because R is small.
        inner_BTJR = jnp.einsum("btd,jdr->btjr", x_BTD, a_JDR) * scale_BJ[:, None, :, None].astype(
            x_BTD.dtype
        )
        return y_BTF + jnp.einsum("btjr,jrf->btf", inner_BTJR, b_JRF)


class Block(nn.Module):
    config: ModelConfig
    joined: bool = False

    @nn.compact
    def __call__(self, x_BTD, rotation, scale_BJ, cache, attend: Attend):
        c = self.config

        def dense(name, features, x, init=_KERNEL, bias=False):
            return Linear(features, bias, init, c.param_dtype, name=name)(x, scale_BJ)

        def together(names, sizes, x, bias=False):
            if not self.joined:
                return [dense(name, size, x, bias=bias) for name, size in zip(names, sizes, strict=True)]
            return jnp.split(dense("_".join(names), sum(sizes), x, bias=bias), np.cumsum(sizes)[:-1], axis=-1)

        def norm(name):
            return RMSNorm(c.rms_epsilon, c.param_dtype, name=name)

        h_BTD = norm("attention_norm")(x_BTD)
        counts = c.heads, c.kv_heads, c.kv_heads
        projected = together(_QKV, [count * c.head_size for count in counts], h_BTD, c.qkv_bias)
        q_BTNH, k_BTMH, v_BTMH = (
            y.reshape(*y.shape[:-1], count, c.head_size) for y, count in zip(projected, counts, strict=True)
        )
        if c.qk_norm:
            q_BTNH = norm("q_norm")(q_BTNH)
            k_BTMH = norm("k_norm")(k_BTMH)
        q_BTNH = rotate(q_BTNH, rotation)
        k_BTMH = rotate(k_BTMH, rotation)
        out_BTNH, cache = attend(q_BTNH, k_BTMH, v_BTMH, cache)
        x_BTD += dense("o", c.width, out_BTNH.reshape(*out_BTNH.shape[:-2], -1), _OUT_KERNEL)

        h_BTD = norm("mlp_norm")(x_BTD)
        gate_BTF, up_BTF = together(_MLP, [c.mlp_width] * 2, h_BTD)
        x_BTD += dense("down", c.width, nn.silu(gate_BTF) * up_BTF, _OUT_KERNEL)
        return x_BTD, cache


# Linear layers that have the same input.
_QKV = "q", "k", "v"
_MLP = "gate", "up"


def join_layers(params: Any) -> Any:
    """Returns parameters for a ``Transformer`` with ``joined``: layers with the same input are one.

    This multiplies few rows faster.
    """

    def block(modules):
        made = {}
        for names in (_QKV, _MLP):
            parts = [modules[name] for name in names]
            made["_".join(names)] = jax.tree.map(lambda *leaves: jnp.concatenate(leaves, axis=-1), *parts)
        return {name: module for name, module in modules.items() if name not in _QKV + _MLP} | made

    return {name: block(part) if name.startswith("layer_") else part for name, part in params.items()}


def _block(remat: str) -> type[nn.Module]:
    if remat == "none":
        return Block
    policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable if remat == "dots" else None
    return nn.remat(Block, static_argnums=(5,), policy=policy)


class Transformer(nn.Module):
    config: ModelConfig
    vocab_size: int
    joined: bool = False  # see ``join_layers``

    def setup(self):
        c = self.config
        param_dtype = jnp.dtype(c.param_dtype)
        shape = (self.vocab_size, c.width)
        self.embedding = self.param("embedding", nn.initializers.normal(0.02), shape, param_dtype)
        if not c.tied:  # used by ``logits``
            self.head = self.param("head", nn.initializers.normal(0.02), shape[::-1], param_dtype)
        self.blocks = [_block(c.remat)(c, self.joined, name=f"layer_{i}") for i in range(c.layers)]
        self.norm = RMSNorm(c.rms_epsilon, c.param_dtype)

    def __call__(
        self,
        tokens_BT: jax.Array,
        positions_BT: jax.Array,
        attend: Attend,
        caches: Sequence[Any] | None = None,
        scale_BJ: jax.Array | None = None,
        limit: int | None = None,
    ) -> tuple[jax.Array, list[Any]]:
        """Returns final hidden states [B, T, D], and each layer's cache as ``attend`` returned it.

        Positions are below ``limit``, or below T if it is not given. ``scale_BJ`` multiplies the
        output of each adapter for each row; it is 0 where the adapter is not the row's own.
        """
        c = self.config
        x_BTD = self.embedding[tokens_BT].astype(c.dtype)
        inverse_frequencies = frequencies(c.head_size, c.rope_theta, c.rope_scaling)
        rotation = rotations(positions_BT, inverse_frequencies, limit or tokens_BT.shape[1])
        if c.scan and caches is None and not self.is_initializing():
            x_BTD, new_caches = self._scanned(x_BTD, rotation, scale_BJ, attend)
            return self.norm(x_BTD), new_caches
        new_caches = []
        for block, cache in zip(self.blocks, caches or [None] * len(self.blocks), strict=True):
            x_BTD, cache = block(x_BTD, rotation, scale_BJ, cache, attend)
            new_caches.append(cache)
        return self.norm(x_BTD), new_caches

    def _scanned(self, x_BTD, rotation, scale_BJ, attend) -> tuple[jax.Array, list[Any]]:
        """Applies the blocks as one that is compiled once, scanned over their stacked weights.

        The stack is a copy in the activations' dtype.
        """
        c = self.config
        block = _block(c.remat)(c, self.joined, parent=None)
        layers = [layer.variables for layer in self.blocks]
        stacked = jax.tree.map(lambda *leaves: jnp.stack([x.astype(c.dtype) for x in leaves]), *layers)

        def step(x_BTD, variables):
            return block.apply(variables, x_BTD, rotation, scale_BJ, None, attend)

        x_BTD, caches = jax.lax.scan(step, x_BTD, stacked)
        return x_BTD, [jax.tree.map(lambda leaf, i=i: leaf[i], caches) for i in range(c.layers)]


def exact_products(config: ModelConfig) -> contextlib.AbstractContextManager:
    """Returns a context for tracing, in which float32 models multiply in float32.

    Without it, GPUs round the factors to TF32 and TPUs to bfloat16. A sampler and a learner, whose
    programs round differently, would then be two policies.
    """
    exact = config.dtype == "float32"
    return jax.default_matmul_precision("highest") if exact else contextlib.nullcontext()


class PolicyWeights(NamedTuple):
    """Holds a policy's parameters and, if any, the adapter on them (lora.py) with its scale."""

    params: Any
    adapter: Any = None
    scale: float = 1.0


def apply(model: Transformer, params: Any, adapters: Any, *inputs: Any, scale_BJ: Any = None, **options: Any):
    """Applies ``model`` with J stacked adapters, or None; else as ``Transformer.__call__``."""
    if adapters is None:
        return model.apply({"params": params}, *inputs, **options)
    variables = {"params": params, "lora": adapters}
    return model.apply(variables, *inputs, scale_BJ=scale_BJ, **options)


def init_params(model: Transformer, key: jax.Array) -> Any:
    """Returns fresh parameters."""
    tokens_BT = jnp.zeros((1, 1), jnp.int32)
    return model.init(key, tokens_BT, tokens_BT, lambda q, k, v, cache: (q, None))["params"]


def logits(params: Any, hidden: jax.Array) -> jax.Array:
    """Returns float32 logits [..., V] of hidden [..., D], by the head or else the embedding."""
    head_DV = table(params).T if tied(params) else table(params)
    return jnp.matmul(hidden, head_DV.astype(hidden.dtype), preferred_element_type=jnp.float32)
