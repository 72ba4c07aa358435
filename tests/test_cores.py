"""The cores of this process, by hand."""

import os

from atgrpo_jax.common.cores import cores, kept_to


def test_a_process_is_kept_to_cores_and_let_go():
    before = cores()
    assert set(before) == os.sched_getaffinity(0)
    with kept_to({before[-1]}):
        assert cores() == [before[-1]]
    assert cores() == before


def test_where_a_system_does_not_say_all_may_be_used(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.delattr(os, "sched_setaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    with kept_to({1}):
        assert cores() == [0, 1, 2]
