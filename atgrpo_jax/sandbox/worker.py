"""The process that runs programs one after another, each in a child of its own that has given up whatever it
could do harm with. Started by sandbox/pool.py; nothing but Python's own library is in its sight.

Requests and answers are JSON, after four bytes of length. The first request says what is in force.
"""

import contextlib
import gc
import importlib
import json
import os
import resource
import select
import signal
import struct
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
_LAST = 4000  # bytes of stderr that are kept
_ASIDE, _RULES = 60, 70  # descriptors


def main() -> None:
    requests, answers = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1):
        os.dup2(nothing, standard)
    worker = Worker(_receive(requests), requests)
    _send(answers, {"ready": True})
    while True:
        _send(answers, worker.run(_receive(requests)))


class Worker:
    def __init__(self, settings: dict[str, Any], requests: int):
        """Settings: see ``pool.Sandbox``. ``requests`` is only watched: whoever asks may be gone."""
        self._settings, self._requests = settings, requests
        sys.path[:] = settings["path"]
        for name in [name for name in sys.modules if name.startswith("atgrpo_jax")]:
            del sys.modules[name]  # none of a program's business
        for name in (*_USUAL, *settings["packages"]):
            importlib.import_module(name)
        exec(settings["warm_up"], {"__name__": "warm_up"})
        self._rules = kernel.reading(settings["readable"]) if settings["files"] else None
        gc.collect()
        gc.freeze()

    def run(self, request: dict[str, Any]) -> dict[str, Any]:
        """Runs a ``Program``, given as a dict; a ``Run`` as a dict."""
        source, harness = request["source"], request["harness"]
        with contextlib.ExitStack() as stack:
            if not harness:
                child = Child(self, lambda: program.run(source), request["stdin"], ())
                stack.callback(child.close)
                return child.result(self._settings, self._wait([child]))
            (ask, asked), (tell, told) = os.pipe()[::-1], os.pipe()[::-1]
            # The program hears what is asked, and tells; the harness asks, and hears.
            served = Child(self, lambda: program.serve(source), request["stdin"], (asked, tell))
            stack.callback(served.close)
            names = request["names"]
            tester = Child(self, lambda: program.check(harness, names), "", (told, ask))
            stack.callback(tester.close)
            for end in (ask, asked, tell, told):
                os.close(end)
            found = tester.result(self._settings, self._wait([tester, served]))
            return found | {"built": served.built()} | ({} if served.ready() else {"end": "crash"})

    def give_up(self) -> None:
        """In a child: whatever a program does not need. Raises OSError if the kernel keeps it."""
        settings = self._settings
        cpu = settings["cpu"]
        resource.setrlimit(resource.RLIMIT_CPU, (cpu, cpu + 1))  # a signal of its own, then the end
        for kind, most in (
            (resource.RLIMIT_AS, settings["memory"]),
            (resource.RLIMIT_FSIZE, settings["output"] + 1),
            (resource.RLIMIT_NOFILE, settings["open_files"]),
            (resource.RLIMIT_CORE, 0),
        ):
            resource.setrlimit(kind, (most, most))
        kernel.end_with_parent()
        kernel.deny_privileges()
        if self._rules is not None:
            kernel.deny_files(_RULES)
            os.close(_RULES)
        if settings["calls"]:
            kernel.deny_calls()

    @property
    def rules(self) -> int | None:
        return self._rules

    def _wait(self, children: "Sequence[Child]") -> str:
        """Until the first child has ended, or was ended: why."""
        end = time.monotonic() + self._settings["wall"]
        watch = select.poll()
        watch.register(children[0].handle, select.POLLIN)
        watch.register(self._requests, select.POLLIN)
        while True:
            left = end - time.monotonic()
            if left <= 0:
                return "timeout"
            ready = [opened for opened, _ in watch.poll(1000 * min(left, _WATCH_S) + 1)]
            if children[0].handle in ready:
                return ""
            if self._requests in ready:  # no request is due: nobody waits any more
                for child in children:
                    child.close()
                sys.exit()
            if any(child.threads() > self._settings["threads"] for child in children):
                return "limit"


class Child:
    """A process that runs ``work`` after it has given up everything else.

    Its descriptors: standard input, output and error, ``program.NOTE``, and then ``kept``.
    """

    def __init__(self, worker: Worker, work: Callable[[], None], stdin: str, kept: Sequence[int]):
        given, self._out, self._err, self._note = (os.memfd_create("") for _ in range(4))
        with open(given, "wb", closefd=False) as file:
            file.write(stdin.encode(errors="replace"))
        os.lseek(given, 0, os.SEEK_SET)
        opened = (given, self._out, self._err, self._note, *kept)
        self._pid = os.fork()
        if self._pid == 0:
            try:
                _arrange(opened, worker.rules)
                worker.give_up()
                os.write(program.NOTE, b".")
                work()
            except BaseException as error:
                os.write(2, f"the sandbox failed: {error!r}".encode())
            finally:
                os._exit(1)
        os.close(given)
        self.handle = os.pidfd_open(self._pid)
        self._closed = False

    def built(self) -> bool:
        return os.pread(self._note, 16, 0) == b"." + program.BUILT

    def ready(self) -> bool:
        """It has given up what it had to."""
        return os.pread(self._note, 1, 0) == b"."

    def threads(self) -> int:
        """0 where it cannot be seen."""
        with contextlib.suppress(OSError):
            return len(os.listdir(f"/proc/{self._pid}/task"))
        return 0

    def result(self, settings: dict[str, Any], why: str) -> dict[str, Any]:
        """What it has left, as a ``Run``; ``why`` it is ended, if it has not ended by itself."""
        if why:
            signal.pidfd_send_signal(self.handle, signal.SIGKILL)
        _, status, used = os.wait4(self._pid, 0)
        self._pid = 0
        number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        spent = used.ru_utime + used.ru_stime
        if number == signal.SIGXCPU or (number == signal.SIGKILL and spent >= settings["cpu"]):
            why = why or "timeout"
        out = os.pread(self._out, settings["output"] + 1, 0)
        size = os.fstat(self._err).st_size
        if len(out) > settings["output"] or size > settings["output"]:
            why = why or "limit"
        err = os.pread(self._err, _LAST, max(0, size - _LAST))
        words = f"ended by {signal.Signals(number).name}\n".encode() if number and not why else b""
        return {
            "end": why or ("error" if status else "ok") if self.ready() else "crash",
            "stdout": out[: settings["output"]].decode(errors="replace"),
            "stderr": (err + words).decode(errors="replace"),
            "built": self.built(),
        }

    def close(self) -> None:
        """Ends it, if it has not ended."""
        if self._closed:
            return
        self._closed = True
        if self._pid:
            signal.pidfd_send_signal(self.handle, signal.SIGKILL)
            os.waitpid(self._pid, 0)
        for opened in (self.handle, self._out, self._err, self._note):
            os.close(opened)


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


def _receive(requests: int) -> dict[str, Any]:
    """Ends the process if nobody asks any more."""
    (length,) = struct.unpack("<I", _read(requests, 4))
    return json.loads(_read(requests, length))


def _read(requests: int, length: int) -> bytes:
    data = b""
    while len(data) < length:
        more = os.read(requests, min(length - len(data), 1 << 20))
        if not more:
            sys.exit()
        data += more
    return data


def _send(answers: int, message: dict[str, Any]) -> None:
    data = json.dumps(message).encode()
    data = struct.pack("<I", len(data)) + data
    while data:
        data = data[os.write(answers, data) :]
