"""Meetings of hosts that are threads: what they exchange, and how they end together."""

import json
import os
import re
import signal
import threading
import time
from types import SimpleNamespace

import pytest
from shared_hosts import Party, until

from atgrpo_jax.common.errors import ConfigError, RunError, Stopped, Unreachable
from atgrpo_jax.common.hosts import ALONE, check_alike, not_seeing, told_json
from atgrpo_jax.common.stopping import Stopping
from atgrpo_jax.hosts import watcher as watching
from atgrpo_jax.hosts.meetings import SHORT, failure
from atgrpo_jax.hosts.said import OtherFailed, Said, packed, unpacked, verdict
from atgrpo_jax.run.alike import check_machines
from atgrpo_jax.tasks.data import FILES_READ, read_rows


@pytest.fixture
def party():
    made = []

    def make(*args, **kwargs):
        made.append(Party(*args, **kwargs))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.mark.parametrize("size", [0, 7, SHORT, SHORT + 1, 3 * SHORT])
def test_all_get_what_all_gave(party, size):
    def play(hosts):
        own = bytes([65 + hosts.index]) * (size * hosts.index)
        return hosts.meet("one", lambda: own), hosts.meet("two", lambda: None)

    expected = [bytes([65 + i]) * (size * i) for i in range(3)]
    assert party(3)(play) == [(expected, [b""] * 3)] * 3


def test_what_host_0_does_is_told_to_all(party):
    done = []
    found = party(2)(lambda hosts: told_json(hosts, "word", lambda: done.append(hosts.index) or {"a": 1}))
    assert found == [{"a": 1}] * 2 and done == [0]
    assert told_json(ALONE, "word", lambda: [1]) == [1]


def test_every_number_is_given_once_and_each_meeting_counts_anew(party):
    def play(hosts):
        numbers = []
        for _ in range(2):

            def work():
                take = hosts.counter()
                numbers.append([take() for _ in range(50)])

            hosts.meet("counting", work)
        return numbers

    one, two = party(2)(play)
    for first, second in zip(one, two, strict=True):
        assert sorted(first + second) == list(range(100))


@pytest.mark.parametrize("lockstep", [True, False])
def test_in_lockstep_all_hosts_have_issued_as_many_programs_before_one_of_all(party, lockstep):
    made = party(3, lockstep=lockstep)
    issued = [0, 0, 0]

    def play(hosts):
        hosts.even_out(lambda: issued[hosts.index])

        def work():
            issued[hosts.index] += [2, 0, 3][hosts.index]
            return b"x" * (SHORT + 1)

        hosts.meet("rollout", work)
        hosts.meet("gate", lambda: None)  # nothing is issued in it: all have the same number
        hosts.meet("rollout", work)

    assert made(play) == [None] * 3
    idle = [["idle"] * (3 - own) * lockstep for own in (2, 0, 3)]
    assert made.done == [[*own, "gather", *own, "gather"] for own in idle]


def test_nothing_of_old_meetings_is_kept(party):
    made = party(2)
    made(lambda hosts: [hosts.meet(f"{i}", lambda: hosts.counter()() and None) for i in range(20)])
    kept = [key for key in made.shelf.values if not key.startswith("beats/")]
    assert kept == ["met/20/all"] and not made.shelf.counts


def test_an_error_in_the_work_of_one_ends_all_with_its_number_and_code(party):
    def play(hosts):
        def work():
            if hosts.index == 1:
                raise Unreachable("the bucket sleeps")

        hosts.meet("saved", work)

    zero, one, two = party(3)(play)
    assert isinstance(one, Unreachable) and str(one) == "the bucket sleeps"
    for error in (zero, two):
        assert isinstance(error, RunError) and str(error) == "host 1: the bucket sleeps"
        assert error.exit_code == 1


def test_a_bug_on_one_host_is_named_on_the_others(party):
    zero, one = party(2)(lambda hosts: hosts.meet("rollout", lambda: b"%d" % (1 // (1 - hosts.index))))
    assert isinstance(one, ZeroDivisionError)
    assert str(zero) == "host 1: ZeroDivisionError: integer division or modulo by zero; see its own output"
    assert zero.exit_code == 1


def test_what_failed_here_is_said_also_if_another_host_failed_first(party, capsys):
    def play(hosts):
        def work():
            raise RuntimeError(f"cause {hosts.index}")

        hosts.meet("rollout", work)

    zero, one = party(2)(play)
    assert str(zero) == "cause 0" and str(one).startswith("host 0: RuntimeError: cause 0")
    assert str(one.__cause__) == "cause 1"
    assert "this host has failed, too: cause 1" in capsys.readouterr().err


def test_who_leaves_when_host_0_is_gone_keeps_its_own_error(party, monkeypatch):
    made = party(2)

    def gone(*_):
        raise Unreachable("host 0 does not answer")

    monkeypatch.setattr(made.shelf, "put", gone)
    made.hosts[1].leave(RunError("disk full"))  # and the caller raises that


def test_who_leaves_between_meetings_is_named_at_the_next_one(party):
    def play(hosts):
        if hosts.index == 1:
            raise hosts.leave(ConfigError("no sandbox here"))
        hosts.meet("latest", lambda: None)

    zero, one, two = party(3)(play)
    assert isinstance(one, ConfigError)
    assert str(zero) == str(two) == "host 1: no sandbox here"


def test_if_host_0_leaves_the_others_hear_of_it(party):
    def play(hosts):
        if hosts.index == 0:
            raise hosts.leave(ConfigError("disk full"))
        hosts.meet("latest", lambda: None)

    zero, one = party(2)(play)
    assert str(zero) == "disk full" and str(one) == "host 0: disk full"


@pytest.mark.parametrize("unsaved", [False, True])
def test_a_stop_ends_what_host_0_does_alone_if_nothing_is_lost(party, unsaved):
    """Host 0 is the main thread, which gets the signal. It waits, e.g. for servers that are dead."""
    made = party(2)
    own, other = made.hosts
    told = []

    def at_host_1():
        try:
            told.append(other.told("weights", lambda: b"never here"))
        except Stopped as stopped:
            told.append(stopped.signum)

    waiting = threading.Thread(target=at_host_1)
    stop = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM))
    with Stopping() as stopping:
        own.heed(stopping, lambda: unsaved)
        waiting.start()
        stop.start()
        began = time.monotonic()
        try:
            told.append(own.told("weights", lambda: time.sleep(2)))
        except Stopped as stopped:
            told.append(stopped.signum)
        seconds = time.monotonic() - began
    waiting.join()
    assert told == ([b""] if unsaved else [signal.SIGTERM]) * 2
    assert (seconds < 1.5) is not unsaved


def test_the_same_error_of_all_hosts_is_that_of_one(party):
    def play(hosts):
        until(lambda: hosts.index == 0 or 0 in hosts._watcher.news)
        raise hosts.leave(RunError("step 3: not finite"))

    zero, one = party(2)(play)
    assert str(zero) == "step 3: not finite" and str(one) == "host 0: step 3: not finite"


def test_hosts_at_different_meetings_or_with_different_numbers_go_no_further(party):
    for error in party(2)(lambda hosts: hosts.meet(f"gate {hosts.index}", lambda: None)):
        assert str(error) == "host 1 is at 'gate 1' when host 0 is at 'gate 0'"

    def play(hosts):
        hosts.compare("minibatch 1", lambda: b"same")
        hosts.meet("before", lambda: None)
        hosts.compare("minibatch 2", lambda: b"%d" % hosts.index)
        hosts.meet("gate", lambda: None)

    for error in party(2)(play):
        assert str(error).startswith("host 1 has other numbers than host 0 before 'gate'")


def test_a_host_that_does_not_come_is_named(party):
    made = party(3, patience_s=0.3)

    def play(hosts):
        if hosts.index != 2:
            hosts.meet("rollout of step 4", lambda: None)

    zero, one, two = made(play)
    for error in (zero, one):
        assert re.match(r"host 2: did not come to 'rollout of step 4' for \d+ s \(--patience\)", str(error))
        assert error.exit_code == 3
    assert two is None


def test_who_waits_for_the_devices_of_a_failed_host_is_ended(party, monkeypatch):
    monkeypatch.setattr(watching, "GRACE_S", 0.1)
    made = party(2)
    made.hosts[1].leave(RunError("out of memory"))
    made.watchers[1].end()
    made.watchers[1].farewell()
    until(lambda: made.exits)
    assert made.exits[0] == (0, "host 1: out of memory", 2)


def test_a_host_that_is_deaf_when_another_one_failed_ends_with_its_line(party):
    made = party(2)
    made.hosts[1].leave(RunError("out of memory"))
    made.watchers[1].end()
    made.watchers[1].farewell()
    until(lambda: 1 in made.watchers[0].news)
    made.watchers[0].leave_at_once()
    assert made.exits[0] == (0, "host 1: out of memory", 2)


def test_a_host_that_stops_stays_until_the_others_leave_and_one_that_failed_does_not(party):
    made = party(2)
    left = []
    stops = threading.Thread(target=lambda: left.append(made.hosts[1].leave(Stopped(signal.SIGTERM))))
    stops.start()
    time.sleep(0.3)
    assert left == []  # host 0 may still have to write something
    made.hosts[0].leave(Stopped(signal.SIGTERM))
    stops.join(timeout=5)
    assert len(left) == 1
    made = party(2)
    made.hosts[1].leave(RunError("out of memory"))  # host 0 says nothing, and this ends


def test_host_0_ends_after_those_that_said_that_they_leave(party, monkeypatch):
    monkeypatch.setattr(watching, "LAST_S", 0.0)
    made = party(3)
    made.hosts[1].leave(RunError("out of memory"))  # host 2 says nothing, as one that was killed
    ended = []
    last = threading.Thread(target=lambda: (made.watchers[0].farewell(), ended.append(0)))
    last.start()
    time.sleep(0.3)
    assert ended == []
    made.watchers[1].farewell()
    last.join(timeout=5)
    assert ended == [0]


def test_a_run_without_meetings_ends_and_says_where_it_is(party, monkeypatch):
    monkeypatch.setattr(watching, "GRACE_S", 0.1)
    made = party(1, patience_s=0.1)
    until(lambda: made.exits)
    index, line, code = made.exits[0]
    assert (index, code) == (0, 3)
    assert re.match(r"host 0: no meeting for \d+ s after 'the start'; this host is at ", line)


def test_a_silent_host_is_named_once(party, monkeypatch, capsys):
    monkeypatch.setattr(watching, "BEAT_S", 0.05)
    made = party(2, heartbeat_s=1.0)
    until(lambda: made.shelf.values.keys() >= {"beats/0", "beats/1"})
    made.watchers[1].end()
    time.sleep(1.5)
    said = capsys.readouterr().err
    assert len(re.findall(r"host 1 was not heard of for \d+ s; after 1 s it counts as dead", said)) == 1


def test_facts_that_differ_are_one_line(party):
    facts = [{"jax": "0.10.2", "devices": 4}, {"jax": "0.10.1", "devices": 4}]
    for error in party(2)(lambda hosts: check_alike(hosts, "start", lambda: facts[hosts.index])):
        assert str(error) == "host 1 has jax 0.10.1, host 0 has 0.10.2; they must be the same"


def test_problems_and_templates_that_differ_are_one_line(party, tmp_path):
    """``read`` is what a host has read; here all hosts read in one process."""
    file = tmp_path / "train.jsonl"
    found = []
    for text in ('{"a": 1}\n', '{"a": 2}\n'):
        file.write_text(text)
        assert len(list(read_rows(str(file), {"a": int}))) == 1
        found.append({str(file): FILES_READ[str(file)]})
    task = SimpleNamespace(prompts="short", prompts_digest="ab")
    setups = [SimpleNamespace(initial_names=(), task=task)] * 2

    def play(hosts):
        check_machines(hosts, setups[hosts.index], found[hosts.index])

    own, other = (read[str(file)] for read in found)
    says = f"host 1 has the problem file {file} with digest {other}, host 0 has {own}; they must be the same"
    assert own != other and [str(error) for error in party(2)(play)] == [says] * 2
    found[1] = found[0]
    assert party(2)(play) == [None] * 2
    setups[1] = SimpleNamespace(initial_names=(), task=SimpleNamespace(prompts="short", prompts_digest="cd"))
    says = "host 1 has the templates short with digest cd, host 0 has ab; they must be the same"
    assert [str(error) for error in party(2)(play)] == [says] * 2


def test_a_folder_that_is_not_shared_is_found(party, tmp_path):
    for name in "abc":
        (tmp_path / name).mkdir()
    folders = [tmp_path / "a", tmp_path / "a", tmp_path / "b", tmp_path / "nowhere"]
    assert party(4)(lambda hosts: not_seeing(hosts, folders[hosts.index])) == [[2, 3]] * 4
    assert not any((tmp_path / "a").iterdir())


def test_what_was_said_travels_as_it_is():
    said = [
        Said("gate", "here", payload=b"\n\0\xff", size=3),
        Said("gate", "failed", "näh\n", 2, "ab", 1, 5, None),
        Said("", "stopped", code=15),
    ]
    assert unpacked(packed(said)) == said


@pytest.mark.parametrize(
    ("found", "error", "words"),
    [
        ([Said("a", "here"), Said("a", "here")], None, ""),
        ([Said("a", "here"), Said("b", "stopped", code=15)], Stopped, "15"),
        ([Said("a", "stopped", code=15), Said("", "failed", "no room", 2)], OtherFailed, "host 1: no room"),
        ([Said("a", "here"), Said("a", "here", compared="x")], RunError, "host 1 has other numbers"),
    ],
)
def test_a_failure_counts_more_than_a_difference_or_a_stop(found, error, words):
    if error is None:
        verdict(found)
        return
    with pytest.raises(error, match=words):
        verdict(found)


def test_exit_codes_of_failures_are_those_of_their_processes():
    assert failure(OSError(28, "No space left on device", "x")).code == 2
    assert failure(RuntimeError("a"))[2:4] == ("RuntimeError: a; see its own output", 1)
    assert failure(RunError("a")).code == 2 and failure(Unreachable("a")).code == 1
    assert failure(ValueError("a")).code == 1
    told = failure(OtherFailed(3, Said("", "failed", "gone", 1)))
    assert str(OtherFailed(0, told)) == "host 3: gone" and told.code == 1
    assert json.loads(Said("a", "here").to_bytes().partition(b"\n")[0])[1] is True
