"""The one function that runs commands, and the error for people."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]  # the checkout; commands run in it


class Problem(Exception):
    """An error that a person can act on: one line, exit code 2."""


class Failed(Exception):
    """A command that ended with an exit code above 0, or not before its deadline."""

    def __init__(self, words: Sequence[str], said: str, late: bool = False):
        super().__init__(said)
        self.words = list(words)
        self.said = said
        self.late = late


class Shell:
    """Runs commands. Each is printed first, quoted as a shell needs it; a dry one is only printed."""

    def __init__(self, dry: bool = False, root: Path = ROOT):
        self.dry = dry
        self.root = root  # of the checkout
        self._printed: set[str] = set()

    def run(
        self,
        words: Sequence[str],
        deadline_s: float,
        stdin: bytes = b"",
        note: str = "",
        changes: bool = False,
        assumed: str = "",
    ) -> str:
        """Returns what a command printed. Raises Failed.

        A dry shell returns ``assumed``. A command that only reads is printed the first time, one
        that ``changes`` something every time. ``note`` says what it gets on its standard input.
        """
        self._print(words, note, changes)
        if self.dry:
            return assumed
        code, out, err = self.execute(words, deadline_s, stdin)
        if code:
            raise Failed(words, err or f"exit code {code}")
        return out

    def execute(self, words: Sequence[str], deadline_s: float, stdin: bytes) -> tuple[int, str, str]:
        """Returns a command's exit code and what it wrote. Raises Failed if it is late, and kills it then."""
        try:
            process = subprocess.Popen(
                words,
                cwd=self.root,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
        except FileNotFoundError:
            raise Problem(f"{words[0]} is not installed or not on PATH") from None
        try:
            out, err = process.communicate(stdin, timeout=deadline_s)
        except subprocess.TimeoutExpired:
            raise Failed(words, f"no answer within {deadline_s:g} s", late=True) from None
        finally:
            end(process)
        return process.returncode, out.decode(errors="replace"), err.decode(errors="replace")

    def become(self, words: Sequence[str]) -> None:
        """Replaces this process by a command that a person talks to, which has no deadline."""
        self._print(words, "", True)
        if not self.dry:
            sys.stdout.flush()
            os.execvp(words[0], list(words))

    def _print(self, words: Sequence[str], note: str, changes: bool) -> None:
        line = shlex.join(words) + (f"    # {note}" if note else "")
        if changes or line not in self._printed:
            self._printed.add(line)
            print(f"$ {line}", file=sys.stdout if self.dry else sys.stderr, flush=True)


def end(process: subprocess.Popen[bytes]) -> None:
    """Kills a process and all that it started, if it has not ended."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):  # it ended meanwhile
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
