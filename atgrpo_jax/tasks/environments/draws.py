"""Draws instances of environments that make one from a seed."""

import functools
from collections.abc import Callable, Hashable
from typing import Any

from atgrpo_jax.common.types import seed_of
from atgrpo_jax.tasks.splits import in_split

TRIES = 400  # seeds that are tried for one instance; one in eight is of "validation" or "test"


class Draws:
    """The instances of all splits. The content of an instance decides its split, so no two splits share one.

    An environment may make the same instance from many seeds. "train" has it so often, and never ends.
    Another split has it once, and ends where no new one is found.

    Args:
      make: makes an instance from a seed of 31 bits; it is a pure function.
      content: returns what two equal instances have in common.
      words: name the environment and its settings; they and ``seed`` decide what is drawn.
    """

    def __init__(self, make: Callable[[int], Any], content: Callable[[Any], Hashable], words: str, seed: int):
        self._make = make
        self._content = content
        self._words = words
        self._seed = seed
        self._held: dict[str, dict[Hashable, Any]] = {}  # split -> its first instances, by content
        self._train = functools.lru_cache(maxsize=4096)(lambda index: self._next("train", index, {}))

    def at(self, split: str, index: int) -> Any:
        """Returns an instance. Raises IndexError past the last one of a split, and ValueError for an
        unknown split or one that has no instance."""
        if split == "train":
            return self._train(index)
        held = self._held.setdefault(split, {})
        while len(held) <= index:
            found = self._next(split, len(held), held)
            held[self._content(found)] = found
        return list(held.values())[index]

    def _next(self, split: str, index: int, known: dict[Hashable, Any]) -> Any:
        for number in range(TRIES):
            seed = seed_of(self._words, self._seed, split, index, number) % (1 << 31)
            found = self._make(seed)
            content = self._content(found)
            if content not in known and in_split(content, split):
                return found
        few = f"{self._words} makes too few different instances"
        if known:
            raise IndexError(f"{few}: {split} has {len(known)}")
        raise ValueError(f"{few}: of {TRIES} seeds, none makes one of {split}; change its settings")
