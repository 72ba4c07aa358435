"""The types of machines that the TPU API offers."""

from __future__ import annotations

import dataclasses
import re

from tpu.shell import Problem


@dataclasses.dataclass(frozen=True)
class Machine:
    """One type: its chips, its VMs, and what it is called elsewhere."""

    type: str  # for --accelerator-type
    chips: int
    vms: int
    memory_gb: int  # of a chip
    runtime: str  # for --runtime-version: the image of the VMs
    device: str  # for python -m atgrpo_jax.plan --device


@dataclasses.dataclass(frozen=True)
class Family:
    """The types of one generation: the number in a type's name counts chips or cores."""

    prefix: str
    sizes: range | tuple[int, ...]  # the chips that a type may have
    cores: int  # what the number in the name counts for each chip
    one_vm: tuple[int, ...]  # the chips that share one VM; other types have 4 chips a VM
    memory_gb: int
    runtime: str
    device: str


FAMILIES = (
    Family("v4", range(4, 4097, 4), 2, (4,), 32, "tpu-ubuntu2204-base", "v4"),
    Family("v5litepod", (1, 4, 8, 16, 32, 64, 128, 256), 1, (1, 4, 8), 16, "v2-alpha-tpuv5-lite", "v5e"),
    Family("v5p", range(4, 6145, 4), 2, (4,), 95, "v2-alpha-tpuv5", "v5p"),
    Family("v6e", (1, 4, 8, 16, 32, 64, 128, 256), 1, (1, 4, 8), 32, "v2-alpha-tpuv6e", "v6e"),
)
NAMES = "v4-8, v5litepod-1, -4, -8, -16 .. -256, v5p-8, v6e-1, -4, -8, -16 .. -256"


def machine(name: str) -> Machine:
    """Returns the machine of a type. Raises Problem if there is none."""
    parts = re.fullmatch(r"([a-z0-9]+)-([1-9][0-9]*)", name)
    if name.startswith(("tpu7x", "v7x")):
        raise Problem(f"--type={name}: Google offers TPU7x in GKE only, which this program does not use")
    for family in FAMILIES:
        if parts and parts[1] == family.prefix and int(parts[2]) % family.cores == 0:
            chips = int(parts[2]) // family.cores
            if chips in family.sizes:
                vms = 1 if chips in family.one_vm else chips // 4
                return Machine(name, chips, vms, family.memory_gb, family.runtime, family.device)
    raise Problem(f"--type={name}: unknown; the types are {NAMES} (v4 and v5p count two cores a chip)")
