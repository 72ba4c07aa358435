"""The same update on many devices, on several processes, and with its state on the host."""

import dataclasses
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import shared_learner
from shared_learner import MODEL, OPTIMIZER, assert_same, items, learner, packed, sharded_update

from atgrpo_jax.arrays.mesh import MeshConfig, check_mesh, divided_parameters, parse_mesh
from atgrpo_jax.common.errors import ConfigError
from atgrpo_jax.models.config import Compute
from atgrpo_jax.models.families.table import transformer
from atgrpo_jax.models.transformer import init_params
from atgrpo_jax.update.batch import each
from atgrpo_jax.update.learner import Learner, UpdateInputs
from atgrpo_jax.update.objectives import LossConfig, cloning
from atgrpo_jax.update.optimizer import OptimizerConfig


@pytest.mark.thorough
@pytest.mark.parametrize(
    "mesh",
    [
        MeshConfig(fsdp=4),
        MeshConfig(tensor=4),  # more than key heads
        MeshConfig(data=2, fsdp=2, tensor=2),
    ],
    ids=str,
)
def test_sharded_equals_unsharded(mesh):
    state, metrics = sharded_update(MeshConfig())
    other, other_metrics = sharded_update(mesh)
    kernel = other.params["layer_0"]["gate"]["kernel"]
    assert len(kernel.sharding.device_set) == mesh.data * mesh.fsdp * mesh.tensor
    assert kernel.addressable_shards[0].data.shape == (32 // mesh.fsdp, 48 // mesh.tensor)
    moment = other.opt_state[1][0].mu["layer_0"]["gate"]["kernel"]
    assert moment.sharding == kernel.sharding
    assert_same(jax.device_get(state.params), jax.device_get(other.params))
    assert_same(jax.device_get(metrics), jax.device_get(other_metrics))


@pytest.mark.thorough
def test_fused_kernels_are_sharded_like_tiles():
    """Interpreted, as on a TPU."""
    fused = transformer(MODEL.architecture, 64, Compute(attention="fused"))
    state, metrics = sharded_update(MeshConfig())
    other, other_metrics = sharded_update(MeshConfig(data=2, fsdp=2, tensor=2), fused)
    assert_same(jax.device_get((state.params, metrics)), jax.device_get((other.params, other_metrics)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mesh", "name"), [("data=2,fsdp=2,tensor=2", "MODEL"), ("tensor=2,expert=4", "MIXTURE")], ids=str
)
@pytest.mark.long
def test_several_processes_make_one_update(tmp_path, mesh, name):
    """Two of four devices each, as the hosts of a TPU slice: what one process with eight devices does.

    Each process has half of the experts in the second case.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    script, out = Path(__file__).with_name("process.py"), tmp_path / "found.npz"
    lines = [[sys.executable, str(script), address, "2", str(i), str(out), mesh, name] for i in range(2)]
    running = [subprocess.Popen(line, stderr=subprocess.PIPE, text=True) for line in lines]
    for process in running:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    state, metrics = sharded_update(parse_mesh(mesh), getattr(shared_learner, name))
    with np.load(out) as found:
        assert_same(jax.tree.leaves(jax.device_get((state.params, metrics))), list(found.values()))


@pytest.mark.thorough
@pytest.mark.long
def test_policies_on_meshes_of_their_own_are_updated_at_the_same_time():
    """Nobody waits for the first policy's updates before the second one's are under way elsewhere."""
    config = MeshConfig(policies=2)
    learners = [Learner(MODEL, OPTIMIZER, cloning, config.build(place=place)) for place in range(2)]
    many = each(lambda a: np.concatenate([a] * 300), packed(items()))

    def updated():
        return [ours.update(ours.init(jax.random.key(0)), UpdateInputs(many)) for ours in learners]

    jax.block_until_ready(updated())  # compiled
    (one, _), (other, _) = updated()
    assert not one.params["embedding"].is_ready() and not other.params["embedding"].is_ready()
    assert one.params["embedding"].devices().isdisjoint(other.params["embedding"].devices())
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(one), jax.device_get(other))


@pytest.mark.thorough
def test_nothing_but_the_batch_moves_to_the_devices():
    ours = learner(LossConfig(kl=0.1))
    state = ours.init(jax.random.key(0))
    with pytest.raises(jax.errors.JaxRuntimeError, match="Disallowed host-to-device transfer"):
        ours.update(state, UpdateInputs(packed(items()), reference=jax.device_get(state.params)))


@pytest.mark.thorough
def test_the_optimizer_state_may_wait_on_the_host():
    mesh = MeshConfig(data=2, fsdp=2, tensor=2)  # alone: test_policies.py
    stays, waits = (
        learner(mesh=mesh, optimizer=OptimizerConfig("muon", offload=offload)) for offload in (False, True)
    )
    one, other = stays.init(jax.random.key(0)), waits.init(jax.random.key(0))
    for seed in range(2):
        one, _ = stays.update(one, UpdateInputs(packed(items(seed))))
        other, _ = waits.update(other, UpdateInputs(packed(items(seed))))
        kinds = {leaf.sharding.memory_kind for leaf in jax.tree.leaves(other.opt_state) if leaf.ndim}
        assert kinds == {"pinned_host"}
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(one), jax.device_get(other))


def test_a_mesh_that_does_not_fit_is_refused():
    """By the number of devices, and by a width of 50 that four parts do not divide."""
    odd = transformer(dataclasses.replace(MODEL.architecture, mlp_width=50), 64)
    sizes = list(
        divided_parameters(jax.eval_shape(lambda: init_params(odd, jax.random.key(0))), odd.family.axes)
    )
    check_mesh(MeshConfig(data=2, fsdp=2, tensor=2), 8, sizes)
    with pytest.raises(ConfigError) as raised:
        check_mesh(MeshConfig(data=4, fsdp=4), 8, sizes)
    assert str(raised.value) == (
        "mesh data = 4, fsdp = 4, tensor = 1: needs 16 devices, 8 found; the nearest possible is "
        "data = 2, fsdp = 4, tensor = 1"
    )
    with pytest.raises(
        ConfigError, match=r"the nearest possible is data = 2, fsdp = 2, tensor = 1, policies = 2"
    ):
        check_mesh(MeshConfig(data=2, fsdp=3, policies=2), 8, sizes)
    with pytest.raises(
        ConfigError, match=r"layer_\d/\w+/kernel has size 50, which tensor = 4 does not divide"
    ):
        check_mesh(MeshConfig(tensor=4), 8, sizes)
