"""Measures rates: square matrix products, and decoding and updates of a model on one device."""

import contextlib
import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
from jax.sharding import Mesh

from atgrpo_jax.arrays.mesh import MeshConfig
from atgrpo_jax.common.errors import RunError
from atgrpo_jax.common.progress import counted
from atgrpo_jax.common.types import Sample
from atgrpo_jax.engines.local.local import LocalEngine
from atgrpo_jax.models.config import Architecture, Compute, Dtype, preset
from atgrpo_jax.models.families.table import transformer
from atgrpo_jax.models.transformer import PolicyWeights, Transformer
from atgrpo_jax.planning.devices import device_of_kind
from atgrpo_jax.run.metrics import CompileCounter
from atgrpo_jax.tools.probing.clock import peak_mb, rate, square_gflops
from atgrpo_jax.tools.probing.item import POLICY, Item
from atgrpo_jax.tools.probing.parts import Found
from atgrpo_jax.tools.probing.weights import random_params
from atgrpo_jax.update.batch import pack
from atgrpo_jax.update.learner import Learner, UpdateInputs
from atgrpo_jax.update.objectives import LossConfig
from atgrpo_jax.update.optimizer import OptimizerConfig
from atgrpo_jax.update.updates import STATE_FINITE

Size = Literal["tiny", "small", "0.6b"]
_SMALL = Architecture(
    layers=4, width=256, mlp_width=768, heads=8, kv_heads=4, head_size=32, vocab_size=4096, rope_theta=1e6
)
SIZES: dict[Size, Item] = {
    "tiny": Item(dataclasses.replace(_SMALL, layers=1), prompts=2, candidates=4, new_tokens=32),
    "small": Item(_SMALL),
    "0.6b": Item(preset("qwen3-0.6b"), Compute(remat="block", scan=True), prompt_tokens=512, new_tokens=256),
}
REPEATS = 3  # of a rollout and of an update, after the first


def dtypes(platform: str) -> tuple[Dtype, ...]:
    """Returns the dtypes whose rates matter; the first one is that of the models."""
    return ("float32",) if platform == "cpu" else ("bfloat16", "float32")


def products(platform: str, kind: str) -> Found:
    """Measures products of two squares, float32 ones as JAX's default has them."""
    side = 1024 if platform == "cpu" else 8192
    rates = {dtype: square_gflops(side, dtype) / 1e3 for dtype in dtypes(platform)}
    line = ", ".join(f"{rate(tflops)} in {dtype}" for dtype, tflops in rates.items())
    known = device_of_kind(kind)
    values: dict[str, Any] = {"side": side, "tflops": rates}
    if known is not None and "bfloat16" in rates:
        values["published_tflops"] = known.flops / 1e12
        share = rates["bfloat16"] / values["published_tflops"]
        line += f" ({share:.2f} of the published {values['published_tflops']:.0f} of {known.name})"
    return Found(f"{line}; squares of {side:,}", values)


class Timed(NamedTuple):
    """Holds the times of a call, in seconds."""

    first_s: float  # with compiling
    compile_s: float  # in the first call
    seconds: float  # the median of the later ones
    compiled_later: int  # programs that the later calls compiled; there should be none


def timed(call: Callable[[int], Any], repeats: int = REPEATS) -> Timed:
    """Times ``call(0)``, then so many more calls with the next numbers."""
    compiles = CompileCounter()
    times = []
    for number in range(1 + repeats):
        began = time.perf_counter()
        jax.block_until_ready(call(number))
        times.append(time.perf_counter() - began)
        if number == 0:
            compile_s = compiles.seconds
            count = compiles.count
    first, *later = times
    return Timed(first, compile_s, statistics.median(later), compiles.count - count)


def model(size: Size, platform: str, rates: Mapping[str, float] | None) -> Found:
    """Draws answers and learns from them, on one device, and says how many tokens a second.

    Args:
      rates: TFLOP/s of square products, by dtype, if known.

    Raises RunError if the update's state is not finite.
    """
    item = SIZES[size]
    dtype = dtypes(platform)[0]
    item = dataclasses.replace(item, compute=dataclasses.replace(item.compute, dtype=dtype))
    mesh = MeshConfig().build(jax.local_devices())
    made = transformer(item.model, item.vocab_size, item.compute)
    learner = Learner(made, OptimizerConfig(learning_rate=1e-6), LossConfig().objective(), mesh)
    params = random_params(made, mesh)
    drawn, decoded, samples = _draws(item, made, params, mesh)
    learned, gap = _updates(item, learner, params, samples)
    phases = {
        "rollout": _phase(item.new, drawn, item.gflop()["rollout"]) | {"decode_tokens_per_s": decoded},
        "update": _phase(item.tokens, learned, item.gflop()["update"]),
    }
    for phase in phases.values():
        phase["share"] = phase["tflops"] / rates[dtype] if rates else None
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(learner.shapes.params))
    values = {
        "parameters": count,
        "dtype": dtype,
        "groups": f"{item.prompts} prompts of {item.prompt_tokens} tokens x {item.candidates} answers of "
        f"{item.new_tokens}",
        "peak_mb": round(peak_mb()),
        "logprob_gap": gap,
        "phases": phases,
    }
    line = f"sampler and learner differ by {gap:.1e} nats; {values['peak_mb']:,} MB at most"
    later = drawn.compiled_later + learned.compiled_later
    return Found(
        line + (f"; {counted(later, 'program')} compiled after the first call" if later else ""), values
    )


def _phase(tokens: int, timed: Timed, gflop: float) -> dict[str, Any]:
    return timed._asdict() | {
        "tokens_per_s": tokens / timed.seconds,
        "tflops": gflop / timed.seconds / 1e3,
    }


def _draws(
    item: Item, made: Transformer, params: Any, mesh: Mesh
) -> tuple[Timed, float, Sequence[Sequence[Sample]]]:
    """Returns the times of rollouts, tokens a second of decoding alone, and the first rollout."""
    kept = []

    def draw(step: int) -> None:
        kept.append((item.drawn(engine, step), engine.usage))

    with contextlib.closing(LocalEngine(made, (), item.engine(), mesh)) as engine:
        engine.push_weights(POLICY, PolicyWeights(params), 0)
        times = timed(draw)
        engine.release()
    samples, first = kept[0]
    _, last = kept[-1]
    later = last - first
    return times, later.tokens / later.decode_s, samples


def _updates(
    item: Item, learner: Learner, params: Any, samples: Sequence[Sequence[Sample]]
) -> tuple[Timed, float]:
    """Returns the times of updates on one batch, and the gap of the logprobs in the first of them."""
    batch = pack(item.credited(0, item.prompt_ids(0), samples), item.batch(), "candidate", item.new_tokens)
    state = learner.start_from(params)
    kept = []

    def update(_: int) -> Any:
        nonlocal state
        state, metrics = learner.update(state, UpdateInputs(batch))
        kept.append(metrics)
        return state, metrics

    times = timed(update)
    if not all(metrics[STATE_FINITE] for metrics in kept):
        raise RunError("an update made numbers that are not finite")
    return times, float(kept[0]["logprob_gap"])
