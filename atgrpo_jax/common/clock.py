"""Measures how much time is spent in parts of the code."""

import time


class Clock:
    """Measures time: each ``with clock:`` adds its duration to ``seconds``."""

    def __init__(self):
        self.seconds = 0.0

    def __enter__(self) -> None:
        self._began = time.perf_counter()

    def __exit__(self, *exc) -> None:
        self.seconds += time.perf_counter() - self._began
