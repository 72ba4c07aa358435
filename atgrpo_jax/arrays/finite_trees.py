"""Whether trees of arrays on devices hold finite numbers, and which of them do not."""

from typing import Any

import jax
import jax.numpy as jnp

from atgrpo_jax.common.finite import NotFinite


def all_finite(tree: Any) -> jax.Array:
    """A bool scalar; to be used inside of a jitted function."""
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree) if _real(leaf)]))


def not_finite(tree: Any) -> list[str]:
    """Paths of the arrays that hold a number which is not finite. Waits for the devices once."""
    found = {
        jax.tree_util.keystr(path, simple=True, separator="/"): _finite(_on_device(leaf))
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        if _real(leaf)
    }
    return [name for name, finite in jax.device_get(found).items() if not finite]


def check_tree(tree: Any, where: str, do: str) -> None:
    """Raises NotFinite that names the first such array, and says how many there are."""
    names = not_finite(tree)
    if names:
        count = len(jax.tree.leaves(tree))
        what = f"{len(names)} of {count} tensors hold numbers that are not finite, {names[0]} for one"
        raise NotFinite(where, what, do)


@jax.jit
def _finite(leaf: jax.Array) -> jax.Array:
    return jnp.all(jnp.isfinite(leaf))


def _real(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.inexact)


def _on_device(leaf: jax.Array) -> jax.Array:
    """What waits in the host's memory (``OptimizerConfig.offload``) comes for as long as it is looked at."""
    if leaf.sharding.memory_kind == "pinned_host":
        return jax.device_put(leaf, leaf.sharding.with_memory_kind("device"))
    return leaf
