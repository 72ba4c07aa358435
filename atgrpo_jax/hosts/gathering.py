"""Gives every host the bytes of all hosts, through their devices."""

import functools
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from atgrpo_jax.common.errors import RunError

PIECE = 1 << 20  # bytes of a host that travel at once; each device needs so many for every host

# The bytes of this host, and how many those of each host are -> the bytes of each host.
Gather = Callable[[bytes, Sequence[int]], list[bytes]]


def by_devices(host: int, platform: str | None = None) -> Gather:
    """Returns a function that gathers bytes by one program of all hosts.

    Raises RunError if JAX gives this ``host`` another number.

    Args:
      platform: the kind of devices that it runs on; JAX's default if not given. "cpu" leaves the
        accelerators alone.
    """
    if jax.process_index() != host:
        raise RunError(
            f"--host={host}: the devices of this host are those of number {jax.process_index()}; give the "
            "hosts the numbers that the platform gives them"
        )
    devices = sorted(jax.devices(platform), key=lambda device: (device.process_index, device.id))
    by_host = np.array(devices).reshape(jax.process_count(), -1)
    mesh = Mesh(by_host, ("hosts", "local"))
    own = NamedSharding(mesh, PartitionSpec("hosts"))
    everywhere = jax.jit(lambda pieces: pieces, out_shardings=NamedSharding(mesh, PartitionSpec()))
    return functools.partial(_gather, everywhere, own)


def _gather(everywhere: Callable, own: NamedSharding, data: bytes, sizes: Sequence[int]) -> list[bytes]:
    found = [bytearray() for _ in sizes]
    for begin in range(0, max(sizes), PIECE):
        part = np.zeros((1, PIECE), np.uint8)
        cut = data[begin : begin + PIECE]
        part[0, : len(cut)] = np.frombuffer(cut, np.uint8)
        pieces = jax.make_array_from_process_local_data(own, part, (len(sizes), PIECE))
        for whole, one in zip(found, np.asarray(everywhere(pieces)), strict=True):
            whole += one.tobytes()
    return [bytes(whole[:size]) for whole, size in zip(found, sizes, strict=True)]
