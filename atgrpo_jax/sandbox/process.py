"""Starts the process of a worker, and speaks with it over a socket."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import tempfile
from collections.abc import Sequence
from typing import Any

from atgrpo_jax.common.errors import RunError
from atgrpo_jax.sandbox import files, start
from atgrpo_jax.sandbox.protocol import Program, ProgramResult
from atgrpo_jax.sandbox.start import Settings

START_S = 30.0  # most seconds until a worker is ready
_ANSWER = 1 << 16  # most bytes of an answer
GRACE_S = 5.0  # seconds beyond a program's own limits, after which its worker counts as hung


class WorkerLost(Exception):
    """Raised if a worker died, hung, or gave an answer that cannot be read."""


class WorkerProcess:
    """A worker process and the socket to it."""

    def __init__(self, settings: Settings):
        """Starts the process. The caller must call ``greet`` before ``run``, and finally ``stop``."""
        self._settings = settings
        self._words = tempfile.TemporaryFile()
        # SOCK_SEQPACKET delivers whole messages, never a part of one.
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                start.command(settings), stdin=theirs.fileno(), stdout=theirs.fileno(), stderr=self._words,
                env=start.ENVIRONMENT, cwd="/", start_new_session=True,
            )  # fmt: skip

    @property
    def pid(self) -> int:
        return self._process.pid

    def greet(self) -> None:
        """Sends the worker its own code and settings. Raises RunError if it does not start."""
        told = [files.written(json.dumps(one)) for one in (start.sources(), self._settings.told)]
        try:
            answer = self._ask(told, START_S)
        except WorkerLost as lost:
            words = f"{lost}; {self._last_words()}"
            raise RunError(
                f"a worker of the sandbox ({self._settings.level}) did not start: {words}"
            ) from lost
        finally:
            for one in told:
                os.close(one)
        assert answer == "ready", answer

    def run(self, program: Program) -> ProgramResult:
        """Runs a program. Raises WorkerLost if the worker dies or hangs."""
        limits = self._settings.told["limits"]
        parts = files.files_of(program)
        try:
            opened = [one for part in parts for one in part.opened]
            ends = self._ask(opened, limits["wall_s"] + GRACE_S)
            return files.outcome(parts, ends, limits["output"])
        finally:
            for part in parts:
                part.close()

    def end(self) -> None:
        """Kills the worker. A thread that waits for its answer gets WorkerLost."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def stop(self) -> None:
        self.end()
        self._process.wait()
        self._socket.close()
        self._words.close()

    def _ask(self, opened: Sequence[int], seconds: float) -> Any:
        """Returns the worker's answer to a message with these open files. Raises WorkerLost."""
        self._socket.settimeout(seconds)
        try:
            socket.send_fds(self._socket, [b"."], opened)
            return json.loads(self._socket.recv(_ANSWER))
        except TimeoutError as error:
            raise WorkerLost("a worker did not answer in time") from error
        except (OSError, ValueError) as error:
            raise WorkerLost(f"a worker ended, or answered nonsense: {error!r}") from error

    def _last_words(self) -> str:
        self._words.seek(0)
        lines = self._words.read().decode(errors="replace").strip().splitlines()
        return " | ".join(lines[-3:]) or "it said nothing"
