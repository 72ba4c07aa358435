"""Runs a command until it ends or its parent is gone: ``python leash.py PARENT COMMAND...``.

PARENT is a process id. All that the command has started ends with it, and also if this process is
killed. This file imports nothing of the package, because it is started by its path.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time

GRACE_S = 10.0  # seconds between SIGTERM and SIGKILL


def guard() -> None:
    """Forks a process that kills this process's group as soon as this process has ended."""
    group = os.getpgid(0)
    ended, held = os.pipe()  # commands do not inherit it, so this process alone holds its end
    if os.fork() == 0:
        os.setpgid(0, 0)
        os.close(held)
        os.read(ended, 1)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)
        os._exit(0)
    os.close(ended)


def main(parent: int, command: list[str]) -> int:
    guard()
    # SIGTERM goes to the whole group. The leash does nothing then, so that it ends last.
    signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        server = subprocess.Popen(command)
    except OSError as error:
        print(f"cannot start {command[0]}: {error.strerror}", file=sys.stderr)
        return 127
    while server.poll() is None and os.getppid() == parent:
        time.sleep(0.2)
    if server.poll() is None:
        os.killpg(0, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(GRACE_S)
        os.killpg(0, signal.SIGKILL)  # all that the server had started, and this process
    return server.returncode


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
