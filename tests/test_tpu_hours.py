"""Hours of machines: all count against --max-hours, whatever the run does on them. No VM runs here."""

import json
import time

import pytest
from shared_tpu import Desk, Room
from tpu.job import hours_since


class Timed(Room):
    """A room whose machines are made by its own clock, which counts their hours, too. It sleeps as told."""

    def __init__(self, desk: Desk, every_s: float):
        super().__init__(desk)
        self.real = 0.0  # hours that machines were there
        self.clock.sleep = lambda _: self.pass_by(every_s)

    def pass_by(self, seconds: float) -> None:
        made = self.desk.cloud.resources().get("w")
        if made is not None and made["state"] == "ACTIVE":
            self.real += seconds / 3600
        if made is not None and made["created"] > 1.5e9:  # by the clock of this machine
            self.desk.cloud._write("resources/w.json", made | {"created": self.clock.now})
        self.clock.now += seconds
        self.clock.sleeps += 1
        assert self.clock.sleeps < 300, "it goes on for ever"
        self.clock.then()

    def writes(self) -> int:
        """How often the job file was written."""
        return len(self.desk.cloud.calls("storage cp - .*job.json"))


@pytest.fixture
def desk(tmp_path):
    return Desk(tmp_path)


def test_the_hours_end_it_all(desk):
    room = Timed(desk, 3600)
    room.up()
    room.clock.then = lambda: room.says(1, step=7)
    assert room.watch() == 2
    assert "the machines have had 24.0 hours of --max-hours=24" in room.text
    assert desk.cloud.resources() == {}
    assert (room.job.hours, room.job.wanted) == ({"1": 24.0}, "stop")


def test_machines_on_which_the_run_comes_no_further_count(desk):
    """Ten spot machines of five hours each, taken away before the run is where it was: the limit ends it."""
    room = Timed(desk, 1800)
    room.up(*["ACTIVE " * 11 + "SUSPENDED"] * 10)
    room.clock.then = lambda: room.says(room.attempt, step=3)
    assert room.watch() == 2
    assert "hours of --max-hours=24" in room.text and desk.cloud.resources() == {}
    assert len(desk.cloud.calls("queued-resources create")) == 5
    assert 24 <= room.job.used_hours < 24.5
    # What is between the last look at machines and their end is not known.
    assert abs(room.real - room.job.used_hours) <= 5 * 0.5


def test_hours_are_written_down_while_nothing_runs(desk):
    """After `create`: a `watch` that is killed leaves a file that lacks minutes. It is written seldom."""
    room = Timed(desk, 60)
    desk.cloud.plan(boots=False)
    assert desk.call("create", "w", "--type=v6e-8", "--zone=us-east5-a")[0] == 0
    before, lags = room.writes(), []

    def then():
        room.says(1, phase="ready", step=-1)
        lags.append(room.real - room.job.used_hours)
        if len(lags) == 120:
            room.says(1, phase="ended", exit=0, step=-1)

    room.clock.then = then
    assert room.watch() == 0
    assert 1.9 < room.real < 2.1 and max(lags) < 0.15
    assert 15 <= room.writes() - before <= 20


@pytest.mark.parametrize("gone", [False, True])
def test_short_lives_count(desk, gone):
    """Machines that are taken away after four minutes, by Google or by a person who deletes them."""
    room = Timed(desk, 60)
    room.up("ACTIVE " * 6 + "SUSPENDED", "ACTIVE")
    looks, known = [], []

    def then():
        looks.append(room.attempt)
        if len(desk.cloud.calls("queued-resources create")) == 2:
            known.append(room.job.hours.get("1", 0.0))
        if gone and len(looks) == 5:
            (desk.cloud.folder / "resources" / "w.json").unlink()
        if room.attempt == 2:
            room.says(2, phase="ended", exit=0)

    room.clock.then = then
    assert room.watch() == 0
    assert room.job.attempt == 2
    # They are written down before new ones are asked for: `watch` may be killed at any time.
    assert 0.05 <= known[0] == room.job.hours["1"] <= 0.09


def test_delete_counts_what_no_watch_has_seen(desk):
    room = Room(desk)
    room.up()
    desk.call("status", "w")  # they are ACTIVE now
    made = desk.cloud.resources()["w"]
    desk.cloud._write("resources/w.json", made | {"created": time.time() - 5.5 * 3600})
    assert desk.call("delete", "w")[0] == 0
    assert room.job.hours["1"] == pytest.approx(5.5, abs=0.1)
    assert "hours: 5.5 of at most 24, as far as `watch` and `delete` have seen" in desk.call("status", "w")[1]
    code, _, err = desk.call("up", "w", "--resume", "--max-hours=5")
    assert code == 2 and "w has had machines for 5.5 of its 5 hours" in err


@pytest.mark.parametrize("state", ["SUSPENDED", "ACTIVE/PREEMPTED"])
def test_machines_that_were_taken_away_long_ago_are_not_counted(desk, state):
    """Nobody looked when it happened, so their hours are not known: they are not those until now."""
    room = Room(desk)
    room.up(state, "ACTIVE", "ACTIVE")
    desk.call("status", "w")
    made = desk.cloud.resources()["w"]
    desk.cloud._write("resources/w.json", made | {"created": room.clock.now - 90 * 3600})
    room.done_at(2)
    assert room.watch() == 0
    assert room.job.hours == {}
    desk.cloud._write("resources/w.json", made | {"created": time.time() - 90 * 3600})
    assert desk.call("delete", "w")[0] == 0
    assert room.job.hours == {}


def test_no_attempt_loses_hours(desk):
    """`watch` has seen less than `delete`, which looked later."""
    room = Room(desk)
    room.up()
    job = room.job.but(hours={"1": 3.0, "2": 1.0})
    assert job.counted({"2": 0.5, "3": 2.0}).hours == {"1": 3.0, "2": 1.0, "3": 2.0}
    assert json.loads(job.counted({"2": 1.5}).text())["hours"] == {"1": 3.0, "2": 1.5}


def test_hours_since():
    assert hours_since("2001-09-09T00:46:40.123456789Z", 1_000_000_000.0) == 1.0
    assert hours_since("", 1e9) == hours_since("soon", 1e9) == 0.0
