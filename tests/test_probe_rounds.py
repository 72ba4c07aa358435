"""The rounds of a probe on several hosts, which are threads, with machines that do not allow everything."""

import functools
import threading

import jax
import pytest
from shared_hosts import Party

from atgrpo_jax.common.errors import RunError
from atgrpo_jax.hosts.programs import summing
from atgrpo_jax.tools.probing.page import page
from atgrpo_jax.tools.probing.rounds import Programs, Rounds

FLAGS = ["--gather=cpu --lockstep", "--lockstep", "--gather=cpu", "no flags"]
PARTS = [*(f"20 rounds, {flags}" for flags in FLAGS), "flags for several hosts"]


class Ended(BaseException):
    """What ends a "process" that stands still."""


class Machine:
    """Two hosts. ``issued`` has, for each common program, how many programs of its own each host ran before.

    Args:
      even: whether the hosts stand still in a common program if these numbers differ.
      wrong: the gathers that give host 1 other bytes.
    """

    def __init__(self, even=False, wrong=()):
        self.party = Party(2)
        self.even = even
        self.wrong = wrong
        self.issued = []
        self.ends = {}
        self._own = [0, 0]
        self._met = threading.Barrier(2, self._compare)
        self._over = threading.Event()

    def _compare(self):
        self.issued.append(tuple(self._own))
        self._own = [0, 0]

    def probed(self, index):
        def own(number):
            self._own[index] += 1

        def common(number):
            self._met.wait(10)
            if self.even and len(set(self.issued[-1])) > 1:
                self._over.wait(10)
                raise Ended

        def gather(kind, data, sizes):
            found = self.party.hosts[index]._make_gather()(data, sizes)
            return found[::-1] if kind in self.wrong and index == 1 else found

        def end(last):
            self.ends[index] = last
            if len(self.ends) == 2:
                self._over.set()

        results = []
        try:
            made = Programs(own, common, lambda kind: functools.partial(gather, kind))
            for result in Rounds(self.party.hosts[index], made, end, 30 if not self.even else 1).results():
                results.append(result)
        except Ended:
            results += self.ends[index]
        return results


@pytest.fixture
def machine():
    made = []

    def make(**kinds):
        made.append(Machine(**kinds))
        return made[-1], made[-1].party(lambda hosts: made[-1].probed(hosts.index))

    yield make
    for one in made:
        one.party.close()


def lines(results):
    return [result.fault or result.found.line for result in results]


def test_hosts_run_other_numbers_of_programs_unless_they_are_in_lockstep(machine):
    """Of 20 numbers (7 i + 3 r) mod 11, eleven are 0 to 10; the other nine have the sum 42 or 50."""
    made, both = machine()
    for results, own in zip(both, (55 + 42, 55 + 50), strict=True):
        assert [result.part for result in results] == PARTS
        assert [result.value("own_programs") for result in results[:4]] == [own] * 4
        assert [len(result.value("seconds")) for result in results[:4]] == [20] * 4
        assert lines(results)[4] == "a run needs none"
        assert results[4].found.values == {"gather": "devices", "lockstep": False}
    free = [((3 * r) % 11, (7 + 3 * r) % 11) for r in range(20)]
    assert made.issued == 2 * [(max(pair),) * 2 for pair in free] + 2 * free
    assert all(one != other for one, other in free)


def test_a_machine_that_stands_still_is_told_to_go_in_lockstep(machine):
    """In round 0, host 0 has run no program of its own, and host 1 seven."""
    _, both = machine(even=True)
    for results in both:
        assert [result.part for result in results] == [*PARTS[:3], PARTS[4]]
        assert [result.found is None for result in results] == [False, False, True, False]
        fault, advice = lines(results)[2:]
        assert fault == "round 0 stood still for 1 s: the common program"
        assert advice == "give a run --lockstep"
    assert "**1 of 4 parts failed: 20 rounds, --gather=cpu.**" in page(both[0])


def test_wrong_results_are_named_on_all_hosts(machine):
    _, (own, other) = machine(wrong=["devices"])
    assert lines(own)[1] == lines(other)[1] == lines(own)[3]
    assert lines(own)[1].startswith(
        "20 results are not as they must be: host 1, round 0, the gather: other bytes than were given; "
        "host 1, round 1, the gather"
    )
    assert [result.found is None for result in own] == [False, True, False, True, False]
    assert lines(own)[4] == "give a run --gather=cpu"


def test_a_machine_on_which_nothing_passes(machine):
    _, (own, _) = machine(wrong=["devices", "cpu"])
    assert lines(own)[4] == "no setting passed: make no run on several hosts of this machine"
    assert own[4].found is None


def test_a_sum_over_devices_is_checked(monkeypatch):
    """1 + 2 + 3."""
    call = summing(jax.devices()[:3])
    call(1)
    monkeypatch.setattr(jax, "make_array_from_callback", lambda shape, *_: jax.numpy.ones(shape, int))
    with pytest.raises(RunError, match=r"a sum over 3 devices is \[3\] and not 6"):
        call(1)
