"""Runs coroutines from plain functions, in scripts, threads and notebooks."""

import asyncio
import contextlib
import threading
from collections.abc import Coroutine
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any, TypeVar

T = TypeVar("T")
_here = threading.local()  # ``loop``: the event loop that ``run_here`` runs in this thread


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine to its end, and returns its result.

    Notebooks run an event loop of their own, and Python runs no loop inside another one. There the
    coroutine gets a thread. If the caller is interrupted meanwhile, the coroutine is cancelled.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return run_here(coroutine)
    return _in_a_thread(coroutine)


def run_here(coroutine: Coroutine[Any, Any, T]) -> T:
    """Does what ``run`` does where no event loop runs."""
    return asyncio.run(_marked(coroutine))


def running_loop() -> asyncio.AbstractEventLoop | None:
    """Returns the event loop that ``run_here`` runs in this thread now; None if there is none."""
    return getattr(_here, "loop", None)


async def _marked(coroutine: Coroutine[Any, Any, T]) -> T:
    _here.loop = asyncio.get_running_loop()
    try:
        return await coroutine
    finally:
        _here.loop = None


def _in_a_thread(coroutine: Coroutine[Any, Any, T]) -> T:
    begun: Future[tuple[asyncio.AbstractEventLoop, asyncio.Task]] = Future()

    async def main() -> T:
        task = asyncio.current_task()
        assert task is not None
        begun.set_result((asyncio.get_running_loop(), task))
        return await coroutine

    with ThreadPoolExecutor(1, "coroutine") as pool:
        done = pool.submit(asyncio.run, main())
        try:
            return done.result()
        except BaseException:
            either: list[Future[Any]] = [begun, done]
            wait(either, return_when=FIRST_COMPLETED)
            if not done.done():  # the caller was interrupted
                loop, task = begun.result()
                with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
                    loop.call_soon_threadsafe(task.cancel)
            raise
