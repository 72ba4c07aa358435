"""A small program whose result is known: what idle hosts run (--lockstep), and what the probe tries."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from atgrpo_jax.common.errors import RunError

WIDTH = 128  # numbers on each device


def summing(devices: Sequence[jax.Device]) -> Callable[[int], None]:
    """Returns a program that adds up a number of each device: ``call(x)`` adds x, x + 1, x + 2, ...

    All hosts that have some of the devices must call it with the same number. It waits for the
    result, and raises RunError if that is wrong.
    """
    count = len(devices)
    mesh = Mesh(np.array(devices), ("devices",))
    split = NamedSharding(mesh, PartitionSpec("devices"))
    whole = NamedSharding(mesh, PartitionSpec())
    total = jax.jit(lambda numbers: jnp.sum(numbers, 0), out_shardings=whole)

    def call(first: int) -> None:
        numbers = np.repeat(np.arange(first, first + count, dtype=np.int32)[:, None], WIDTH, 1)
        given = jax.make_array_from_callback(numbers.shape, split, lambda index: numbers[index])
        found = np.unique(np.asarray(total(given)))
        expected = count * first + count * (count - 1) // 2
        if found.tolist() != [expected]:
            raise RunError(f"a sum over {count} devices is {found.tolist()} and not {expected}")

    return call


def idle() -> Callable[[], None]:
    """Returns a program of this host alone, on all of its devices."""
    call = summing(jax.local_devices())
    return lambda: call(1)
