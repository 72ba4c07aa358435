"""Runs an event loop in a thread of its own."""

import asyncio
import concurrent.futures
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

_T = TypeVar("_T")
_LOOK_S = 0.5  # seconds between two looks at whether work is done


class Background:
    """Runs an event loop in a thread, until it is closed.

    Each rollout has an event loop of its own. Connections to servers live in this one, so they
    survive from one rollout to the next.
    """

    def __init__(self, name: str = "sglang"):
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name=name, daemon=True)
        self._thread.start()

    def wait(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Runs ``work`` in the loop and returns its result. An interrupt cancels it."""
        future = asyncio.run_coroutine_threadsafe(work, self.loop)
        try:
            while not future.done():  # a signal that came to another thread is seen between waits
                concurrent.futures.wait((future,), _LOOK_S)
            return future.result()
        except BaseException:
            future.cancel()
            raise

    @property
    def closed(self) -> bool:
        return self.loop.is_closed()

    def close(self) -> None:
        self.wait(_end_others())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


async def _end_others() -> None:
    """Cancels all other tasks of the loop, and waits until they have ended."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for other in others:
        other.cancel()
    await asyncio.gather(*others, return_exceptions=True)
