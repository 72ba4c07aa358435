"""Plays the instances that this host takes, one after the other as it gets free."""

import asyncio
from collections.abc import Awaitable, Callable

from atgrpo_jax.common.types import Episode


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
