"""Makes low-rank adapters on linear layers of the blocks (2106.09685).

An adapter is a tree {"layer_0": {"q": {"a": [D, R], "b": [R, N H]}, ...}, ...}. It adds
``scale * (x a) b`` to the output of a kernel. ``b`` starts at zero, so a fresh adapter changes
nothing, bit for bit.

Axis letters: D inputs of a linear layer, R rank, N query heads, H head size, J adapters.
"""

import dataclasses
from collections.abc import Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from atgrpo_jax.common.checks import check_types, require
from atgrpo_jax.models.transformer import Transformer, shapes_of


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    rank: int = 16  # R
    alpha: float = 32.0  # the scale is alpha / rank

    def __post_init__(self):
        check_types(self)
        require(self, "rank", self.rank >= 1, "must be at least 1")
        require(self, "alpha", self.alpha > 0, "must be positive")

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


def init_adapter(params: Any, key: jax.Array, rank: int, adapted: Collection[str]) -> Any:
    """Returns a fresh float32 adapter for parameters or their shapes.

    It is on the linear layers that ``adapted`` names; the family knows them. ``a`` is uniform with
    variance 1 / (3 D), ``b`` is zero.
    """
    adapter = {}
    for number, (layer, modules) in enumerate(sorted(_blocks(params, adapted).items())):
        layer_key = jax.random.fold_in(key, number)
        adapter[layer] = {
            name: _fresh(kernel.shape, jax.random.fold_in(layer_key, i), rank)
            for i, (name, kernel) in enumerate(sorted(modules.items()))
        }
    return adapter


def _fresh(shape: tuple[int, ...], key: jax.Array, rank: int) -> dict[str, jax.Array]:
    bound = shape[0] ** -0.5
    a_DR = jax.random.uniform(key, (shape[0], rank), minval=-bound, maxval=bound)
    return {"a": a_DR, "b": jnp.zeros((rank, shape[1]))}


def adapter_shapes(model: Transformer, rank: int) -> Any:
    """Returns the shapes of an adapter on a model."""
    params, adapted = shapes_of(model), model.family.adapted
    return jax.eval_shape(lambda: init_adapter(params, jax.random.key(0), rank, adapted))


def stack(adapters: Sequence[Any]) -> Any:
    """Stacks J adapters into arrays [J, ...], as ``Transformer`` takes them."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *adapters)


def merge(params: Any, adapter: Any, scale: float, dtype: str | None = None) -> Any:
    """Returns parameters that compute what ``params`` with the adapter compute.

    Each kernel is kernel + scale * a b, summed in float32. Then it is rounded to ``dtype``, which is
    the kernel's own if not given.
    """
    merged = dict(params)
    for layer, modules in adapter.items():
        merged[layer] = dict(params[layer])
        for name, ab in modules.items():
            kernel = params[layer][name]["kernel"]
            delta = scale * jnp.matmul(ab["a"], ab["b"], precision="highest")
            new = (kernel.astype(jnp.float32) + delta).astype(dtype or kernel.dtype)
            merged[layer][name] = params[layer][name] | {"kernel": new}
    return merged


def _blocks(params: Any, adapted: Collection[str]) -> dict[str, dict[str, Any]]:
    """Returns a mapping layer -> linear module -> kernel."""
    found = {}
    for layer, modules in params.items():
        if layer.startswith("layer_"):
            found[layer] = {name: modules[name]["kernel"] for name in adapted}
    return found
