"""Defines a decoder in Flax, as pure functions of (params, arrays). Its family gives it the blocks.

The caller says how queries meet keys: ``attend(q, k, v, cache) -> (out, cache)`` is called once a
layer. Training, prefill and decoding share this file and differ only in the function that they
pass.

Axis letters beyond the package's: J adapters.
"""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from atgrpo_jax.models.config import Architecture, Compute, Remat
from atgrpo_jax.models.family import Family
from atgrpo_jax.models.head import table, tied
from atgrpo_jax.models.layers import frequencies, rotations

Attend = Callable[[jax.Array, jax.Array, jax.Array, Any], tuple[jax.Array, Any]]


def join_layers(params: Any, groups: Sequence[Sequence[str]]) -> Any:
    """Returns parameters for a ``Transformer`` with ``joined``: layers with the same input are one.

    This multiplies few rows faster. ``groups`` is the family's ``joined``.
    """
    joined = {name for group in groups for name in group}

    def block(modules):
        made = {}
        for names in groups:
            parts = [modules[name] for name in names]
            made["_".join(names)] = jax.tree.map(lambda *leaves: jnp.concatenate(leaves, axis=-1), *parts)
        return {name: module for name, module in modules.items() if name not in joined} | made

    return {name: block(part) if name.startswith("layer_") else part for name, part in params.items()}


def _recomputed(block: type[nn.Module], remat: Remat) -> type[nn.Module]:
    if remat == "none":
        return block
    policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable if remat == "dots" else None
    return nn.remat(block, static_argnums=(5,), policy=policy)


class Transformer(nn.Module):
    family: Family
    architecture: Architecture
    vocab_size: int
    compute: Compute = Compute()
    joined: bool = False  # see ``join_layers``

    def setup(self):
        c = self.architecture
        param_dtype = jnp.dtype(self.compute.param_dtype)
        shape = (self.vocab_size, c.width)
        self.embedding = self.param("embedding", nn.initializers.normal(0.02), shape, param_dtype)
        if not c.tied:  # used by ``logits``
            self.head = self.param("head", nn.initializers.normal(0.02), shape[::-1], param_dtype)
        block = _recomputed(self.family.block, self.compute.remat)
        self.blocks = [block(c, self.compute, self.joined, name=f"layer_{i}") for i in range(c.layers)]
        self.norm = self.family.norm(c, self.compute)

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
        c = self.architecture
        x_BTD = self.embedding[tokens_BT].astype(self.compute.dtype)
        inverse_frequencies = frequencies(c.head_size, c.rope_theta, c.rope_scaling)
        rotation = rotations(positions_BT, inverse_frequencies, limit or tokens_BT.shape[1])
        if self.compute.scan and caches is None and not self.is_initializing():
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
        c = self.architecture
        block = _recomputed(self.family.block, self.compute.remat)(c, self.compute, self.joined, parent=None)
        layers = [layer.variables for layer in self.blocks]
        stacked = jax.tree.map(
            lambda *leaves: jnp.stack([x.astype(self.compute.dtype) for x in leaves]), *layers
        )

        def step(x_BTD, variables):
            return block.apply(variables, x_BTD, rotation, scale_BJ, None, attend)

        x_BTD, caches = jax.lax.scan(step, x_BTD, stacked)
        return x_BTD, [jax.tree.map(lambda leaf, i=i: leaf[i], caches) for i in range(c.layers)]


def exact_products(compute: Compute) -> contextlib.AbstractContextManager:
    """Returns a context for tracing, in which float32 models multiply in float32.

    Without it, GPUs round the factors to TF32 and TPUs to bfloat16. A sampler and a learner, whose
    programs round differently, would then be two policies.
    """
    exact = compute.dtype == "float32"
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
