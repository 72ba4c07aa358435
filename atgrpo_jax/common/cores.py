"""Knows the processor's cores that this process may use."""

import contextlib
import os
from collections.abc import Iterable, Iterator


def cores() -> list[int]:
    """Returns their numbers. Where a system does not say (macOS), all may be used."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


@contextlib.contextmanager
def kept_to(own: Iterable[int]) -> Iterator[None]:
    """Keeps this process to some cores, and with it what it starts meanwhile. Not all systems can."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, own)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
