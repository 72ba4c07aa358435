"""Tries calls in child processes, because some may hang, and others may end their process."""

import contextlib
import faulthandler
import json
import os
import select
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

EVALUATED = 77  # exit code of a process that evaluated a text as Python


def in_child(
    call: Callable[[Any], Any], given: Sequence[Any], patience: float
) -> Iterator[tuple[Any, Any, str]]:
    """Calls ``call`` with each of ``given`` in a child process.

    Yields (given, value, ""), or (given, None, how the process ended or that it hangs). A call
    hangs if it takes more than ``patience`` seconds. After one that hangs or ends the process, the
    others are tried in another child. Values go through JSON.
    """
    place = 0
    while place < len(given):
        left = given[place:]

        def each(send: Callable[[Any], None], left: Sequence[Any] = left) -> None:
            for one in left:
                send(call(one))

        child, answers = _forked(each, quiet=True)
        lines = _Lines(answers)
        try:
            while place < len(given):
                line = lines.next(patience)
                if line:
                    yield given[place], json.loads(line), ""
                else:
                    ending = f"does not end within {patience:g} seconds"
                    if line is not None:
                        status = os.waitpid(child, 0)[1]
                        child = 0
                        ending = _how(status)
                    yield given[place], None, ending
                place += 1
                if not line:
                    break
        finally:
            os.close(answers)
            if child:
                _end(child)


def watched(work: Callable[[Callable[[Any], None]], None], patience: float) -> Iterator[tuple[Any, str]]:
    """Does ``work`` in a child process.

    Yields (value, "") for each value that ``work`` sends, and at last (None, how the process ended)
    unless ``work`` came to its end. It ends the process if nothing is sent for ``patience`` seconds.
    Values go through JSON.
    """

    def whole(send: Callable[[Any], None]) -> None:
        work(send)
        send(None)

    for stream in (sys.stdout, sys.stderr):
        stream.flush()  # else the child has what was not written yet, too
    child, answers = _forked(whole, quiet=False)
    lines = _Lines(answers)
    try:
        while line := lines.next(patience):
            value = json.loads(line)
            if value is None:
                return
            yield value, ""
        if line is None:
            yield None, f"does not end within {patience:g} seconds"
        else:
            status = os.waitpid(child, 0)[1]
            child = 0
            yield None, _how(status)
    finally:
        os.close(answers)
        if child:
            _end(child)


def _end(child: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def _forked(work: Callable[[Callable[[Any], None]], None], quiet: bool) -> tuple[int, int]:
    """Starts a child that does ``work``, which is given a function that sends a value as a line.

    Returns its process id and the descriptor to read the lines from. If it is ``quiet``, it prints
    nothing.
    """
    answers, out = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fork warns of threads, which the child does not need
        child = os.fork()
    if child:
        os.close(out)
        return child, answers
    try:
        faulthandler.disable()
        if quiet:
            nothing = os.open(os.devnull, os.O_RDWR)
            for stream in (0, 1, 2):
                os.dup2(nothing, stream)
        with open(out, "wb", buffering=0) as pipe:

            def send(value: Any) -> None:
                pipe.write(json.dumps(value).encode() + b"\n")

            work(send)
        os._exit(0)
    except SystemExit as error:
        os._exit(error.code if isinstance(error.code, int) else 1)
    finally:
        os._exit(1)


class _Lines:
    """Reads lines from a descriptor."""

    def __init__(self, descriptor: int):
        self._descriptor = descriptor
        self._held = b""

    def next(self, patience: float) -> bytes | None:
        """Returns the next line; b"" if there are no more, None if it does not come in time."""
        while b"\n" not in self._held:
            if not select.select([self._descriptor], [], [], patience)[0]:
                return None
            more = os.read(self._descriptor, 1 << 16)
            if not more:
                return b""
            self._held += more
        line, _, self._held = self._held.partition(b"\n")
        return line


def _how(status: int) -> str:
    if os.WIFSIGNALED(status):
        return f"ends the process by {signal.Signals(os.WTERMSIG(status)).name}"
    code = os.WEXITSTATUS(status)
    if code == EVALUATED:
        return "is evaluated as Python, in the process of the run"
    return f"ends the process with code {code}"
