"""Programs to run and what became of them."""

import dataclasses
from typing import Literal, Protocol


@dataclasses.dataclass(frozen=True)
class Program:
    """A Python program and its standard input.

    With a ``harness`` the program is not run to print something, but to be called: the harness runs in a
    process of its own, in which each of ``names`` is a function that calls what the program knows under that
    name (an expression, e.g. "Solution().add"). Only plain data (numbers, strings, lists, dicts ...) go
    between the two, so whatever the program does to itself, the harness' output is the harness' own.
    """

    source: str
    stdin: str = ""
    harness: str = ""
    names: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Run:
    """How a program ended, or its harness if it has one.

    ``end``: "ok"; "error", an exception, a signal or an exit code; "timeout", of wall or CPU time; "limit",
    too much output or too many threads; "crash", the sandbox has failed and nothing is known.
    """

    end: Literal["ok", "error", "timeout", "limit", "crash"]
    stdout: str = ""
    stderr: str = ""  # its end
    built: bool = False  # the program is valid Python


class Runner(Protocol):
    """Runs programs apart from this process. Never raises because of what a program does."""

    async def run(self, program: Program) -> Run: ...
