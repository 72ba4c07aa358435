"""Estimates a run's memory on each device.

It needs neither weights nor accelerators. Parameters and optimizer state are exact: their shapes
and shardings are those of the run. Activations are what JAX's own backward pass keeps. They are
found by abstract evaluation of one device's share of the model.
"""

import dataclasses
import functools
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from atgrpo_jax.arrays.mesh import MeshConfig, on_host
from atgrpo_jax.common.errors import ConfigError
from atgrpo_jax.engines.protocol import Planned
from atgrpo_jax.models.config import Architecture, Compute
from atgrpo_jax.models.families.table import family_of, transformer
from atgrpo_jax.models.head import CHUNK_BYTES, table, token_loss
from atgrpo_jax.models.lora import adapter_shapes
from atgrpo_jax.models.packed import Packed
from atgrpo_jax.models.transformer import PolicyWeights, shapes_of
from atgrpo_jax.planning.devices import Device
from atgrpo_jax.planning.workload import Workload
from atgrpo_jax.run.experiment import Experiment
from atgrpo_jax.run.team_learner import TeamLearner
from atgrpo_jax.update.batch import BatchConfig, pack
from atgrpo_jax.update.objectives import cloning

_GRADIENTS = "gradients, and of one micro-batch"
_COPY = "parameters in bfloat16, gathered"
_ACTIVATIONS = "activations of the update"
_HEAD = "the head's logits and gradient"
_EXPERTS = "tokens and gradients of a layer's experts"


def memory(experiment: Experiment, policies: TeamLearner, workload: Workload) -> dict[str, float]:
    """Returns the bytes on each device, by what they hold.

    If several meshes are side by side, or the engine has one apart from the learner's, they are
    those of the fullest one.
    """
    sides: dict[Any, list[str]] = defaultdict(list)
    for name in policies.names:
        sides[policies.meshes[name]].append(name)
    found = []
    for names in sides.values():
        learner = _memory(experiment, policies, names, workload)
        engine = _engine(experiment, policies, names, workload)
        found += [learner, engine] if experiment.engine.apart(experiment.mesh) else [learner | engine]
    return max(found, key=total)


def total(lines: Mapping[str, float]) -> float:
    """Returns the bytes of all lines."""
    return sum(lines.values())


def _memory(
    experiment: Experiment, policies: TeamLearner, names: Sequence[str], workload: Workload
) -> dict[str, float]:
    lines: dict[str, float] = {}
    held = {name: policies.shapes[name] for name in names}
    for name, shapes in held.items():
        lines[f"parameters, {name}"] = bytes_a_device(shapes.params)
        lines[f"optimizer, {name}"] = bytes_a_device(shapes.opt_state)
        if experiment.refers:
            lines[f"parameters that a KL term compares with, {name}"] = bytes_a_device(shapes.params)
        if experiment.max_lag:
            lines[f"parameters that draw meanwhile, {name}"] = bytes_a_device(shapes.params)
    if policies.adapted:
        lines["parameters, base of adapters"] = bytes_a_device(policies.base_shapes())
    lines[_GRADIENTS] = 2 * max(bytes_a_device(shapes.params) for shapes in held.values())
    row = experiment.batch.row(workload.longest_group)
    configs = {name: experiment.architecture(experiment.initial_name(name)) for name in names}
    local = {name: _local(config, experiment.mesh) for name, config in configs.items()}
    compute = experiment.compute
    if compute.dtype != compute.param_dtype:
        lines[_COPY] = max(_copy(local[name], experiment) for name in configs)
    ranks = {name: experiment.lora.rank if name in policies.adapted else None for name in configs}
    lines[_ACTIVATIONS] = max(
        activations(config, compute, experiment.mesh, experiment.batch, row, ranks[name])
        for name, config in configs.items()
    )
    mixtures = [config for config in configs.values() if config.experts is not None]
    if mixtures:
        lines[_EXPERTS] = max(_experts(config, experiment, row) for config in mixtures)
    lines[_HEAD] = max(_head(local[name], experiment, trained=ranks[name] is None) for name in configs)
    return lines


def _engine(
    experiment: Experiment, policies: TeamLearner, names: Sequence[str], workload: Workload
) -> dict[str, float]:
    base = policies.base_shapes() if policies.adapted else None
    return experiment.engine.bytes_on_device(
        Planned(
            models={name: policies.models[name] for name in names},
            params={
                name: base if name in policies.adapted else policies.shapes[name].params for name in names
            },
            adapted=policies.adapted,
            mesh=experiment.mesh,
            longest_answer=workload.longest_answer,
        )
    )


def measured(lines: Mapping[str, float], update: float) -> dict[str, float]:
    """Replaces the estimates for the update by ``update``, the bytes that the compiler measured."""
    estimates = {_GRADIENTS, _COPY, _ACTIVATIONS, _HEAD, _EXPERTS}
    return {name: size for name, size in lines.items() if name not in estimates} | {
        "the update beside its state, as compiled": update
    }


def update_bytes(experiment: Experiment, policies: TeamLearner, longest: int) -> int:
    """Compiles the update and returns the bytes that it takes on each device.

    State, base and what a KL term compares with are not counted. The bytes are those of the policy whose
    update takes most, on a micro-batch with groups of at most ``longest`` tokens. The policies' devices
    need not exist.

    Raises ConfigError with the compiler's words if the update does not compile, for example because
    it does not fit.
    """
    batch = pack(
        [], dataclasses.replace(experiment.batch, row_tokens=experiment.batch.row(longest)), "token", 1
    )
    most = 0
    for name in policies.names:
        counted = bytes_a_device(policies.shapes[name])
        counted += bytes_a_device(policies.base_shapes()) if name in policies.adapted else 0
        counted += bytes_a_device(policies.shapes[name].params) if experiment.refers else 0
        try:
            programs = [program.memory_analysis() for program in policies.compile(name, batch)]
        except jax.errors.JaxRuntimeError as error:
            raise ConfigError(f"the update of {name} does not compile: {error}") from error
        for m in programs:
            assert m is not None
            held = m.argument_size_in_bytes + m.output_size_in_bytes - m.alias_size_in_bytes
            peak = held + m.temp_size_in_bytes + m.generated_code_size_in_bytes
            most = max(most, peak - counted)
    return most


def bytes_a_device(tree: Any) -> int:
    """Returns the bytes on each device of arrays, or of shapes with shardings.

    Those in host memory do not count.
    """
    leaves = (x for x in jax.tree.leaves(tree) if not on_host(x.sharding))
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in leaves)


def bytes_on_hosts(tree: Any) -> int:
    """Returns the bytes in the memory of all hosts of arrays, or of shapes with shardings."""
    leaves = (x for x in jax.tree.leaves(tree) if on_host(x.sharding))
    shards = (
        (len(x.sharding.device_set), math.prod(x.sharding.shard_shape(x.shape)), x.dtype) for x in leaves
    )
    return sum(devices * size * dtype.itemsize for devices, size, dtype in shards)


def activations(
    config: Architecture,
    compute: Compute,
    mesh: MeshConfig,
    batch: BatchConfig,
    row: int,
    lora: int | None = None,
) -> float:
    """Returns the bytes of activations on each device for one micro-batch.

    They are what the forward pass keeps for the backward pass, and what that computes again. Models
    of one and two layers are evaluated: every further layer keeps as much as the second one.
    """
    local = _local(config, mesh)
    rows = batch.rows // mesh.rows
    compute = dataclasses.replace(compute, scan=False)
    one, two = (_bytes_a_row(dataclasses.replace(local, layers=n), compute, row, lora) for n in (1, 2))
    kept = one + (config.layers - 1) * (two - one)
    if compute.remat != "none":
        plain = dataclasses.replace(compute, remat="none")
        one, two = (_bytes_a_row(dataclasses.replace(local, layers=n), plain, row, lora) for n in (1, 2))
        kept += two - one  # those of one block, while it is computed again
    return rows * kept


def _local(config: Architecture, mesh: MeshConfig) -> Architecture:
    """Returns one device's share of the model: each layer is split over ``mesh.tensor`` devices."""
    t = mesh.tensor
    experts = config.experts
    return dataclasses.replace(
        config,
        heads=config.heads // t,
        kv_heads=max(config.kv_heads // t, 1),
        mlp_width=config.mlp_width // t,
        experts=experts and dataclasses.replace(experts, width=experts.width // t),
        vocab_size=(config.vocab_size or t) // t,
    )


@functools.lru_cache(maxsize=64)
def _bytes_a_row(config: Architecture, compute: Compute, row: int, lora: int | None) -> int:
    """Returns the bytes that are kept for each row.

    It subtracts one row from two, because parameters are kept, too, and do not grow with the rows.
    """
    one, two = (_residuals(config, compute, rows, row, lora) for rows in (1, 2))
    return two - one


def _residuals(config: Architecture, compute: Compute, rows: int, row: int, lora: int | None) -> int:
    model = transformer(config, config.vocab_size or 1, compute)
    packed = Packed(model, MeshConfig().build())
    micro = jax.tree.map(lambda x: x[0], pack([], BatchConfig(row, rows), "token", 1))

    def backward(trained, base, micro):
        def loss(trained):
            weights = PolicyWeights(trained) if lora is None else PolicyWeights(base, trained)
            hidden_BTD, head = packed.hidden(weights, micro)
            return token_loss(head, cloning.tokens, table(weights.params), hidden_BTD, micro.trained, None)[0]

        return jax.vjp(loss, trained)[1]

    params = shapes_of(model)
    trained = params if lora is None else adapter_shapes(model, lora)
    leaves = jax.tree.leaves(jax.eval_shape(backward, trained, params, micro))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)


def _copy(local: Architecture, experiment: Experiment) -> float:
    """Returns the bytes of the blocks' parameters in the activations' dtype.

    They are a device's part and, with ``fsdp``, one whole layer.
    """
    mesh = experiment.mesh
    shapes = family_of(local).kernels(local).values()
    layer = sum(math.prod(shape) // (mesh.expert if len(shape) == 3 else 1) for shape in shapes)
    return jnp.dtype(experiment.compute.dtype).itemsize * layer * (local.layers / mesh.fsdp + (mesh.fsdp > 1))


def _experts(config: Architecture, experiment: Experiment, row: int) -> float:
    """Returns the bytes that ``models.experts`` takes in an update beside what it is given.

    They are the tokens that the devices along ``expert`` have together, what comes back to them, and
    their gradient in float32; and the gradients in float32 of the experts of a device.
    """
    mesh = experiment.mesh
    assert config.experts is not None
    itemsize = jnp.dtype(experiment.compute.dtype).itemsize
    tokens = experiment.batch.rows // (mesh.data * mesh.fsdp) * row
    own = config.experts.count // mesh.expert * config.experts.width // mesh.tensor
    return config.width * (tokens * (2 * itemsize + 4) + 3 * own * 4)


def _head(local: Architecture, experiment: Experiment, trained: bool) -> float:
    """Returns the bytes that the head takes in an update.

    They are three arrays of a chunk's logits, the table in the activations' dtype and, if it is
    ``trained``, its gradient in float32.
    """
    vocab = local.vocab_size or experiment.tokenizer.vocab_size
    table = vocab * local.width
    return 3 * CHUNK_BYTES + table * (jnp.dtype(experiment.compute.dtype).itemsize + 4 * trained)


def fits(lines: Mapping[str, float], on: Device) -> bool:
    """Returns whether a twelfth of the memory is left for the runtime and for fragmentation."""
    return total(lines) <= room(on)


def room(on: Device) -> float:
    """Returns the bytes of a device that a run may take."""
    return on.memory * 11 / 12


def report(lines: Mapping[str, float], on: Device, mesh: MeshConfig) -> Sequence[str]:
    """Returns the lines of the memory table."""
    width = max(map(len, lines))
    verdict = "fits" if fits(lines, on) else "does not fit"
    return [
        f"mesh {mesh}: {mesh.devices} x {on.name}, {on.memory / 1e9:.0f} GB each",
        *(f"  {name:{width}}  {size / 1e9:8.3f} GB" for name, size in lines.items()),
        f"  {'in all, on each device':{width}}  {total(lines) / 1e9:8.3f} GB: {verdict}",
    ]
