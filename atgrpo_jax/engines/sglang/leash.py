"""``python leash.py PARENT COMMAND...``: runs the command until it ends, or until the parent is gone.

What the command has started ends with it. If this process is killed, that ends all of them, too.

Stands alone: it is started by its path, in whatever environment a server needs.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time

GRACE_S = 10.0


def guard() -> None:
    """Leaves a process behind that ends this one's group as soon as this one has ended, however it did."""
    group = os.getpgid(0)
    ended, held = os.pipe()  # not inherited by commands, so this process alone holds its end
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
    signal.signal(signal.SIGTERM, lambda *_: None)  # the whole group is asked to end; the leash goes last
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
        os.killpg(0, signal.SIGKILL)  # what the server had started, and this process
    return server.returncode


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
