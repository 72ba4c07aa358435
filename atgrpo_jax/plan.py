"""Prints whether a run fits into memory and the least time of a step, before it is started.

python -m atgrpo_jax.plan --gin_file=plan.gin --mesh=fsdp=8 --device=v5e [--preset=qwen3-8b]

This needs neither weights nor accelerators. The exit code is 1 if the run does not fit.
``--preset`` replaces the config's model by one of a published size.

With ``--hosts=N`` the mesh is over so many hosts. This also says how many samples each of them has
in flight, what a step takes, who waits for what, and which setting would help. The rollout of a
step is simulated, with lengths drawn from a lognormal distribution (``--answer``, ``--sigma``).

With ``--compile``, and libtpu installed, it compiles the update for these TPUs, as a run would. The
compiler's figure for memory then replaces the estimates. This takes minutes instead of seconds.
"""

import dataclasses
import sys

import jax
from absl import flags

from atgrpo_jax.arrays.mesh import parse_mesh
from atgrpo_jax.common.cli import gin_flags, needed_gin_files, run_main
from atgrpo_jax.common.errors import ConfigError
from atgrpo_jax.common.progress import say
from atgrpo_jax.models.config import PRESETS, preset
from atgrpo_jax.planning import footprint, hosts, times, tpu_compiler
from atgrpo_jax.planning.devices import DEVICES, device_named
from atgrpo_jax.planning.events import Skew
from atgrpo_jax.planning.workload import workload_of
from atgrpo_jax.run import gin_config
from atgrpo_jax.run.experiment import Experiment
from atgrpo_jax.run.team_learner import TeamLearner

_GIN_FILE, _GIN_PARAM = gin_flags()
_MESH = flags.DEFINE_string(
    "mesh", None, "The devices, instead of the config's. E.g. --mesh=data=2,fsdp=4,tensor=1"
)
_DEVICE = flags.DEFINE_string(
    "device", "v5e", f"The kind of device: {', '.join(DEVICES)}. E.g. --device=h100"
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
    files = needed_gin_files(argv, _GIN_FILE)
    device = device_named(_DEVICE.value)
    experiment = planned(gin_config.load(files, _GIN_PARAM.value))
    if _HOSTS.value is not None:
        hosts.check(experiment, _HOSTS.value)
    # The devices are imagined: nothing is put on them.
    jax.config.update("jax_platforms", "cpu")
    devices = tpu_compiler.tpus(_DEVICE.value, experiment.mesh.devices) if _COMPILE.value else None
    policies = TeamLearner(experiment, devices=devices)
    workload = workload_of(experiment)
    memory = footprint.memory(experiment, policies, workload)
    if devices is not None:
        say(f"compiling the update for {device.name}, which takes minutes for a large model")
        memory = footprint.measured(
            memory, footprint.update_bytes(experiment, policies, workload.longest_group)
        )
    print("\n".join(footprint.report(memory, device, experiment.mesh)))
    if offloaded := footprint.bytes_on_hosts(policies.shapes):
        print(f"  optimizer state in the memory of all hosts: {offloaded / 1e9:.3f} GB")
    longest = workload.longest_group
    print(
        f"a step at most: {workload.groups} groups of {workload.prompt:.0f} + {workload.candidates} x "
        f"{workload.new} tokens, the longest {longest} in rows of {experiment.batch.row(longest)}"
    )
    stages = times.seconds(experiment, policies, workload, device, _UTILISATION.value)
    for stage, (flop, seconds, limit) in stages.items():
        at = f"at {_UTILISATION.value:.0%} of the peak rate; the limit is {limit}"
        print(f"  {stage:8} {flop / 1e12:12.3f} TFLOP  {seconds:10.3f} s {at}")
    if _HOSTS.value is not None:
        skew = Skew(_ANSWER.value or workload.new / 4, _SIGMA.value)
        lines = hosts.report(experiment, workload, skew, device, _UTILISATION.value, _HOSTS.value)
        print("\n".join(lines))
    if not footprint.fits(memory, device):
        sys.exit(1)


def planned(experiment: Experiment) -> Experiment:
    """Returns the experiment with the flags' mesh and model. Raises ConfigError if impossible."""
    changes: dict[str, object] = {}
    if _MESH.value is not None:
        changes["mesh"] = parse_mesh(_MESH.value)
    if _PRESET.value is not None:
        if _PRESET.value not in PRESETS:
            raise ConfigError(f"--preset={_PRESET.value}: expected one of {', '.join(PRESETS)}")
        changes["model"] = preset(_PRESET.value)
        changes["compute"] = dataclasses.replace(
            experiment.compute, dtype="bfloat16", remat="block", scan=True
        )
        changes["pretrained"] = None
    try:
        return dataclasses.replace(experiment, **changes)  # type: ignore[arg-type]
    except ValueError as error:
        raise ConfigError(str(error)) from error


if __name__ == "__main__":
    run_main(main)
