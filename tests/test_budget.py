"""A step divided: rows that sum to it, by hand and of a real run, and what a command leaves."""

import contextlib
import dataclasses
import math

import jax
import pytest
from shared_trainer import experiment

from atgrpo_jax.engines.local.local import LocalEngineConfig
from atgrpo_jax.engines.protocol import Usage
from atgrpo_jax.run import gin_config
from atgrpo_jax.run.loop import one_step
from atgrpo_jax.tools.budget import budget
from atgrpo_jax.tools.budgeting import table, watching
from atgrpo_jax.tools.budgeting.table import Limits, rows
from atgrpo_jax.tools.budgeting.watching import Run, Watched

SECONDS = {
    "rollout": 5.0, "credit": 0.25, "packing": 0.5, "on devices": 2.0, "update": 3.0, "push": 0.25,
    "sync": 1.0, "writing": 0.125,
}  # fmt: skip
# 64 slots, of which 3 in 4 drew; 1 of 11 prompt tokens was known.
USED = Usage(prefill_s=1.0, decode_s=2.5, tokens=480, slot_steps=640, prompt_tokens=1100, known_tokens=100)


def step(seconds=10.0, compiling=0.0):
    compiled = {"rollout": compiling, "all": compiling}
    return Watched(seconds, SECONDS, compiled, {"perf/rollout_environment_s": 0.5}, USED, ())


def run_of(*steps):
    x = dataclasses.replace(gin_config.load("smoke.gin"), engine=LocalEngineConfig(slots=64))
    return Run(x, None, None, step(30.0, 20.0), steps)


def test_rows_by_hand():
    x = gin_config.load("smoke.gin")
    blocks = 2 * (32 * 32 + 2 * 32 * 16 + 32 * 32 + 3 * 32 * 64)
    numbers = blocks + 32 * x.tokenizer.vocab_size
    found = rows(run_of(step(), step(12.0)), Limits(flops=2.0 * numbers * 640, bandwidth=1e30))
    seconds = {row.part: row.seconds for row in found}
    assert seconds == {
        "prefill": 1.0,
        "decode: slots that draw": 2.5 * 0.75,
        "decode: idle slots": 2.5 * 0.25,
        "environment, devices idle": 0.5,
        "rollout: the host": 1.0,
        "credit: audit and advantages": 0.25,
        "packing": 0.5,
        "update: the rest": 2.0,  # nothing was updated, so nothing is divided
        "update: to the devices and back": 0.5,
        "push": 0.25,
        "gate": 0.75,
        "writing": 0.125,
        "compiling": 0.0,
        "other": 11.0 - 9.375,
    }
    share = {row.part: row.limit for row in found if row.limit is not None}
    assert share["decode: slots that draw"] == pytest.approx(1 / 2.5)
    assert share["prefill"] == pytest.approx(blocks * 1000 / (numbers * 640))


def test_compiling_is_a_row_and_in_no_other():
    found = {row.part: row.seconds for row in rows(run_of(step(compiling=0.5)), Limits(1e9, 1e9))}
    # The clock leaves it out of the rollout; the engine does not, so it is taken from decoding.
    assert found["compiling"] == 0.5 and found["decode: slots that draw"] == 2.0 * 0.75
    assert sum(found.values()) == 10.0


@pytest.mark.thorough
def test_a_real_run_sums_to_its_steps_and_traces_one_more(tmp_path, monkeypatch):
    """JAX's tracing itself crashes in a process that has compiled for a TPU, as other tests do."""
    traced = []

    @contextlib.contextmanager
    def trace(folder, create_perfetto_trace):
        assert create_perfetto_trace
        steps = []
        monkeypatch.setattr(watching, "one_step", lambda *given: steps.append(given[2]) or one_step(*given))
        yield
        traced.append((folder, steps))

    monkeypatch.setattr(jax.profiler, "trace", trace)
    monkeypatch.setattr("atgrpo_jax.run.stages.draw_curves", lambda folder: None)  # takes seconds
    monkeypatch.setattr(table, "SIDE", {"cpu": 64})
    monkeypatch.setattr(table, "BYTES", 2**16)
    x = experiment(max_logprob_gap=1e9)
    run, found, text = budget(x, "sums", 2, tmp_path)
    whole = sum(one.seconds for one in run.steps) / 2
    assert len(run.steps) == 2 and math.isclose(sum(row.seconds for row in found), whole)
    by_part = {row.part: row for row in found}
    for part in ("attention", "products", "head", "optimizer"):
        row = by_part[f"update: {part}"]
        assert row.how == "derived" and row.seconds > 0 and row.limit > 0
    updating = (
        sum(row.seconds for row in found if row.part.startswith("update: ")) + by_part["packing"].seconds
    )
    assert math.isclose(updating, sum(one.parts["update"] for one in run.steps) / 2)
    assert text[0].startswith(f"a step of sums: {whole:.3f} s, the mean of 2 steps after the first")
    assert [line.split("  ")[0] for line in text[3 : 3 + len(found)]] == [row.part for row in found]
    assert text[3 + len(found)].split() == ["the", "step", f"{whole:.3f}", "100.0%"]
    assert traced == [(str(tmp_path), [4])] and list(run.first.compiling)
