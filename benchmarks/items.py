"""The work items of the benchmarks, the work that is in them, and the limit of the machine."""

import argparse
import contextlib
import dataclasses
import json
import platform
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from atgrpo_jax.arrays.mesh import MeshConfig, provide_devices
from atgrpo_jax.common.cli import look_for_no_missing_tpu
from atgrpo_jax.models.config import Architecture, Compute, preset
from atgrpo_jax.models.families.table import family_of
from atgrpo_jax.planning.devices import device_of_kind
from atgrpo_jax.tools.probing.clock import median_seconds
from atgrpo_jax.tools.probing.item import Item

TINY = Architecture(
    layers=4, width=256, mlp_width=768, heads=8, kv_heads=4, head_size=32, vocab_size=4096, rope_theta=1e6
)
BFLOAT16 = Compute(dtype="bfloat16")


ITEMS = {
    "tiny": Item(TINY),
    "long": Item(TINY, prompt_tokens=1024, rows=1),
    "vocab": Item(dataclasses.replace(TINY, vocab_size=151_936)),
    # Lengths are geometric, with a mean of 64: for rollouts.
    "skewed": Item(TINY, prompts=64, new_tokens=256, stop_every=64),
    # For accelerators.
    "qwen3-0.6b": Item(preset("qwen3-0.6b"), BFLOAT16, prompts=32, prompt_tokens=512, new_tokens=512),
    "qwen3-1.7b": Item(preset("qwen3-1.7b"), BFLOAT16, prompts=32, prompt_tokens=512, new_tokens=512),
}


def parse(
    description: str,
    warmup: int,
    steps: int,
    more: Callable[[argparse.ArgumentParser], None] = lambda _: None,
) -> tuple[str, Item, argparse.Namespace]:
    parser = argparse.ArgumentParser(description=description.split("\n")[0])
    parser.add_argument("--item", choices=ITEMS, default="tiny")
    parser.add_argument("--warmup", type=int, default=warmup)
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--data", type=int, default=1, help="devices; a CPU is as many as asked for")
    for name in ("prompts", "candidates", "prompt_tokens", "new_tokens", "rows", "layers"):
        parser.add_argument(f"--{name}", type=int, help="instead of the item's")
    parser.add_argument("--attention", choices=("auto", "fused", "tiles"), help="instead of the item's")
    parser.add_argument("--trace", help="a folder for a trace of one more step, for TensorBoard or Perfetto")
    more(parser)
    args = parser.parse_args()
    look_for_no_missing_tpu()
    item = ITEMS[args.item]

    def changed(what: Item | Architecture | Compute) -> Any:
        given = {f.name: getattr(args, f.name, None) for f in dataclasses.fields(what)}
        return dataclasses.replace(
            what, **{name: value for name, value in given.items() if value is not None}
        )

    parts = {"model": changed(item.model), "compute": changed(item.compute)}
    return args.item, dataclasses.replace(changed(item), **parts), args


def mesh_of(args: argparse.Namespace) -> MeshConfig:
    mesh = MeshConfig(data=args.data)
    provide_devices(mesh.devices)
    return mesh


def traced(folder: str | None) -> contextlib.AbstractContextManager:
    return jax.profiler.trace(folder, create_perfetto_trace=True) if folder else contextlib.nullcontext()


def of_peak(gflop_per_s: float) -> dict:
    """The share of the published rate of bfloat16 products; nothing for a device that is not known."""
    device = device_of_kind(jax.devices()[0].device_kind)
    return {} if device is None else {"of_peak": round(gflop_per_s * 1e9 / device.flops, 3)}


def decode_gb(item: Item, steps: float) -> float:
    """What decoding all of the item in so many steps has to read at least: all weights in each step, the
    keys and values of a prompt once for each token that its candidates draw side by side, and those of
    each answer so far."""
    m = item.model
    size = jnp.dtype(item.compute.dtype).itemsize
    weights = m.layers * family_of(m).block_multiplied(m) + m.width * item.vocab_size
    token = 2 * m.layers * m.kv_heads * m.head_size
    new = item.new_tokens
    seen = item.prompts * (new * item.prompt_tokens + item.candidates * new**2 / 2)
    return size * (steps * weights + token * seen) / 1e9


def matmuls(item: Item) -> dict[tuple[int, int, int], int]:
    """(m, k, n) -> how often, of the matrix products of one micro-batch's update, attention aside."""
    m, T = item.model, item.batch().row_tokens * item.rows
    q, kv = m.heads * m.head_size, m.kv_heads * m.head_size
    ins_outs = [(m.width, q), (m.width, kv), (m.width, kv), (q, m.width)]
    ins_outs += [(m.width, m.mlp_width)] * 2 + [(m.mlp_width, m.width)]
    head = min(item.rows * item.candidates * item.new_tokens, 4096)
    products = [(T, i, o, m.layers) for i, o in ins_outs] + [(head, m.width, m.vocab_size, 1)]
    counts: dict[tuple[int, int, int], int] = {}
    for rows, i, o, times in products:
        for shape in ((rows, i, o), (rows, o, i), (i, rows, o)):  # forward, and both gradients
            counts[shape] = counts.get(shape, 0) + times
    return counts


def shapes_gflops(item: Item) -> float:
    """Rate of the update's own matrix products, each timed alone."""
    flop = seconds = 0.0
    for (m, k, n), times in matmuls(item).items():
        one, other = (jnp.ones(s, item.compute.dtype) for s in ((m, k), (k, n)))
        multiply = jax.jit(jnp.matmul)
        seconds += times * median_seconds(lambda f=multiply, a=one, b=other: f(a, b))
        flop += times * 2 * m * k * n
    return flop / seconds / 1e9


def decode_products_s(model: Architecture, dtype: str, vocab_size: int, rows: int) -> float:
    """Seconds of the matrix products of one decoding step of so many rows, alone: on an accelerator, where
    they wait for the weights, what the memory's bandwidth allows."""
    q, kv, width, mlp = (
        model.heads * model.head_size,
        model.kv_heads * model.head_size,
        model.width,
        model.mlp_width,
    )
    shapes = [(width, q), (width, kv), (width, kv), (q, width), (width, mlp), (width, mlp), (mlp, width)]

    def ones(shape):
        return jnp.full(shape, 1e-3, dtype)

    @jax.jit
    def products(x, layers, head):
        for q, k, v, o, gate, up, down in layers:
            x = x @ q @ o + jnp.sum(x @ k) + jnp.sum(x @ v)
            x = ((x @ gate) * (x @ up)) @ down
        return x @ head

    layers = [[ones(shape) for shape in shapes] for _ in range(model.layers)]
    x, head = ones((rows, width)), ones((width, vocab_size))
    return median_seconds(lambda: products(x, layers, head), repeats=21)


def summary(phase: str, seconds: Sequence[float], first: float, tokens: int, gflop: float | None) -> dict:
    """``gflop``: that had to be done, None if it depends on what was drawn."""
    median = statistics.median(seconds)
    work = {} if gflop is None else {"gflop": round(gflop, 1), "gflop_per_s": round(gflop / median, 1)}
    return {
        "phase": phase,
        "tokens_per_s": round(tokens / median, 1),
        "seconds": round(median, 4),
        "seconds_range": [round(min(seconds), 4), round(max(seconds), 4)],
        "first_s": round(first, 2),
    } | work


def machine() -> dict:
    return {
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "python": platform.python_version(),
    }


def report(benchmark: str, **values) -> None:
    print(json.dumps({"benchmark": benchmark} | values), flush=True)
