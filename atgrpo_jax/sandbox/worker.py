"""The process that runs programs one after another, each in a child of its own that has given up whatever it
could do harm with. Nothing but Python's own library is in its sight: this text, too, is handed to it.

A child finds in its memory whatever its worker has ever had in its own. So a worker reads no program, no test
and no output: it is handed open files (sandbox/files.py), passes them on, and says how the child ended.
"""

import contextlib
import gc
import importlib
import json
import os
import resource
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from atgrpo_jax.sandbox import kernel, program

# What programs import most: found loaded already.
_USUAL = (
    "bisect", "collections", "copy", "datetime", "decimal", "fractions", "functools", "heapq", "itertools",
    "json", "math", "operator", "random", "re", "statistics", "string", "threading", "traceback", "typing",
)  # fmt: skip
_WATCH_S = 0.05  # between looks at how many threads there are
_GIVEN = 5  # open files that a program, or its harness, is handed
_ASIDE, _RULES = 60, 70  # descriptors


def main(told: int) -> Callable[[], None]:
    """Returns only in the process of a program: what is to be run there, with no frame of ours below it.

    Args:
      told: a descriptor of the settings.
    """
    connection = socket.socket(fileno=os.dup(0))
    nothing = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1):
        os.dup2(nothing, standard)
    with os.fdopen(told, encoding="utf-8") as settings:
        worker = Worker(json.load(settings), connection)
    _send(connection, "ready")
    return worker.serve()


class Worker:
    """Settings: see ``pool._settings``."""

    def __init__(self, settings: dict[str, Any], connection: socket.socket):
        self._limits, self._connection = settings["limits"], connection
        self._user, self._blind = settings["user"], settings["root"] is not None
        sys.path[:], sys.orig_argv[:] = settings["path"], ["python", "program.py"]
        self._separate(settings)
        for name in (*_USUAL, *settings["packages"]):
            importlib.import_module(name)
        exec(settings["warm_up"], {"__name__": "warm_up"})
        self._rules = kernel.reading(settings["readable"]) if settings["files"] else None
        self._filter = kernel.computing() if settings["calls"] else None
        gc.collect()
        gc.freeze()

    def _separate(self, settings: dict[str, Any]) -> None:
        """What all programs do without. Raises OSError."""
        os.umask(0o022)
        if settings["root"] is not None:
            kernel.own_files(*settings["root"])
        if self._user:
            kernel.become(self._user)
            for path in settings["readable"]:
                if os.path.exists(path) and not os.access(path, os.R_OK):
                    raise PermissionError(f"{path} is not readable for other users")
        if settings["calls"]:
            kernel.deny_capabilities()

    def serve(self) -> Callable[[], None]:
        """See ``main``. A request is the files of a program or, one after the other, of a harness and its
        program; the answer says of each process why it was ended ("" if it was not) and its exit status."""
        while True:
            children = []
            parts = _parts(_receive(self._connection))
            for work, own in parts:
                pid = os.fork()
                if pid == 0:
                    self._connection.detach()  # no longer there: its number is another file's now
                    self._become(own, len(parts))
                    return work
                children.append(Child(pid))
                for opened in own:
                    os.close(opened)
            why = self._wait(children)
            _send(self._connection, [child.end(why, self._limits["cpu"]) for child in children])

    def _become(self, opened: Sequence[int], beside: int) -> None:
        """In a child: what is left are these files, from descriptor 0 on, and what a program needs."""
        try:
            _arrange(opened, self._rules)
            self._give_up(beside)
            os.write(program.NOTE, program.READY)
        except BaseException as error:
            os.write(2, f"the sandbox failed: {error!r}".encode())
            os._exit(1)

    def _give_up(self, beside: int) -> None:
        """Raises OSError if the kernel keeps what a program does not need.

        Args:
          beside: how many programs, this one included, run at once.
        """
        limits = self._limits
        cpu = limits["cpu"]
        resource.setrlimit(resource.RLIMIT_CPU, (cpu, cpu + 1))  # a signal of its own, then the end
        # As contests have it: with the usual 8 MB a cached function recurses some 20,000 times, no deeper.
        allowed = resource.getrlimit(resource.RLIMIT_STACK)[1]
        stack = limits["memory"] if allowed < 0 else min(allowed, limits["memory"])
        resource.setrlimit(resource.RLIMIT_STACK, (stack, allowed))
        for kind, most in (
            (resource.RLIMIT_AS, limits["memory"]),
            (resource.RLIMIT_FSIZE, limits["output"] + 1),
            (resource.RLIMIT_NOFILE, limits["open_files"]),
            (resource.RLIMIT_CORE, 0),
        ):
            resource.setrlimit(kind, (most, most))
        if self._filter is not None:
            self._limit_threads(limits["threads"], beside)
        kernel.end_with_parent()
        kernel.deny_privileges()
        if self._rules is not None:
            kernel.deny_files(_RULES)
            os.close(_RULES)
        if self._filter is not None:
            kernel.deny_calls(self._filter)

    def _limit_threads(self, most: int, beside: int) -> None:
        """The kernel counts them by user: of this process, with its worker, or alone in a namespace. Where
        neither can be had, and at level "limits", ``_wait`` counts, if it can see them."""
        if self._user and beside == 1:
            most += 1
        elif kernel.own_user():
            kernel.deny_capabilities()  # which it has in there
        elif self._user:
            most = 1 + beside * most
        elif self._blind:
            raise OSError("no further namespace, and threads cannot be counted")
        else:
            return
        resource.setrlimit(resource.RLIMIT_NPROC, (most, most))

    def _wait(self, children: "Sequence[Child]") -> str:
        """Until the first child has ended: "", or why it, and any other, has to be ended."""
        end = time.monotonic() + self._limits["wall"]
        watch = select.poll()
        watch.register(children[0].handle, select.POLLIN)
        watch.register(self._connection, select.POLLIN)
        while True:
            left = end - time.monotonic()
            if left <= 0:
                return "timeout"
            ready = [opened for opened, _ in watch.poll(1000 * min(left, _WATCH_S) + 1)]
            if children[0].handle in ready:
                return ""
            if ready:  # no request is due: nobody waits any more
                for child in children:
                    child.end("", 0)
                sys.exit()
            if any(child.threads() > self._limits["threads"] for child in children):
                return "limit"


class Child:
    """A process that runs a program or a harness."""

    def __init__(self, pid: int):
        self._pid = pid
        self.handle = os.pidfd_open(pid)

    def threads(self) -> int:
        """0 where it cannot be seen."""
        with contextlib.suppress(OSError):
            return len(os.listdir(f"/proc/{self._pid}/task"))
        return 0

    def end(self, why: str, cpu: int) -> tuple[str, int]:
        """Why it was ended, "" if it has ended by itself, and its exit status."""
        signal.pidfd_send_signal(self.handle, signal.SIGKILL)  # nothing to one that has ended
        _, status, used = os.wait4(self._pid, 0)
        os.close(self.handle)
        number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        spent = used.ru_utime + used.ru_stime
        if number == signal.SIGXCPU or (number == signal.SIGKILL and spent >= cpu):
            why = why or "timeout"
        return why, status


def _parts(handed: Sequence[int]) -> list[tuple[Callable[[], None], Sequence[int]]]:
    """What each process has to do and the files that it is given; a program only once its tests are gone."""
    if len(handed) == _GIVEN:
        return [(program.run, handed)]
    (asked, ask), (told, tell) = os.pipe(), os.pipe()
    harness = (program.check, (*handed[:_GIVEN], told, ask))
    served = (program.serve, (*handed[_GIVEN:], asked, tell))
    return [harness, served]


def _arrange(opened: Sequence[int], rules: int | None) -> None:
    """Gives a child its descriptors, from 0 on, and closes all others."""
    for number, descriptor in enumerate(opened):
        os.dup2(descriptor, _ASIDE + number)
    if rules is not None:
        os.dup2(rules, _RULES)
    for number in range(len(opened)):
        os.dup2(_ASIDE + number, number)
    os.closerange(len(opened), _RULES)
    os.closerange(_RULES + (rules is not None), 4096)


def _receive(connection: socket.socket) -> list[int]:
    """The files of a request. Ends the process if nobody asks any more."""
    _, handed, _, _ = socket.recv_fds(connection, 1, 2 * _GIVEN)
    return handed or sys.exit()


def _send(connection: socket.socket, answer: Any) -> None:
    connection.sendall(json.dumps(answer).encode())
