"""Every test runs with 8 CPU devices; they are asserted, never skipped for."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"  # for commands that tests start, too: libtpu looks for a TPU, loudly

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)


@pytest.fixture(scope="session", autouse=True)
def devices():
    assert jax.device_count() == 8
    return jax.devices()
