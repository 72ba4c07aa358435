"""Measures how long calls take once they are compiled, the rate of square products, and memory."""

import resource
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def median_seconds(call: Callable[[], Any], repeats: int = 9) -> float:
    """Returns the median time of a call until its arrays are there, after one that is not counted."""
    return statistics.median(_times(call, repeats))


def least_seconds(call: Callable[[], Any], repeats: int = 15) -> float:
    """Returns the shortest time instead: what the machine can do, whoever else uses it."""
    return min(_times(call, repeats))


def _times(call: Callable[[], Any], repeats: int) -> list[float]:
    jax.block_until_ready(call())
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        jax.block_until_ready(call())
        times.append(time.perf_counter() - began)
    return times


def square_gflops(size: int = 2048, dtype: str = "float32") -> float:
    """Returns the rate of a product of two squares, with JAX's default precision."""
    x = jnp.ones((size, size), dtype)
    multiply = jax.jit(jnp.matmul)
    return 2 * size**3 / median_seconds(lambda: multiply(x, x)) / 1e9


def peak_mb() -> float:
    """Returns the largest memory in use: of the device if it tells, else of the process."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        return stats["peak_bytes_in_use"] / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def rate(tflops: float) -> str:
    """Returns a rate for people."""
    return f"{tflops:.3g} TFLOP/s" if tflops >= 1 else f"{tflops * 1e3:.3g} GFLOP/s"
