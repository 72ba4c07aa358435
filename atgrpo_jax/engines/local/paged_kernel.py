"""Computes ``paged_attention.decode_attention`` with one Pallas kernel, for GPUs (Triton).

On a GPU, an XLA loop whose length only the device knows waits for the host in every pass, and
decoding has several such loops a layer. A program of the kernel holds the query heads of one sample
and key head. It visits the pages of the prompt, then those of the answer. What it computes depends
only on the sample.

Axis letters: D shards, S samples (slots of a shard), N query heads, M key heads, R query heads of a
key head (in the kernel padded to a power of two), H head size, P pages of a prompt, X pages of an
answer, E readers, W siblings of a reader.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from atgrpo_jax.common.rounding import power_of_two
from atgrpo_jax.engines.local.paged_attention import Pages, Readers
from atgrpo_jax.models.attention import HIDDEN
from atgrpo_jax.models.attention_kernel import dot

LEAST = 16  # least side of a matrix that Triton multiplies


def supports(*sizes: int) -> bool:
    """Returns whether there is a kernel for these head and page sizes.

    Triton's blocks are powers of two.
    """
    return all(size >= LEAST and size & (size - 1) == 0 for size in sizes)


def fused_decode_attention(
    q_DSNH: jax.Array,
    count_DS: jax.Array,
    prompts: Pages,
    answers: Pages,
    readers: Readers,
    table_DSX: jax.Array,
    interpret: bool = False,
) -> jax.Array:
    """Returns [D, S, N, H]: attention of one query of each sample.

    The query sees its prompt, then its answer up to token number ``count``.

    Args:
      prompts, answers, readers, table_DSX: as for ``decode_attention``, each with a leading axis D;
        the answers are in one bank.
      interpret: runs on any device, slowly, for tests.
    """
    D, S, N, H = q_DSNH.shape
    M = prompts.keys.shape[2]
    R = N // M
    q_DSMRH = (q_DSNH * H**-0.5).reshape(D, S, M, R, H)
    padded = max(LEAST, power_of_two(R))
    q_DSMRH = jnp.pad(q_DSMRH, ((0, 0), (0, 0), (0, 0), (0, padded - R), (0, 0)))
    table_DSP, length_DS = jax.vmap(functools.partial(_by_slot, slots=S))(readers)
    own = pl.BlockSpec((None, None, None, padded, H), lambda d, s, m: (d, s, m, 0, 0))
    scalars = table_DSP, length_DS, table_DSX, count_DS
    everything = (*scalars, *prompts, *answers)
    out_DSMRH = pl.pallas_call(
        _kernel,
        jax.ShapeDtypeStruct(q_DSMRH.shape, q_DSNH.dtype),
        grid=(D, S, M),
        in_specs=[own, *(pl.BlockSpec(x.shape, lambda *_, n=x.ndim: (0,) * n) for x in everything)],
        out_specs=own,
        compiler_params=None if interpret else plgpu.CompilerParams(num_warps=4, num_stages=2),
        interpret=interpret,
    )(q_DSMRH, *everything)
    return out_DSMRH[:, :, :, :R].reshape(q_DSNH.shape)


def _by_slot(readers: Readers, slots: int) -> tuple[jax.Array, jax.Array]:
    """Returns the prompt pages [S, P] and the prompt length [S] of each slot; 0 if it is empty."""
    E = len(readers.slots)
    numbers_EW = jnp.broadcast_to(jnp.arange(E, dtype=jnp.int32)[:, None], readers.slots.shape)
    reader_S = jnp.full(slots, E, jnp.int32).at[readers.slots].set(numbers_EW, mode="drop")
    return readers.table.at[reader_S].get(mode="fill", fill_value=0), readers.lengths.at[reader_S].get(
        mode="fill", fill_value=0
    )


def _kernel(q, table, length, answer_table, count, keys, values, answer_keys, answer_values, out):
    d, s, m = (pl.program_id(axis) for axis in range(3))
    q_RH = q[...]

    def over(pages: tuple[Any, Any], table: Any, seen: jax.Array, carry):
        keys, values = pages
        page = keys.shape[-1]

        def visit(j, carry):
            acc, best, total = carry
            n = jnp.minimum(table[d, s, j], keys.shape[1] - 1)  # an ended sample may lack it
            scores = dot(q_RH, keys[d, n, m, :, :])
            places = j * page + jax.lax.broadcasted_iota(jnp.int32, scores.shape, 1)
            scores = jnp.where(places < seen, scores, HIDDEN)
            now = jnp.maximum(best, jnp.max(scores, axis=1, keepdims=True))
            kept = jnp.exp(best - now)
            probs = jnp.exp(scores - now)
            acc = acc * kept + dot(probs.astype(values.dtype), values[d, n, m, :, :])
            return acc, now, total * kept + jnp.sum(probs, axis=1, keepdims=True)

        return jax.lax.fori_loop(0, (seen + page - 1) // page, visit, carry)

    R = len(q_RH)
    carry = jnp.zeros(q_RH.shape, jnp.float32), jnp.full((R, 1), HIDDEN), jnp.zeros((R, 1), jnp.float32)
    carry = over((keys, values), table, length[d, s], carry)
    most = answer_table.shape[-1] * answer_keys.shape[-1]
    seen = jnp.where(length[d, s] > 0, jnp.minimum(count[d, s] + 1, most), 0)
    acc, _, total = over((answer_keys, answer_values), answer_table, seen, carry)
    out[...] = (acc / jnp.maximum(total, 1e-30)).astype(out.dtype)
