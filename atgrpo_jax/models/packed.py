"""Applies a model to prefix-shared rows: hidden states, and logprobs of the trained tokens.

Axis letters: B rows, T tokens of a row, D model width, V vocabulary, N query heads, M key heads, H
head size, J adapters (one).
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from atgrpo_jax.arrays.mesh import ROWS, platform_of
from atgrpo_jax.common.types import TILE, Batch
from atgrpo_jax.models.attention import Window, masked_attention, narrower, prefix_mask, tiled_attention
from atgrpo_jax.models.attention_kernel import fused_attention, supports
from atgrpo_jax.models.head import Head, table, tied, token_logprobs
from atgrpo_jax.models.lora import stack
from atgrpo_jax.models.transformer import Attend, PolicyWeights, Transformer, apply


class Packed:
    """Applies ``model`` to micro-batches: Batches whose arrays are [B, ...]."""

    def __init__(self, model: Transformer, mesh: Mesh):
        self._model = model.clone(mesh=mesh)
        self._mesh = mesh

    def logprobs(self, weights: PolicyWeights, micro: Batch) -> tuple[jax.Array, jax.Array]:
        """Returns [B, T] logprobs of the trained tokens and entropies there; not differentiable."""
        hidden_BTD, head = self.hidden(weights, micro)
        return token_logprobs(head, table(weights.params), hidden_BTD, micro.trained)

    def hidden(self, weights: PolicyWeights, micro: Batch) -> tuple[jax.Array, Head]:
        """Returns the last hidden states [B, T, D], and how ``head.token_loss`` projects them."""
        adapters = None if weights.adapter is None else stack([weights.adapter])
        scale_BJ = jnp.full((len(micro.tokens), 1), weights.scale, jnp.float32)
        hidden_BTD, _ = apply(
            self._model,
            weights.params | {"embedding": self._gathered(weights.params["embedding"])},
            adapters,
            micro.tokens,
            micro.positions,
            self.attend(micro),
            scale_BJ=scale_BJ,
        )
        return hidden_BTD, Head(self._mesh, tied(weights.params), weights.adapter is None)

    def attend(self, micro: Batch) -> Attend:
        """Returns how queries meet keys in a micro-batch, of each layer."""
        T = micro.tokens.shape[1]
        by_row = P(ROWS)
        by_head = P(ROWS, None, "tensor")

        def attend(q_BTNH, k_BTMH, v_BTMH, _, size) -> tuple[jax.Array, Any]:
            size = narrower(size, T)
            window = None if size is None else Window(size, micro.positions)
            if T <= TILE:
                mask_BTT = prefix_mask(micro.segments, micro.branches, window)
                return masked_attention(q_BTNH, k_BTMH, v_BTMH, mask_BTT), None
            k_BTMH, v_BTMH = (self._shared_out(x) for x in (k_BTMH, v_BTMH))
            rows = [micro.segments, micro.branches, micro.pairs]
            if size is not None:
                rows.append(micro.positions)
            sharded = jax.shard_map(
                self._attention(size),
                mesh=self._mesh,
                in_specs=(by_head,) * 3 + (by_row,) * len(rows),
                out_specs=by_head,
                check_vma=False,
            )
            return sharded(q_BTNH, k_BTMH, v_BTMH, *rows), None

        return attend

    def _attention(self, size: int | None) -> Callable[..., jax.Array]:
        """Returns the attention that ``Compute`` names, or the best for the mesh's devices.

        The kernels know no windows. With one, the last argument is the positions.
        """
        if size is not None:
            return lambda *inputs: tiled_attention(*inputs[:-1], Window(size, inputs[-1]))
        compute = self._model.compute
        platform = platform_of(self._mesh)
        if not compute.wants_kernel(platform):
            return tiled_attention
        if platform == "cpu":
            return functools.partial(fused_attention, platform="tpu", interpret=True)
        if not supports(platform, self._model.architecture.head_size):
            return tiled_attention
        return functools.partial(fused_attention, platform=platform)

    def _gathered(self, embedding_VD: jax.Array) -> jax.Array:
        """Returns the embedding split over V only, so that each device has whole vectors.

        If vectors were split, looking up would send all tokens to all devices and back.
        """
        return jax.lax.with_sharding_constraint(embedding_VD, NamedSharding(self._mesh, P("tensor")))

    def _shared_out(self, x_BTMH: jax.Array) -> jax.Array:
        """Repeats key heads so that the devices that split the query heads can split them, too."""
        devices = self._mesh.shape["tensor"]
        heads = x_BTMH.shape[2]
        return jnp.repeat(x_BTMH, devices // math.gcd(devices, heads), axis=2)
