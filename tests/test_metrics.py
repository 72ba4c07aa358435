import dataclasses
import json

import pytest
from fakes import KEY, ORIGIN, candidate
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from atgrpo_jax.common.errors import RunError
from atgrpo_jax.common.metric_names import of_policy, together
from atgrpo_jax.common.types import Episode, Group, Reward
from atgrpo_jax.run.folder import RunFolder
from atgrpo_jax.run.metrics import episode_metrics, write_record
from atgrpo_jax.run.tracking import Tracking
from atgrpo_jax.tracking.tensorboard import _first
from atgrpo_jax.tracking.trackers import Trackers


def test_a_resumed_run_takes_the_place_of_the_steps_that_it_repeats(tmp_path):
    """In TensorBoard; metrics.jsonl is cut by whoever resumes."""
    folder = RunFolder(tmp_path / "plan")
    folder.path.mkdir()
    for first, steps in ((0, (0, 1, 2, 3)), (2, (2, 3))):
        tell(folder, first, steps)
    assert events_of(folder.tensorboard / "plan") == {
        name: [(0, 0.0), (1, 0.25), (2, 2.5), (3, 2.75)] for name in ("Success/rollout", "rollout/success")
    } | {"loss": [(step, 1.0) for step in range(4)]}
    lines = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    assert lines[0] == {"step": 0, "loss": 1.0, "rollout/success": 0.0} and len(lines) == 6


def tell(folder, first, steps):
    """As a process of a run does that begins at ``first``."""
    tracking = Tracking(Trackers(), folder, {})
    tracking.begin(first)
    for step in steps:
        tracking.send(write_record(folder, step, {"rollout/success": first + step / 4, "loss": 1.0}))
    tracking.note()


def events_of(folder):
    events = EventAccumulator(str(folder)).Reload()
    tags = events.Tags()["scalars"]
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags}


@pytest.mark.parametrize("older", [True, False])
def test_a_run_goes_on_where_its_events_are(tmp_path, older):
    """Those of older runs were right in tensorboard/; those of a run that was renamed keep its first name."""
    folder = RunFolder(tmp_path / "plan")
    folder.path.mkdir()
    tell(folder, 0, (0, 1))
    if older:
        (file,) = (folder.tensorboard / "plan").iterdir()
        file.rename(folder.tensorboard / file.name)
        file.parent.rmdir()
    folder = RunFolder(folder.path.rename(tmp_path / "best"))
    tell(folder, 2, (2,))
    place = folder.tensorboard if older else folder.tensorboard / "plan"
    files = [path for path in folder.tensorboard.rglob("*") if path.is_file()]
    assert {path.parent for path in files} == {place}  # one file, if both began in the same second
    assert events_of(place)["rollout/success"] == [(0, 0.0), (1, 0.25), (2, 2.5)]


def test_success_comes_first_in_tensorboard():
    names = (
        "end/solved",
        "Success/x",
        "role/success/team",
        "rollout/success",
        "test/success",
        "success",
        "loss",
    )
    found = _first({name: float(i) for i, name in enumerate(names)})
    assert found == {"Success/rollout": 3.0, "Success/test": 4.0}
    assert min((*found, *names[:1], *names[2:])) in found  # by the codes of letters, as TensorBoard sorts


def played(role, tokens, parts):
    own = dataclasses.replace(ORIGIN, key=dataclasses.replace(KEY, role=role))
    drawn = candidate(tokens=range(tokens), origin=own)
    return Group((dataclasses.replace(drawn, reward=Reward(0.5, 3.0, parts)),), 0)


def test_no_name_of_a_role_a_policy_or_a_part_hides_another_metric():
    roles = ("a", "a/part", "rollout", "end", "policy", "shared", "a%2Fpart")
    parts = ("loss", "team", "local", "tokens", "part", "part/x", "x", "step", "", "a%2Fx")
    groups = tuple(played(role, n, dict.fromkeys(parts, 1.0)) for n, role in enumerate(roles, 1))
    found = episode_metrics([Episode("train", 0, 0, groups, True, 1, "solved")])
    own = [of_policy(role, {"loss": 1.0, "tokens": 9.0, "part/x": 2.0}) for role in roles]
    record = together(found, *own)
    assert len(record) == 5 + len(roles) * (3 + len(parts)) + len(roles) * 3
    assert record["role/a/team"] == 0.5 and record["role/a/part/team"] == 1.0
    assert record["role/a%2Fpart/tokens"] == 2.0 and record["role/a/part/part%2Fx"] == 1.0
    assert record["rollout/success"] == 1.0 and record["policy/shared/loss"] == 1.0


def test_a_name_that_comes_twice_and_a_number_that_is_none_are_refused_and_nothing_is_written(tmp_path):
    folder = RunFolder(tmp_path)
    with pytest.raises(RunError, match="two metrics of one step are called 'b'"):
        together({"a": 1.0, "b": 2.0}, {"c": 1.0}, {"b": 2.0})
    for values, says in (
        ({"step": 3.0}, "two metrics of one step are called 'step'"),
        ({"a": 1.0, "b": float("nan")}, "step 4, metrics: b is nan, which is not a finite number"),
        ({"a": float("inf")}, "a is inf"),
    ):
        with pytest.raises(RunError, match=says):
            write_record(folder, 4, values)
    assert not folder.metrics.exists()


def test_a_full_disk_names_the_file(tmp_path, limited_file_size):
    folder = RunFolder(tmp_path)
    with limited_file_size(1), pytest.raises(OSError) as raised:
        write_record(folder, 0, {"a": 1.0})
    assert raised.value.filename == str(folder.metrics) and folder.metrics.read_bytes() == b""
