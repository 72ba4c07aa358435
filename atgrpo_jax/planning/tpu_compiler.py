"""Describes TPUs that are not there, to compile for them; libtpu has the compiler."""

import importlib.util
import os
from collections.abc import Sequence
from typing import Any

from jax.experimental import topologies

from atgrpo_jax.common.errors import ConfigError

# Generation -> number of chips -> their layout.
_FLAT = {1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8"}
_CUBES = {4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 32: "2x4x4", 64: "4x4x4"}
LAYOUTS = {"v5e": _FLAT, "v6e": _FLAT, "v5p": _CUBES}
# libtpu asks which machine it is on, and locks it. Here it only compiles and needs neither.
_NO_MACHINE = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-1",
    "TPU_WORKER_HOSTNAMES": "localhost",
}


def tpus(name: str, count: int) -> Sequence[Any]:
    """Returns the devices of the smallest slice of a generation with at least ``count`` chips.

    Raises ConfigError if the generation or size is not in ``LAYOUTS``, or libtpu is not installed.
    """
    if name not in LAYOUTS:
        raise ConfigError(f"--compile: there is a compiler for {', '.join(LAYOUTS)}, not for {name}")
    chips = next((size for size in LAYOUTS[name] if size >= count), None)
    if chips is None:
        raise ConfigError(f"--compile: up to {max(LAYOUTS[name])} chips of {name}, not {count}")
    if importlib.util.find_spec("libtpu") is None:
        raise ConfigError("--compile needs the TPU's compiler: pip install libtpu")
    for variable, value in _NO_MACHINE.items():
        os.environ.setdefault(variable, value)
    layout = f"{name}:{LAYOUTS[name][chips]}"
    return topologies.get_topology_desc(platform="tpu", topology_name=layout).devices
