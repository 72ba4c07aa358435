"""SIGTERM and Ctrl-C as a clean stop: at once where nothing can be lost, else at the next safe point."""

import asyncio
import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from atgrpo_jax.errors import Stopped

_AGAIN = 0.05  # seconds


class Stopping:
    """Inside ``with Stopping() as stopping`` the two signals raise ``Stopped``: at once within
    ``stopping.interruptible()``, elsewhere when that is entered next. A running event loop is cancelled,
    not torn up, and one that is just being made or closed is waited for. A second signal is a plain
    KeyboardInterrupt: nothing more is saved, but what is on disk is whole.
    """

    def __init__(self):
        self._pending: int | None = None
        self._at_once = False
        self._before: dict[int, object] = {}

    def __enter__(self) -> "Stopping":
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *exc) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

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
        self._raise_if_pending()  # after a cancellation, or where something swallowed the exception

    def _raise_if_pending(self) -> None:
        if self._pending is not None:
            raise Stopped(self._pending)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._pending is not None:
            raise KeyboardInterrupt
        loop = _running_loop() if self._at_once else None
        if self._at_once and loop is None and _in_asyncio(frame):
            main = threading.main_thread().ident
            threading.Timer(_AGAIN, signal.pthread_kill, [main, number]).start()
            return
        self._pending = number
        if loop is not None:
            # Raised here, every task on the way out of the loop would report it as its own failure.
            loop.call_soon_threadsafe(_cancel_all, loop)
        elif self._at_once:
            raise Stopped(number)


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _in_asyncio(frame: FrameType | None) -> bool:
    """Whether ``frame`` is within ``asyncio.run``, which an exception would leave half made."""
    while frame is not None and frame.f_code is not asyncio.run.__code__:
        frame = frame.f_back
    return frame is not None


def _cancel_all(loop: asyncio.AbstractEventLoop) -> None:
    for task in asyncio.all_tasks(loop):
        task.cancel()
