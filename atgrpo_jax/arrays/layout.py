"""Lays devices out as an array [data, fsdp, expert, tensor], near one another where the mesh moves most.

Slices of TPUs, and machines with GPUs, are joined by a network that is slow beside their own links.
So only data goes over them, which moves least.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils

AXES = "data", "fsdp", "expert", "tensor"


class Apart(Exception):
    """Raised if data cannot go over the slices or hosts of the devices."""


def laid_out(shape: tuple[int, ...], devices: Sequence[Any], rows_in_hosts: bool = False) -> np.ndarray:
    """Returns the devices as an array of this shape.

    Rows along data lie within a slice. With ``rows_in_hosts`` they lie within a host: on a slice of
    several hosts JAX's own order need not do that. Raises Apart if the shape does not allow it.
    """
    data, *row = shape
    parts = _parts(devices, rows_in_hosts)
    count = len(parts)
    if data % count or len({len(part) for part in parts}) > 1:
        what = "hosts" if rows_in_hosts else "slices"
        sizes = " + ".join(str(len(part)) for part in parts)
        raise Apart(
            f"its devices are of {count} {what} ({sizes}); only data goes over {what}, so it must be a "
            f"multiple of {count}, and all must have as many"
        )
    return np.concatenate([_in_one((data // count, *row), part) for part in parts])


def _parts(devices: Sequence[Any], by_host: bool) -> list[list[Any]]:
    """Returns the devices of each slice, or of each host.

    They are of one slice if they do not say of which.
    """
    found: dict[tuple[int, int], list[Any]] = defaultdict(list)
    for device in devices:
        place = getattr(device, "slice_index", 0), device.process_index if by_host else 0
        found[place].append(device)
    return [found[place] for place in sorted(found)] or [[]]


def _in_one(shape: tuple[int, ...], devices: Sequence[Any]) -> np.ndarray:
    try:
        return jax.make_mesh(shape, AXES, devices=devices).devices
    except NotImplementedError:
        # No axis of the mesh is a whole axis of the chips. JAX cuts one of theirs without being
        # asked only on v5e. On v6e-64, which is 8 x 8, this is data = 4, fsdp = 16.
        return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
