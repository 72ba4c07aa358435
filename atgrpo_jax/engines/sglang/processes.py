"""Starts server processes that keep a log and end when this process ends, for any reason."""

import contextlib
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from atgrpo_jax.common import leash
from atgrpo_jax.common.errors import RunError
from atgrpo_jax.engines.sglang.secrets import plain

LAST_WORDS = 15  # last lines of a server's log that are shown
_LAST_BYTES = 1 << 14  # they are looked for in so many last bytes


class ServerProcess:
    """Runs ``command`` on a leash (leash.py), in its own process group, with output to ``log``."""

    def __init__(self, command: Sequence[str], log: Path):
        self._log = log
        with open(log, "ab") as words:
            self._process = subprocess.Popen(
                [sys.executable, "-I", leash.__file__, str(os.getpid()), *command],
                stdin=subprocess.DEVNULL,
                stdout=words,
                stderr=words,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Returns the process id of the leash, which is also the id of its group."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def last_words(self) -> str:
        """Returns the end of its log, and the exit code if it has ended."""
        with open(self._log, "rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - _LAST_BYTES))
            lines = log.read(_LAST_BYTES).decode(errors="replace").splitlines()[-LAST_WORDS:]
        code = self._process.poll()
        ended = "" if code is None else f"exit code {code}; "
        return f"{ended}the end of {self._log}:\n" + "\n".join(f"    {plain(line)}" for line in lines)

    def stop(self) -> None:
        """Asks it to end, waits up to ``leash.GRACE_S``, then kills it and all that it started."""
        try:
            os.killpg(self.pid, signal.SIGTERM)
            self._process.wait(leash.GRACE_S)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            pass
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()


def free_port() -> int:
    """Returns a port on which nobody listened a moment ago."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def check_command(command: str) -> None:
    """Raises RunError if the command surely cannot start a server, or has an API key in it."""
    try:
        words = shlex.split(command)
    except ValueError as error:  # a quote that is not closed
        raise RunError(f"SGLangConfig.command = {command!r}: {error}") from None
    if any(word.partition("=")[0] == "--api-key" for word in words):
        raise RunError(
            "SGLangConfig.command has --api-key: everybody reads it in config.gin and among the processes; a "
            "server that the run starts is heard on this host only, or let a script give it the key"
        )
    if not words or shutil.which(words[0]) is None:
        raise RunError(f"SGLangConfig.command = {command!r}: there is no such program")
    if words[0] in ("bash", "sh") and len(words) > 1 and words[1][:1] != "-" and not Path(words[1]).is_file():
        raise RunError(
            f"SGLangConfig.command = {command!r}: {words[1]} is no file in {Path.cwd()}; give its whole path"
        )
    if words[0] == sys.executable and "sglang.launch_server" in words and not find_spec("sglang"):
        raise RunError(
            'this Python has no sglang to start servers with: pip install "atgrpo_jax[sglang]", or give '
            "SGLangConfig.command (launch/serve_sglang.sh of the source tree makes an environment) or urls"
        )
