"""Lets the hosts of a run meet: the only places where one waits for another by name.

A meeting goes through the store: each host says how it came, host 0 tells all what all said, and
everybody draws the same conclusion (said.py). Long payloads then travel through the devices.
"""

import hashlib
import time
from collections.abc import Callable

from atgrpo_jax.common.cli import exit_code
from atgrpo_jax.common.errors import Stopped, UserError, one_line
from atgrpo_jax.common.progress import say
from atgrpo_jax.common.stopping import Stopping
from atgrpo_jax.hosts.gathering import Gather
from atgrpo_jax.hosts.said import OtherFailed, Said, packed, unpacked, verdict
from atgrpo_jax.hosts.store import Store
from atgrpo_jax.hosts.watcher import GRACE_S, HUNG_CODE, Watcher

SHORT = 1 << 15  # bytes; longer payloads do not go through the store, which host 0 keeps
LOOK_S = 0.5  # time between two looks for hosts that have left


class Joined:
    """This host of several. See ``Hosts`` for what the methods do."""

    def __init__(
        self,
        store: Store,
        index: int,
        count: int,
        gather: Callable[[], Gather],
        watcher: Watcher,
        patience_s: float,
        idle: Callable[[], Callable[[], None]] | None = None,
    ):
        """
        Args:
          gather: makes what gathers long payloads, when it is first needed.
          patience_s: the longest time that a host waits for another one.
          idle: makes a program of this host that computes nothing of use, for runs in lockstep.
        """
        self.index = index
        self.count = count
        self.waited_s = 0.0
        self._store = store
        self._make_gather = gather
        self._gather: Gather | None = None
        self._watcher = watcher
        self._patience_s = patience_s
        self._make_idle = idle
        self._idle: Callable[[], None] | None = None
        self._idled = 0  # idle programs so far
        self._issued: Callable[[], int] = lambda: 0
        self._stopping: Stopping | None = None
        self._unsaved: Callable[[], bool] = lambda: False
        self._number = 0  # of the meeting
        self._compared = hashlib.blake2b(digest_size=16)

    def heed(self, stopping: Stopping, unsaved: Callable[[], bool]) -> None:
        stopping.anywhere = False  # the others would wait for this host
        stopping.unsaved = unsaved
        stopping.before_exit = self._watcher.leave_at_once
        self._stopping = stopping
        self._unsaved = unsaved
        self._watcher.stopping = stopping

    def even_out(self, issued: Callable[[], int]) -> None:
        self._issued = issued

    def compare(self, what: str, digest: Callable[[], bytes]) -> None:
        self._compared.update(what.encode() + digest())

    def counter(self) -> Callable[[], int]:
        key = f"counters/{self._number}/taken"
        return lambda: self._store.count(key)

    def told(self, name: str, work: Callable[[], bytes | None]) -> bytes:
        return self._met(name, work if self.index == 0 else lambda: None, not self._unsaved())[0]

    def meet(self, name: str, work: Callable[[], bytes | None], stops: bool = False) -> list[bytes]:
        return self._met(name, work, stops or not self._unsaved())

    def _met(self, name: str, work: Callable[[], bytes | None], stops: bool) -> list[bytes]:
        self._number += 1
        error: BaseException | None = None
        data = b""
        try:
            data = self._done(work, stops)
            said = Said(name, "here", size=len(data), payload=data if len(data) <= SHORT else None)
        except Stopped as stopped:
            said = Said(name, "stopped", code=stopped.signum)
        except Exception as own:
            error = own
            said = failure(own)._replace(name=name)
            self._watcher.tell(said)  # the others may be at work for long
        programs = self._issued() + self._idled if self._make_idle else 0
        said = said._replace(compared=self._compared.hexdigest(), programs=programs)
        came_s = time.monotonic()
        self._watcher.left_s = None
        found = self._exchanged(said)
        self._watcher.where = name
        self._watcher.left_s = time.monotonic()
        self.waited_s += self._watcher.left_s - came_s
        try:
            verdict(found)
        except OtherFailed as other:
            if error is None:
                raise
            if other.index == self.index:
                raise error from None
            say(f"this host has failed, too: {one_line(error)}")
            raise other from error
        except Stopped:
            self._watcher.stopping = None  # everybody knows
            raise
        self._catch_up(max(said.programs for said in found) - programs)
        return self._payloads(data, found)

    def _catch_up(self, behind: int) -> None:
        """Issues as many idle programs, so that all hosts come with the same number to what follows."""
        for _ in range(behind):
            assert self._make_idle is not None
            self._idle = self._idle or self._make_idle()
            self._idle()
        self._idled += behind

    def _done(self, work: Callable[[], bytes | None], stops: bool) -> bytes:
        if self._stopping is None or not stops:
            return work() or b""
        with self._stopping.interruptible():
            return work() or b""

    def _exchanged(self, said: Said) -> list[Said]:
        """Returns what all hosts said at this meeting, or when they left the run before it."""
        here = f"meetings/{self._number}"
        self._store.put(f"{here}/{self.index}", said.to_bytes())
        if self.index == 0:
            found = self._collected(said.name, here)
            self._store.put(f"met/{self._number}/all", packed(found))
            if self._number > 1:  # everybody has read that one
                self._store.remove(f"met/{self._number - 1}")
            self._store.remove(here)
            self._store.remove(f"counters/{self._number}")
            return found
        began = time.monotonic()
        while True:
            data = self._store.wait(f"met/{self._number}/all", LOOK_S)
            if data is not None:
                return unpacked(data)
            first = self._watcher.news.get(0)
            if first is not None and first.state == "failed":
                return [first, *[said] * (self.count - 1)]
            waited = time.monotonic() - began
            if waited > self._patience_s + GRACE_S:
                return [self._hung(0, said.name, waited), *[said] * (self.count - 1)]

    def _collected(self, name: str, here: str) -> list[Said]:
        began = time.monotonic()
        pause = 0.001
        while True:
            found = {int(key): Said.from_bytes(data) for key, data in self._store.under(here).items()}
            left = {index: said for index, said in list(self._watcher.news.items()) if said.state == "failed"}
            found = left | found
            missing = [index for index in range(self.count) if index not in found]
            waited = time.monotonic() - began
            if missing and (left or waited > self._patience_s):
                own = found[0]
                late = {} if left else {missing[0]: self._hung(missing[0], name, waited)}
                found = dict.fromkeys(range(self.count), own) | found | late
                missing = []
            if not missing:
                return [found[index] for index in range(self.count)]
            time.sleep(pause)
            pause = min(2 * pause, 0.1)

    def _hung(self, index: int, name: str, waited: float) -> Said:
        text = f"did not come to {name!r} for {waited:.0f} s (--patience); start all hosts again"
        return Said("", "failed", text, HUNG_CODE)

    def _payloads(self, data: bytes, found: list[Said]) -> list[bytes]:
        long = [said.size if said.payload is None else 0 for said in found]
        gathered = [b""] * self.count
        if any(long):
            self._gather = self._gather or self._make_gather()
            gathered = self._gather(data if long[self.index] else b"", long)
        return [gathered[i] if said.payload is None else said.payload for i, said in enumerate(found)]

    def leave(self, error: BaseException) -> BaseException:
        """Tells the others why this host leaves the run. Returns the error to raise in its place."""
        others = [
            (i, s) for i, s in list(self._watcher.news.items()) if i != self.index and s.state == "failed"
        ]
        told: BaseException = error
        if isinstance(error, Stopped):
            said = Said("", "stopped", code=error.signum)
        else:
            said = failure(error)
            if others and not isinstance(error, OtherFailed):
                told = OtherFailed(*others[0])  # the same fault, or one that follows from it
        self._watcher.bye(said, waits=said.state == "stopped")
        return told


def failure(error: BaseException) -> Said:
    """Returns what a host says of an error with which it fails."""
    if isinstance(error, OtherFailed):
        return Said("", "failed", error.text, error.exit_code, of=error.index)
    text = str(error)
    if not isinstance(error, (UserError, OSError)):
        text = f"{type(error).__name__}: {one_line(error)}; see its own output"
    return Said("", "failed", text, exit_code(error))
