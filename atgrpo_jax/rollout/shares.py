"""Plays the instances that this host takes, one after the other as it gets free."""

import asyncio
from collections.abc import Awaitable, Callable

from atgrpo_jax.common.types import Episode


class Shown:
    """Calls ``on_done`` about as often as all hosts together have played an instance.

    A host knows what it played, and how many instances all hosts have taken. At most ``at_once`` of
    these are still being played.
    """

    def __init__(self, on_done: Callable[[], None], at_once: int):
        self._on_done = on_done
        self._at_once = at_once
        self._own = 0
        self._shown = 0

    def played(self, taken: int) -> None:
        """Notes that an instance was played here, after so many were taken by all hosts."""
        self._own += 1
        self.show(max(self._own, taken - self._at_once))

    def show(self, done: int) -> None:
        while self._shown < done:
            self._shown += 1
            self._on_done()


async def share(
    play: Callable[[int], Awaitable[list[Episode]]], taken: Callable[[], int], count: int, at_once: int
) -> list[Episode]:
    """Returns the episodes of the instances that were played here, in no order.

    Args:
      play: plays an instance, by its number.
      taken: gives the number of the next instance; all hosts share the numbers.
      count: number of instances; there are none from this number on.
      at_once: how many are played at the same time.
    """
    played: list[Episode] = []

    async def player() -> None:
        while (number := taken()) < count:
            played.extend(await play(number))

    await asyncio.gather(*(player() for _ in range(at_once)))
    return played
