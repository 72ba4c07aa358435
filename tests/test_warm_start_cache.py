"""What is kept of warm starts: one whole entry, verified, whoever makes it."""

import dataclasses
import threading

import jax
import numpy as np
import pytest

from atgrpo_jax.common.errors import RunError
from atgrpo_jax.run.gin_config import load
from atgrpo_jax.run.team_learner import TeamLearner


def experiment(cache):
    x = load("smoke.gin", ["config.Architecture.layers = 1"])
    return dataclasses.replace(
        x, warm_start=dataclasses.replace(x.warm_start, steps=1, instances=2, cache_dir=str(cache))
    )


def start(cache):
    return jax.device_get(TeamLearner(experiment(cache)).initial())


def assert_same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A cache with an entry in it, and what was started from it."""
    cache = tmp_path_factory.mktemp("made")
    return cache, start(cache)


@pytest.mark.thorough
def test_what_was_made_is_taken_again(made, capsys):
    cache, first = made
    assert_same(start(cache), first)
    assert f"warm start: from the cache, {cache}" in capsys.readouterr().err


def test_a_damaged_entry_is_told_and_made_anew(made, capsys):
    cache, first = made
    (entry,) = (cache / "warm_start").iterdir()
    (largest,) = sorted(entry.rglob("*"), key=lambda path: path.stat().st_size * path.is_file())[-1:]
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 1
    largest.write_bytes(data)
    assert_same(start(cache), first)
    said = capsys.readouterr().err
    assert f"the cached one is damaged ({largest} is not what was saved); it is made anew" in said
    assert list((cache / "warm_start").iterdir()) == [entry]
    assert_same(start(cache), first)
    assert "from the cache" in capsys.readouterr().err


def test_two_runs_that_make_the_same_at_once_share_it(made, tmp_path):
    _, first = made
    x, together, found = experiment(tmp_path), threading.Barrier(2), []

    def run():
        learner = TeamLearner(x)
        together.wait()
        found.append(jax.device_get(learner.initial()))

    both = [threading.Thread(target=run) for _ in range(2)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert len(found) == 2
    for params in found:
        assert_same(params, first)
    (entry,) = (tmp_path / "warm_start").iterdir()
    assert not entry.name.startswith(".")
    assert_same(start(tmp_path), first)


def test_litter_of_killed_processes_goes(tmp_path):
    (tmp_path / "warm_start" / ".abc.0123.partial" / "state").mkdir(parents=True)
    start(tmp_path)
    (entry,) = (tmp_path / "warm_start").iterdir()
    assert not entry.name.startswith(".")


def test_a_cache_that_cannot_be_written_is_told_before_the_work(tmp_path, capsys):
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    for name in ("file", "dangling", "x" * 300):
        with pytest.raises(RunError, match=rf"{name}.*") as raised:
            start(tmp_path / name)
        assert "WarmStartConfig.cache_dir" in str(raised.value)
    assert "warm start 1/1" not in capsys.readouterr().err


@pytest.mark.parametrize("name", ["a\0b", "~nobody.at.all/cache"])
def test_a_cache_that_no_folder_can_be_is_refused(name):
    with pytest.raises(ValueError, match=r"WarmStartConfig.cache_dir = '.*': (has|names) a"):
        experiment(name)
