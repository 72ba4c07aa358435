"""Holds the published figures of devices."""

import dataclasses
import math

from atgrpo_jax.common.errors import ConfigError

HOST_LINK = 16e9  # bytes a second between a device and its host's memory; assumed, not published


@dataclasses.dataclass(frozen=True)
class Device:
    """Holds the published figures of one device."""

    name: str
    kinds: tuple[str, ...]  # how JAX's name of such a device begins (``device_kind``)
    memory: float  # bytes
    flops: float  # FLOP a second, in bfloat16 matrix products
    bandwidth: float  # bytes a second, of its memory
    link: float  # bytes a second to devices of other hosts: between TPU chips, or a GPU's network card


DEVICES = {
    "v4": Device("TPU v4", ("TPU v4",), 32e9, 275e12, 1.23e12, 300e9),
    "v5e": Device("TPU v5e", ("TPU v5 lite", "TPU v5e"), 16e9, 197e12, 0.82e12, 200e9),
    "v5p": Device("TPU v5p", ("TPU v5p", "TPU v5"), 95e9, 459e12, 2.77e12, 600e9),
    "v6e": Device("TPU v6e", ("TPU v6 lite", "TPU v6e"), 32e9, 918e12, 1.64e12, 400e9),
    "a100": Device("NVIDIA A100", ("NVIDIA A100",), 80e9, 312e12, 2.04e12, 25e9),
    "h100": Device("NVIDIA H100", ("NVIDIA H100",), 80e9, 989e12, 3.35e12, 50e9),
    "h200": Device("NVIDIA H200", ("NVIDIA H200",), 141e9, 989e12, 4.8e12, 50e9),
}


def device_named(name: str) -> Device:
    """Returns a device by its name. Raises ConfigError if it is not in ``DEVICES``."""
    if name not in DEVICES:
        raise ConfigError(
            f"--device={name}: expected one of {', '.join(DEVICES)}; for another one say its memory instead, "
            "as in --device_gb=24"
        )
    return DEVICES[name]


def device_of_memory(gb: float) -> Device:
    """Returns a device of which nothing is known but its memory, in GB: it has no rates."""
    return Device("device", (), gb * 1e9, math.nan, math.nan, math.nan)


def device_of_kind(kind: str) -> Device | None:
    """Returns the device that JAX calls by this ``device_kind``; None if it is not in ``DEVICES``."""
    begins = {start: device for device in DEVICES.values() for start in device.kinds}
    found = [start for start in begins if kind.startswith(start)]
    return begins[max(found, key=len)] if found else None
