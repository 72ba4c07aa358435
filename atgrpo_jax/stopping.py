"""SIGTERM and Ctrl-C as a clean stop: at once where nothing can be lost, else at the next safe point."""

import asyncio
import contextlib
import signal
from collections.abc import Iterator

from atgrpo_jax.errors import Stopped


class Stopping:
    """Inside ``with Stopping() as stopping`` the two signals raise ``Stopped``: at once within
    ``stopping.interruptible()``, elsewhere when that is entered next. A running event loop is cancelled,
    not torn up. A second signal is a plain KeyboardInterrupt: nothing more is saved, but what is on disk is
    whole.
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

    def _receive(self, number: int, _frame) -> None:
        if self._pending is not None:
            raise KeyboardInterrupt
        self._pending = number
        if not self._at_once:
            return
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            raise Stopped(number) from None
        # Raised here, every task on the way out of the loop would report it as its own failure.
        loop.call_soon_threadsafe(_cancel_all, loop)


def _cancel_all(loop: asyncio.AbstractEventLoop) -> None:
    for task in asyncio.all_tasks(loop):
        task.cancel()
