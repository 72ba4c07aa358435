"""What is written down of episodes."""

import asyncio
import gzip
import json
import re
from pathlib import Path

import numpy as np
import pytest
from fakes import CharTokenizer, Sum, group
from shared_rollout import Echo, Shouts, player

from atgrpo_jax.common.errors import RunError
from atgrpo_jax.common.types import Episode, Outcome
from atgrpo_jax.credit.groups import CreditConfig, Credited, credit
from atgrpo_jax.rollout.player import KEPT
from atgrpo_jax.run import episodes
from atgrpo_jax.run.folder import RunFolder
from atgrpo_jax.tasks.workflow import Workflow
from atgrpo_jax.tokens.tokens import TinyTokenizer

DOCS = Path(__file__).parents[1] / "docs" / "episodes.md"
ALPHA = {"a": 2.0, "b": 1.0}


def read(tmp_path, *args):
    folder = RunFolder(tmp_path / "run")
    folder.write_episodes(1, episodes.written(1, *args))
    return list(folder.read_episodes(1))


def test_a_training_episode(tmp_path):
    one = group(1.0, None, chosen=0)
    item = Credited(one, np.array([0.5, 0.0], np.float32), np.array([True, False]))
    episode = Episode("train", 3, 0, (one,), False, 1, "ended", "sum-3")
    (record,) = read(tmp_path, [episode], [item], TinyTokenizer(), ALPHA)
    expected = {
        "schema": 3, "step": 1, "split": "train", "instance": 3, "episode": 0, "problem": "sum-3",
        "solved": False, "end": "ended", "turns": 1,
    }  # fmt: skip
    assert record.items() >= expected.items()
    (found,) = record["groups"]
    assert found.items() >= {"role": "a", "seat": None, "turn": 0, "stage": 0, "version": 0}.items()
    assert found["prompt_ids"] == [5, 6, 7] and found["executed"] == 0
    first, second = found["candidates"]
    assert (first["local"], first["parts"], first["advantage"]) == (1.0, {"number": 1.0}, 0.5)
    assert first["mixed"] == 2.0 * first["team"] + 1.0
    assert (first["tokens"], first["logprobs"], first["trained"]) == ([1, 2], [-0.5, -0.6], True)
    assert (second["team"], second["local"], second["mixed"], second["trained"]) == (None, None, None, False)


def test_an_evaluation_has_no_advantages(tmp_path):
    episode = Episode("test", 3, 0, (group(1.0, 2.0),), True, 1, "solved", "x")
    (record,) = read(tmp_path, [episode], (), TinyTokenizer(), ALPHA)
    assert [(c["advantage"], c["trained"]) for c in record["groups"][0]["candidates"]] == [(None, False)] * 2


def test_what_programs_printed_is_kept_and_cut():
    made, _ = player({(0, "a"): ["=1", "x"]}, Shouts(Workflow(("a",), 1)), k=2, runner=Echo())
    episode = asyncio.run(made.play(1, "train", 0))
    called, plain = episode.groups[0].candidates
    assert [ran.stdout for ran in called.programs] == ["1", "1"] and called.programs[0].end == "ok"
    assert plain.programs == () and plain.outcome is Outcome.INVALID
    made, _ = player({(0, "a"): ["=" + "0" * 4000, "x"]}, Shouts(Workflow(("a",), 1)), k=2, runner=Echo())
    called = asyncio.run(made.play(1, "train", 0)).groups[0].candidates[0]
    assert KEPT < len(called.programs[0].stdout) < KEPT + 100 and "cut after" in called.programs[0].stdout


def test_the_same_episodes_are_the_same_bytes():
    made, _ = player({(t, r): ["1", "2", "x"] for t in range(2) for r in "ab"}, Sum())
    played = [asyncio.run(made.play(1, "train", 0)) for _ in range(2)]
    found = []
    for episode in played:
        credited, _, _ = credit([episode], alpha=ALPHA, rule=CreditConfig("group", "std"))
        found.append(episodes.written(1, [episode], credited, CharTokenizer(), ALPHA))
    assert found[0] == found[1]


def test_episodes_of_another_schema_are_one_line(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.write_episodes(1, gzip.compress(b'{"step": 1, "role": "a"}\n'))
    with pytest.raises(RunError, match=r"step_000001.jsonl.gz has schema 1, and this version reads 2 and 3"):
        list(folder.read_episodes(1))


def test_every_field_is_documented(tmp_path):
    made, _ = player({(t, r): ["1", "2", "x"] for t in range(2) for r in "ab"}, Sum())
    episode = asyncio.run(made.play(1, "train", 0))
    (record,) = read(tmp_path, [episode], (), CharTokenizer(), ALPHA)
    names = set(record) | set(record["groups"][0]) | set(record["groups"][0]["candidates"][0])
    documented = set(re.findall(r"^\| `(\w+)` \|", DOCS.read_text(), re.MULTILINE))
    assert documented - {"stdout", "stderr"} == names
    assert f"schema {episodes.SCHEMA}" in DOCS.read_text()
    assert json.dumps(record)
