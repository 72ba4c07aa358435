"""Makes the files that a program gets and that it leaves behind: files in memory, without a name.

The trainer and the program have them open. The worker between the two only passes them on.
"""

import json
import os
import signal
from collections.abc import Sequence
from typing import Any, Literal

from atgrpo_jax.sandbox import program
from atgrpo_jax.sandbox.protocol import End, Program, ProgramResult

Why = Literal["", "timeout", "limit"]
_LAST = 4000  # last bytes of stderr, which are kept
_NOTED = 16  # most bytes of a note
# What Python says if the kernel's limit on threads is reached.
_NO_THREAD = b"RuntimeError: can't start new thread"


class Files:
    """The files of one process: standard input, output and error, ``program.NOTE``, and its task.

    The task says what to run, as JSON. The caller must call ``close``.
    """

    def __init__(self, stdin: str, **given: Any):
        self.opened = (written(stdin), *(os.memfd_create("") for _ in range(3)), written(json.dumps(given)))
        _, self._out, self._err, self._note, _ = self.opened

    def result(self, why: Why, status: int, most: int) -> ProgramResult:
        """Returns how the process ended, and what it wrote.

        Args:
          why: why the process was ended; "" if it ended by itself.
          status: its exit status, as ``os.wait`` gives it.
          most: most bytes of standard output and of standard error, each.
        """
        out = os.pread(self._out, most + 1, 0)
        size = os.fstat(self._err).st_size
        if max(len(out), size) > most:
            why = why or "limit"
        last = os.pread(self._err, _LAST, max(0, size - _LAST))
        if (status or why == "timeout") and _NO_THREAD in last:
            why = "limit"
        note = os.pread(self._note, _NOTED, 0)
        end: End = why or ("error" if status else "ok")
        return ProgramResult(
            end if note.startswith(program.READY) else "crash",
            out[:most].decode(errors="replace"),
            last.decode(errors="replace") + ("" if why else _signal(status)),
            note.endswith(program.BUILT),
        )

    def close(self) -> None:
        for opened in self.opened:
            os.close(opened)


def files_of(asked: Program) -> list[Files]:
    """Returns the files of each process: the harness, if there is one, then the program."""
    files = [Files(asked.stdin, source=asked.source, before=asked.before, name=asked.name)]
    if not asked.harness:
        return files
    harness = Files("", source=asked.harness, before="", name="__main__", names=asked.names)
    return [harness, *files]


def outcome(files: Sequence[Files], ends: Sequence[tuple[Why, int]], most: int) -> ProgramResult:
    """Returns how a program ended.

    Args:
      ends: for each process, ``why`` and ``status`` as the worker reports them (see ``Files.result``).
      most: see ``Files.result``.
    """
    results = [one.result(*end, most) for one, end in zip(files, ends, strict=True)]
    if len(results) == 1:
        return results[0]
    harness, served = results
    end = harness.end
    words = harness.stderr
    if os.waitstatus_to_exitcode(ends[0][1]) == program.GONE:
        end = "error" if served.end == "ok" else served.end
        words = words + served.stderr
    if "crash" in (served.end, harness.end):
        end = "crash"
    return ProgramResult(end, harness.stdout, words[-_LAST:], served.built)


def written(text: str) -> int:
    """Returns a descriptor of a new file in memory with this text, at its beginning."""
    opened = os.memfd_create("")
    left = text.encode(errors="replace")
    while left:
        left = left[os.write(opened, left) :]
    os.lseek(opened, 0, os.SEEK_SET)
    return opened


def _signal(status: int) -> str:
    """Returns a line that names the signal by which a process ended; "" if there was none."""
    if not os.WIFSIGNALED(status):
        return ""
    number = os.WTERMSIG(status)
    try:
        return f"ended by {signal.Signals(number).name}\n"
    except ValueError:  # real-time signals have no names
        return f"ended by signal {number}\n"
