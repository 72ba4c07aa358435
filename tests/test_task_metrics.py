"""Numbers of a task's own: ``Transition.metrics`` become metrics of a step, and are written with episodes."""

import asyncio
import dataclasses
import gzip
import json
import math
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from fakes import CharTokenizer, Sum
from shared_rollout import player

from atgrpo_jax.common.errors import RunError
from atgrpo_jax.rollout import wire
from atgrpo_jax.run import episodes, recorded
from atgrpo_jax.run.folder import RunFolder
from atgrpo_jax.run.metrics import episode_metrics
from atgrpo_jax.tasks.workflow import Workflow
from atgrpo_jax.tools.check_task import check
from atgrpo_jax.viewing.text import episode_text

ONE = Workflow(("a", "b"), 1)
SCRIPT = {(0, "a"): ["1", "3", "x"], (0, "b"): ["1", "1", "1"]}
ALPHA = {"a": 1.0, "b": 1.0}


@dataclasses.dataclass(frozen=True)
class Counts(Sum):
    """Role a is given its number and half of it, under names that parts have as well."""

    workflow: Workflow = ONE

    def act(self, state, role, text):
        step = super().act(state, role, text)
        if role != "a" or not text.isdigit() or not text.isascii():
            return step
        number = int(text[:9])
        return dataclasses.replace(step, metrics={"number": number, "of/two": np.float32(number / 2)})


def played(task):
    made, _ = player(SCRIPT, task)
    return asyncio.run(made.play(1, "train", 0))


def test_they_are_means_over_the_candidates_that_were_given_them():
    found = episode_metrics([played(Counts())])
    own = {name: value for name, value in found.items() if "/task/" in name}
    assert own == {"role/a/task/number": 2.0, "role/a/task/of%2Ftwo": 1.0}  # of "1" and "3", not of "x"
    assert found["role/a/part/number"] == (1 + 3 + 0) / 3


def test_without_them_nothing_changes():
    """The metrics are those of the same task that gives none, to the byte, and messages are as long."""
    plain, own = played(Sum(ONE)), played(Counts())
    found = {name: value for name, value in episode_metrics([own]).items() if "/task/" not in name}
    assert json.dumps(episode_metrics([plain])) == json.dumps(found)
    empty = [dataclasses.replace(c, metrics={}) for c in own.groups[0].candidates]
    groups = (dataclasses.replace(own.groups[0], candidates=tuple(empty)), *own.groups[1:])
    assert wire.encode([dataclasses.replace(own, groups=groups)]) == wire.encode([plain])


def test_they_are_plain_numbers_in_episodes_and_come_back(tmp_path):
    one = played(Counts())
    first = one.groups[0].candidates[0]
    assert first.metrics == {"number": 1.0, "of/two": 0.5}
    assert {type(value) for value in first.metrics.values()} == {float}
    assert wire.decode(wire.encode([one])) == [one]
    folder = RunFolder(tmp_path)
    folder.write_episodes(1, episodes.written(1, [one], (), CharTokenizer(), ALPHA))
    (record,) = folder.read_episodes(1)
    found = [candidate["metrics"] for candidate in record["groups"][0]["candidates"]]
    assert found == [{"number": 1.0, "of/two": 0.5}, {"number": 3.0, "of/two": 1.5}, {}]
    assert "\n   metrics: number 3, of/two 1.5\n" in episode_text(record, record["groups"]) + "\n"
    again = recorded.episode_of(record, {})
    assert [c.metrics for c in again.groups[0].candidates] == found


def test_episodes_without_the_field_are_read(tmp_path):
    """As written by schema 2."""
    folder = RunFolder(tmp_path)
    folder.write_episodes(1, episodes.written(1, [played(Sum(ONE))], (), CharTokenizer(), ALPHA))
    (record,) = folder.read_episodes(1)
    for candidate in (c for group in record["groups"] for c in group["candidates"]):
        del candidate["metrics"]
    old = json.dumps(record | {"schema": 2}).encode()
    folder.write_episodes(1, gzip.compress(old))
    (old,) = folder.read_episodes(1)
    assert all(c["metrics"] == {} for group in old["groups"] for c in group["candidates"])


@dataclasses.dataclass(frozen=True)
class Gives(Sum):
    workflow: Workflow = ONE
    metrics: Any = None

    def act(self, state, role, text):
        return dataclasses.replace(super().act(state, role, text), metrics=self.metrics)


@pytest.mark.parametrize(
    ("metrics", "says"),
    [
        (None, r"Transition.metrics = None \(NoneType\), expected a mapping from names to numbers"),
        ({1: 2.0}, r"Transition.metrics = \{1: 2.0\} \(dict\), expected a mapping from names to numbers"),
        ([("a", 1.0)], r"Transition.metrics = \[\('a', 1.0\)\] \(list\), expected a mapping"),
        ({"a": math.nan}, r"Transition.metrics\['a'\] = nan \(float\); expected a finite number"),
        ({"a": -math.inf}, r"Transition.metrics\['a'\] = -inf"),
        ({"a": 1.0, "b": "2"}, r"Transition.metrics\['b'\] = '2' \(str\); expected a finite number"),
        ({"a": None}, r"Transition.metrics\['a'\] = None"),
        ({"a": 1e30}, r"Transition.metrics\['a'\] = 1e\+30"),
    ],
)
def test_what_is_no_mapping_from_names_to_numbers_is_refused(metrics, says):
    where = "^step 1, train instance 0, episode 0, turn 0, role a: Gives.act gave "
    with pytest.raises(RunError, match=where + says):
        played(Gives(metrics=metrics))


@pytest.mark.parametrize("metrics", [None, {1: 2.0}, {"a": math.nan}, {"a": "high"}, {"a": 10**400}])
def test_the_checker_names_them(metrics):
    found = [str(problem) for problem in check(Gives(metrics=metrics), instances=1, episodes=2)]
    rule = "metrics are finite numbers with names"
    assert any(line.startswith(f"{rule}: train 0, turn 0, a: {str(metrics)[:80]} for ") for line in found), (
        found
    )


def test_any_mapping_and_any_number_will_do():
    metrics: Mapping = OrderedDict(yes=True, count=3, share=np.float64(0.5))
    first = played(Gives(metrics=metrics)).groups[0].candidates[0]
    assert first.metrics == {"yes": 1.0, "count": 3.0, "share": 0.5}
    assert "metrics are finite numbers with names" not in {
        problem.rule for problem in check(Gives(metrics=metrics), instances=1, episodes=2)
    }
