"""Defines the layers that blocks are made of: RMSNorm, rotary positions, linear layers with adapters.

Axis letters beyond the package's: J adapters, R their rank, X = B T. In ``Linear`` and ``linear``,
D and F are the inputs and outputs of any layer.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from atgrpo_jax.models.config import RopeScaling, RopeStretch

KERNEL = nn.initializers.variance_scaling(1.0, "fan_in", "normal")
# For layers that add to the residual stream: fresh blocks hardly change it, so that tokens are
# still recognised after all blocks.
OUT_KERNEL = nn.initializers.variance_scaling(0.05**2, "fan_in", "normal")


class RMSNorm(nn.Module):
    epsilon: float
    param_dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), jnp.dtype(self.param_dtype))
        wide = x.astype(jnp.float32)
        mean_square = jnp.mean(wide * wide, axis=-1, keepdims=True)
        return (wide * jax.lax.rsqrt(mean_square + self.epsilon)).astype(x.dtype) * scale.astype(x.dtype)


def frequencies(size: int, theta: float, scaling: RopeScaling | RopeStretch | None = None) -> np.ndarray:
    """Returns radians per position of the H / 2 rotary pairs (2104.09864), scaled if asked."""
    half = size // 2
    plain = theta ** (-np.arange(half) / half)
    if scaling is None:
        return plain.astype(np.float32)
    if isinstance(scaling, RopeStretch):
        return (plain / scaling.factor).astype(np.float32)
    cycles = scaling.original * plain / (2 * np.pi)  # full cycles within the first training's context
    keep = np.clip((cycles - scaling.low) / (scaling.high - scaling.low), 0, 1)
    return (keep * plain + (1 - keep) * plain / scaling.factor).astype(np.float32)


def rotations(positions_BT: jax.Array, frequencies: np.ndarray, limit: int) -> tuple[jax.Array, jax.Array]:
    """Returns cosines and sines [B, T, 1, H / 2] of the rotary angles at positions below ``limit``.

    They are looked up: XLA would compute sines again at every use of them, once a head.
    """
    angles = np.arange(limit, dtype=np.float32)[:, None] * frequencies
    return jnp.asarray(np.cos(angles))[positions_BT, None], jnp.asarray(np.sin(angles))[positions_BT, None]


def rotate(x_BTNH: jax.Array, rotation: tuple[jax.Array, jax.Array] | None) -> jax.Array:
    """Rotates the pairs (i, i + H / 2) by their angles; None leaves them as they are."""
    if rotation is None:
        return x_BTNH
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
        inner_BTJR = jnp.einsum("btd,jdr->btjr", x_BTD, a_JDR)
        # In bfloat16 the scale itself would be rounded, and all that the adapter adds by the same factor.
        scaled_BTJR = (inner_BTJR.astype(jnp.float32) * scale_BJ[:, None, :, None]).astype(x_BTD.dtype)
        return y_BTF + jnp.einsum("btjr,jrf->btf", scaled_BTJR, b_JRF)
