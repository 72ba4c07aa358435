"""Puts arrays on meshes that span several hosts, and takes this host's parts of them."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from atgrpo_jax.arrays.mesh import MeshConfig, replicated
from atgrpo_jax.common.errors import ConfigError


def check_hosts(config: MeshConfig, devices: int, hosts: int) -> None:
    """Raises ConfigError if several hosts, with so many devices in all, cannot share a mesh."""
    if config.policies > 1:
        raise ConfigError(
            f"mesh {config}: on several hosts all policies are on one mesh, and are updated one after the "
            "other; set MeshConfig.policies = 1"
        )
    if config.devices != devices:
        raise ConfigError(
            f"mesh {config}: has {config.devices} devices, and the {hosts} hosts have {devices}; it must "
            "have all of them"
        )
    if (devices // hosts) % config.tensor:
        raise ConfigError(
            f"mesh {config}: tensor must divide the {devices // hosts} devices of a host; use fsdp for more"
        )


def mesh_of(tree: Any) -> Mesh:
    """Returns the mesh that parameters are on."""
    return jax.tree.leaves(tree)[0].sharding.mesh


def put(tree: Any, shardings: Any) -> Any:
    """Returns arrays of the NumPy arrays in ``tree``, which all hosts have alike.

    ``shardings`` has one for each array, or for each subtree. Each host puts its own parts on its
    devices. ``jax.device_put`` would compare the arrays of all hosts first.
    """

    def one(leaf: Any, sharding: NamedSharding) -> jax.Array:
        leaf = np.asarray(leaf)
        return jax.make_array_from_callback(leaf.shape, sharding, lambda index: leaf[index])

    if all(sharding.is_fully_addressable for sharding in jax.tree.leaves(shardings)):
        return jax.device_put(tree, shardings)
    return jax.tree.map(one, tree, jax.tree.broadcast(shardings, tree))


def here(mesh: Mesh) -> Mesh:
    """Returns the part of a mesh that is this host's: some of its rows along data.

    Raises ValueError if this host has only parts of such rows.
    """
    own = set(jax.local_devices())
    rows = [row for row in mesh.devices if set(row.flat) <= own]
    if len(rows) * mesh.devices[0].size != len(own & set(mesh.devices.flat)) or not rows:
        raise ValueError("fsdp x expert x tensor do not lie within a host")
    return Mesh(np.stack(rows), mesh.axis_names, axis_types=mesh.axis_types)


def parts_here(tree: Any, mesh: Mesh) -> Any:
    """Returns arrays that are whole on ``mesh``, this host's part of the mesh that ``tree`` is on.

    They share the memory of ``tree``, which must not be split over data.
    """

    def one(leaf: jax.Array) -> jax.Array:
        by_device = {shard.device: shard.data for shard in leaf.addressable_shards}
        sharding = NamedSharding(mesh, leaf.sharding.spec)  # type: ignore[attr-defined]
        return jax.make_array_from_single_device_arrays(
            leaf.shape, sharding, [by_device[device] for device in mesh.devices.flat]
        )

    return jax.tree.map(one, tree)


def whole_leaves(tree: Any) -> Iterator[jax.Array]:
    """Yields the leaves of a tree, in JAX's order, as arrays that this host has whole.

    Leaves that are split over several hosts are gathered on every device, one after the other. So
    all of these hosts must take all leaves, and nobody should keep one.
    """
    for leaf in jax.tree.leaves(tree):
        yield leaf if leaf.is_fully_addressable else _gather(mesh_of(leaf))(leaf).block_until_ready()


@functools.cache
def _gather(mesh: Mesh) -> Callable[[jax.Array], jax.Array]:
    return jax.jit(lambda leaf: leaf, out_shardings=replicated(mesh))
