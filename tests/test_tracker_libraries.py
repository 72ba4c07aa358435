"""The libraries of trackers themselves, offline."""

import contextlib
import gc
import json
import os
import signal
import sqlite3
import struct
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from shared_trackers import KEY, imported, send

from atgrpo_jax.run import tracking as tracking_module
from atgrpo_jax.run.folder import RunFolder
from atgrpo_jax.run.tracking import Tracking
from atgrpo_jax.tracking import mlflow, trackio
from atgrpo_jax.tracking.mlflow import _allowed, _tables
from atgrpo_jax.tracking.tracker import COLUMNS
from atgrpo_jax.tracking.trackers import Trackers
from atgrpo_jax.tracking.wandb import Wandb

pytestmark = pytest.mark.filterwarnings("ignore")  # what they say of one another is not our concern
ROOT = Path(__file__).parents[1]
ROW = [0, 1, "a", "2 + 2?", "4", 1.5, "solved"]
# What a record must hold at the end: step 3 was made, and made again.
SUCCESS = {0: 0.0, 1: 0.1, 2: 0.2, 3: 0.8, 4: 0.9, 5: 1.0}

SCRIPT = """
import json, os, signal, sys
from atgrpo_jax.run.folder import RunFolder
from atgrpo_jax.run.metrics import write_record
from atgrpo_jax.run.tracking import Tracking
from atgrpo_jax.tracking.mlflow import MLflow
from atgrpo_jax.tracking.trackers import Trackers
from atgrpo_jax.tracking.trackio import Trackio
from atgrpo_jax.tracking.wandb import Wandb

uri, last, steps, more, kill = sys.argv[1], *json.loads(sys.argv[2])
folder = RunFolder("run")
folder.lock()
folder.rewind(steps[0] - 1)
trackers = Trackers(wandb=Wandb(mode="offline"), mlflow=MLflow(uri=uri), trackio=Trackio())
tracking = Tracking(trackers, folder, {"rollout.candidates": 4, "steps": last, "task": "sums"})
row = (0, 1, "a", "2 + 2?", "4", 1.5, "solved")
tracking._tables = lambda record: [("test", [row])] if record["step"] > 3 else []
tracking.begin(steps[0])
for step in steps:
    tracking.send(write_record(folder, step, {"rollout/success": step / 10 + more, "role/a#1/team": 1.0}))
    if step == 2:
        tracking.note()  # as a checkpoint does
if kill:  # they have not written all that they got
    os.kill(os.getpid(), signal.SIGKILL)
tracking.end({"steps": last, "after": {"success": 0.25}, "failures": {"5/test/1": "failed: ended"}})
"""


@pytest.fixture(scope="module")
def resumed(tmp_path_factory):
    """A run that was killed after step 3 and went on after step 2, with all trackers.

    Returns where it is, and what the two processes have printed.
    """
    place = tmp_path_factory.mktemp("resumed")
    own = {"TRACKIO_DIR": str(place / "trackio"), "WANDB_API_KEY": KEY, "MLFLOW_TRACKING_PASSWORD": KEY}
    printed = []
    for arguments, code in (
        ([3, [0, 1, 2, 3], 0.0, True], -signal.SIGKILL),
        ([5, [3, 4, 5], 0.5, False], 0),
    ):
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, f"sqlite:///{place}/mlflow.db", json.dumps(arguments)],
            cwd=place, env=os.environ | own | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == code, done.stderr
        assert not done.stdout
        printed.append(done.stderr)
    return place, printed


def history(place):
    """What is in the files of wandb's offline runs, in order: items of history, config and summary."""
    pb = imported("wandb.proto.wandb_internal_pb2").proto.wandb_internal_pb2
    for file in sorted((place / "run" / "trackers" / "wandb").glob("offline-run-*/*.wandb")):
        for data in records_of(file.read_bytes()):
            record = pb.Record()
            record.ParseFromString(data)
            parts = {
                "history": record.history.item,
                "config": record.config.update,
                "summary": record.summary.update,
            }
            for kind, items in parts.items():
                found = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}
                if found:
                    yield kind, found
            if record.HasField("run"):
                yield "run", record.run.run_id


def records_of(data):
    """The records of a file in LevelDB's log format, after a header of 7 bytes. The last may be cut."""
    at, whole = 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        _, size, kind = struct.unpack("<IHB", data[at : at + 7])
        whole += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):
            yield whole
            whole = b""


@pytest.mark.slow
def test_wandb_offline_goes_on_with_its_record(resumed):
    place, _ = resumed
    found = list(history(place))
    state = json.loads((place / "run" / "trackers" / "state.json").read_text())
    assert {value for kind, value in found if kind == "run"} == {state["wandb"]["key"]}
    logged = [value for kind, value in found if kind == "history"]
    assert {i["step"]: i["rollout/success"] for i in logged if "rollout/success" in i} == SUCCESS
    assert [item["step"] for item in logged if "episodes/test/_type" in item] == [4, 5]
    (*_, table) = sorted((place / "run" / "trackers" / "wandb").rglob("*.table.json"))
    written = json.loads(table.read_text())
    assert written["columns"] == list(COLUMNS) and written["data"] == [ROW]
    merged = {"config": {}, "summary": {}}
    for kind, value in found:
        merged.setdefault(kind, {}).update(value if kind in ("config", "summary") else {})
    config = merged["config"]
    assert (config["rollout.candidates"], config["steps"], config["task"]) == (4, 5, "sums")
    assert merged["summary"]["summary/after/success"] == 0.25


@pytest.mark.slow
def test_mlflow_goes_on_with_its_record(resumed):
    place, _ = resumed
    client = imported("mlflow").MlflowClient(f"sqlite:///{place}/mlflow.db")
    state = json.loads((place / "run" / "trackers" / "state.json").read_text())
    experiment = client.get_experiment_by_name("atgrpo_jax")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_id == state["mlflow"]["key"] and run.info.status == "FINISHED"
    assert run.data.params == {"rollout.candidates": "4", "steps": "3", "task": "sums"}
    assert run.data.tags["now.steps"] == "5"
    points = client.get_metric_history(run.info.run_id, "rollout/success")
    assert {p.step: p.value for p in sorted(points, key=lambda p: p.timestamp)} == SUCCESS
    assert run.data.metrics["role/a:23:1/team"] == 1.0
    assert [t["path"] for t in json.loads(run.data.tags["mlflow.loggedArtifacts"])] == [
        f"episodes/test_00000{step}.json" for step in (4, 5)
    ]
    path = client.download_artifacts(run.info.run_id, "episodes/test_000005.json", str(place))
    assert json.loads(Path(path).read_text()) == {"columns": list(COLUMNS), "data": [ROW]}
    assert {file.path for file in client.list_artifacts(run.info.run_id)} == {"episodes", "summary.json"}


def test_a_tag_that_mlflow_has_cut_off_names_the_tables_that_are_whole():
    tables = [{"path": f"episodes/test_{step:06d}.json", "type": "table"} for step in range(9)]
    tag = json.dumps(tables)
    assert _tables(tag) == tables and _tables("[]") == []
    for cut in range(1, len(tag)):
        assert _tables(tag[:cut]) == tables[: tag[:cut].count("}")]


def test_settings_of_policies_and_roles_with_any_names_are_taken_by_mlflow():
    """And one that has changed is a tag of the same name."""
    validation = imported("mlflow.utils.validation").utils.validation
    params, tags = [], []
    there = SimpleNamespace(
        data=SimpleNamespace(tags={}, params={"policies.coder:23:1.rank": "8", "steps": "3"}),
        info=SimpleNamespace(experiment_id="0"),
    )
    client = SimpleNamespace(
        tracking_uri="here",
        get_run=lambda key: there,
        update_run=lambda key, status: None,
        log_batch=lambda key, params: params_taken(params),
        set_tag=lambda key, name, text: tags.append((name, text)),
    )

    def params_taken(some):
        params.extend((param.key, param.value) for param in some)

    names = ["policies.coder#1.path", "roles.a//b.temperature", "roles.a=b.temperature", "task"]
    settings = dict.fromkeys(names, 1) | {"policies.coder#1.rank": 16, "steps": 3}
    mlflow._Run(client, "key", settings)
    assert tags == [("now.policies.coder:23:1.rank", "16")]
    assert [params[at] for at in (0, 3)] == [("policies.coder:23:1.path", "1"), ("task", "1")]
    assert len(dict(params)) == 4
    for name, value in params:
        validation._validate_param(name, value)
    for name, _ in tags:
        validation._validate_tag(name, "")


def test_mlflow_is_given_no_tag_that_it_would_cut_off():
    tags = []
    there = SimpleNamespace(data=SimpleNamespace(tags={}, params={}), info=SimpleNamespace(experiment_id="0"))
    client = SimpleNamespace(
        tracking_uri="here",
        get_run=lambda key: there,
        update_run=lambda key, status: None,
        log_text=lambda key, text, file: None,
        set_tag=lambda key, name, text: tags.append(text),
    )
    run = mlflow._Run(client, "key", {})
    for step in range(200):
        run.table(step, "test", [])
    assert 50 < len(tags) < 200 and max(map(len, tags)) <= mlflow.LONGEST_TAG
    assert json.loads(tags[-1])[0]["path"] == "episodes/test_000000.json"


def test_trackio_is_given_the_summary_at_the_last_step():
    """Also by the process that only gives the command of an ended run again."""
    logged = []
    opened = SimpleNamespace(
        name="run", project="mine", log=lambda record, step: logged.append((step, record["summary/steps"]))
    )
    trackio._Run(opened, SimpleNamespace(finish=lambda: None), "here").end({"steps": 5})
    assert logged == [(5, 5)]


@pytest.mark.slow
def test_trackio_goes_on_with_its_record(resumed):
    place, _ = resumed
    state = json.loads((place / "run" / "trackers" / "state.json").read_text())
    with contextlib.closing(sqlite3.connect(place / "trackio" / "atgrpo_jax.db")) as database:
        rows = database.execute("select run_name, step, metrics from metrics order by id").fetchall()
        configs = [json.loads(text) for (text,) in database.execute("select config from configs")]
    assert {name for name, _, _ in rows} == {state["trackio"]["key"]}
    logs = [(step, json.loads(text)) for _, step, text in rows]
    assert {step: i["rollout/success"] for step, i in logs if "rollout/success" in i} == SUCCESS
    tables = {step: item["episodes/test"]["_value"] for step, item in logs if "episodes/test" in item}
    assert sorted(tables) == [4, 5] and list(tables[5][0].values()) == ROW
    assert [(s, i["summary/after/success"]) for s, i in logs if "summary/after/success" in i] == [(5, 0.25)]
    assert [config["rollout.candidates"] for config in configs] == [4]


@pytest.mark.slow
def test_they_print_a_line_each_and_no_key_is_written(resumed):
    place, printed = resumed
    for text in printed:
        lines = [line for line in text.splitlines() if "INFO mlflow.store.db" not in line]
        assert [line.partition(": ")[0] for line in lines] == ["wandb", "mlflow", "trackio"], lines
        assert KEY not in text
    files = [path for path in place.rglob("*") if path.is_file()]
    assert files and not any(KEY.encode() in path.read_bytes() for path in files)


def test_wandb_whose_process_has_ended_is_opened_again(tmp_path, capsys, monkeypatch):
    for name in ("_FIRST_PAUSE", "_LONGEST_PAUSE"):
        monkeypatch.setattr(tracking_module, name, 1e-9)
    imported("wandb")
    folder = RunFolder(tmp_path / "run")
    tracking = Tracking(Trackers(tensorboard=None, wandb=Wandb(mode="offline")), folder, {})
    tracking.begin(0)
    send(tracking, folder, 0, 1)
    end_wandb()
    said, steps = "", 2
    while "is not taken" not in said and steps < 200:  # it takes a moment until it is noticed
        send(tracking, folder, steps)
        said += capsys.readouterr().err
        steps += 1
        time.sleep(0.05)
    send(tracking, folder, steps)
    tracking.end({"steps": steps})
    said += capsys.readouterr().err
    assert said.count("is not taken (ConnectionResetError") == 1 and "it answers again, and has all" in said
    assert logged_steps(tmp_path) == set(range(steps + 1))
    gc.collect()  # the dead process: Python warns of it here, not in another test


def test_wandb_whose_process_ends_last_gets_what_it_lacks_from_the_same_command(tmp_path, capsys):
    """Also in this process, as in a notebook. The process may end unnoticed between two runs, too."""
    imported("wandb")
    folder = RunFolder(tmp_path / "run")
    for first, words in ((0, "is not closed"), (1, ""), (2, "")):
        tracking = Tracking(Trackers(tensorboard=None, wandb=Wandb(mode="offline")), folder, {})
        tracking.begin(first)
        send(tracking, folder, first)
        if first == 0:
            end_wandb()  # its file lacks the step
            assert not logged_steps(tmp_path)
        tracking.end({"steps": first})
        assert words in capsys.readouterr().err
        if first == 1:
            end_wandb()
    assert logged_steps(tmp_path) == {0, 1, 2}
    gc.collect()


def end_wandb():
    children = subprocess.check_output(
        ["ps", "-ww", "--ppid", str(os.getpid()), "-o", "pid=,args="], text=True
    )
    for line in children.splitlines():
        if "wandb-core" in line:
            os.kill(int(line.split()[0]), signal.SIGKILL)


def logged_steps(place):
    return {item["step"] for kind, item in history(place) if kind == "history"}


def test_names_of_metrics_that_mlflow_takes():
    names = ["rollout/success", "role/a/part/x y", "role/a%2Fb/team", "role/ä/team", "test/pass@4"]
    names += ["a//b", "a/./b", "a/../b", "a/:/b", "a/::/b"]
    found = [_allowed(name) for name in names]
    assert found[0] == "rollout/success" and found[4] == "test/pass:40:4" and len(set(found)) == len(names)
    validate = imported("mlflow.utils.validation").utils.validation._validate_metric_name
    for name in found:
        validate(name)
