"""Tries what a run on several hosts does: every host runs programs of its own between common ones.

A round is a small step. Each host runs another number of programs on its devices, they meet, gather
bytes, and run one program on all devices. All results are known. Whether a TPU slice allows this is not
written anywhere, so it is tried in several settings, the most careful one first: a setting that stands
still ends the process.
"""

import contextlib
import functools
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np

from atgrpo_jax.common.errors import RunError, one_line
from atgrpo_jax.common.hosts import Hosts
from atgrpo_jax.common.progress import counted
from atgrpo_jax.hosts.gathering import Gather, by_devices
from atgrpo_jax.hosts.programs import summing
from atgrpo_jax.tools.probing.parts import Found, Result, tried

ROUNDS = 20
DEADLINE_S = 120.0  # of a round; the first one compiles
SIZE = 1 << 16  # bytes that a host gives to the others in a round
FLAGS = "flags for several hosts"  # the part that says what follows


class Setting(NamedTuple):
    """Holds two settings of a run; see ``train``."""

    gather: str
    lockstep: bool

    @property
    def flags(self) -> str:
        chosen = ["--gather=cpu"] * (self.gather == "cpu") + ["--lockstep"] * self.lockstep
        return " ".join(chosen) or "no flags"


# The last one that passes is the one to use.
SETTINGS = (
    Setting("cpu", True),
    Setting("devices", True),
    Setting("cpu", False),
    Setting("devices", False),
)


class Programs(NamedTuple):
    """Holds what a round runs. Each call raises an error if its result is wrong."""

    own: Callable[[int], None]  # on this host's devices
    common: Callable[[int], None]  # on those of all hosts
    gather: Callable[[str], Gather]  # as ``Setting.gather`` says


def programs(hosts: Hosts) -> Programs:
    @functools.cache
    def gather(kind: str) -> Gather:
        return by_devices(hosts.index, "cpu" if kind == "cpu" else None)

    return Programs(summing(jax.local_devices()), summing(jax.devices()), gather)


def results(hosts: Hosts, end: Callable[[Sequence[Result]], None]) -> Iterator[Result]:
    """Yields the result of each setting, and what follows. See ``Rounds``."""
    return Rounds(hosts, programs(hosts), end).results()


class Rounds:
    """Makes the rounds of this host.

    Args:
      end: takes the last results if a round stands still, and ends the process. Another thread calls it.
    """

    def __init__(
        self,
        hosts: Hosts,
        made: Programs,
        end: Callable[[Sequence[Result]], None],
        deadline_s: float = DEADLINE_S,
    ):
        self._hosts = hosts
        self._programs = made
        self._end = end
        self._deadline_s = deadline_s
        self._passed: list[Setting] = []
        self._where = ""
        self._faults: list[str] = []

    def results(self) -> Iterator[Result]:
        self._hosts.meet("rounds", lambda: None)  # other parts took longer on some hosts
        for setting in SETTINGS:
            result = tried(_name(setting), functools.partial(self._tried, setting))
            if result.found is not None:
                self._passed.append(setting)
            yield result
        yield tried(FLAGS, self._advice)

    def _tried(self, setting: Setting) -> Found:
        self._faults = []
        seconds: list[float] = []
        own = 0
        for number in range(ROUNDS):
            began = time.perf_counter()
            with self._deadline(setting, number):
                own += self._round(setting, number)
            seconds.append(time.perf_counter() - began)
        with self._deadline(setting, ROUNDS):
            self._where = "waiting for the others"
            told = self._hosts.meet(f"{ROUNDS} rounds", lambda: json.dumps(self._faults).encode())
        faults = [f"host {host}, {fault}" for host, data in enumerate(told) for fault in json.loads(data)]
        if faults:
            raise RunError(f"{len(faults)} results are not as they must be: {'; '.join(faults[:3])}")
        values = {"rounds": ROUNDS, "own_programs": own, "seconds": seconds, "flags": setting.flags}
        line = (
            f"this host ran {counted(own, 'program')} of its own; the slowest round took {max(seconds):.2g} s"
        )
        return Found(line, values)

    def _round(self, setting: Setting, number: int) -> int:
        """Makes one round, and notes faults. Returns how many programs of its own this host ran."""
        hosts = self._hosts
        count = (7 * hosts.index + 3 * number) % 11

        def work() -> bytes:
            self._run(number, "its own programs", count)
            self._where = "waiting for the others"
            return str(count).encode()

        most = max(map(int, hosts.meet(f"round {number}", work)))
        if setting.lockstep:
            self._run(number, "idle programs", most - count)
        with self._noting(number, "the gather"):
            given = [_bytes(host, number) for host in range(hosts.count)]
            gather = self._programs.gather(setting.gather)
            if gather(given[hosts.index], [SIZE] * hosts.count) != given:
                raise RunError("other bytes than were given")
        with self._noting(number, "the common program"):
            self._programs.common(number)
        return count

    def _run(self, number: int, what: str, count: int) -> None:
        with self._noting(number, what):
            for place in range(count):
                self._programs.own(number + place)

    @contextlib.contextmanager
    def _noting(self, number: int, what: str) -> Iterator[None]:
        """Notes an error as a fault: the other hosts go on, so this one must, too."""
        self._where = what
        try:
            yield
        except Exception as error:
            self._faults.append(f"round {number}, {what}: {one_line(error)}")

    @contextlib.contextmanager
    def _deadline(self, setting: Setting, number: int) -> Iterator[None]:
        def late() -> None:
            fault = f"round {number} stood still for {self._deadline_s:g} s: {self._where}"
            failed = Result(_name(setting), self._deadline_s, None, fault)
            self._end([failed, tried(FLAGS, self._advice)])

        timer = threading.Timer(self._deadline_s, late)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _advice(self) -> Found:
        if not self._passed:
            raise RunError("no setting passed: make no run on several hosts of this machine")
        best = self._passed[-1]
        line = "a run needs none" if best == SETTINGS[-1] else f"give a run {best.flags}"
        return Found(line, best._asdict())


def _name(setting: Setting) -> str:
    return f"{ROUNDS} rounds, {setting.flags}"


def _bytes(host: int, number: int) -> bytes:
    return ((np.arange(SIZE) + 31 * host + number) % 251).astype(np.uint8).tobytes()
