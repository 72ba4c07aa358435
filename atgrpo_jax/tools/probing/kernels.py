"""Compares the attention kernels with attention in plain XLA, on this machine's own device.

Where they are not compiled (on CPUs) they are interpreted. Axis letters: B rows, T tokens, N query
heads, M key heads, H head size, D shards, S slots, X pages of an answer.
"""

import functools
import time
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from atgrpo_jax.common.errors import RunError
from atgrpo_jax.common.types import TILE
from atgrpo_jax.engines.local.paged_attention import (
    Pages,
    Passes,
    Readers,
    answer_owners,
    decode_attention,
)
from atgrpo_jax.engines.local.paged_kernel import fused_decode_attention
from atgrpo_jax.models.attention import tiled_attention
from atgrpo_jax.models.attention_kernel import Platform, fused_attention
from atgrpo_jax.models.config import Dtype
from atgrpo_jax.tools.probing import limits
from atgrpo_jax.tools.probing.clock import median_seconds
from atgrpo_jax.tools.probing.parts import Found

Where = Literal["cpu", "gpu", "tpu"]

# In bfloat16 a kernel rounds its factors and its result. Relative to the largest number.
BFLOAT16 = 2.0**-6


class Sizes(NamedTuple):
    heads: int  # N; half as many key heads
    head_size: int  # H


# As in Qwen3; and small ones, because the interpreter is slow.
LARGE = Sizes(16, 128)
SMALL = Sizes(2, 16)


def rows(platform: Where, dtype: Dtype) -> Found:
    """Compares attention over packed rows, and its gradients. On a CPU, the TPU's kernels."""
    interpret = platform == "cpu"
    named: Platform = "tpu" if platform == "cpu" else platform
    kernel = functools.partial(fused_attention, platform=named, interpret=interpret)
    inputs = _rows(SMALL if interpret else LARGE, dtype)
    return compared(kernel, tiled_attention, inputs, 3, dtype, interpret)


def _rows(sizes: Sizes, dtype: Dtype) -> tuple:
    """Returns queries, keys and values, and where they are: a prompt with two answers in a row."""
    first = 3 * TILE - 5  # the answers begin within tiles, the third and the fourth one
    branches_BT = np.zeros((1, 4 * TILE), np.int32)
    branches_BT[:, first : first + 30] = 1
    branches_BT[:, first + 30 :] = 2
    segments_BT = np.ones_like(branches_BT)
    pairs_BX = np.flatnonzero(np.tril(np.ones((4, 4), bool))).astype(np.int32)[None]
    heads = sizes.heads, sizes.heads // 2, sizes.heads // 2
    shapes = [(1, 4 * TILE, count, sizes.head_size) for count in heads]
    keys = jax.random.split(jax.random.key(0), 3)
    qkv = [jax.random.normal(key, shape, dtype) for key, shape in zip(keys, shapes, strict=True)]
    return (*qkv, segments_BT, branches_BT, pairs_BX)


def pages(platform: Where, dtype: Dtype) -> Found:
    """Compares attention over pages in decoding. On a CPU the GPU's kernel; on a TPU there is none."""
    if platform == "tpu":
        return Found("TPUs decode by XLA's loops; there is no kernel", {"kernel": None}, skipped=True)
    interpret = platform == "cpu"
    kernel = functools.partial(fused_decode_attention, interpret=interpret)
    inputs = _pages(SMALL if interpret else LARGE, dtype)
    return compared(kernel, _by_loops, inputs, 0, dtype, interpret)


def _pages(sizes: Sizes, dtype: Dtype) -> tuple:
    """Returns four slots in one shard: two read a prompt of 40 tokens, one another of 16; one is empty."""
    page = 16
    heads = sizes.heads // 2, sizes.head_size
    keys = jax.random.split(jax.random.key(1), 5)
    q_DSNH = jax.random.normal(keys[0], (1, 4, sizes.heads, sizes.head_size), dtype)
    drawn = [jax.random.normal(key, (6, page, *heads), dtype) for key in keys[1:]]
    prompts = Pages.of(*drawn[:2])
    answers = Pages.of(*drawn[2:])
    count_S = np.array([20, 3, 15, 0], np.int32)
    table_SX = np.array([[2, 0], [5, 6], [3, 6], [6, 6]], np.int32)  # 6 is none
    readers = Readers(
        np.array([[0, 1], [2, 4], [4, 4], [4, 4]], np.int32),
        np.array([[4, 1, 3], [2, 0, 0], [0, 0, 0], [0, 0, 0]], np.int32),
        np.array([40, 16, 0, 0], np.int32),
    )
    one_shard = jax.tree.map(lambda x: jnp.asarray(x)[None], (count_S, prompts, answers, readers, table_SX))
    return (q_DSNH, *one_shard)


def _by_loops(q_DSNH, count_DS, prompts, answers, readers, table_DSX):
    """Takes what the kernel takes. The answers are in one bank, and all pages are visited."""

    def shard(q, count, prompts, answers, readers, table):
        owners = answer_owners(table, answers.keys.shape[0], answers.keys.shape[-1])
        passes = Passes(jnp.array([readers.table.shape[1]]), 1, table.shape[1])
        out = decode_attention(q, count, prompts, [answers], readers, owners, table, passes)
        held = jnp.zeros(len(q), bool).at[readers.slots].set(readers.lengths[:, None] > 0, mode="drop")
        return jnp.where(held[:, None, None], out, 0)

    return jax.vmap(shard)(q_DSNH, count_DS, prompts, answers, readers, table_DSX)


def compared(
    kernel: Callable, plain: Callable, inputs: tuple, differentiable: int, dtype: Dtype, interpret: bool
) -> Found:
    """Compares results, and gradients of the first so many inputs. ``plain`` computes in float32.

    Raises RunError if they differ by more than the limit.
    """

    d_out = jnp.cos(jnp.arange(inputs[0].size)).reshape(inputs[0].shape).astype(dtype)
    inputs = (d_out, *inputs)
    began = time.perf_counter()
    compiled = _program(kernel, differentiable).lower(*inputs).compile()
    compile_s = time.perf_counter() - began
    ours = compiled(*inputs)
    exact = jax.tree.map(lambda x: x.astype("float32") if x.dtype == jnp.bfloat16 else x, inputs)
    with jax.default_matmul_precision("highest"):
        expected = _program(plain, differentiable)(*exact)
    apart, size = _apart(ours, expected)
    limit = _limit(dtype, size, interpret)
    values: dict[str, Any] = {
        "kernel": "interpreted" if interpret else "compiled",
        "difference": apart,
        "limit": limit,
        "compile_s": compile_s,
    }
    line = f"{values['kernel']}; largest difference {apart:.1e}, limit {limit:.1e}"
    if not apart <= limit:
        raise RunError(f"the kernel and plain attention differ: {line}")
    if not interpret:
        loops = _program(plain, differentiable)
        values["kernel_s"] = median_seconds(lambda: compiled(*inputs))
        values["plain_s"] = median_seconds(lambda: loops(*inputs))
        line += f"; {values['plain_s'] / values['kernel_s']:.1f} times as fast as XLA's loops"
    return Found(line, values)


@functools.cache
def _program(attend: Callable, differentiable: int) -> Any:
    """Returns the jitted function of (d_out, inputs) to the result and the gradients."""

    def both(d_out, *inputs):
        first = inputs[:differentiable]
        out, pull = jax.vjp(lambda *first: attend(*first, *inputs[differentiable:]), *first)
        return out, pull(d_out)

    return jax.jit(both)


def _apart(ours: Any, expected: Any) -> tuple[float, float]:
    """Returns the largest difference, nan if there is one, and the largest number of ``expected``."""
    apart = 0.0
    size = 0.0
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        difference = jnp.abs(one.astype("float32") - other)
        apart = float(np.maximum(apart, jnp.max(difference)))  # which keeps nan
        size = max(size, float(jnp.max(jnp.abs(other))))
    return apart, size


def _limit(dtype: Dtype, size: float, interpret: bool) -> float:
    if dtype == "bfloat16":
        return BFLOAT16 * size
    return limits.FUNCTION * (1 + size) if interpret else limits.MODEL * max(size, 1)
