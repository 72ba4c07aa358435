"""Trackers: what becomes of records when one of them fails, comes later or is gone."""

import dataclasses
import json
import sys

import pytest
from etils import epath
from shared_trackers import KEY, imported, send
from shared_trainer import experiment, honest

from atgrpo_jax.common.errors import ConfigError, RunError
from atgrpo_jax.common.hosts import Alone
from atgrpo_jax.rollout.evaluation import EvaluationConfig
from atgrpo_jax.run import gin_config
from atgrpo_jax.run import tracking as tracking_module
from atgrpo_jax.run.experiment import experiment_difference
from atgrpo_jax.run.folder import RunFolder
from atgrpo_jax.run.gin_writing import settings_of
from atgrpo_jax.run.loop import train
from atgrpo_jax.run.tracking import Tracking, harmless, table_of, tracked
from atgrpo_jax.tracking.mlflow import MLflow
from atgrpo_jax.tracking.tracker import About, flat
from atgrpo_jax.tracking.trackers import Trackers
from atgrpo_jax.tracking.trackio import Trackio
from atgrpo_jax.tracking.wandb import Wandb


@dataclasses.dataclass(frozen=True)
class Scripted:
    """Notes what it gets. It fails while ``down`` is not empty, and for each word of it says that."""

    seen: list = dataclasses.field(default_factory=list)
    down: list = dataclasses.field(default_factory=list)
    where: str = "nowhere"
    lag_s: float = 0.0

    @property
    def key(self):
        return "a-key"

    def open(self, run):
        self._note("open", run.key)
        return self

    def log(self, step, record):
        self._note("log", step, record.get("rollout/success"))

    def table(self, step, split, rows):
        self._note("table", step, split, rows)

    def end(self, summary):
        self._note("end", summary)

    def _note(self, *what):
        if what[0] in self.down or "all" in self.down:
            raise ConnectionError(f"no answer to {KEY}\n" + "x" * 500)
        self.seen.append(what)

    def steps(self):
        return [what[1] for what in self.seen if what[0] == "log"]


def chosen(**others):
    return Trackers(tensorboard=None, others=others)


@pytest.fixture
def soon(monkeypatch):
    """A tracker that failed is tried again at the next record."""
    monkeypatch.setattr(tracking_module, "_FIRST_PAUSE", 1e-9)
    monkeypatch.setattr(tracking_module, "_LONGEST_PAUSE", 1e-9)


def test_a_tracker_that_fails_is_said_once_and_gets_all_that_it_missed(tmp_path, soon, capsys, monkeypatch):
    monkeypatch.setenv("SOME_API_KEY", KEY)
    folder, tracker = RunFolder(tmp_path), Scripted()
    tracking = Tracking(chosen(mine=tracker), folder, {})
    tracking.begin(0)
    send(tracking, folder, 0, 1)
    tracker.down.append("log")
    send(tracking, folder, 2, 3, 4)
    assert tracker.steps() == [0, 1]
    tracker.down.clear()
    send(tracking, folder, 5)
    assert tracker.steps() == [0, 1, 2, 3, 4, 5]
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "mine: nowhere"
    assert lines[1].startswith("mine: step 2 is not taken (ConnectionError: no answer to *** xxx")
    assert lines[1].endswith("); the run goes on, and what is missing is sent later") and len(lines[1]) < 350
    assert lines[2:] == ["mine: it answers again, and has all steps up to 5"]


def test_a_tracker_that_fails_is_left_alone_for_a_while(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(tracking_module.time, "monotonic", lambda: now[0])
    folder, tracker = RunFolder(tmp_path), Scripted()
    tracking = Tracking(chosen(mine=tracker), folder, {})
    tries = []
    monkeypatch.setattr(Scripted, "open", lambda self, run: tries.append(now[0]) or self)
    tracker.down.append("log")
    for step in range(300):
        send(tracking, folder, step)
        now[0] += 30.0
    # After 60 s, then after twice as long each time, up to half an hour.
    assert tries == [60, 180, 420, 900, 1860, 3660, 5460, 7260]


def test_what_a_run_could_not_send_is_sent_by_the_same_command(tmp_path, capsys):
    folder, tracker = RunFolder(tmp_path), Scripted()
    tracking = Tracking(chosen(mine=tracker), folder, {})
    tracking.begin(0)
    send(tracking, folder, 0, 1)
    tracker.down.append("all")
    send(tracking, folder, 2, 3)
    tracking.end({"steps": 3})
    assert capsys.readouterr().err.splitlines()[-1] == (
        "mine: it lacks the steps from 2; the same command sends them"
    )
    assert json.loads((tmp_path / "trackers" / "state.json").read_text()) == {
        "mine": {"key": "a-key", "next": 2}
    }
    tracker.down.clear()
    tracking = Tracking(chosen(mine=tracker), folder, {})
    tracking.begin(4)
    tracking.end({"steps": 3})
    assert tracker.seen[-4:] == [("open", "a-key"), ("log", 2, 0.2), ("log", 3, 0.3), ("end", {"steps": 3})]


def test_trackers_may_be_added_and_left_out_when_a_run_goes_on(tmp_path):
    folder, one, two = RunFolder(tmp_path), Scripted(), Scripted()
    for trackers, first, steps in (
        (chosen(one=one), 0, (0, 1)),
        (chosen(two=two), 2, (2, 3)),
        (chosen(one=one, two=two), 4, (4,)),
    ):
        tracking = Tracking(trackers, folder, {})
        tracking.begin(first)
        send(tracking, folder, *steps)
        tracking.end({"steps": steps[-1]})
    assert one.steps() == two.steps() == [0, 1, 2, 3, 4]


def test_steps_that_are_made_again_are_sent_again(tmp_path):
    folder, tracker = RunFolder(tmp_path), Scripted()
    tracking = Tracking(chosen(mine=tracker), folder, {})
    tracking.begin(0)
    send(tracking, folder, 0, 1, 2)
    tracking.note()  # as a checkpoint does
    send(tracking, folder, 3)
    folder.rewind(2)
    tracking = Tracking(chosen(mine=tracker), folder, {})
    tracking.begin(3)
    send(tracking, folder, 3, more=0.5)
    assert [(step, value) for _, step, value in (what for what in tracker.seen if what[0] == "log")] == [
        (0, 0.0), (1, 0.1), (2, 0.2), (3, 0.3), (3, 0.8)
    ]  # fmt: skip


def test_what_a_library_may_not_have_written_when_all_was_killed_is_sent_again(tmp_path, monkeypatch):
    """At the checkpoint of step 3, it got step 0 at 0 s, and then one in 20 s."""
    now = [0.0]
    monkeypatch.setattr(tracking_module.time, "monotonic", lambda: now[0])
    folder, tracker = RunFolder(tmp_path), Scripted(lag_s=30.0)
    tracking = Tracking(chosen(mine=tracker), folder, {})
    for step in range(4):
        now[0] = 20.0 * step
        send(tracking, folder, step)
    tracking.note()
    tracking = Tracking(chosen(mine=tracker), folder, {})  # the first one is not closed
    tracking.begin(4)
    assert tracker.steps() == [0, 1, 2, 3, 2, 3]
    tracking.close()
    Tracking(chosen(mine=tracker), folder, {}).begin(4)
    assert tracker.steps() == [0, 1, 2, 3, 2, 3]


def test_what_a_library_had_in_memory_when_it_failed_is_sent_again(tmp_path, soon):
    folder, tracker = RunFolder(tmp_path), Scripted(lag_s=1000.0)
    tracking = Tracking(chosen(mine=tracker), folder, {})
    send(tracking, folder, 0, 1)
    tracker.down.append("log")
    send(tracking, folder, 2)
    tracker.down.clear()
    send(tracking, folder, 3)
    assert tracker.steps() == [0, 1, 0, 1, 2, 3]


def test_a_tracker_that_failed_is_closed_before_it_is_opened_again(tmp_path, soon):
    """wandb refuses the same run as long as it is open in this process."""
    folder, tracker = RunFolder(tmp_path), Scripted()
    tracking = Tracking(chosen(mine=tracker), folder, {})
    send(tracking, folder, 0)
    tracker.down.append("log")
    send(tracking, folder, 1)  # it takes the end, though
    tracker.down.append("end")
    send(tracking, folder, 2)  # and now not even that, which is not worth a word
    tracker.down.clear()
    send(tracking, folder, 3)
    assert [what[0] for what in tracker.seen] == [
        "open", "log", "end", "open", "open", "log", "log", "log"
    ]  # fmt: skip
    assert tracker.steps() == [0, 1, 2, 3]


def test_episodes_that_cannot_be_read_are_no_failure_of_the_tracker(tmp_path, capsys, monkeypatch):
    folder, tracker = RunFolder(tmp_path), Scripted()
    tracking = Tracking(chosen(mine=tracker), folder, {})

    def tables(record):
        if record["step"] > 0:
            yield "validation", []
            raise RunError("episodes/1.test: the bucket does not answer")
        yield "test", []

    monkeypatch.setattr(tracking, "_tables", tables)
    send(tracking, folder, 0, 1, 2)
    assert [what[:3] for what in tracker.seen] == [
        ("open", ""), ("log", 0, 0.0), ("table", 0, "test"), ("log", 1, 0.1), ("table", 1, "validation"),
        ("log", 2, 0.2), ("table", 2, "validation"),
    ]  # fmt: skip
    assert capsys.readouterr().err.splitlines() == [
        "mine: nowhere",
        "mine: a table of episodes is not read (RunError: episodes/1.test: the bucket does not answer)",
    ]


@pytest.mark.parametrize(
    ("lag_s", "again"), [(30.0, [2, 3]), (0.0, [])], ids=["sends in the background", "takes a step at once"]
)
def test_a_record_that_could_not_be_closed_gets_all_steps_of_its_session_again(
    tmp_path, monkeypatch, capsys, lag_s, again
):
    """Its end waits for two minutes for a server that takes nothing: no step of the session is sure."""
    now = [0.0]
    monkeypatch.setattr(tracking_module.time, "monotonic", lambda: now[0])
    folder, tracker = RunFolder(tmp_path), Scripted(lag_s=lag_s)
    tracking = Tracking(chosen(mine=tracker), folder, {})
    tracking.begin(0)
    send(tracking, folder, 0, 1)
    tracking.end({"steps": 1})
    tracking = Tracking(chosen(mine=tracker), folder, {})
    tracking.begin(2)
    send(tracking, folder, 2)
    now[0] += 1000.0
    send(tracking, folder, 3)
    tracker.down.append("end")
    with monkeypatch.context() as patch:
        patch.setattr(tracking_module.time, "monotonic", lambda: now[0] + 120.0)  # when its end gives up
        tracking.end({"steps": 3})
    assert "the same command sends what it lacks" in capsys.readouterr().err
    tracker.down.clear()
    tracker.seen.clear()
    Tracking(chosen(mine=tracker), folder, {}).begin(4)
    assert tracker.steps() == again


def test_a_table_that_is_not_taken_costs_no_metrics(tmp_path, capsys):
    tracker = Scripted(down=["table"])
    x = experiment(
        honest(), steps=2, trackers=chosen(mine=tracker),
        evaluation=EvaluationConfig(instances=3, validation_instances=2, every=1),
    )  # fmt: skip
    train(x, RunFolder(tmp_path))
    assert tracker.steps() == [0, 1, 2]
    assert capsys.readouterr().err.count("a table of episodes is not taken") == 1


def test_a_run_gives_records_tables_settings_and_its_summary(tmp_path):
    tracker = Scripted()
    trackers = dataclasses.replace(chosen(mine=tracker), rows=4)
    x = experiment(
        honest(), steps=2, trackers=trackers,
        evaluation=EvaluationConfig(instances=3, validation_instances=2, every=1),
    )  # fmt: skip
    summary = train(x, RunFolder(tmp_path))
    assert tracker.steps() == [0, 1, 2] and tracker.seen[-1] == ("end", summary)
    tables = {what[1:3]: what[3] for what in tracker.seen if what[0] == "table"}
    assert sorted(tables) == [
        (0, "test"), (0, "validation"), (1, "validation"), (2, "test"), (2, "validation")
    ]  # fmt: skip
    # Two roles of one turn: episodes 0 and 1. The first text is drawn: 3 for the role, 0 for the team.
    assert [row[:3] + row[4:] for row in tables[2, "test"]] == [
        (i, 0, role, "30", 3.0, "turn_limit") for i in (0, 1) for role in "ab"
    ]
    assert [row[3][0] for row in tables[2, "test"]] == ["a", "b", "a", "b"]  # what they were shown
    assert len(tables[2, "validation"]) == 4


def test_a_run_that_fails_closes_its_records(tmp_path):
    tracker = Scripted()

    def broken(engine, request):
        raise RunError("the engine is gone")

    with pytest.raises(RunError, match="the engine is gone"):
        train(experiment(broken, trackers=chosen(mine=tracker)), RunFolder(tmp_path))
    assert tracker.seen == [("open", ""), ("end", None)]


def test_tables_are_bounded():
    group = {"turn": 0, "role": "a", "seat": 2, "prompt": "p" * 50, "executed": 1,
             "candidates": [{"text": "no", "mixed": 0.0}, {"text": "yes" * 50, "mixed": 1.5}]}  # fmt: skip
    lost = group | {"executed": None, "seat": None, "turn": 1}
    episode = {"instance": 7, "end": "solved", "groups": [group, lost] * 3}
    rows = table_of(iter([episode] * 9), 8, 20)
    assert len(rows) == 8
    assert rows[0][:3] == (7, 0, "a2") and rows[0][5:] == (1.5, "solved")
    assert (
        rows[0][3].startswith("p" * 10 + "\n...")
        and rows[0][4].endswith("yesyesyes")
        and len(rows[0][3]) < 90
    )
    assert rows[1][:3] == (7, 1, "a") and rows[1][4:6] == ("", None)


def test_settings_are_flat_and_plain():
    found = settings_of(gin_config.load("smoke.gin"))
    assert found["task"] == "plan_path.PlanPath" and found["task.size"] == 3 and found["steps"] == 20
    assert found["rollout.candidates"] == 4 and found["task.workflow.order"] == "('scout', 'mover')"
    assert not any(name.startswith("trackers") for name in found)
    assert all(value is None or isinstance(value, (bool, int, float, str)) for value in found.values())
    assert flat({"after": {"success": 0.5}, "steps": 3}) == {"summary/after/success": 0.5, "summary/steps": 3}


def test_trackers_are_no_part_of_a_run(tmp_path):
    plain = experiment()
    tracked_one = dataclasses.replace(plain, trackers=Trackers(tensorboard=None, wandb=Wandb()))
    assert tracked_one.identity() == plain.identity() and experiment_difference(plain, tracked_one) is None
    assert "trackers" not in repr(tracked_one)  # else runs from before they came would be others


def test_only_host_0_has_trackers(tmp_path):
    class Second(Alone):
        index = 1

        def told(self, name, work):
            return b""

    tracker = Scripted()
    with tracked(experiment(trackers=chosen(mine=tracker)), RunFolder(tmp_path), Second()) as tracking:
        tracking.begin(0)
        tracking.note()
    assert tracker.seen == [] and not (tmp_path / "trackers").exists()


# What a person has to do first. --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "config"), [("wandb", Wandb()), ("mlflow", MLflow()), ("trackio", Trackio())]
)
def test_a_library_that_is_not_installed_is_found_before_anything_is_built(
    tmp_path, monkeypatch, name, config
):
    monkeypatch.setitem(sys.modules, name, None)
    x = experiment(trackers=Trackers(**{name: config}))
    with pytest.raises(RunError) as raised:
        train(x, RunFolder(tmp_path))
    assert str(raised.value) == (
        f"trackers.Trackers.{name}: {name} is not installed; pip install 'atgrpo_jax[{name}]'; "
        f"to train without it: trackers.Trackers.{name} = None"
    )
    assert x.engine.built == []


def test_who_is_not_logged_in_is_told_so(tmp_path, monkeypatch, capfd):
    wandb = imported("wandb")
    for variable in ("WANDB_API_KEY", "WANDB_MODE", "NETRC"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    wandb.teardown()
    with pytest.raises(RunError, match=r"Trackers.wandb: not logged in; run: wandb login \(or set WANDB_API"):
        Tracking(Trackers(wandb=Wandb()), RunFolder(tmp_path / "run"), {})
    wandb.teardown()
    monkeypatch.delenv("TRACKIO_WRITE_TOKEN", raising=False)
    with pytest.raises(RunError, match="Trackers.trackio: Self-hosted logging requires a write token"):
        Tracking(Trackers(trackio=Trackio(server="http://127.0.0.1:9")), RunFolder(tmp_path / "run"), {})
    capfd.readouterr()


def test_a_server_that_is_not_there_is_found_at_the_start_but_ends_no_run_that_goes_on(
    tmp_path, monkeypatch, capsys
):
    imported("mlflow")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    nobody = Trackers(tensorboard=None, mlflow=MLflow(uri="http://127.0.0.1:9"))
    folder = RunFolder(tmp_path)
    with pytest.raises(RunError, match=r"mlflow: it cannot be opened \(MlflowException: .*to train"):
        Tracking(nobody, folder, {})
    folder.trackers.mkdir()
    (folder.trackers / "state.json").write_text('{"mlflow": {"key": "k", "next": 0}}')
    tracking = Tracking(nobody, folder, {})
    tracking.begin(0)
    send(tracking, folder, 0)
    tracking.end({"steps": 0})
    said = capsys.readouterr().err
    assert said.count("mlflow: step 0 is not taken") == 1 and "it lacks the steps from 0" in said


def test_offline_records_of_a_run_in_a_bucket_are_refused(tmp_path):
    imported("wandb")
    about = About("run", "", {}, epath.Path("gs://bucket/run"), tmp_path)
    with pytest.raises(RunError, match="the run folder is in a bucket"):
        Wandb(mode="offline").open(about)


@pytest.mark.parametrize(
    ("line", "field"),
    [
        ("mlflow.MLflow.uri = 'https://me:SECRET@host'", "MLflow.uri"),
        ("mlflow.MLflow.uri = 'postgresql://me:SECRET@host/db'", "MLflow.uri"),
        ("trackio.Trackio.server = 'https://host/?write_token=SECRET'", "Trackio.server"),
    ],
)
def test_no_secret_may_be_in_the_config_nor_in_the_error(line, field):
    with pytest.raises(ConfigError, match=f"{field}: no user, password or token may be") as raised:
        gin_config.load("smoke.gin", [line])
    assert "SECRET" not in str(raised.value)


def test_errors_and_addresses_hide_keys(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MY_TOKEN", "abcdefgh")
    said = harmless(ValueError("GET https://me:word@host/x?k=abcdefgh\nfailed"))
    assert said == "ValueError: GET https://***@host/x?k=*** failed"
    Tracking(chosen(mine=Scripted(where="http://me:word@host")), RunFolder(tmp_path), {})
    assert capsys.readouterr().err == "mine: http://***@host\n"


# One gin line. -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kind", "line"),
    [
        ("wandb", Wandb, "wandb.Wandb.mode = 'offline'"),
        ("mlflow", MLflow, "mlflow.MLflow.uri = 'http://host:5000'"),
        ("trackio", Trackio, "trackio.Trackio.space = 'me/space'"),
    ],
)
def test_one_line_or_one_file_adds_a_tracker(name, kind, line, tmp_path):
    found = gin_config.load("smoke.gin", [line]).trackers
    assert isinstance(getattr(found, name), kind) and list(found.chosen()) == ["tensorboard", name]
    assert list(gin_config.load(["smoke.gin", f"trackers/{name}.gin"]).trackers.chosen()) == [
        "tensorboard", name
    ]  # fmt: skip
    dropped = [line, "trackers.Trackers.tensorboard = None"]
    assert list(gin_config.load("smoke.gin", dropped).trackers.chosen()) == [name]
    x = gin_config.load(["smoke.gin", "trackers/wandb.gin", "trackers/mlflow.gin", "trackers/trackio.gin"])
    (tmp_path / "copy.gin").write_text(gin_config.render(x))
    assert gin_config.load(str(tmp_path / "copy.gin")) == x and len(x.trackers.chosen()) == 4


@pytest.mark.parametrize("wrong", [{"rows": -1}, {"letters": 0}, {"others": {"wandb": Scripted()}}])
def test_settings_that_cannot_be(wrong):
    with pytest.raises(ValueError, match=f"Trackers.{next(iter(wrong))} = "):
        Trackers(**wrong)
