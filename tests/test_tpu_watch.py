"""`launch/tpu.py watch` with a scripted cloud. No VM runs here."""

import itertools
import shutil

import pytest
from fake_cloud.cloud import FakeCloud
from shared_tpu import BUCKET, Desk, FakeShell, Room
from tpu import hosts, show
from tpu import job as jobs
from tpu.ask import ask_again
from tpu.cloud import Cloud
from tpu.shell import Problem
from tpu.watch import MOST_STRANGE


@pytest.fixture
def room(tmp_path):
    return Room(Desk(tmp_path))


def test_it_waits_says_what_for_and_ends_with_the_run(room):
    room.up("CREATING ACCEPTED WAITING_FOR_RESOURCES PROVISIONING ACTIVE/CREATING ACTIVE")
    room.done_at(1)
    assert room.watch(delete=True) == 0
    assert [line.split(" ", 1)[1].split(":")[0] for line in room.said[:-2]] == [
        "CREATING", "ACCEPTED", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE, VMs CREATING",
    ]  # fmt: skip
    assert "done" in room.said[-2] and "machines are deleted" in room.said[-1]
    assert room.desk.cloud.resources() == {}


@pytest.mark.parametrize(
    "lost", ["SUSPENDING SUSPENDED", "SUSPENDED", "ACTIVE/PREEMPTED", "ACTIVE/TERMINATED", "DELETING"]
)
def test_machines_that_are_taken_away_are_made_again(room, lost):
    room.up(f"ACTIVE ACTIVE {lost}", "WAITING_FOR_RESOURCES ACTIVE", delete_looks=3)
    room.done_at(2)
    assert room.watch() == 0
    assert len(room.desk.cloud.calls("queued-resources create")) == 2
    assert len(room.desk.cloud.calls("queued-resources delete")) == 1
    assert (room.job.attempt, room.job.number) == (2, 1)
    assert "waits until w is gone (DELETING)" in room.text
    assert "the machines are not deleted: python launch/tpu.py delete w does that" in room.said[-1]


def test_no_capacity_is_asked_for_again_after_longer_and_longer(room):
    room.up(*["FAILED:There_is_no_more_capacity"] * 6, "ACTIVE")
    room.done_at(7)
    assert room.watch() == 0
    pauses = [line.split("asks again in ")[1] for line in room.said if "asks again" in line]
    assert pauses == ["60 s", "120 s", "240 s", "480 s", "900 s", "900 s"]


def test_no_quota_is_for_people(room):
    room.up("FAILED:Quota_limit_TPUV6E_exceeded")
    assert room.watch() == 2
    assert "refused: Quota limit TPUV6E exceeded" in room.text
    assert room.desk.cloud.resources() == {}  # it would hold the quota that it did not get
    assert room.job.wanted == "stop"


def test_an_unknown_state_is_waited_for_and_then_replaced(room):
    room.up("ACTIVE DANCING", "ACTIVE")
    room.done_at(2)
    assert room.watch() == 0
    assert "DANCING: not known here, so it waits" in room.text
    assert "still in a state that is not known here (DANCING)" in room.text


def test_vms_that_do_not_become_ready_are_replaced(room):
    room.up("ACTIVE/REPAIRING", "ACTIVE")
    room.done_at(2)
    assert room.watch() == 0
    assert "the VMs do not become ready (ACTIVE, VMs REPAIRING)" in room.text


def test_exit_2_is_shown_and_nothing_is_started_again(room):
    room.up()
    room.says(1, phase="ended", exit=2, line="error: Experiment.steps = 0: must be positive")
    assert room.watch() == 2
    assert "exit code 2, starting again cannot help: error: Experiment.steps = 0" in room.text
    assert room.attempt == 1
    assert len(room.desk.cloud.calls("create|delete|ssh")) == 1


def test_a_stop_that_was_the_end_of_the_machines(room):
    """SIGTERM comes first, and the resource is SUSPENDED a minute later."""
    room.up("ACTIVE ACTIVE ACTIVE SUSPENDED", "ACTIVE")
    room.says(1, phase="ended", exit=143)
    room.done_at(2)
    assert room.watch() == 0
    assert "the run was stopped by SIGTERM: looks what happens" in room.text


def test_a_stop_on_machines_that_stay(room):
    room.up()
    room.clock.then = lambda: room.says(1, phase="ended", exit=143)
    assert room.watch() == 2
    assert "somebody stopped the run on the VM: leaves it" in room.text
    assert room.attempt == 1


def test_stop_of_this_program_ends_it(room):
    room.up()
    room.clock.then = lambda: room.desk.cloud.calls("ssh") or room.desk.call("stop", "w")
    assert room.watch() == 0
    assert "stopped; `run` goes on with it" in room.text
    assert room.desk.cloud.calls("ssh")[0][-1] == f"--command={hosts.STOP}"


def test_what_an_older_machine_said_is_not_believed(room):
    """The first machines said exit 143, and the run before exit 2: the new ones have said nothing."""
    room.up("SUSPENDED", "ACTIVE")
    room.says(1, phase="ended", exit=143)
    looks = []

    def then():
        looks.append(room.attempt)
        if len(looks) == 5:
            room.says(2, number=0, phase="ended", exit=2)
        if len(looks) == 9:
            room.says(2, phase="ended", exit=0)

    room.clock.then = then
    assert room.watch() == 0
    assert "READY: the VMs begin to prepare themselves" in room.text
    assert "SIGTERM" not in room.text and "exit code 2" not in room.text


def test_vms_that_say_nothing_are_prepared_again_then_replaced_then_left(room):
    room.up()
    assert room.watch() == 2
    assert len(room.desk.cloud.calls("ssh")) == 1
    assert room.desk.cloud.calls("ssh")[0][-1].startswith("--command=sudo systemd-run --collect")
    assert (room.job.attempt, room.job.rescues) == (2, 2)
    assert room.said[-2].endswith("may have no right to write to the bucket (on other VMs, too)")


def test_a_run_that_fails_again_and_again_and_then_comes_further(room):
    room.up()
    failures = iter([0, 1, 3, 4, 5, 7])
    rescues = []

    def then():
        rescues.append(room.job.rescues)
        count = next(failures, None)
        if count is None:
            room.says(1, phase="ended", exit=0, step=9, failures=7)
        else:
            room.says(1, failures=count)

    room.clock.then = then
    assert room.watch() == 0
    assert len(room.desk.cloud.calls("ssh")) == 1
    assert rescues == [0, 0, 0, 0, 1, 1, 1]  # at the fourth failure; the three after it may still pass
    assert (room.job.rescues, room.job.step, room.attempt) == (0, 9, 1)


def test_a_run_that_fails_everywhere(room):
    room.up()
    failures = {1: 0, 2: 0}

    def then():
        if room.attempt:
            failures[room.attempt] += 1
        room.says(room.attempt, line="Aborted", failures=failures.get(room.attempt, 0))

    room.clock.then = then
    assert room.watch() == 2
    assert len(room.desk.cloud.calls("ssh")) == 1
    assert failures == {1: 8, 2: 4}
    assert "the run failed 4 times within an hour: Aborted (on other VMs, too)" in room.text


def test_a_vm_that_cannot_be_prepared(room):
    room.up()
    room.says(1, phase="setup failed", line="error: no network: uv could not be fetched")

    def then():
        if room.desk.cloud.calls("ssh"):
            room.says(1, phase="setup failed", line="error: no network: uv could not be fetched")

    room.clock.then = then
    assert room.watch() == 2
    assert len(room.desk.cloud.calls("ssh")) == 1
    assert "the VMs cannot be prepared: error: no network" in room.text


def test_what_a_vm_said_before_it_was_prepared_again_is_not_believed(room):
    """It says so every 30 s, until the script has begun again."""
    room.up()
    old = room.clock.now
    looks = []

    def then():
        looks.append(room.attempt)
        if len(looks) < 6:
            room.says(1, phase="setup failed", line="error: no network", since=old)
        else:
            room.says(1, phase="ended", exit=0)

    room.clock.then = then
    then()
    assert room.watch() == 0
    assert len(room.desk.cloud.calls("ssh")) == 1


@pytest.mark.parametrize(
    ("says", "line"),
    [
        (
            "ERROR: (gcloud) Reauthentication failed. Please run: gcloud auth login",
            "credentials have expired",
        ),
        ("ERROR: HTTPError 503: UNAVAILABLE", "Google or the network did not answer"),
        ("ERROR: what nobody has seen", "gcloud refused"),
    ],
)
def test_faults_that_pass(room, says, line):
    """While its credentials are gone, `watch` can do nothing: the run goes on by itself."""
    room.up()
    room.desk.cloud.break_calls({"match": ".", "says": says, "times": 7})
    room.done_at(1)
    assert room.watch() == 0
    assert sum(line in said for said in room.said) == 1


def test_an_error_that_stays_and_that_nobody_knows_is_for_people(room):
    room.up()
    room.desk.cloud.break_calls({"match": "describe", "says": "ERROR: what nobody has seen", "times": 99})
    with pytest.raises(Problem, match="gcloud refused"):
        room.watch()
    assert len(room.desk.cloud.calls("queued-resources describe")) == MOST_STRANGE + 2  # one was of `up`


def test_another_watch_was_faster(room):
    room.up("SUSPENDED", "ACTIVE")
    says = "ERROR: (gcloud) ALREADY_EXISTS: Resource 'w' already exists"
    room.desk.cloud.break_calls({"match": "queued-resources create", "says": says, "times": 1})
    room.clock.then = lambda: room.attempt > 1 and room.says(room.attempt, phase="ended", exit=0)
    assert room.watch() == 0


def test_ssh_that_fails_is_tried_by_new_machines(room):
    room.up()
    room.desk.cloud.break_calls({"match": "ssh", "says": "ERROR: ssh exited with 255", "times": 99})
    assert room.watch() == 2
    assert room.job.attempt == 2


def test_one_vm_of_two_that_says_nothing(room):
    """The other one says something new at every look."""
    room.up(type="v5p-16")
    room.clock.then = lambda: room.says(max(room.attempt, 1), host=1)
    assert room.watch() == 2
    assert "host 0 tells nothing new" in room.text
    assert (len(room.desk.cloud.calls("ssh")), room.job.attempt) == (1, 2)


def test_a_run_that_was_stopped_on_one_vm_of_two_and_began_again(room):
    """A VM was rebooted: its run waits for the other one's, which is started by preparing both again."""
    room.up(type="v5p-16")

    def then():
        if room.desk.cloud.calls("ssh"):
            room.says(1, phase="ended", exit=0)
        else:
            room.says(1)
            room.says(1, host=1, phase="ended", exit=143, since=1.0)

    room.clock.then = then
    assert room.watch() == 0
    assert "stopped on some of the VMs, and has begun again on others" in room.text
    assert len(room.desk.cloud.calls("ssh")) == 1


def test_a_job_that_there_is_not(room):
    with pytest.raises(Problem, match="has no job w; `up` makes one"):
        room.watch()


def anew(desk, tmp_path):
    """Yields 1, 2, ... and a room whose cloud is each time as it was at first."""
    for number in itertools.count(1):
        shutil.copytree(tmp_path / "cloud", tmp_path / str(number))
        desk.cloud = FakeCloud(tmp_path / str(number))
        yield number, Room(desk)


class Killed(BaseException):
    """kill -9 of `watch`."""


class MortalShell(FakeShell):
    """A shell whose process is killed at the n-th command: before it, or after it was carried out."""

    def __init__(self, desk: Desk, number: int, after: bool):
        super().__init__(desk)
        self.left = number
        self._after = after

    def execute(self, words, deadline_s, stdin):
        self.left -= 1
        if self.left == 0 and not self._after:
            raise Killed
        answer = super().execute(words, deadline_s, stdin)
        if self.left == 0:
            raise Killed
        return answer


@pytest.mark.parametrize("after", [False, True])
def test_watch_is_killed_anywhere(tmp_path, after):
    """One resource at any time, one job; made again once, as without the kill."""
    desk = Desk(tmp_path)
    Room(desk).up("ACTIVE SUSPENDED", "ACTIVE", delete_looks=1)
    for number, room in anew(desk, tmp_path):
        room.done_at(2)
        killed = True
        shell = MortalShell(room.desk, number, after)
        try:
            room.watch(delete=True, shell=shell)
            killed = False
        except Killed:
            room.watch(delete=True)
        creates = room.desk.cloud.calls("queued-resources create")
        labels = [word for call in creates for word in call if word.startswith("--labels")]
        assert len(creates) == 2 and len(set(labels)) == 2, number
        assert room.desk.cloud.resources() == {}
        job = room.job
        assert (job.number, job.arguments, job.wanted) == (1, ("--gin_file=plan.gin",), "stop")
        assert "machines are deleted" in room.said[-1] or "stopped" in room.text, number
        if not killed:
            break
    assert number > 25  # so many commands there are


class MeantimeShell(FakeShell):
    """A shell before whose n-th command somebody else does something."""

    def __init__(self, desk: Desk, number: int, what):
        super().__init__(desk)
        self.left = number
        self._what = what

    def execute(self, words, deadline_s, stdin):
        self.left -= 1
        if self.left == 0:
            self._what()
        return super().execute(words, deadline_s, stdin)


def test_a_delete_at_any_moment_of_a_watch_is_the_end(tmp_path):
    """The watch makes machines anew once, writes the job at several places, and prepares VMs again."""
    desk = Desk(tmp_path)
    Room(desk).up("ACTIVE SUSPENDED", "ACTIVE", delete_looks=1)
    for number, room in anew(desk, tmp_path):
        says = iter([{"step": 4}, {"phase": "setup failed", "step": 5}])

        def then(room=room, says=says):
            if room.attempt == 2:
                room.says(2, **next(says, {"phase": "ended", "exit": 0}))

        room.clock.then = then

        def delete(number=number):
            assert desk.call("delete", "w")[0] == 0, number

        shell = MeantimeShell(desk, number, delete)
        room.watch(shell=shell)
        if shell.left > 0:  # it never came to so many commands
            break
        assert {item["state"] for item in desk.cloud.resources().values()} <= {"DELETING"}, number
        assert room.job.wanted == "stop", number
        assert "stopped; `run` goes on with it" in room.text or "done" in room.text, number
    assert number > 40  # so many commands there are


def test_no_machines_are_asked_for_after_a_delete(room):
    """What `watch` has seen a moment ago says that they are wanted."""
    room.up()
    seen = room.job
    assert seen.wanted == "run" and room.desk.call("delete", "w")[0] == 0
    ask_again(Cloud(room.desk.shell(False)), seen)
    assert len(room.desk.cloud.calls("queued-resources create")) == 1  # of `up`


def test_two_who_write_the_job_lose_nothing_of_each_other(room):
    room.up()
    cloud = Cloud(room.desk.shell(False))
    here = room.job
    number = [0]

    def other():
        number[0] += 1
        jobs.update(cloud, here, step=number[0])

    for at in range(1, 4):  # its commands: describe, cat, cp
        meantime = Cloud(MeantimeShell(room.desk, at, other))
        assert jobs.update(meantime, here, rescues=at).step == at
        assert (room.job.rescues, room.job.step) == (at, at)
    assert jobs.update(cloud, here, step=3, rescues=3) == room.job
    assert len(room.desk.cloud.calls("storage cp .*job.json")) == 1 + 3 + 3 + 2  # of `up`, of each, and again


def test_a_job_that_changes_all_the_time_is_given_up(room):
    room.up()

    class Busy(FakeShell):
        def execute(self, words, deadline_s, stdin):
            if words[2] == "cp":
                jobs.update(Cloud(room.desk.shell(False)), room.job, step=room.job.step + 1)
            return super().execute(words, deadline_s, stdin)

    with pytest.raises(Problem, match="writing gs://.*/job.json: somebody else has just changed it"):
        jobs.update(Cloud(Busy(room.desk)), room.job, rescues=1)
    assert (room.job.step, room.job.rescues) == (jobs.TRIES - 1, 0)


# logs --follow


def follow(room, capsys, *looks):
    """What each look of `logs --follow` prints, and its exit code. ``looks`` happen one before each look."""
    rest, printed = list(looks), []

    def sleep(seconds):
        printed.append(capsys.readouterr().out)
        rest.pop(0)()

    rest.pop(0)()
    code = show.follow(Cloud(room.desk.shell(False)), room.job, 0, 1.0, sleep)
    assert rest == []
    return code, [*printed, capsys.readouterr().out]


def test_of_a_long_log_only_what_is_new_is_printed(room, capsys):
    """The bucket has the last 8 MB of it, here the last 500 bytes: the first of them may be half a letter."""
    room.up()
    whole = "".join(f"line {number}: öööö\n" * 2 for number in range(60)).encode()

    def at(end, **fields):
        def look():
            room.says(1, **fields)
            (room.desk.object("w/hosts/0") / "log-1.txt").write_bytes(whole[max(0, end - 500) : end])

        return look

    ends = [100, 400, 430, 531, 540, 563, 564, 700, 1300, 1310]
    code, printed = follow(room, capsys, *map(at, ends), at(1310, phase="ended", exit=0))
    assert code == 0
    # 1300 - 700 is more than what the bucket has: what is there is printed, from its 800th byte.
    pieces = [piece.decode(errors="replace").rstrip("\ufffd") for piece in (whole[:700], whole[800:1310])]
    assert "".join(printed) == "".join(pieces)
    assert printed[-1] == ""


def test_following_a_log_ends_with_a_run_that_was_stopped(room, capsys):
    room.up()
    stops = [lambda: room.says(1), lambda: room.desk.call("stop", "w")]
    assert follow(room, capsys, *stops, lambda: room.says(1, phase="ended", exit=143))[0] == 143
    room.says(1, phase="setup")  # and one that was stopped before it began
    assert follow(room, capsys, lambda: None, lambda: room.says(1, phase="ready"))[0] == 143


def test_following_a_log_ends_when_the_machines_or_the_job_are_deleted(room, capsys):
    room.up()
    assert follow(room, capsys, lambda: room.says(1), lambda: room.desk.call("delete", "w"))[0] == 143
    room.says(1, phase="ended", exit=134)  # the end that was seen counts
    assert follow(room, capsys, lambda: None)[0] == 134
    url = f"{BUCKET}/atgrpo/w/job.json"
    desk = room.desk.cloud
    here = room.job.but(wanted="run")
    desk.gcloud(["storage", "rm", url])
    with pytest.raises(Problem, match="has no job w any more"):
        show.follow(Cloud(room.desk.shell(False)), here, 0, 1.0)
