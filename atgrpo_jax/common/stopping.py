"""Turns SIGTERM and Ctrl-C into a clean stop, in every phase of a run."""

import asyncio
import contextlib
import math
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Literal

from atgrpo_jax.common.coroutines import run_here, running_loop
from atgrpo_jax.common.errors import Stopped
from atgrpo_jax.common.progress import say_at_once

SIGNALS = (signal.SIGTERM, signal.SIGINT)
# All in seconds.
LOOK_S = 0.05  # time between two looks at a main thread that was asked to stop
PATIENCE_S = 1.0  # a main thread that was stopped and still goes on after this is asked again
DEAF_S = 1.5  # after this, a main thread that cannot run the handler (e.g. it compiles) is ended
CLEAN_UP_S = 10.0  # time for cleaning up after a second signal
ONE_STOP_S = 0.5  # signals that come this close together count as one: ``timeout`` sends two


class Stopping:
    """A context in which SIGTERM and SIGINT raise ``Stopped`` in the main thread.

    The signals raise at once where nothing can be lost: within ``stopping.interruptible()``, and
    everywhere while ``stopping.unsaved()`` is false, unless ``stopping.anywhere`` is. Elsewhere the
    stop waits for the next such place, and a line says so. A running event loop is cancelled. If its
    tasks do not end within a second, ``Stopped`` is raised inside them.

    Python runs no handler while the main thread is inside a call of C code, which may compile for
    minutes. So a second thread listens, too. It ends the process where nothing can be lost. A
    second signal ends the process in any case: nothing more is saved, but what is on disk is whole.
    If the process is a notebook's or another program's, ``may_exit`` is false, and the stop waits until
    the call of C code has ended.

    Only the main thread gets signals. In any other thread this class does nothing.
    """

    def __init__(self, may_exit: bool = True):
        self._may_exit = may_exit
        self.unsaved: Callable[[], bool] = lambda: False
        self.anywhere = True  # whether a stop may be raised outside of ``interruptible()`` at all
        self.before_exit: Callable[[], None] = lambda: None  # called before the process is ended
        self.asked: int | None = None  # the signal that asked to stop, as soon as it came
        self._for_others = False  # whether ``ask`` sent that one
        self._pending: int | None = None  # the signal, once the main thread has heard it
        self._at_once = False
        self._left = False  # whether the stop has reached the code that cleans up
        # A knock is a signal that the listener sends to the main thread. This says what it means.
        self._order: Literal["look again", "ask again", "at once"] | None = None
        self._knocked_s = -math.inf  # time of the last knock
        self._asked_s: float | None = None  # time of the last signal
        self._again = False  # whether that was a second signal
        self._stopped_s = math.inf  # time at which the main thread was last made to stop
        self._told = False  # whether the person was told what the stop waits for
        self._before: dict[int, object] = {}  # the handlers before; empty outside of the ``with``
        self._open = threading.Lock()  # nobody sends a signal while the handlers are given back

    def __enter__(self) -> "Stopping":
        if threading.current_thread() is not threading.main_thread():
            return self
        self._ours, self._theirs = socket.socketpair()
        self._theirs.setblocking(False)
        for number in SIGNALS:
            self._before[number] = signal.signal(number, self._receive)
        self._wakeup = signal.set_wakeup_fd(self._theirs.fileno(), warn_on_full_buffer=False)
        self._listener = threading.Thread(target=self._listen, name="stopping", daemon=True)
        self._listener.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        self._left = True
        if not self._before:
            return
        signal.set_wakeup_fd(self._wakeup)
        with self._open:
            for number, handler in self._before.items():
                signal.signal(number, handler)  # type: ignore[arg-type]
            self._before = {}
        self._theirs.close()
        self._listener.join()
        self._ours.close()
        if kind is asyncio.CancelledError:
            self._raise_if_pending()

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[None]:
        self._raise_if_pending()
        self._at_once = True
        try:
            yield
        except asyncio.CancelledError:
            if self._pending is None:
                raise
        finally:
            self._at_once = False
            self._left = self._pending is not None
        self._raise_if_pending()  # after a cancellation, or where something swallowed the exception

    def ask(self, number: int) -> None:
        """Asks the main thread to stop, as a first signal ``number`` does. For other threads.

        It does nothing if the main thread was asked before, or has left the ``with``: whoever listens
        then would take the signal for a person's. A signal that comes later does not count as a second one.
        """
        with self._open:
            if self.asked is None and self._before:
                self._for_others = True
                os.kill(os.getpid(), number)

    def _raise_if_pending(self) -> None:
        if self._again:
            raise KeyboardInterrupt
        if self._pending is not None:
            self._left = True
            raise Stopped(self._pending)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        """Handles a signal. Runs in the main thread, between two Python instructions."""
        order = self._order
        self._order = None
        if order == "at once":
            raise KeyboardInterrupt
        if order == "ask again" and not _on_the_way_out():
            raise Stopped(number)
        if self._pending is not None:
            return
        at_once = self._now()
        loop = running_loop() if at_once else None
        if at_once and loop is None and _in_asyncio(frame):
            self._order = "look again"
            return
        self._pending = number
        self._stopped_s = time.monotonic()
        if loop is not None:
            # If it were raised here, every task in the loop would report it as its own failure.
            loop.call_soon_threadsafe(_cancel_all, loop)
        elif at_once:
            raise Stopped(number)

    def _listen(self) -> None:
        """Reads the number of every signal as soon as it comes. Runs in a thread of its own."""
        number = signal.SIGTERM.value
        while True:
            idle = self._asked_s is None or (self._left and not self._again)
            if select.select([self._ours], [], [], None if idle else LOOK_S)[0]:
                heard = self._ours.recv(1)
                if not heard:
                    return
                knock = time.monotonic() - self._knocked_s < ONE_STOP_S  # sent by this thread
                if heard[0] in SIGNALS and not knock:
                    number = heard[0]
                    self._note(number)
            if self._asked_s is not None:
                self._press(number, time.monotonic() - self._asked_s)

    def _now(self) -> bool:
        """Returns whether a stop may be raised wherever the main thread is now."""
        return self._at_once or (self.anywhere and not self.unsaved())

    def _note(self, number: int) -> None:
        """Records that a signal came, and knocks at once if it is a second one."""
        now = time.monotonic()
        if self._asked_s is None:
            self._asked_s = now
            self.asked = number
            if not self._now():
                self._tell()
        elif self._for_others:
            self._for_others = False
        elif now - self._asked_s > ONE_STOP_S and not self._again:
            self._asked_s = now
            self._again = True
            self._knock(number, "at once")

    def _press(self, number: int, waited_s: float) -> None:
        """Knocks on a main thread that was asked to stop and goes on, or ends the process."""
        if self._order == "look again":
            self._knock(number, "look again")
        heard = self._pending is not None and not (self._left or self._again) and self._now()
        if heard and time.monotonic() - self._stopped_s > PATIENCE_S:
            # Tasks do not end, or some code swallowed the exception, as Python does in finalizers.
            self._stopped_s = time.monotonic()
            self._knock(number, "ask again")
        if waited_s < DEAF_S:
            return
        deaf = self._pending is None or self._order is not None
        late = self._again and waited_s > CLEAN_UP_S
        if self._may_exit and (late or (deaf and (self._again or not self.unsaved()))):
            self.before_exit()
            say_at_once("stopped at once; the same command goes on from what is saved")
            os._exit(128 + number)
        if deaf and not self._told:
            self._tell()

    def _tell(self) -> None:
        self._told = True
        if self.unsaved() or self._may_exit:
            say_at_once("stopping when this step is complete and saved; a second signal stops at once")
        else:
            say_at_once("stopping when what is compiled or computed now has ended")

    def _knock(self, number: int, order: Literal["look again", "ask again", "at once"]) -> None:
        main = threading.main_thread().ident
        assert main is not None
        self._knocked_s = time.monotonic()
        self._order = order
        signal.pthread_kill(main, number)


def _on_the_way_out() -> bool:
    """Returns whether the code that a handler interrupted is cleaning up after a stop."""
    error = sys.exception()
    while error is not None and not isinstance(error, Stopped):
        error = error.__context__
    return error is not None


def _in_asyncio(frame: FrameType | None) -> bool:
    """Returns whether ``frame`` is in our ``asyncio.run``, where an exception would do damage."""
    while frame is not None and frame.f_code is not run_here.__code__:
        frame = frame.f_back
    return frame is not None


def _cancel_all(loop: asyncio.AbstractEventLoop) -> None:
    for task in asyncio.all_tasks(loop):
        task.cancel()
