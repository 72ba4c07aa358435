"""Says how the in-process JAX engine draws, where, and what it takes on a device."""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from atgrpo_jax.arrays.mesh import MeshConfig, bytes_on, check_mesh
from atgrpo_jax.arrays.spread import here
from atgrpo_jax.common.checks import require
from atgrpo_jax.common.errors import ConfigError
from atgrpo_jax.common.rounding import power_of_two
from atgrpo_jax.engines.local.engine import LocalEngine
from atgrpo_jax.engines.local.settings import Settings
from atgrpo_jax.engines.protocol import Drawing, EngineConfig, Planned, Served
from atgrpo_jax.models.divided import divided
from atgrpo_jax.models.transformer import Transformer

_WHOLE = (
    "Each host draws on its own devices, with whole copies of the weights; give LocalEngineConfig.mesh "
    "more data and less fsdp"
)


@dataclasses.dataclass(frozen=True)
class LocalEngineConfig(Settings, EngineConfig):
    """Says how samples are drawn in this process, and on which of its devices."""

    # The mesh that draws. None for the learner's: then both share the arrays. With a mesh of its
    # own, each push copies the weights to it, from however the learner splits them.
    mesh: MeshConfig | None = None
    first_device: int = 0  # of ``mesh``, as an index in jax.devices()

    def __post_init__(self):
        super().__post_init__()
        require(self, "first_device", self.first_device >= 0, "must not be negative")
        rule = "is for a mesh of the engine's own; set LocalEngineConfig.mesh"
        require(self, "first_device", self.mesh is not None or not self.first_device, rule)

    def check(self, mesh: MeshConfig) -> None:
        own = self.mesh or mesh
        require(self, "slots", self.slots % own.rows == 0, f"must be a multiple of mesh {own.rows_text}")

    def check_ahead(self, mesh: MeshConfig) -> None:
        """Refuses devices that are shared, but for a single one.

        Two threads would give them programs that exchange numbers, in no order: they may wait for each
        other for ever.
        """
        if not self.apart(mesh) and max(mesh.devices, (self.mesh or mesh).devices) > 1:
            raise ValueError(
                "Experiment.max_lag: engine and learner share several devices; give the engine its own, with "
                f"LocalEngineConfig.mesh and LocalEngineConfig.first_device = {mesh.devices}"
            )

    def devices_needed(self, mesh: MeshConfig) -> int:
        own = 0 if self.mesh is None else self.first_device + self.mesh.devices
        return max(mesh.devices, own)

    def apart(self, mesh: MeshConfig) -> bool:
        return self.first_device >= mesh.devices  # which is 0 without a mesh of its own

    def build(self, served: Served) -> "LocalEngine":
        """Builds the engine. Raises ConfigError if ``mesh`` does not fit the devices or the models.

        Each of several hosts has an engine on its part of the mesh, with its part of the slots.
        """
        meshes = served.meshes if self.mesh is None else self._own_meshes(self.mesh, served)
        default_shape = served.longest_answer, served.candidates
        hosts = served.hosts.count
        if hosts > 1:
            self.check_hosts(MeshConfig(**next(iter(served.meshes.values())).shape), hosts)
            _check_here(next(iter(meshes.values())))
        return LocalEngine(
            served.models,
            served.stop_ids,
            dataclasses.replace(self, slots=self.slots // hosts),
            meshes,
            served.decode,
            default_shape,
            copies=self.mesh is not None,
            part=hosts > 1,
        )

    def check_hosts(self, mesh: MeshConfig, hosts: int) -> None:
        own = self.mesh or mesh
        if own.devices != mesh.devices or self.first_device:
            raise ConfigError(
                f"LocalEngineConfig.mesh {self.mesh}: on several hosts it must have all devices, as the "
                "learner's mesh has"
            )
        if own.data % hosts:
            raise ConfigError(
                f"the engine's mesh, {own}: fsdp x expert x tensor do not lie within one of {hosts} hosts. "
                f"{_WHOLE}"
            )

    def drawing(self, mesh: MeshConfig) -> Drawing:
        return Drawing(self.mesh or mesh, self.mesh is not None, self.slots, self.chunk)

    def _own_meshes(self, mesh: MeshConfig, served: Served) -> dict[str, Mesh]:
        devices = jax.devices()[self.first_device :]
        check_mesh(mesh, len(devices), divided(served.models), "LocalEngineConfig.mesh")
        places = {name: place for place, name in enumerate(dict.fromkeys(served.initial_names.values()))}
        several = served.hosts.count > 1
        built = {name: mesh.build(devices, place, rows_in_hosts=several) for name, place in places.items()}
        return {policy: built[name] for policy, name in served.initial_names.items()}

    @property
    def at_once(self) -> int:
        return self.slots

    def longest_prompt(self, answer: int) -> int:
        return self.max_prompt

    def bytes_on_device(self, planned: Planned) -> dict[str, float]:
        mesh = self.mesh or planned.mesh
        distinct = {model.architecture: model for model in planned.models.values()}
        lines = {"cache of the rollout": sum(self._cache(m, mesh, planned) for m in distinct.values())}
        for name, model in planned.models.items():
            whole = bytes_on(planned.params[name], mesh, model.family.axes)
            of = "base of adapters" if name in planned.adapted else name
            if self.mesh is not None:
                lines[f"parameters copied for the rollout, {of}"] = whole
            if name not in planned.adapted and self._keeps_joined(mesh, whole):
                lines[f"parameters arranged for the rollout, {name}"] = _joined_bytes(model)
        return lines

    def _keeps_joined(self, mesh: MeshConfig, whole: float) -> bool:
        return mesh.side == mesh.data and whole <= self.joined_mb * 1e6

    def _cache(self, model: Transformer, mesh: MeshConfig, planned: Planned) -> float:
        """Returns the bytes of the pages on each device, and of the slots' logits."""
        config = model.architecture
        split = mesh.tensor if config.kv_heads % mesh.tensor == 0 else 1
        slots = self.slots / mesh.rows
        most = slots * power_of_two(planned.longest_answer)
        tokens = self.prompt_cache + min(self.answer_cache or most, most)
        numbers = 2 * config.layers * config.kv_heads // split * config.head_size
        return tokens * numbers * jnp.dtype(model.compute.dtype).itemsize + 3 * 4 * slots * model.vocab_size


def _check_here(mesh: Mesh) -> None:
    """Raises ConfigError if JAX's order of the devices has no whole rows of ``mesh`` on this host."""
    try:
        here(mesh)
    except ValueError as error:
        raise ConfigError(f"the engine's mesh, {dict(mesh.shape)}: {error}. {_WHOLE}") from error


def _joined_bytes(model: Transformer) -> int:
    """Returns the bytes of a model's second copy; see ``transformer.join_layers``."""
    config = model.architecture
    family = model.family
    names = {name for group in family.joined for name in group}
    matrices = sum(math.prod(shape) for name, shape in family.kernels(config).items() if name in names)
    biases = sum(size for name, size in family.vectors(config).items() if name in names)
    return config.layers * (matrices + biases) * jnp.dtype(model.compute.param_dtype).itemsize
