"""Makes one sharded update with others: python process.py ADDRESS NUMBER ID OUT MESH MODEL."""

import sys

import jax
import numpy as np
from jax.experimental import multihost_utils

_, address, number, own, out, mesh, model = sys.argv
jax.config.update("jax_num_cpu_devices", 8 // int(number))
jax.distributed.initialize(address, int(number), int(own))

import shared_learner  # noqa: E402  (it uses the devices)

from atgrpo_jax.arrays.mesh import parse_mesh  # noqa: E402

assert jax.device_count() == 8 and jax.local_device_count() < 8
state, metrics = shared_learner.sharded_update(parse_mesh(mesh), getattr(shared_learner, model))
found = multihost_utils.process_allgather((state.params, metrics), tiled=True)
if own == "0":
    np.savez(out, *jax.tree.leaves(found))
