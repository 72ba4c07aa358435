"""How a mesh is laid out on devices: of one slice, and of several, which only ``data`` goes over."""

import dataclasses

import jax
import numpy as np
import pytest

from atgrpo_jax.arrays.mesh import MeshConfig, parse_mesh
from atgrpo_jax.common.errors import ConfigError
from atgrpo_jax.planning import tpu_compiler


@dataclasses.dataclass(frozen=True)
class Described:
    """A device that is not there."""

    id: int
    slice_index: int
    process_index: int = 0
    platform: str = "cpu"
    device_kind: str = "described"


def described(*slices):
    return [Described(number, index) for number, index in enumerate(slices)]


def slices_in(mesh):
    return np.vectorize(lambda device: device.slice_index)(mesh.devices[:, :, 0])


@pytest.mark.parametrize(
    "config", [MeshConfig(2, 2, 2), MeshConfig(fsdp=8), MeshConfig(1, 2, 2), MeshConfig(2, expert=4)], ids=str
)
def test_in_one_slice_it_is_jaxs_own(config):
    shape = config.data, config.fsdp, config.expert, config.tensor
    automatic = (jax.sharding.AxisType.Auto,) * 4
    assert config.build() == jax.make_mesh(shape, ("data", "fsdp", "expert", "tensor"), automatic)
    with pytest.raises(ValueError, match="8"):
        MeshConfig(fsdp=16).build()


@pytest.mark.parametrize("order", [(0, 0, 0, 0, 1, 1, 1, 1), (1, 0, 0, 1, 1, 0, 1, 0)], ids=str)
def test_data_goes_over_slices_first_in_their_order(order):
    mesh = MeshConfig(data=4, fsdp=1, tensor=2).build(described(*order))
    assert mesh.shape == {"data": 4, "fsdp": 1, "expert": 1, "tensor": 2}
    assert slices_in(mesh).tolist() == [[[0, 0]], [[0, 0]], [[1, 1]], [[1, 1]]]
    devices = list(mesh.devices.flat)
    assert len(set(devices)) == 8
    first = [device.id for device in devices[:4]]
    assert first == sorted(first)  # within a slice they are in the order given


def test_policies_side_by_side_are_each_on_their_own_slices():
    meshes = [MeshConfig(data=2, policies=2).build(described(0, 1, 2, 3), place) for place in (0, 1)]
    assert [slices_in(mesh).ravel().tolist() for mesh in meshes] == [[0, 1], [2, 3]]


@pytest.mark.parametrize(
    ("config", "devices"),
    [
        (MeshConfig(fsdp=4), described(0, 0, 1, 1)),
        (MeshConfig(data=3, fsdp=2), described(0, 0, 0, 1, 1, 1)),
        (MeshConfig(data=2, fsdp=2), described(0, 0, 0, 1)),
    ],
    ids=str,
)
def test_no_other_axis_goes_over_slices(config, devices):
    with pytest.raises(ConfigError, match=r"of 2 slices \(\d \+ \d\); only data goes over slices"):
        config.build(devices)


def test_rows_lie_within_hosts_if_that_is_asked_for():
    """On v5e-16, four hosts of 2 x 2 chips, JAX's own rows of four go over two of them."""
    chips = tpu_compiler.tpus("v5e", 16)
    config = MeshConfig(data=4, fsdp=2, tensor=2)

    def hosts_in_rows(mesh):
        return [{device.process_index for device in row.flat} for row in mesh.devices]

    assert hosts_in_rows(config.build(chips)) == [{0, 1}, {0, 1}, {2, 3}, {2, 3}]
    assert hosts_in_rows(config.build(chips, rows_in_hosts=True)) == [{0}, {1}, {2}, {3}]
    wide = MeshConfig(data=16).build(chips, rows_in_hosts=True)
    assert [device.process_index for device in wide.devices.flat] == [0] * 4 + [1] * 4 + [2] * 4 + [3] * 4
    with pytest.raises(ConfigError, match=r"of 4 hosts \(4 \+ 4 \+ 4 \+ 4\); only data goes over hosts"):
        MeshConfig(data=2, fsdp=8).build(chips, rows_in_hosts=True)


def test_hosts_of_several_slices_are_in_order_of_their_slices():
    chips = [Described(number, 1 - number // 2, number) for number in range(4)]
    mesh = MeshConfig(data=4).build(chips, rows_in_hosts=True)
    assert [device.id for device in mesh.devices.flat] == [2, 3, 0, 1]


def test_a_mesh_is_made_of_chips_whose_axes_it_does_not_have():
    """On v6e-64, 8 x 8 chips, JAX makes none of data = 4 by itself. What it makes stays as it is."""
    chips = tpu_compiler.tpus("v6e", 64)
    with pytest.raises(NotImplementedError):
        jax.make_mesh((4, 16, 1, 1), ("data", "fsdp", "expert", "tensor"), devices=chips)
    cut = MeshConfig(data=4, fsdp=16).build(chips)
    assert set(cut.devices.flat) == set(chips)
    whole = jax.make_mesh((8, 8, 1), ("data", "fsdp", "tensor"), devices=chips)
    assert (MeshConfig(data=8, fsdp=8).build(chips).devices[:, :, 0] == whole.devices).all()


def test_experts_are_named_only_where_they_are_dealt():
    """Runs from before there was ``expert`` are known by the text of their config."""
    plain, dealt = MeshConfig(2, 2), MeshConfig(2, 2, expert=2)
    assert repr(plain) == "MeshConfig(data=2, fsdp=2, tensor=1, policies=1)"
    assert eval(repr(dealt)) == dealt == parse_mesh("data=2,fsdp=2,expert=2")
    assert (str(plain), str(dealt)) == (
        "data = 2, fsdp = 2, tensor = 1",
        "data = 2, fsdp = 2, tensor = 1, expert = 2",
    )
    assert (dealt.rows, dealt.side) == (8, 8)
