"""Programs to run and what became of them."""

import dataclasses
from typing import Literal, Protocol

End = Literal["ok", "error", "timeout", "limit", "crash"]


@dataclasses.dataclass(frozen=True)
class Program:
    """A Python program and its standard input. ``before`` is run first, in the same module, called ``name``.

    With a ``harness`` the program is not run to print something, but to be called: the harness runs in a
    process of its own, in which each of ``names`` is a function that calls what the program knows under that
    name (an expression, e.g. "Solution().add"). Only plain data go between the two (numbers, strings, lists,
    dicts ..., and objects with such attributes, of classes that both define under one name), so whatever the
    program does to itself, the harness' output is the harness' own. A call that ends the program ends the
    harness, too.
    """

    source: str
    stdin: str = ""
    harness: str = ""
    names: tuple[str, ...] = ()
    before: str = ""
    name: str = "__main__"


@dataclasses.dataclass(frozen=True)
class Run:
    """How a program ended or, if it has one, its harness; if the program was first, how the program did.

    ``end``: "ok"; "error", an exception, a signal or an exit code; "timeout", of wall or CPU time; "limit",
    too much output or too many threads; "crash", the sandbox has failed and nothing is known.
    """

    end: End
    stdout: str = ""
    stderr: str = ""  # its end
    built: bool = False  # the program is valid Python


class Runner(Protocol):
    """Runs programs apart from this process. Never raises because of what a program does."""

    async def run(self, program: Program) -> Run: ...
