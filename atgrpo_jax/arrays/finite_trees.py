"""Checks that trees of arrays on devices hold only finite numbers, and names arrays that do not."""

from typing import Any

import jax
import jax.numpy as jnp

from atgrpo_jax.arrays.tree_paths import path_text
from atgrpo_jax.common.finite import NotFinite


def all_finite(tree: Any) -> jax.Array:
    """Returns a bool scalar: whether all numbers are finite. Used inside jitted functions."""
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree) if _real(leaf)]))


def not_finite(tree: Any) -> list[str]:
    """Returns the paths of arrays with a number that is not finite. Waits for the devices once."""
    real = [(path, leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree) if _real(leaf)]
    found = jax.device_get(_finite([_on_device(leaf) for _, leaf in real]))
    return [path_text(path) for (path, _), finite in zip(real, found, strict=True) if not finite]


def check_tree(tree: Any, where: str, do: str) -> None:
    """Raises NotFinite if some number is not finite.

    The error names the first array with such a number, and says how many such arrays there are.
    """
    names = not_finite(tree)
    if names:
        count = len(jax.tree.leaves(tree))
        what = f"{len(names)} of {count} tensors hold numbers that are not finite, {names[0]} for one"
        raise NotFinite(where, what, do)


@jax.jit
def _finite(leaves: list[jax.Array]) -> list[jax.Array]:
    return [jnp.all(jnp.isfinite(leaf)) for leaf in leaves]


def _real(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.inexact)


def _on_device(leaf: jax.Array) -> jax.Array:
    """Returns an array in its device's memory.

    An array that is kept in host memory (``OptimizerConfig.offload``) is copied to the device.
    """
    if leaf.sharding.memory_kind == "pinned_host":
        return jax.device_put(leaf, leaf.sharding.with_memory_kind("device"))
    return leaf
