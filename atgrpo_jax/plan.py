"""Prints whether a run fits into memory and how long it takes, before it is started.

python -m atgrpo_jax.plan --gin_file=plan.gin --device=v5e [--mesh=fsdp=4] [--preset=qwen3-8b]

This needs neither weights nor files of problems nor accelerators: a published size stands in for a
model that is not here, made-up problems for files. The first lines say what stands in for what.
``--preset`` replaces the config's model by one of a published size. If the run does not fit, the last
lines are the cheapest change with which it does, to be pasted, and the exit code is 1.
``--device_gb`` is the memory of a device that ``--device`` does not know. Then nothing is said of times.

With ``--hosts=N`` the mesh is over so many hosts. This also says how many samples each of them has
in flight, what a step takes, who waits for what, and which setting would help. The rollout of a
step is simulated, with lengths drawn from a lognormal distribution (``--answer``, ``--sigma``).

With ``--compile``, and libtpu installed, it compiles the update for these TPUs, as a run would. The
compiler's figure for memory then replaces the estimates. This takes minutes instead of seconds.
"""

import sys

import jax
from absl import flags

from atgrpo_jax.arrays.mesh import parse_mesh
from atgrpo_jax.common.cli import gin_flags, needed_gin_files, run_main
from atgrpo_jax.common.errors import ConfigError
from atgrpo_jax.models.config import PRESETS
from atgrpo_jax.planning.devices import DEVICES
from atgrpo_jax.planning.plans import Asked, Plan

_GIN_FILE, _GIN_PARAM = gin_flags()
_MESH = flags.DEFINE_string(
    "mesh", None, "The devices, instead of the config's. E.g. --mesh=data=2,fsdp=4,tensor=1"
)
_DEVICE = flags.DEFINE_string(
    "device", "v5e", f"The kind of device: {', '.join(DEVICES)}. E.g. --device=h100"
)
_DEVICE_GB = flags.DEFINE_float(
    "device_gb", None, "GB of memory of another kind of device, instead of --device. E.g. --device_gb=24", 0.1
)
_PRESET = flags.DEFINE_string(
    "preset", None, f"A model instead of the config's: {', '.join(PRESETS)}. E.g. --preset=qwen3-8b"
)
_HOSTS = flags.DEFINE_integer(
    "hosts", None, "How many hosts have the mesh's devices between them. E.g. --hosts=4", 1
)
_ANSWER = flags.DEFINE_float(
    "answer",
    None,
    "With --hosts: tokens of an answer, mean; a quarter of the limit if not given. E.g. --answer=300",
    1.0,
)
_SIGMA = flags.DEFINE_float(
    "sigma", 0.8, "With --hosts: how unequal answers are, as sigma of the logarithm. E.g. --sigma=1", 0.0
)
_COMPILE = flags.DEFINE_bool(
    "compile", False, "Compile the update for the device, a TPU. E.g. --compile --device=v5e"
)
_UTILISATION = flags.DEFINE_float(
    "utilisation",
    0.4,
    "The part of the device's peak rate that is reached. E.g. --utilisation=0.5",
    0.01,
    1.0,
)


def main(argv: list[str]) -> None:
    if _DEVICE.present and _DEVICE_GB.present:
        raise ConfigError("--device and --device_gb both say what the device is; give one of them")
    asked = Asked(
        needed_gin_files(argv, _GIN_FILE),
        _GIN_PARAM.value,
        _DEVICE.value,
        None if _MESH.value is None else parse_mesh(_MESH.value),
        _PRESET.value,
        _HOSTS.value,
        _ANSWER.value,
        _SIGMA.value,
        _COMPILE.value,
        _UTILISATION.value,
        _DEVICE_GB.value,
    )
    # The devices are imagined: nothing is put on them.
    jax.config.update("jax_platforms", "cpu")
    # JAX keeps programs for such devices, but does not load them, and warns of each.
    jax.config.update("jax_enable_compilation_cache", False)
    plan = Plan(asked)
    for line in plan.lines():
        print(line, flush=True)
    if not plan.fits:
        sys.exit(1)


if __name__ == "__main__":
    run_main(main)
