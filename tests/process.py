"""One of several processes that make a sharded update together: python process.py ADDRESS NUMBER ID OUT."""

import sys

import jax
import numpy as np
from jax.experimental import multihost_utils

_, address, number, own, out = sys.argv
jax.config.update("jax_num_cpu_devices", 8 // int(number))
jax.distributed.initialize(address, int(number), int(own))

from shared_learner import sharded_update  # noqa: E402  (it uses the devices)

from atgrpo_jax.arrays.mesh import MeshConfig  # noqa: E402

assert jax.device_count() == 8 and jax.local_device_count() < 8
state, metrics = sharded_update(MeshConfig(data=2, fsdp=2, tensor=2))
found = multihost_utils.process_allgather((state.params, metrics), tiled=True)
if own == "0":
    np.savez(out, *jax.tree.leaves(found))
