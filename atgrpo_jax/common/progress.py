"""Shows how far long work is: a bar with rate and time left on a terminal, else plain lines."""

import sys
import time

import tqdm

PLAIN_SECONDS = 10.0  # seconds between two plain lines
_speaker = 0  # number of this host, if a run has several


class Progress:
    """A bar or plain lines that show how far some work is.

    It is used as ``with Progress("train", total, "step") as progress: progress.advance(loss=0.5)``.
    """

    def __init__(self, what: str, total: int, unit: str, done: int = 0):
        self._what = what
        self._total = total
        self._unit = unit
        self._done = self._started_at = done
        self._start = time.monotonic()
        self._printed = 0.0
        self._bar = (
            tqdm.tqdm(total=total, initial=done, desc=what, unit=unit, dynamic_ncols=True)
            if sys.stderr.isatty() and not _speaker
            else None
        )

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exc) -> None:
        if self._bar is not None:
            self._bar.close()

    def advance(self, **shown: float) -> None:
        """Counts one more unit as done, and shows the numbers ``shown`` beside it."""
        self._done += 1
        if _speaker:
            return
        if self._bar is not None:
            self._bar.set_postfix({name: f"{value:.3g}" for name, value in shown.items()}, False)
            self._bar.update()
            return
        now = time.monotonic()
        if now - self._printed >= PLAIN_SECONDS or self._done in (1, self._total):
            self._printed = now
            rate = (now - self._start) / (self._done - self._started_at)
            numbers = "".join(f"  {name} {value:.3g}" for name, value in shown.items())
            left = duration(rate * (self._total - self._done))
            print(
                f"{self._what} {self._done}/{self._total}{numbers}  {rate:.2f} s/{self._unit}, {left} left",
                file=sys.stderr,
                flush=True,
            )


def speak_as(host: int) -> None:
    """Sets the number of this host. Hosts above 0 show no progress, and their lines have their number."""
    global _speaker
    _speaker = host


def say(line: str) -> None:
    """Prints a line of its own, above the bar if there is one."""
    tqdm.tqdm.write(f"host {_speaker}: {line}" if _speaker else line, file=sys.stderr)
    sys.stderr.flush()


def say_at_once(line: str) -> None:
    """Writes a line of its own from any thread, even if the main thread has written half of one."""
    sys.stderr.write(f"\n{line}\n")
    sys.stderr.flush()


def duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"
