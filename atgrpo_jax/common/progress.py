"""Shows how far long work is: a bar with rate and time left on a terminal, else plain lines."""

import os
import sys
import time

import tqdm

PLAIN_SECONDS = 10.0  # seconds between two plain lines
_speaker = 0  # number of this host, if a run has several
_bars: list[tqdm.tqdm] = []  # that are on the terminal


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
        self._shown: dict[str, str] = {}
        self._colours = sys.stderr.isatty() and not os.environ.get("NO_COLOR")
        self._bar = (
            tqdm.tqdm(
                total=total,
                initial=done,
                desc=what,
                unit=unit,
                dynamic_ncols=True,
                # What is beyond the edge of a narrow terminal is not shown, so the time comes first.
                bar_format="{desc} {n_fmt}/{total_fmt} |{bar}| {remaining} left, {rate_fmt}{postfix}",
                colour="green" if self._colours else None,
                leave=not _bars,  # a bar below another one goes when it is full
            )
            if sys.stderr.isatty() and not _speaker
            else None
        )
        if self._bar is not None:
            _bars.append(self._bar)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exc) -> None:
        if self._bar is not None:
            self._bar.close()
            _bars.remove(self._bar)

    def advance(self, **shown: float | str) -> None:
        """Counts one more unit as done, and shows what is in ``shown`` beside it, until it is replaced."""
        self._done += 1
        if _speaker:
            return
        for name, value in shown.items():
            self._shown[name] = value if isinstance(value, str) else f"{value:.3g}"
        if self._bar is not None:
            self._bar.set_postfix_str("  ".join(f"{self._dim(n)} {v}" for n, v in self._shown.items()), False)
            self._bar.update()
            return
        now = time.monotonic()
        if now - self._printed >= PLAIN_SECONDS or self._done in (1, self._total):
            self._printed = now
            rate = (now - self._start) / (self._done - self._started_at)
            words = "".join(f"  {name} {value}" for name, value in self._shown.items())
            left = duration(rate * (self._total - self._done))
            print(
                f"{self._what} {self._done}/{self._total}{words}  {rate:.2f} s/{self._unit}, {left} left",
                file=sys.stderr,
                flush=True,
            )

    def _dim(self, name: str) -> str:
        return f"\x1b[2m{name}\x1b[0m" if self._colours else name


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
