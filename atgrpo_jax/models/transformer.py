"""Defines a decoder in Flax, as pure functions of (params, arrays). Its family gives it the blocks.

The caller says how queries meet keys: ``attend(q, k, v, cache, window) -> (out, cache)`` is called
once a layer. ``window`` is how many tokens the layer sees, itself included, or None for all.
Training, prefill and decoding share this file and differ only in the function that they pass.

Axis letters beyond the package's: J adapters.
"""

import contextlib
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from atgrpo_jax.models.config import Architecture, Compute, Dtype, Remat
from atgrpo_jax.models.family import Family
from atgrpo_jax.models.head import table, tied
from atgrpo_jax.models.layers import frequencies, rotations

Attend = Callable[[jax.Array, jax.Array, jax.Array, Any, int | None], tuple[jax.Array, Any]]


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
    # What rows and parameters are on, for blocks that exchange tokens; None for one device.
    mesh: Mesh | None = None

    def setup(self):
        c = self.architecture
        param_dtype = jnp.dtype(self.compute.param_dtype)
        shape = (self.vocab_size, c.width)
        self.embedding = self.param("embedding", nn.initializers.normal(0.02), shape, param_dtype)
        if not c.tied:  # used by ``logits``
            self.head = self.param("head", nn.initializers.normal(0.02), shape[::-1], param_dtype)
        block = _recomputed(self.family.block, self.compute.remat)
        self.blocks = [
            block(c, self.compute, self.joined, self.mesh, name=f"layer_{i}") for i in range(c.layers)
        ]
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
        x_BTD = self.family.embedded(self.embedding[tokens_BT].astype(self.compute.dtype))
        longest = limit or tokens_BT.shape[1]
        of_base = {
            base: base and rotations(positions_BT, frequencies(c.head_size, *base), longest)
            for base in dict.fromkeys(map(c.rope, range(c.layers)))
        }

        def told(layer: int) -> tuple[Any, Any]:
            """Returns a layer's rotation, if it has one, and ``attend`` for it."""
            return of_base[c.rope(layer)], _Windowed(attend, c.window(layer))

        done = 0
        new_caches: list[Any] = []
        if self.compute.scan and caches is None and c.layers >= c.period and not self.is_initializing():
            x_BTD, new_caches = self._scanned(x_BTD, scale_BJ, told)
            done = len(new_caches)
        rest = (caches or [None] * c.layers)[done:]
        for number, cache in enumerate(rest, start=done):
            rotation, own = told(number)
            x_BTD, cache = self.blocks[number](x_BTD, rotation, scale_BJ, cache, own)
            new_caches.append(cache)
        return self.norm(x_BTD), new_caches

    def _scanned(self, x_BTD, scale_BJ, told) -> tuple[jax.Array, list[Any]]:
        """Applies whole periods of blocks as one that is compiled once, scanned over stacked weights.

        A period is one block if all are alike; else the layers that differ, in their order. Layers
        after the last whole period are left out. The stacks are copies in the activations' dtype, but for
        what norms scale by, which a family may want in float32.
        """
        c = self.architecture
        period = c.period
        whole = c.layers - c.layers % period
        block = _recomputed(self.family.block, self.compute.remat)(
            c, self.compute, self.joined, self.mesh, parent=None
        )

        def stacked(place: int) -> Any:
            layers = [layer.variables for layer in self.blocks[place:whole:period]]

            def stack(path, *leaves):
                dtype = leaves[0].dtype if path[-1].key == "scale" else self.compute.dtype
                return jnp.stack([leaf.astype(dtype) for leaf in leaves])

            return jax.tree_util.tree_map_with_path(stack, *layers)

        def step(x_BTD, variables):
            new_caches = []
            for place, own in enumerate(variables):
                rotation, attend = told(place)
                x_BTD, cache = block.apply(own, x_BTD, rotation, scale_BJ, None, attend)
                new_caches.append(cache)
            return x_BTD, new_caches

        x_BTD, caches = jax.lax.scan(step, x_BTD, [stacked(place) for place in range(period)])
        places = (divmod(layer, period) for layer in range(whole))
        return x_BTD, [jax.tree.map(lambda leaf, i=i: leaf[i], caches[place]) for i, place in places]


class _Windowed(NamedTuple):
    """Tells ``attend`` the window of a layer. Equal ones are one to JAX, so blocks are traced once."""

    attend: Attend
    window: int | None

    def __call__(self, q, k, v, cache) -> tuple[jax.Array, Any]:
        return self.attend(q, k, v, cache, self.window)


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
    return model.init(key, tokens_BT, tokens_BT, lambda q, k, v, *_: (q, None))["params"]


@functools.lru_cache(maxsize=64)
def _shapes(
    family: Family, architecture: Architecture, vocab_size: int, param_dtype: Dtype, joined: bool = False
) -> Any:
    """Returns the shapes of a model's parameters."""
    model = Transformer(family, architecture, vocab_size, Compute(param_dtype=param_dtype), joined)
    return jax.eval_shape(lambda: init_params(model, jax.random.key(0)))


def shapes_of(model: Transformer) -> Any:
    """Returns the shapes of a model's parameters. How it is computed does not change them.

    They are kept, as it takes seconds to trace a deep model.
    """
    own = model.compute.param_dtype
    return _shapes(model.family, model.architecture, model.vocab_size, own, model.joined)


def logits(params: Any, hidden: jax.Array) -> jax.Array:
    """Returns float32 logits [..., V] of hidden [..., D], by the head or else the embedding."""
    head_DV = table(params).T if tied(params) else table(params)
    return jnp.matmul(hidden, head_DV.astype(hidden.dtype), preferred_element_type=jnp.float32)
