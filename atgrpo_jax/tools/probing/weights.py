"""Tries what a push of weights does: the gate on the in-process engine, and copies to another mesh."""

import contextlib
import math
import statistics
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from atgrpo_jax.arrays.mesh import MeshConfig, copied, parameter_shardings
from atgrpo_jax.common.progress import counted
from atgrpo_jax.engines.gate import Gate, push
from atgrpo_jax.engines.local.local import LocalEngine, LocalEngineConfig
from atgrpo_jax.models.config import Architecture, Compute, Dtype
from atgrpo_jax.models.families.table import transformer
from atgrpo_jax.models.transformer import PolicyWeights, Transformer, init_params, shapes_of
from atgrpo_jax.run.experiment import Experiment
from atgrpo_jax.tools.probing.item import POLICY
from atgrpo_jax.tools.probing.parts import Found

_TINY = Architecture(layers=1, width=64, mlp_width=192, heads=4, kv_heads=2, head_size=16)
_VOCABULARY = 256
_ENGINE = LocalEngineConfig(max_prompt=16, page=16, prefill=64)
# Nats. Runs in bfloat16 correct gaps by importance weights up to LossConfig.correction = 2
# (gin/parts/qwen3.gin); a larger gap would be cut.
_BFLOAT16 = math.log(2.0)


def gate(dtype: Dtype) -> Found:
    """Passes a tiny engine through the gate. Raises RunError, in the gate's words, if it fails."""
    limit = Experiment.max_logprob_gap if dtype == "float32" else _BFLOAT16
    model = transformer(_TINY, _VOCABULARY, Compute(dtype=dtype))
    params = jax.jit(lambda: init_params(model, jax.random.key(0)))()
    weights = {POLICY: PolicyWeights(params)}
    with contextlib.closing(LocalEngine(model, (), _ENGINE)) as engine:
        push(engine, weights, 1)
        metrics = Gate({POLICY: model}, (), 1.0, limit, 0).check(engine, weights, 1)
    found = {name.rpartition("/")[2]: value for name, value in metrics.items()}
    line = (
        f"engine and learner differ by {found['gate_gap']:.1e} nats, limit {limit:.1e}; "
        f"spread of the draws: p = {found['gate_spread']:.2g}"
    )
    return Found(line, {"limit": limit, **found})


def copies(model: Transformer, devices: Sequence[Any], repeats: int = 5) -> Found:
    """Times copies of weights that fsdp splits over ``devices`` to a mesh that holds them whole on each."""
    count = len(devices)
    if count == 1:
        return Found("there is one device", {"devices": 1}, skipped=True)
    mesh = MeshConfig(fsdp=count).build(devices)
    params = random_params(model, mesh)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    target = MeshConfig(data=count).build(devices)
    times = []
    for _ in range(1 + repeats):
        began = time.perf_counter()
        jax.block_until_ready(copied(params, target, model.family.axes))
        times.append(time.perf_counter() - began)
    first, *later = times
    rate = size / statistics.median(later) / 1e6
    values = {"devices": count, "mb": size / 1e6, "first_s": first, "mb_per_s": rate}
    devices = counted(count, "device")
    line = f"{rate:,.0f} MB/s: {size / 1e6:,.0f} MB, split over {devices}, to a whole copy on each"
    return Found(line, values)


def random_params(model: Transformer, mesh: Any) -> Any:
    """Returns random parameters, made where they will be.

    A program that makes all of them at once takes minutes to compile for a large model, so there is
    one for each shape.
    """
    shapes = shapes_of(model)
    shardings = parameter_shardings(shapes, mesh, model.family.axes)
    leaves, structure = jax.tree.flatten(shapes)
    keys = jax.random.split(jax.random.key(0), len(leaves))
    programs: dict[Any, Any] = {}
    made = []
    for key, leaf, sharding in zip(keys, leaves, jax.tree.leaves(shardings), strict=True):
        kind = leaf.shape, sharding
        if kind not in programs:
            programs[kind] = jax.jit(_maker(leaf), out_shardings=sharding)
        made.append(programs[kind](key))
    return jax.tree.unflatten(structure, made)


def _maker(leaf: Any) -> Any:
    """Returns a function from a key to a random matrix; norms are ones."""

    def make(key: jax.Array) -> jax.Array:
        if len(leaf.shape) < 2:
            return jnp.ones(leaf.shape, leaf.dtype)
        return jax.random.normal(key, leaf.shape, leaf.dtype) * leaf.shape[-1] ** -0.5

    return make
