"""Defines programs to run, and how they ended."""

import dataclasses
from typing import Literal, Protocol

End = Literal["ok", "error", "timeout", "limit", "crash"]


@dataclasses.dataclass(frozen=True)
class Program:
    """A Python program and its standard input.

    ``before`` is run first, in the same module, whose name is ``name``.

    With a ``harness`` the program is not run for its output: the harness calls it. The harness runs
    in a process of its own. There, each of ``names`` is a function that calls the object to which
    this expression (e.g. "Solution().add") evaluates in the program. Only plain data pass between
    the two: numbers, strings, lists, dicts and so on, and objects with such attributes whose class
    both sides define under the same name. So the program cannot change what the harness prints. A
    call that ends the program ends the harness, too.
    """

    source: str
    stdin: str = ""
    harness: str = ""
    names: tuple[str, ...] = ()
    before: str = ""
    name: str = "__main__"


@dataclasses.dataclass(frozen=True)
class ProgramResult:
    """The way in which a program ended.

    With a harness it says how the harness ended, or how the program ended if that came first.

    ``end`` is "ok"; "error" (an exception, a signal or an exit code); "timeout" (of wall or CPU
    time); "limit" (too much output or too many threads); or "crash" (the sandbox failed, and
    nothing is known about the program).
    """

    end: End
    stdout: str = ""
    stderr: str = ""  # the last part of it
    built: bool = False  # whether the program is valid Python


class Runner(Protocol):
    """A runner of programs outside of this process. Nothing that a program does makes it raise."""

    async def run(self, program: Program) -> ProgramResult: ...
