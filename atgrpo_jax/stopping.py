"""SIGTERM and Ctrl-C as a clean stop: at once where nothing can be lost, else at the next safe point."""

import contextlib
import signal
from collections.abc import Iterator

from atgrpo_jax.errors import Stopped


class Stopping:
    """Inside ``with Stopping() as stopping`` the two signals raise ``Stopped``: at once within
    ``stopping.interruptible()``, elsewhere when that is entered next. A second signal while the first one
    waits is a plain KeyboardInterrupt: nothing more is saved, but what is on disk is whole.
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
        if self._pending is not None:
            raise Stopped(self._pending)
        self._at_once = True
        try:
            yield
        finally:
            self._at_once = False

    def _receive(self, number: int, _frame) -> None:
        if self._at_once:
            raise Stopped(number)
        if self._pending is not None:
            raise KeyboardInterrupt
        self._pending = number
