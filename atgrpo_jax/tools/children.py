"""Tries calls in child processes, because some may hang, and others may end their process."""

import contextlib
import faulthandler
import json
import os
import select
import signal
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
        child, answers = _forked(call, given[place:])
        try:
            while place < len(given):
                line = _line(answers, patience)
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
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)


def _forked(call: Callable[[Any], Any], given: Sequence[Any]) -> tuple[int, int]:
    """Starts a child that writes a line for each of ``given``.

    Returns its process id and the descriptor to read the lines from.
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
        quiet = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(quiet, stream)
        for one in given:
            os.write(out, json.dumps(call(one)).encode() + b"\n")
        os._exit(0)
    except SystemExit as error:
        os._exit(error.code if isinstance(error.code, int) else 1)
    finally:
        os._exit(1)


def _line(answers: int, patience: float) -> bytes | None:
    """Reads the next line; returns b"" if there are no more, None if it does not come in time."""
    line = b""
    while not line.endswith(b"\n"):
        if not select.select([answers], [], [], patience)[0]:
            return None
        letter = os.read(answers, 1)
        if not letter:
            return b""
        line += letter
    return line


def _how(status: int) -> str:
    if os.WIFSIGNALED(status):
        return f"ends the process by {signal.Signals(os.WTERMSIG(status)).name}"
    code = os.WEXITSTATUS(status)
    if code == EVALUATED:
        return "is evaluated as Python, in the process of the run"
    return f"ends the process with code {code}"
