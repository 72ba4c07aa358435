"""Runs programs one after another, each in a child process that has given up all means to do harm.

The worker sees nothing but Python's own library. Even this source is sent to it.

A child starts with everything in its memory that its worker has ever had there. So a worker reads
no program, no test and no output. It gets open files (sandbox/files.py), passes them on, and says
how the child ended.
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

from atgrpo_jax.sandbox import kernel, program, system_calls

# The modules that programs import most. They are already loaded when a program starts.
_USUAL = (
    "bisect", "collections", "copy", "datetime", "decimal", "fractions", "functools", "heapq", "itertools",
    "json", "math", "operator", "random", "re", "statistics", "string", "threading", "traceback", "typing",
)  # fmt: skip
_WATCH_S = 0.05  # seconds between two counts of a program's threads
_GIVEN = 5  # number of open files that a program gets; a harness gets as many
# Descriptors.
_ASIDE = 60  # the first of those that are moved
_RULES = 70  # the Landlock ruleset


def main(told: int) -> Callable[[], None]:
    """Serves requests. Returns only in the process of a program: the function to run there.

    The function is called after this returns, so that no frame of the worker is below it.

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
    """The worker's side of ``process.Worker``. ``start.settings`` makes its settings."""

    def __init__(self, settings: dict[str, Any], connection: socket.socket):
        self._limits = settings["limits"]
        self._connection = connection
        self._user = settings["user"]
        self._blind = settings["root"] is not None
        sys.path[:] = settings["path"]
        sys.orig_argv[:] = ["python", "program.py"]
        self._separate(settings)
        for name in (*_USUAL, *settings["packages"]):
            importlib.import_module(name)
        exec(settings["warm_up"], {"__name__": "warm_up"})
        self._rules = kernel.reading(settings["readable"]) if settings["files"] else None
        self._filter = system_calls.computing() if settings["calls"] else None
        gc.collect()
        gc.freeze()

    def _separate(self, settings: dict[str, Any]) -> None:
        """Gives up what no program needs, once for all of them. Raises OSError."""
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
        """Serves requests, and returns as ``main`` does.

        A request holds the files of a program, or those of a harness followed by those of its
        program. The answer says for each process why it was ended ("" if it was not) and its exit
        status.
        """
        while True:
            children = []
            parts = _parts(_receive(self._connection))
            for work, own in parts:
                pid = os.fork()
                if pid == 0:
                    self._connection.detach()  # its descriptor will be used for another file
                    self._become(own, len(parts))
                    return work
                children.append(Child(pid))
                for opened in own:
                    os.close(opened)
            why = self._wait(children)
            _send(self._connection, [child.end(why, self._limits["cpu_s"]) for child in children])

    def _become(self, opened: Sequence[int], beside: int) -> None:
        """Leaves a child only these files, from descriptor 0 on, and the rights that it needs."""
        try:
            _arrange(opened, self._rules)
            self._give_up(beside)
            os.write(program.NOTE, program.READY)
        except BaseException as error:
            os.write(2, f"the sandbox failed: {error!r}".encode())
            os._exit(1)

    def _give_up(self, beside: int) -> None:
        """Sets limits and gives up rights. Raises OSError if the kernel does not allow it.

        Args:
          beside: the number of processes of this request, this one included.
        """
        limits = self._limits
        cpu = limits["cpu_s"]
        resource.setrlimit(resource.RLIMIT_CPU, (cpu, cpu + 1))  # first SIGXCPU, then SIGKILL
        # The stack is as large as in programming contests. With the usual 8 MB a cached function
        # can recurse only some 20,000 times.
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
        """Lets the kernel limit the number of threads. Raises OSError if nobody could count them.

        The kernel counts by user: the worker's own user, or a user namespace of this process alone.
        Where there is neither, and at level "limits", ``_wait`` counts, if it can see the threads.
        """
        if self._user and beside == 1:
            most += 1
        elif kernel.own_user():
            kernel.deny_capabilities()  # the process has all of them in its new namespace
        elif self._user:
            most = 1 + beside * most
        elif self._blind:
            raise OSError("no further namespace, and threads cannot be counted")
        else:
            return
        resource.setrlimit(resource.RLIMIT_NPROC, (most, most))

    def _wait(self, children: "Sequence[Child]") -> str:
        """Waits until the first child has ended. Returns "", or why all children must be ended."""
        end = time.monotonic() + self._limits["wall_s"]
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
            if ready:  # no request is due, so the trainer has closed the connection
                for child in children:
                    child.end("", 0)
                sys.exit()
            if any(child.threads() > self._limits["threads"] for child in children):
                return "limit"


class Child:
    """A child process that runs a program or a harness."""

    def __init__(self, pid: int):
        self._pid = pid
        self.handle = os.pidfd_open(pid)

    def threads(self) -> int:
        """Returns the number of threads; 0 where it cannot be seen."""
        with contextlib.suppress(OSError):
            return len(os.listdir(f"/proc/{self._pid}/task"))
        return 0

    def end(self, why: str, cpu: int) -> tuple[str, int]:
        """Ends the process. Returns why it was ended ("" if by itself) and its exit status."""
        signal.pidfd_send_signal(self.handle, signal.SIGKILL)  # has no effect if it has ended
        _, status, used = os.wait4(self._pid, 0)
        os.close(self.handle)
        number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        spent = used.ru_utime + used.ru_stime
        if number == signal.SIGXCPU or (number == signal.SIGKILL and spent >= cpu):
            why = why or "timeout"
        return why, status


def _parts(handed: Sequence[int]) -> list[tuple[Callable[[], None], Sequence[int]]]:
    """Returns the function and the files of each process.

    The harness comes first: ``Worker.serve`` closes its files before it starts the program, so that
    the program cannot see its tests.
    """
    if len(handed) == _GIVEN:
        return [(program.run, handed)]
    asked, ask = os.pipe()
    told, tell = os.pipe()
    harness = (program.check, (*handed[:_GIVEN], told, ask))
    served = (program.serve, (*handed[_GIVEN:], asked, tell))
    return [harness, served]


def _arrange(opened: Sequence[int], rules: int | None) -> None:
    """Gives a child its descriptors, from 0 on, and closes all others except the ruleset."""
    for number, descriptor in enumerate(opened):
        os.dup2(descriptor, _ASIDE + number)
    if rules is not None:
        os.dup2(rules, _RULES)
    for number in range(len(opened)):
        os.dup2(_ASIDE + number, number)
    os.closerange(len(opened), _RULES)
    os.closerange(_RULES + (rules is not None), 4096)


def _receive(connection: socket.socket) -> list[int]:
    """Returns the files of a request. Ends the process if the connection is closed."""
    _, handed, _, _ = socket.recv_fds(connection, 1, 2 * _GIVEN)
    return handed or sys.exit()


def _send(connection: socket.socket, answer: Any) -> None:
    connection.sendall(json.dumps(answer).encode())
