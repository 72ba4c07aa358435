"""What is compiled is loaded by the next start, to the same bytes; a folder that fails ends nothing."""

import errno
import os
import warnings
from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from atgrpo_jax.common.errors import ConfigError
from atgrpo_jax.run import compiled, gin_config
from atgrpo_jax.run.compiled import keep_compiled, machine
from atgrpo_jax.run.folder import RunFolder
from atgrpo_jax.run.loop import one_step
from atgrpo_jax.run.stages import Stages

SETTINGS = (
    "jax_compilation_cache_dir", "jax_compilation_cache_max_size", "jax_enable_compilation_cache",
    "jax_persistent_cache_min_compile_time_secs",
)  # fmt: skip
SMALLEST = (
    "experiment.Experiment.warm_start = None", "experiment.Experiment.steps = 9",
    "config.Architecture.layers = 1", "rollout.RolloutConfig.instances = 2",
    "objectives.LossConfig.minibatches = 1", "evaluation.EvaluationConfig.every = 0",
    "evaluation.EvaluationConfig.instances = 1", "evaluation.EvaluationConfig.validation_instances = 1",
)  # fmt: skip


def forget():
    """What a new process does not know."""
    jax.config.update("jax_compilation_cache_dir", None)
    compilation_cache.reset_cache()
    jax.clear_caches()


@pytest.fixture
def process(monkeypatch, tmp_path):
    """This process as one that has just begun, with nothing told to JAX, and a home of its own."""
    before = {name: jax.config.values[name] for name in SETTINGS}
    for name in SETTINGS:
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    forget()
    with warnings.catch_warnings():
        warnings.simplefilter("always")  # as they are shown to people
        yield tmp_path / ".cache/atgrpo_jax/compiled" / machine()
    forget()
    for name, value in before.items():
        jax.config.update(name, value)


def events(work):
    """What JAX tells of its folder meanwhile."""
    found = Counter()
    listen = lambda event, **_: found.update([event.removeprefix("/jax/compilation_cache/")])  # noqa: E731
    jax.monitoring.register_event_listener(listen)
    try:
        return work(), found
    finally:
        jax.monitoring.unregister_event_listener(listen)


def program(number):
    """Compiles a program of its own, as a new process would, and runs it."""
    jax.clear_caches()

    def added(x):
        return jnp.cumsum(x) + number

    return float(np.asarray(jax.jit(added)(np.ones(4, np.float32)))[-1])


def kept(folder):
    return sorted(path for path in folder.iterdir() if path.name.endswith("-cache"))


@pytest.mark.thorough
def test_a_second_start_compiles_nothing_and_leaves_the_same_bytes(process, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("atgrpo_jax.run.stages.draw_curves", lambda folder: None)  # takes seconds
    x = gin_config.load(["smoke.gin", str(Path(__file__).parent / "lengths.gin")], SMALLEST)

    def start(name):
        forget()
        keep_compiled(None)
        folder = RunFolder(tmp_path / name)
        folder.path.mkdir()
        with Stages(x, folder) as stages:
            team, record = one_step(stages, stages.begin(), 1)
            played = {path.name: path.read_bytes() for path in folder.episodes.iterdir()}
            record = {name: value for name, value in record.items() if not name.startswith("perf/")}
            return jax.device_get(team.policies), record, played

    first, cold = events(lambda: start("first"))
    second, warm = events(lambda: start("second"))
    assert first[1]["policy/shared/updates"] == 1 and first[1:] == second[1:]
    jax.tree.map(np.testing.assert_array_equal, first[0], second[0])
    assert cold["cache_misses"] > 5 and not cold["cache_hits"]
    assert warm["cache_hits"] == cold["cache_misses"] == len(kept(process)) and not warm["cache_misses"]
    said = [line for line in capsys.readouterr().err.splitlines() if "--compiled" in line]
    assert said == [
        f"what is compiled is kept in {process}, at most 2 GB, and later starts are faster; "
        "--compiled=off keeps nothing"
    ]


def test_what_a_person_told_jax_counts_and_the_flag_more(process, tmp_path, monkeypatch):
    jax.config.update("jax_compilation_cache_dir", "theirs")
    keep_compiled(None)
    assert jax.config.jax_compilation_cache_dir == "theirs" and not process.exists()
    monkeypatch.setenv("JAX_COMPILATION_CACHE_MAX_SIZE", "-1")
    keep_compiled(str(tmp_path / "mine"))
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "mine" / machine())
    assert jax.config.values["jax_compilation_cache_max_size"] == -1
    keep_compiled("off")
    assert events(lambda: program(1))[1] == Counter({"task_disabled_cache": 1})
    jax.config.update("jax_compilation_cache_dir", None)
    keep_compiled(None)  # as with JAX_ENABLE_COMPILATION_CACHE=false
    assert jax.config.jax_compilation_cache_dir is None and not process.exists()
    for text in ("gs://bucket/here", "~no-such-person/here"):
        with pytest.raises(ConfigError, match=f"--compiled={text}"):
            keep_compiled(text)


def test_only_the_host_whose_programs_are_kept_says_where(process, capsys):
    keep_compiled(None, writes=False)
    assert process.exists() and not capsys.readouterr().err


def test_a_folder_that_cannot_be_made_is_a_line(process, tmp_path, capsys, monkeypatch):
    (tmp_path / "file").touch()
    keep_compiled(str(tmp_path / "file"))
    assert jax.config.jax_compilation_cache_dir is None and program(1) == 5.0
    (line,) = capsys.readouterr().err.splitlines()
    assert str(tmp_path / "file") in line and line.endswith("--compiled=FOLDER names another folder")
    monkeypatch.setattr(compiled, "FOLDER", "~no-such-person/here")  # as where a user has no home
    keep_compiled(None)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("~no-such-person/here names a home that is not known, so what is compiled")


def test_a_disk_that_fills_up_is_one_line(process, capsys, limited_file_size):
    keep_compiled(None)
    assert program(1) == 5.0
    (whole,) = kept(process)
    capsys.readouterr()
    with limited_file_size(16):
        assert [program(2), program(3)] == [6.0, 7.0]
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"what is compiled from here on is not kept in {process} (")
    assert os.strerror(errno.EFBIG) in line
    assert kept(process) == [whole], "a program that was cut short stays nowhere"


def test_a_program_that_was_cut_short_or_damaged_is_compiled_anew(process, capsys):
    keep_compiled(None)
    program(1)
    (cut,) = kept(process)
    program(2)
    (damaged,) = set(kept(process)) - {cut}
    damaged.write_bytes(damaged.read_bytes()[:100])
    cut.with_name(cut.name.replace("-cache", "-atime")).unlink()  # as a kill leaves it
    forget()
    keep_compiled(None)
    assert kept(process) == [damaged]
    capsys.readouterr()
    assert [program(2), program(1)] == [6.0, 5.0] and kept(process) == sorted([damaged, cut])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"jit_added of {process} is damaged (") and line.endswith("it is compiled anew")
    assert events(lambda: program(1) + program(2))[1]["cache_hits"] == 2


def test_a_folder_keeps_its_limit_by_what_was_not_used_for_longest(process, monkeypatch):
    keep_compiled(None)
    program(1)
    (first,) = kept(process)
    program(2)
    (second,) = set(kept(process)) - {first}
    program(1)  # is used again
    monkeypatch.setattr(compiled, "BYTES", sum(path.stat().st_size for path in kept(process)) + 100)
    forget()
    keep_compiled(None)
    program(3)
    assert len(kept(process)) == 2 and first in kept(process) and second not in kept(process)


def test_other_warnings_are_shown_as_before(process, monkeypatch):
    shown = []
    monkeypatch.setattr(warnings, "showwarning", lambda *about: shown.append(str(about[0])))
    keep_compiled(None)
    warnings.showwarning(UserWarning("mine"), UserWarning, "file", 1)
    assert shown == ["mine"]


def test_another_number_of_cores_has_a_folder_of_its_own(monkeypatch):
    """XLA divides loops by it, and JAX does not know that."""
    here = machine()
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(977))
    assert machine() != here


@pytest.mark.parametrize("command", ["train", "evaluate", "replay", "influence", "tools/budget"])
def test_every_command_that_compiles_keeps_it(command):
    text = (Path(compiled.__file__).parents[1] / f"{command}.py").read_text()
    assert "compiled_flag()" in text and "keep_compiled(" in text
