"""Runs the parts of a probe one by one. A part that fails is a result, and the others go on."""

import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from atgrpo_jax.common.errors import UserError, one_line


class Found(NamedTuple):
    """Holds what a part found."""

    line: str  # for people
    values: Mapping[str, Any]  # the same for programs, and more; plain values for JSON
    skipped: bool = False  # whether there is nothing to look at on this machine; the line says why


class Result(NamedTuple):
    """Holds what became of a part. Either ``found`` or ``fault`` is None."""

    part: str
    seconds: float
    found: Found | None
    fault: str | None = None  # what went wrong, on one line
    trace: str = ""  # where in the code, unless the fault says itself what to do

    def value(self, name: str) -> Any:
        """Returns a value that the part found; None if there is none, or the part failed."""
        return None if self.found is None else self.found.values.get(name)


def tried(part: str, work: Callable[[], Found]) -> Result:
    """Runs a part. Any error but a stop becomes the result's ``fault``."""
    began = time.perf_counter()
    try:
        found = work()
    except UserError as error:
        return Result(part, time.perf_counter() - began, None, one_line(error))
    except Exception as error:
        fault = f"{type(error).__name__}: {one_line(error)}"
        return Result(part, time.perf_counter() - began, None, fault, traceback.format_exc())
    return Result(part, time.perf_counter() - began, found)
