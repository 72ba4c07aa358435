"""Every test runs with 8 CPU devices; they are asserted, never skipped for."""

import gc
import os

os.environ["JAX_PLATFORMS"] = "cpu"  # for commands that tests start, too: libtpu looks for a TPU, loudly

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)


@pytest.fixture(scope="module", autouse=True)
def forget_programs():
    """What a file compiled goes with it: a process with all files' programs (gigabytes, and tens of thousands
    of memory maps) crashed in XLA's compiler."""
    yield
    jax.clear_caches()
    gc.collect()


@pytest.fixture(scope="session", autouse=True)
def devices():
    assert jax.device_count() == 8
    return jax.devices()
