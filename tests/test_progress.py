"""What a terminal shows of long work, and what a log file gets."""

import contextlib
import fcntl
import os
import pty
import struct
import termios

import pytest

from atgrpo_jax.common import progress as progress_module
from atgrpo_jax.common.progress import Progress, counted, duration, say, speak_as
from atgrpo_jax.run.metrics import headline

RECORD = {"rollout/success": 0.4375, "groups/signal": 0.624, "rollout/tokens": 5200.0, "perf/step_s": 4.0}


@contextlib.contextmanager
def terminal():
    """Lets stderr be a terminal of 120 columns. Gives a list, in which at the end is what it got."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 120, 0, 0))
    got = []
    with open(theirs, "w", buffering=1) as screen, contextlib.redirect_stderr(screen):
        yield got
    text = b""
    with contextlib.suppress(OSError):  # the end: nobody has the other side open
        while piece := os.read(ours, 1 << 16):
            text += piece
    os.close(ours)
    got.append(text.decode())


def test_a_headline_says_which_success():
    assert headline(3, RECORD) == {"rollout success": "43.8%", "signal": "62%", "tokens/s": "1,300"}
    found = headline(10, RECORD | {"validation/success": 0.61})
    assert list(found) == ["rollout success", "validation", "signal", "tokens/s"]
    assert found["validation"] == "61.0% (step 10)"


def test_a_terminal_gets_one_line_with_the_time_left_and_the_headline(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    with terminal() as got, Progress("train", 20, "step", done=9, compiles=True) as progress:
        progress.advance(**headline(10, RECORD | {"validation/success": 0.61}))
        progress._bar.refresh()
        progress.advance(**headline(11, RECORD))
        progress._bar.refresh()  # by itself it is drawn ten times a second at most
        say("a line of its own")
    (text,) = got
    assert "train 9/20 |" in text and " compiling" in text.partition("train 10/20")[0]
    assert " left" not in text.partition("train 11/20")[0]  # the first step is no measure
    last = text.split("\r")[-2]
    assert last.startswith("train 11/20 |") and " left, " in last and "compiling" not in last
    plain = last.replace("\x1b[2m", "").replace("\x1b[0m", "")
    assert "rollout success 43.8%  validation 61.0% (step 10)  signal 62%" in plain
    assert "\x1b[32m" in last  # the bar is green
    assert "a line of its own\r\n" in text and text.count("\n") == 2


def test_no_colours_where_nobody_wants_them(monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    with terminal() as got, Progress("train", 2, "step") as progress:
        progress.advance(loss=0.5)
    (text,) = got
    assert "train 1/2 |" in text and "loss 0.5" in text and "\x1b[3" not in text and "\x1b[2m" not in text


def test_a_bar_below_another_one_goes_when_it_is_full():
    with terminal() as got, Progress("train", 2, "step") as outer:
        with Progress("validation", 1, "episode") as inner:
            inner.advance()
            inner._bar.refresh()
        outer.advance()
    (text,) = got
    assert "validation 1/1" in text
    assert "validation" not in text.rpartition("train 1/2")[2]


def test_a_log_file_gets_plain_lines_now_and_then(capsys, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: now[0])
    with Progress("train", 6, "step", compiles=True) as progress:
        now[0] += 30.0  # the compiler's
        for step in range(1, 7):
            now[0] += 4.0
            progress.advance(loss=step / 4, **({"validation": "50.0%"} if step == 2 else {}))
    assert capsys.readouterr().err.splitlines() == [
        "train 0/6  compiling",
        "train 1/6  loss 0.25  34.00 s",
        "train 4/6  loss 1  validation 50.0%  4.00 s/step, 8 s left",
        "train 6/6  loss 1.5  validation 50.0%  4.00 s/step, 0 s left",
    ]


def test_nothing_is_forecast_of_work_whose_end_nobody_knows(capsys, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: now[0])
    with Progress("train", None, "step", compiles=True) as progress:
        for _ in range(3):
            now[0] += 12.0
            progress.advance()
    assert capsys.readouterr().err.splitlines() == [
        "train 0  compiling",
        "train 1  12.00 s",
        "train 2  12.00 s/step",
        "train 3  12.00 s/step",
    ]
    with terminal() as got, Progress("train", None, "step") as progress:
        progress.advance()
        progress.advance()
        progress._bar.refresh()
    assert "train 2/?" in got[0]


def test_other_hosts_are_silent_but_for_lines_with_their_number(capsys):
    speak_as(2)
    try:
        with Progress("train", 1, "step") as progress:
            progress.advance(loss=1.0)
        say("waits")
    finally:
        speak_as(0)
    assert capsys.readouterr().err == "host 2: waits\n"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59.6, "1 min 00 s"), (3599, "59 min 59 s"), (3661, "1 h 01 min")]
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_one_thing_is_no_plural():
    assert [counted(n, "step") for n in (0, 1, 2)] == ["0 steps", "1 step", "2 steps"]
