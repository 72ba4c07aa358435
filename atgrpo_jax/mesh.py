"""The device mesh, the rules from logical to mesh axes, and shardings for any tree of parameters."""

import dataclasses
import re
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from atgrpo_jax.checks import check_types, require

# The axes of every parameter, by the end of its path; letters as in the package's docstring.
PARAMETER_AXES = (
    (r"embedding$", "VD"),
    (r"head$", "DV"),
    (r"(q|k|v)/kernel$", "DN"),
    (r"(q|k|v)/bias$", "N"),
    (r"o/kernel$", "ND"),
    (r"(gate|up)/kernel$", "DF"),
    (r"down/kernel$", "FD"),
    # Adapters; their rank R is on every device.
    (r"(q|k|v|gate|up)/a$", "DR"),
    (r"o/a$", "NR"),
    (r"down/a$", "FR"),
    (r"(q|k|v)/b$", "RN"),
    (r"(gate|up)/b$", "RF"),
    (r"(o|down)/b$", "RD"),
)
MESH_AXES = {"D": "fsdp", "N": "tensor", "F": "tensor", "V": "tensor"}


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each axis; ``data`` and ``fsdp`` both split rows, ``fsdp`` also parameters."""

    data: int = 1
    fsdp: int = 1
    tensor: int = 1

    def __post_init__(self):
        check_types(self)
        for name in ("data", "fsdp", "tensor"):
            require(self, name, getattr(self, name) >= 1, "must be at least 1")

    def build(self) -> Mesh:
        """Raises ValueError if there are fewer devices than the mesh needs."""
        wanted, there = self.data * self.fsdp * self.tensor, len(jax.devices())
        if wanted > there:
            raise ValueError(
                f"MeshConfig {self.data} x {self.fsdp} x {self.tensor} needs {wanted} devices, {there} found"
            )
        shape = (self.data, self.fsdp, self.tensor)
        return jax.make_mesh(
            shape,
            ("data", "fsdp", "tensor"),
            axis_types=(jax.sharding.AxisType.Auto,) * 3,
            devices=jax.devices()[:wanted],
        )


def parameter_shardings(tree: Any, mesh: Mesh) -> Any:
    """A NamedSharding for every leaf of parameters, or of optimizer state that mirrors them.

    Leaves that no rule names are replicated. Raises ValueError naming the parameter whose size the mesh
    does not divide.
    """

    def sharding(path, leaf) -> NamedSharding:
        name = "/".join(str(getattr(p, "key", getattr(p, "name", p))) for p in path)
        axes = next((axes for rule, axes in PARAMETER_AXES if re.search(rule, name)), "")
        if len(axes) != leaf.ndim:
            return NamedSharding(mesh, PartitionSpec())
        spec = tuple(MESH_AXES.get(axis) for axis in axes)
        for size, axis in zip(leaf.shape, spec, strict=True):
            if axis is not None and size % mesh.shape[axis]:
                raise ValueError(
                    f"parameter {name} {leaf.shape}: {size} is not divisible by the mesh axis "
                    f"{axis} = {mesh.shape[axis]}"
                )
        return NamedSharding(mesh, PartitionSpec(*spec))

    return jax.tree_util.tree_map_with_path(sharding, tree)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """[A, B, T]: rows over data and fsdp."""
    return NamedSharding(mesh, PartitionSpec(None, ("data", "fsdp"), None))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())
