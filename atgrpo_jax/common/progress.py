"""Shows how far long work is: a bar with rate and time left on a terminal, else plain lines."""

import os
import sys
import time

import tqdm

PLAIN_SECONDS = 10.0  # seconds between two plain lines
# What is beyond the edge of a narrow terminal is not shown, so the time comes before the numbers.
_BAR = "{{desc}} {{n_fmt}}/{{total_fmt}} |{{bar}}| {}{{postfix}}"
_RATE = "{remaining} left, {rate_fmt}"
_speaker = 0  # number of this host, if a run has several
_bars: list[tqdm.tqdm] = []  # that are on the terminal


class Progress:
    """A bar or plain lines that show how far some work is.

    It is used as ``with Progress("train", total, "step") as progress: progress.advance(loss=0.5)``.
    The first unit is no measure of the others, for it may wait for a compiler. So the rate and the time
    left are of the units after it, and nothing is forecast before the second one is done.
    """

    def __init__(self, what: str, total: int | None, unit: str, done: int = 0, compiles: bool = False):
        """``total`` is None if nobody knows it. ``compiles`` says whether the first unit waits for a
        compiler, which may take a minute."""
        self._what = what
        self._total = total
        self._unit = unit
        self._compiles = compiles
        self._done = done
        self._first = done + 1
        self._start = time.monotonic()  # of the units that the rate is of
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
                smoothing=0,  # the mean rate
                bar_format=_BAR.format("compiling" if compiles else ""),
                colour="green" if self._colours else None,
                leave=not _bars,  # a bar below another one goes when it is full
            )
            if sys.stderr.isatty() and not _speaker
            else None
        )
        if self._bar is not None:
            _bars.append(self._bar)

    def __enter__(self) -> "Progress":
        if self._compiles and self._bar is None and not _speaker and self._done != self._total:
            self._print(f"{self._so_far()}  compiling")
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
            if self._done == self._first:
                self._bar.initial = self._done
                self._bar.start_t = self._bar.last_print_t = time.time()
            self._bar.bar_format = _BAR.format("" if self._done == self._first else _RATE)
            return
        now = time.monotonic()
        if now - self._printed >= PLAIN_SECONDS or self._done in (self._first, self._total):
            self._printed = now
            words = "".join(f"  {name} {value}" for name, value in self._shown.items())
            if self._done == self._first:
                rate = f"{now - self._start:.2f} s"
            else:
                seconds = (now - self._start) / (self._done - self._first)
                rate = f"{seconds:.2f} s/{self._unit}"
                if self._total is not None:
                    rate += f", {duration(seconds * (self._total - self._done))} left"
            self._print(f"{self._so_far()}{words}  {rate}")
        if self._done == self._first:
            self._start = now

    def _so_far(self) -> str:
        total = "" if self._total is None else f"/{self._total}"
        return f"{self._what} {self._done}{total}"

    def _print(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)

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


def counted(number: int, what: str) -> str:
    """Returns a number of things in words: "1 step", "2 steps"."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"
