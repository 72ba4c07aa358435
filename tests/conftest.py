"""Every test runs with 8 CPU devices; they are asserted, never skipped for."""

import atexit
import contextlib
import gc
import os
import resource
import shutil
import signal
import tempfile
import uuid

# XLA's passes took a quarter of the tests' time. The test of launch/local.sh compiles as people do.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
os.environ["JAX_PLATFORMS"] = "cpu"  # for commands that tests start, too: libtpu looks for a TPU, loudly
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    # Compiled once for all tests of a run, and for the processes that they start. Tests make many learners
    # and engines of the same shapes, each with functions of its own: most of their time was XLA's. A folder
    # that is given outlives the run (tests/mutants/run.py).
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="atgrpo_jax_compiled_")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)

import fake_gcs
import jax
import pytest
from etils import epath

from atgrpo_jax.common import stopping

pytest.register_assert_rewrite("shared_code", "shared_learner", "shared_sandbox")  # whose asserts say why

jax.config.update("jax_num_cpu_devices", 8)
# A shell that starts something in the background has it ignore Ctrl-C, and so all that tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)


# The files that take longest begin first, so that none runs on alone at the end. That of live servers comes
# after some others: it waits for an environment that is installed meanwhile.
LONGEST = ("test_train.py", "test_policies.py", "test_learner_layout.py", "test_learner_sharding.py",
           "test_footprint.py", "test_oracle.py", "test_readme.py", "test_sglang_live.py")  # fmt: skip


def pytest_collection_modifyitems(config, items):
    part = os.environ.get("ATGRPO_LONG")  # which third of the long tests runs: 0, 1 or 2; all if not given
    if part:
        long = [item for item in items if item.get_closest_marker("long")]
        later = {item for number, item in enumerate(long) if number % 3 != int(part)}
        config.hook.pytest_deselected(items=later)
        items[:] = [item for item in items if item not in later]
    place = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.name, len(LONGEST)))


@pytest.fixture(scope="module", autouse=True)
def forget_programs():
    """What a file compiled goes with it: a process with all files' programs (gigabytes, and tens of thousands
    of memory maps) crashed in XLA's compiler."""
    yield
    assert jax.config.values["jax_disable_most_optimizations"], (
        "for the files after it, too: other bits, and a quarter slower"
    )
    jax.clear_caches()
    gc.collect()


@pytest.fixture(scope="session", autouse=True)
def patience():
    """A main thread that a busy machine makes slow is not deaf: that would end the process of the tests.

    Processes that tests start are not so patient.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stopping, "DEAF_S", 60.0)
        yield


@pytest.fixture(scope="session", autouse=True)
def devices():
    assert jax.device_count() == 8
    return jax.devices()


@pytest.fixture(scope="session")
def store(tmp_path_factory):
    """A scripted Cloud Storage. One for the process: Orbax's libraries remember the first address."""
    with (
        fake_gcs.serving(tmp_path_factory.mktemp("buckets")) as server,
        pytest.MonkeyPatch.context() as patch,
    ):
        for name, value in fake_gcs.environment(server.url).items():
            patch.setenv(name, value)
        yield server


@pytest.fixture
def bucket(store):
    """A folder in a new bucket: gs://bucket-.../here."""
    place = store.store.folder / f"bucket-{uuid.uuid4().hex[:12]}"
    place.mkdir()
    yield epath.Path(f"gs://{place.name}/here")
    assert not any(fault.times for fault in store.faults), "a scripted fault has not come"
    store.faults.clear()


@pytest.fixture
def limited_file_size():
    """Returns a context manager with the largest size of a file, as a full disk has it.

    It ends before the test does: pytest may write into a file, too.
    """

    @contextlib.contextmanager
    def limited(size):
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
            signal.signal(signal.SIGXFSZ, handler)

    return limited


@pytest.fixture
def for_an_h100():
    """Kernels are lowered as for an H100: from JAX 0.12 on, Triton's lowering asks which GPU it is for."""
    device = jax.sharding.AbstractDevice(device_kind="NVIDIA H100", num_cores=None, platform="gpu")
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=device)):
        yield
