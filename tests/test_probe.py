"""The probe: its parts alone, with faults put in, and the whole command once, on the smallest model."""

import dataclasses
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from fakes import SMALL, small_model

from atgrpo_jax.common.errors import ConfigError, RunError
from atgrpo_jax.models.transformer import init_params
from atgrpo_jax.planning.devices import DEVICES, device_of_kind
from atgrpo_jax.tools.probe import sizes_of
from atgrpo_jax.tools.probing import bucket, kernels, machine, speed, weights
from atgrpo_jax.tools.probing.page import page, record
from atgrpo_jax.tools.probing.parts import Found, Result, tried


def raising(error):
    def work():
        raise error

    return work


def test_a_part_that_fails_is_a_result():
    good = tried("one", lambda: Found("all is well", {"a": 1}))
    assert good.found.line == "all is well" and good.fault is None
    assert good.value("a") == 1 and good.value("b") is None
    told = tried("two", raising(RunError("do this")))
    assert (told.found, told.fault, told.trace) == (None, "do this", "") and told.value("a") is None
    unknown = tried("three", raising(KeyError("x")))
    assert unknown.fault == "KeyError: 'x'" and "raise error" in unknown.trace
    with pytest.raises(KeyboardInterrupt):
        tried("four", raising(KeyboardInterrupt()))


PHASE = {"tokens_per_s": 12345.6, "seconds": 0.5, "tflops": 0.25, "share": 0.5, "first_s": 75, "compile_s": 7}
RESULTS = [
    Result("host", 0.01, Found("2 cores", {
        "packages": {"jax": "1.2"}, "commit": "abc+", "atgrpo_jax": "0.1", "python": "3.11",
        "environment": {"XLA_FLAGS": "-x"}, "load": 1.0, "cores": 2,
    })),
    Result("bucket", 61.0, None, "OSError: no | there", "Traceback: here\n"),
    Result("model tiny", 1.0, Found("a line", {
        "phases": {"update": PHASE}, "parameters": 2e6, "dtype": "float32", "groups": "2 prompts",
    })),
]  # fmt: skip


def test_the_page_says_first_what_failed():
    lines = page(RESULTS).splitlines()
    assert lines[2] == "**1 of 3 parts failed: bucket.**"
    assert lines[3] == "Other work was going on (load 1.0 on 2 cores), so rates and times are worse."
    assert "| bucket | **failed** | OSError: no \\| there | 1 min 01 s |" in lines
    assert "| host | ok | 2 cores | 0.0 s |" in lines
    (speeds,) = [line for line in lines if line.startswith("| tiny, update")]
    assert "| 12,346 | 0.5 s | 250 GFLOP/s | 0.50 | 1 min 15 s, compiling 7.0 s |" in speeds
    assert "atgrpo_jax 0.1 (commit abc+), Python 3.11, jax 1.2" in lines
    assert "`XLA_FLAGS=-x`" in lines and "Traceback: here" in lines
    told = Result("gate", 1.0, None, "it differs")  # in words, so without a place in the code
    assert page([RESULTS[0], told]).splitlines()[2] == "**1 of 2 parts failed: gate.**"
    assert page(RESULTS[::2]).splitlines()[2] == "All 2 parts are as they should be."


def test_the_record_has_everything():
    said = json.loads(record(RESULTS))
    assert said["ok"] is False and [part["ok"] for part in said["parts"]] == [True, False, True]
    assert said["parts"][1]["line"] == "OSError: no | there"
    assert said["parts"][2]["found"]["phases"]["update"] == PHASE
    assert json.loads(record(RESULTS[:1]))["ok"] is True


@pytest.mark.parametrize(
    ("kernel", "differs"),
    [
        (lambda x: x * x, False),
        (lambda x: x * x + 1e-5, False),
        (lambda x: x * x + 1e-3, True),
        (lambda x: jax.lax.stop_gradient(x * x), True),
        (lambda x: x * jnp.nan, True),
    ],
    ids=["equal", "rounded", "off", "another gradient", "nan"],
)
def test_a_kernel_that_differs_is_a_fault(kernel, differs):
    def compared():
        return kernels.compared(kernel, lambda x: x * x, (jnp.ones((2, 3)),), 1, "float32", True)

    if differs:
        with pytest.raises(RunError, match="the kernel and plain attention differ: interpreted; .* limit"):
            compared()
    else:
        assert compared().values["difference"] < 2e-5


def test_bfloat16_may_differ_by_its_rounding():
    x = jnp.linspace(1, 2, 64, dtype="bfloat16")
    near = kernels.compared(lambda x: x * x * x, lambda x: x**3, (x,), 0, "bfloat16", True)
    assert 0 < near.values["difference"] < near.values["limit"] == 8 / 64
    with pytest.raises(RunError):
        kernels.compared(lambda x: x**3 * 1.03, lambda x: x**3, (x,), 0, "bfloat16", True)


def test_there_is_no_kernel_for_pages_on_a_tpu():
    found = kernels.pages("tpu", "float32")
    assert found.skipped and "| pages | skipped | TPUs decode by" in page([Result("pages", 0.0, found)])


def test_weights_are_copied_to_a_mesh():
    model = small_model().clone(architecture=dataclasses.replace(SMALL, layers=1))
    found = weights.copies(model, jax.devices()[:2], repeats=1).values
    shapes = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    assert found["devices"] == 2 and found["mb"] == count * 4 / 1e6 and found["mb_per_s"] > 0
    assert weights.copies(model, jax.devices()[:1]).skipped


def test_later_calls_that_compile_are_counted():
    def call(number):
        return jax.jit(lambda x: x + number)(jnp.zeros(3 + (number > 1)))

    assert speed.timed(lambda number: None, 2).compiled_later == 0
    again = speed.timed(call, 2)
    assert again.compiled_later > 0 and 0 < again.compile_s < again.first_s


def test_published_figures_by_jaxs_names():
    kinds = {"TPU v4": "v4", "TPU v5 lite": "v5e", "TPU v5": "v5p", "TPU v5p": "v5p", "TPU v6 lite": "v6e",
             "NVIDIA H100 80GB HBM3": "h100", "NVIDIA A100-SXM4-40GB": "a100"}  # fmt: skip
    assert {kind: device_of_kind(kind) for kind in kinds} == {k: DEVICES[name] for k, name in kinds.items()}
    assert device_of_kind("cpu") is None and device_of_kind("NVIDIA L4") is None


def test_sizes_by_name():
    assert sizes_of("all") == ["tiny", "small", "0.6b"] and sizes_of("tiny") == ["tiny"]
    with pytest.raises(ConfigError, match=r"--size=huge: expected one of tiny, small, 0.6b, all"):
        sizes_of("huge")


def test_the_commit_of_a_checkout(tmp_path):
    package = tmp_path / "package"
    package.mkdir()
    assert machine.commit(package) is None

    def git(*words):
        line = ["git", "-C", tmp_path, "-c", "user.name=a", "-c", "user.email=a@b", *words]
        subprocess.run(line, check=True, capture_output=True)

    git("init")
    git("commit", "--allow-empty", "-m", "first")
    assert len(machine.commit(package)) == 12
    (package / "new.py").touch()
    assert machine.commit(package)[12:] == "+"


@pytest.fixture
def small_objects(monkeypatch):
    monkeypatch.setattr(bucket, "LARGE", 10_000)


def test_a_folder_is_measured_and_left_as_it_was(small_objects, tmp_path):
    (tmp_path / "mine").touch()
    values = bucket.bucket(str(tmp_path)).values
    assert set(values) == {
        "bucket", "write_mb_per_s", "read_mb_per_s", "small_write_ms", "small_read_ms", "list_ms",
    }  # fmt: skip
    assert all(value > 0 for name, value in values.items() if name != "bucket")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_objects_that_are_read_otherwise_are_a_fault(small_objects, tmp_path, monkeypatch):
    monkeypatch.setattr(type(bucket.epath.Path(tmp_path)), "read_bytes", lambda path: b"other")
    with pytest.raises(RunError, match="small-0: what is read is not what was written"):
        bucket.bucket(str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_objects_that_are_not_listed_are_a_fault(small_objects, tmp_path, monkeypatch):
    monkeypatch.setattr(type(bucket.epath.Path(tmp_path)), "iterdir", lambda path: iter([path / "small-0"]))
    with pytest.raises(RunError, match="32 objects were written, and others are listed: 1"):
        bucket.bucket(str(tmp_path))


def test_a_bucket_without_gcsfs(monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RunError, match=r"--bucket=gs://a/b needs gcsfs: pip install"):
        bucket.bucket("gs://a/b")


@pytest.mark.slow
def test_the_command_goes_on_after_a_part_that_fails(tmp_path):
    """A bucket that is a file; everything else is computed, on the smallest model."""
    file = tmp_path / "file"
    file.touch()
    flags = ["--size=tiny", f"--out={tmp_path}", f"--bucket={file}"]
    line = [sys.executable, "-m", "atgrpo_jax.tools.probe", *flags]
    done = subprocess.run(line, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert done.stdout == (tmp_path / "probe.md").read_text()
    assert "**1 of 11 parts failed: bucket.**" in done.stdout and "NotADirectoryError" in done.stdout
    said = json.loads((tmp_path / "probe.json").read_text())
    parts = {part["part"]: part["found"] for part in said["parts"]}
    assert [name for name, found in parts.items() if found is None] == ["bucket"]
    assert parts["devices"]["platform"] == "cpu"
    assert parts["gate, float32"]["gate_gap"] < 1e-5 < 1e-4 < parts["gate, bfloat16"]["gate_gap"]
    assert parts["model tiny"]["logprob_gap"] < 1e-4
    for phase in parts["model tiny"]["phases"].values():
        assert phase["tokens_per_s"] > 0 and phase["share"] > 0 and phase["compiled_later"] == 0
