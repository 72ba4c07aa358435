"""Estimates a run's memory on each device.

It needs neither weights nor accelerators. Parameters and optimizer state are exact: their shapes
and shardings are those of the run. What an update takes beside them is estimated (activations.py).
"""

import dataclasses
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from atgrpo_jax.arrays.mesh import MeshConfig, on_host
from atgrpo_jax.common.errors import ConfigError
from atgrpo_jax.engines.protocol import Planned
from atgrpo_jax.models.config import Architecture
from atgrpo_jax.planning.activations import (
    activations,
    copied_bytes,
    experts_bytes,
    head_bytes,
    local_share,
)
from atgrpo_jax.planning.devices import Device
from atgrpo_jax.planning.workload import Workload
from atgrpo_jax.run.experiment import Experiment
from atgrpo_jax.run.team_learner import TeamLearner
from atgrpo_jax.update.batch import pack
from atgrpo_jax.update.learner import PolicyState

_GRADIENTS = "gradients, and of one micro-batch"
_COPY = "parameters in bfloat16, gathered"
_ACTIVATIONS = "activations of the update"
_HEAD = "the head's logits and gradient"
_EXPERTS = "tokens and gradients of a layer's experts"
WARM = ", in the warm start"


class _Trained(NamedTuple):
    """Says what an update trains: the shapes of its state, its model, and its rank if it is an adapter."""

    state: PolicyState
    model: Architecture
    rank: int | None = None


def memory(experiment: Experiment, policies: TeamLearner, workload: Workload) -> dict[str, float]:
    """Returns the bytes on each device, by what they hold, of the part of the run that takes most.

    That is its steps or, with ``WARM`` at the end of each line, its warm start.
    """
    steps, warm = of_steps(experiment, policies, workload), of_warm_start(experiment, policies, workload)
    return max(steps, warm, key=total)


def of_steps(experiment: Experiment, policies: TeamLearner, workload: Workload) -> dict[str, float]:
    """Returns the bytes on each device, by what they hold, while the run makes its steps.

    If several meshes are side by side, or the engine has one apart from the learner's, they are
    those of the fullest one.
    """
    found = []
    for names in _sides(policies, policies.names):
        trained = {}
        for name in names:
            model = experiment.architecture(experiment.initial_name(name))
            rank = experiment.lora.rank if name in policies.adapted else None
            trained[name] = _Trained(policies.shapes[name], model, rank)
        learner = _states(trained)
        for name, (state, *_) in trained.items():
            if experiment.refers:
                learner[f"parameters that a KL term compares with, {name}"] = bytes_a_device(state.params)
            if experiment.max_lag:
                learner[f"parameters that draw meanwhile, {name}"] = bytes_a_device(state.params)
        if policies.adapted:
            learner["parameters, base of adapters"] = bytes_a_device(policies.base_shapes())
        learner |= _update(experiment, trained, workload.longest_group)
        engine = _engine(experiment, policies, names, workload)
        found += [learner, engine] if experiment.engine.apart(experiment.mesh) else [learner | engine]
    return max(found, key=total)


def of_warm_start(experiment: Experiment, policies: TeamLearner, workload: Workload) -> dict[str, float]:
    """Returns the bytes on each device, by what they hold, while the warm start is made; none without one.

    It trains all parameters of what the policies start from, also of the base of adapters. Nothing is drawn
    meanwhile.
    """
    if experiment.warm_start is None:
        return {}
    found = []
    for names in _sides(policies, experiment.initial_names):
        trained = {name: _Trained(policies.shapes_of(name), experiment.architecture(name)) for name in names}
        lines = _states(trained) | _update(experiment, trained, workload.longest_demonstrated)
        found.append({line + WARM: size for line, size in lines.items()})
    return max(found, key=total)


def total(lines: Mapping[str, float]) -> float:
    """Returns the bytes of all lines."""
    return sum(lines.values())


def _sides(policies: TeamLearner, names: Sequence[str]) -> Iterable[Sequence[str]]:
    """Returns the names on each of the meshes that are side by side."""
    sides: dict[Any, list[str]] = defaultdict(list)
    for name in names:
        sides[policies.meshes[name]].append(name)
    return sides.values()


def _states(trained: Mapping[str, _Trained]) -> dict[str, float]:
    lines: dict[str, float] = {}
    for name, (state, *_) in trained.items():
        lines[f"parameters, {name}"] = bytes_a_device(state.params)
        lines[f"optimizer, {name}"] = bytes_a_device(state.opt_state)
    return lines


def _update(experiment: Experiment, trained: Mapping[str, _Trained], longest: int) -> dict[str, float]:
    """Returns what an update takes beside its state, on groups of at most ``longest`` tokens."""
    mesh, compute = experiment.mesh, experiment.compute
    row = experiment.batch.row(longest)
    lines = {_GRADIENTS: 2.0 * max(bytes_a_device(one.state.params) for one in trained.values())}
    local = {name: local_share(one.model, mesh) for name, one in trained.items()}
    if compute.dtype != compute.param_dtype:
        lines[_COPY] = max(copied_bytes(own, experiment) for own in local.values())
    lines[_ACTIVATIONS] = max(
        activations(one.model, compute, mesh, experiment.batch, row, one.rank) for one in trained.values()
    )
    mixtures = [one.model for one in trained.values() if one.model.experts is not None]
    if mixtures:
        lines[_EXPERTS] = max(experts_bytes(model, experiment, row) for model in mixtures)
    lines[_HEAD] = max(
        head_bytes(local[name], experiment, trained=one.rank is None) for name, one in trained.items()
    )
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
    kept = {name: size for name, size in lines.items() if name.removesuffix(WARM) not in estimates}
    warm = WARM if any(name.endswith(WARM) for name in lines) else ""
    return kept | {f"the update beside its state, as compiled{warm}": update}


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


def report_steps(steps: Mapping[str, float], on: Device) -> Sequence[str]:
    """Returns the lines about the steps of a run whose warm start takes most."""
    verdict = "fits" if fits(steps, on) else "does not fit"
    return [
        "  the warm start takes most: it trains all parameters that policies start from, with an optimizer;",
        f"  the steps after it take {total(steps) / 1e9:.3f} GB, which {verdict}",
    ]
