"""Builds the device mesh, and maps the axes of parameters and batches to the axes of the mesh."""

import contextlib
import dataclasses
import math
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from atgrpo_jax.arrays.layout import AXES, Apart, laid_out
from atgrpo_jax.arrays.tree_paths import path_text
from atgrpo_jax.common.checks import check_types, require
from atgrpo_jax.common.errors import ConfigError
from atgrpo_jax.common.literals import told
from atgrpo_jax.common.progress import counted

# The axes of parameters, each by a regular expression for the end of its path: (r"q/kernel$", "DN").
# The package's docstring explains the letters. A family of models says which they are.
ParameterAxes = Sequence[tuple[str, str]]
MESH_AXES = {"D": "fsdp", "N": "tensor", "F": "tensor", "V": "tensor", "E": "expert"}
ROWS = "data", "fsdp", "expert"  # the axes of a mesh that split rows


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """The number of devices along each axis of a mesh.

    ``data``, ``fsdp`` and ``expert`` split rows. ``fsdp`` also splits parameters. ``expert`` also deals
    the experts of a mixture to devices, so that each has the parameters of its own ones only (expert
    parallelism). ``tensor`` splits heads, widths and the vocabulary. ``policies`` is the number of such
    meshes that stand side by side. The policies are dealt to them in turn, and policies on different
    meshes are updated at the same time.
    """

    data: int = 1
    fsdp: int = 1
    tensor: int = 1
    policies: int = 1
    expert: int = 1  # devices that the experts of a mixture are dealt to

    def __post_init__(self):
        check_types(self)
        for field in dataclasses.fields(self):
            require(self, field.name, getattr(self, field.name) >= 1, "must be at least 1")

    @property
    def side(self) -> int:
        """Returns the number of devices of one of the meshes that stand side by side."""
        return self.rows * self.tensor

    @property
    def rows(self) -> int:
        """Returns into how many parts one of these meshes splits rows."""
        return self.data * self.fsdp * self.expert

    @property
    def rows_text(self) -> str:
        """Returns ``rows`` as errors tell it."""
        return f"data x fsdp{' x expert' if self.expert > 1 else ''} = {self.rows}"

    @property
    def devices(self) -> int:
        return self.policies * self.side

    def build(
        self, devices: Sequence[Any] | None = None, place: int = 0, rows_in_hosts: bool = False
    ) -> Mesh:
        """Returns the mesh of policy number ``place``, made of ``devices`` or else of all devices.

        Only ``data`` goes over several slices; with ``rows_in_hosts``, only ``data`` goes over hosts.

        Raises ValueError if there are too few devices (``check_mesh`` gives a better message), and
        ConfigError if ``data`` cannot go over the slices or hosts.
        """
        first = place % self.policies * self.side
        devices = (devices or jax.devices())[first : first + self.side]
        try:
            arranged = laid_out(tuple(getattr(self, axis) for axis in AXES), devices, rows_in_hosts)
        except Apart as error:
            raise ConfigError(f"mesh {self}: {error}") from error
        return Mesh(arranged, AXES, axis_types=(jax.sharding.AxisType.Auto,) * len(AXES))

    def __repr__(self) -> str:
        """Tells ``expert`` only if it is set: runs from before it are known by this text."""
        return told(self, {"expert": 1})

    def __str__(self) -> str:
        sizes = dataclasses.asdict(self).items()
        always = "data", "fsdp", "tensor"
        return ", ".join(f"{axis} = {n}" for axis, n in sizes if axis in always or n > 1)


def parse_mesh(text: str) -> MeshConfig:
    """Reads a mesh such as "data=2,fsdp=4". Raises ConfigError for any other text."""
    axis = f"({'|'.join(field.name for field in dataclasses.fields(MeshConfig))})"
    if not re.fullmatch(rf"({axis}=\d+)(,{axis}=\d+)*", text):
        raise ConfigError(f"--mesh={text}: expected axes and sizes, e.g. data=2,fsdp=4,tensor=1")
    pairs = [part.split("=") for part in text.split(",")]
    sizes = {axis: int(size) for axis, size in pairs}
    try:
        return MeshConfig(**sizes)
    except ValueError as error:
        raise ConfigError(f"--mesh={text}: {error}") from error


def platform_of(mesh: Mesh | None) -> Literal["cpu", "gpu", "tpu"]:
    """Returns the mesh's platform; without a mesh, the platform of JAX's first device."""
    return (jax.devices()[0] if mesh is None else mesh.devices.flat[0]).platform


def provide_devices(count: int) -> None:
    """Gives JAX ``count`` virtual CPU devices. Accelerators are not changed."""
    if count > 1 and "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        # After JAX has started this fails. Then ``check_mesh`` says whether there are too few.
        with contextlib.suppress(RuntimeError):
            jax.config.update("jax_num_cpu_devices", count)


# A size that a mesh axis must divide: (a name for people, the size, the axis).
Divided = tuple[str, int, str]


def check_mesh(config: MeshConfig, devices: int, divided: Iterable[Divided], what: str = "mesh") -> None:
    """Raises ConfigError if there are too few devices or an axis does not divide a size.

    The error names the nearest mesh that is possible. ``what`` is how it calls the mesh.
    """
    names = {(size, axis): name for name, size, axis in divided}
    divided = [(name, *key) for key, name in names.items()]
    if (reason := _misfit(config, devices, divided)) is None:
        return

    def distance(mesh: MeshConfig) -> float:
        pairs = zip(dataclasses.astuple(mesh), dataclasses.astuple(config), strict=True)
        return sum(abs(math.log(one / other)) for one, other in pairs)

    possible = (mesh for mesh in _meshes(devices, config.policies) if _misfit(mesh, devices, divided) is None)
    best = min(possible, key=lambda mesh: (distance(mesh), -mesh.devices))
    raise ConfigError(f"{what} {config}: {reason}; the nearest possible is {best}")


def _meshes(devices: int, policies: int) -> Iterator[MeshConfig]:
    """Yields all meshes with at most this number of devices and of meshes side by side."""
    for sides in range(1, min(policies, devices) + 1):
        side = devices // sides
        for data in range(1, side + 1):
            for fsdp in range(1, side // data + 1):
                for tensor in range(1, side // (data * fsdp) + 1):
                    for expert in range(1, side // (data * fsdp * tensor) + 1):
                        yield MeshConfig(data, fsdp, tensor, sides, expert)


def _misfit(config: MeshConfig, devices: int, divided: Iterable[Divided]) -> str | None:
    if config.devices > devices:
        return f"needs {counted(config.devices, 'device')}, {devices} found"
    for name, size, axis in divided:
        if size % getattr(config, axis):
            return f"{name} has size {size}, which {axis} = {getattr(config, axis)} does not divide"
    return None


def divided_parameters(tree: Any, axes: ParameterAxes) -> Iterator[Divided]:
    """Yields the sizes that a mesh splits.

    ``tree`` holds parameters or their shapes, or optimizer state that mirrors them.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        for size, axis in zip(leaf.shape, _spec(path, leaf, axes), strict=False):
            if axis is not None:
                yield path_text(path), size, axis


def parameter_shardings(tree: Any, mesh: Mesh, axes: ParameterAxes) -> Any:
    """Returns a NamedSharding for every leaf of parameters or of optimizer state that mirrors them.

    Leaves that match none of the ``axes`` are replicated.
    """

    def sharding(path, leaf):
        return NamedSharding(mesh, _spec(path, leaf, axes))

    return jax.tree_util.tree_map_with_path(sharding, tree)


def bytes_on(tree: Any, config: MeshConfig, axes: ParameterAxes) -> int:
    """Returns the bytes of parameters, or of their shapes, on each device of a mesh."""
    total = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        parts = math.prod(getattr(config, axis) for axis in _spec(path, leaf, axes) if axis is not None)
        total += leaf.size // parts * leaf.dtype.itemsize
    return total


def copied(tree: Any, mesh: Mesh, axes: ParameterAxes) -> Any:
    """Returns new arrays of the same parameters, split over ``mesh`` as it asks for."""

    def new(leaf: jax.Array, sharding: NamedSharding) -> jax.Array:
        # Where a device keeps its part, device_put shares the buffer, even with may_alias=False.
        return jnp.copy(jax.device_put(leaf, sharding))

    return jax.tree.map(new, tree, parameter_shardings(tree, mesh, axes))


def _spec(path: tuple, leaf: Any, axes: ParameterAxes) -> PartitionSpec:
    own = next((letters for rule, letters in axes if re.search(rule, path_text(path))), "")
    return PartitionSpec(*map(MESH_AXES.get, own)) if len(own) == leaf.ndim else PartitionSpec()


def host_sharding(sharding: NamedSharding) -> NamedSharding:
    """Returns a sharding that keeps the same parts of an array in host memory."""
    return sharding.with_memory_kind("pinned_host")


def on_host(sharding: Any) -> bool:
    return sharding.memory_kind == host_sharding(sharding).memory_kind


def group_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of an array [D, ...]. Its D shards are spread as rows are."""
    return NamedSharding(mesh, PartitionSpec(ROWS))


def page_sharding(mesh: Mesh, heads: int) -> NamedSharding:
    """Returns the sharding of an array [D, N, M, ...], with its D shards spread as rows are.

    The key heads M are split over tensor if that axis divides ``heads``; else they are replicated.
    """
    tensor = "tensor" if heads % mesh.shape["tensor"] == 0 else None
    return NamedSharding(mesh, PartitionSpec(ROWS, None, tensor))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of an array [A, B, T], with the rows B split."""
    return NamedSharding(mesh, PartitionSpec(None, ROWS, None))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())
