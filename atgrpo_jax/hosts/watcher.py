"""Watches over this host and the others, in a thread: who stops, who failed, who is no longer heard of.

Each host has a line of news in the store: that it was asked to stop, or that it has left the run and
why. A stop of one host becomes a stop of all. A host that does not hear of a failure, because its
main thread waits for the devices of a host that has left, is ended.
"""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable

from atgrpo_jax.common.errors import Unreachable
from atgrpo_jax.common.progress import say_at_once
from atgrpo_jax.common.stopping import Stopping
from atgrpo_jax.hosts.said import OtherFailed, Said
from atgrpo_jax.hosts.store import Store

LOOK_S = 0.3  # time between two looks at the news
BEAT_S = 2.0  # time between two beats of this host
GRACE_S = 5.0  # time for the main thread to end by itself after another host has failed
BYE_S = 8.0  # time that a host waits for the others before it leaves
BYES = "byes"
ENDS = "ends"
LAST_S = 1.0  # time that host 0 gives the others to end after their last word
HUNG_CODE = 3  # exit code if a host does not come to a meeting
NEWS = "news"
BEATS = "beats"


class Watcher:
    """``news`` is what other hosts and this one said last, by host."""

    def __init__(
        self,
        store: Store,
        index: int,
        count: int,
        heartbeat_s: float,
        patience_s: float,
        exit_now: Callable[[str, int], None],
    ):
        """
        Args:
          heartbeat_s: a host that was not heard of for most of this time is named.
          patience_s: the longest time between two meetings.
          exit_now: ends the process with a line and an exit code.
        """
        self.stopping: Stopping | None = None
        self.news: dict[int, Said] = {}
        self.where = "the start"  # the meeting that this host came from last
        self.left_s: float | None = time.monotonic()  # time of that; None while this host is at a meeting
        self._store = store
        self._index = index
        self._count = count
        self._heartbeat_s = heartbeat_s
        self._patience_s = patience_s
        self._exit_now = exit_now
        self._failed_s: float | None = None  # time at which the failure of another host was read
        self._beat_s = 0.0  # time of our last beat
        self._beats: dict[str, tuple[bytes, float]] = {}  # the last one of each host, and when it came
        self._named: set[str] = set()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="hosts", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def end(self) -> None:
        self._ended.set()
        self._thread.join()

    def tell(self, said: Said) -> None:
        """Tells the others that this host was asked to stop, or leaves."""
        self.news[self._index] = said
        self._store.put(f"{NEWS}/{self._index}", said.to_bytes())

    def bye(self, said: Said, waits: bool = False) -> None:
        """Tells the others that this host leaves.

        Host 0 waits until they have left, or a few seconds. So does any other one that ``waits``, as one that
        stops does: host 0 may still have to write something, and JAX aborts it soon after one has gone.
        """
        until = time.monotonic() + BYE_S
        waits = waits or self._index == 0
        with contextlib.suppress(Unreachable):  # host 0 has gone first
            self.tell(said)
            self._store.put(f"{BYES}/{self._index}", b"")
            while waits and time.monotonic() < until:
                if len(self._store.under(BYES)) == self._count:
                    break
                time.sleep(0.05)

    def farewell(self) -> None:
        """Is the last word of this host, which then only ends. Host 0 waits for that of those that leave.

        JAX aborts a process as soon as host 0 is gone, however near to its own end it is.
        """
        with contextlib.suppress(Unreachable):  # host 0 has gone first
            if self._index:
                self._store.put(f"{ENDS}/{self._index}", b"")
                return
            until = time.monotonic() + BYE_S
            leaving = self._store.under(BYES).keys() - {"0"}
            while not leaving <= self._store.under(ENDS).keys() and time.monotonic() < until:
                time.sleep(0.02)
            if leaving:
                time.sleep(LAST_S)

    def leave_at_once(self) -> None:
        """Tells the others that this host ends now, since it was asked to stop and does not hear it.

        If it was asked because another host has failed, this ends the process, with that host's line.
        """
        for index, said in list(self.news.items()):
            if index != self._index and said.state == "failed":
                self._end(said, str(OtherFailed(index, said)))
        asked = None if self.stopping is None else self.stopping.asked
        self.bye(Said("", "stopped", code=asked or signal.SIGTERM))
        self.farewell()

    def ask(self) -> None:
        """Asks this host to stop if another one stops or has failed. A second time does nothing."""
        others = [said for index, said in list(self.news.items()) if index != self._index]
        if others and self.stopping is not None:
            signals = [said.code for said in others if said.state == "stopped"]
            self.stopping.ask(signals[0] if signals else signal.SIGTERM)

    def _watch(self) -> None:
        while not self._ended.wait(LOOK_S):
            try:
                self._look()
            except Unreachable:
                continue  # JAX's own thread ends this process if host 0 is gone

    def _look(self) -> None:
        stopping = self.stopping
        if stopping is not None and stopping.asked is not None and self._index not in self.news:
            self.tell(Said("", "stopped", code=stopping.asked))
        for key, data in self._store.under(NEWS).items():
            self.news[int(key)] = Said.from_bytes(data)
        self.ask()
        self._end_with_the_others()
        self._end_after_patience()
        self._listen()

    def _end_with_the_others(self) -> None:
        now = time.monotonic()
        for index, said in list(self.news.items()):
            if index != self._index and said.state == "failed":
                self._failed_s = self._failed_s or now
                hangs = said.of == self._index  # the others gave this host up
                if hangs or now - self._failed_s > GRACE_S:
                    self._end(said, str(OtherFailed(index, said)))

    def _end(self, said: Said, line: str) -> None:
        self.bye(said)
        self.farewell()
        self._exit_now(line, said.code)

    def _end_after_patience(self) -> None:
        left_s = self.left_s
        if left_s is not None and time.monotonic() - left_s > self._patience_s + 2 * GRACE_S:
            text = (
                f"no meeting for {time.monotonic() - left_s:.0f} s after {self.where!r}; this host is at "
                f"{position()}; start all hosts again"
            )
            self._end(Said("", "failed", text, HUNG_CODE), f"host {self._index}: {text}")

    def _listen(self) -> None:
        """Beats, and names hosts that do not. JAX ends all hosts if one of them has died."""
        now = time.monotonic()
        if now - self._beat_s < BEAT_S:
            return
        self._beat_s = now
        self._store.put(f"{BEATS}/{self._index}", str(now).encode())
        for key, beat in self._store.under(BEATS).items():
            if key not in self._beats or self._beats[key][0] != beat:
                self._beats[key] = beat, now
                self._named.discard(key)
            silent = now - self._beats[key][1]
            if silent > 0.6 * self._heartbeat_s and key not in self._named and int(key) not in self.news:
                self._named.add(key)
                say_at_once(
                    f"host {key} was not heard of for {silent:.0f} s; after {self._heartbeat_s:.0f} s it "
                    "counts as dead, and all hosts end"
                )


def position() -> str:
    """Returns the line that the main thread is at, the innermost one of a file of the package."""
    main = threading.main_thread().ident
    frame = sys._current_frames().get(main or 0)
    inner = frame
    while frame is not None and "atgrpo_jax" not in frame.f_code.co_filename:
        frame = frame.f_back
    frame = frame or inner
    if frame is None:
        return "no line of Python"
    return f"{os.path.basename(frame.f_code.co_filename)}, line {frame.f_lineno} ({frame.f_code.co_name})"
