"""Defines what the step-wise task needs to know of a game, and replays games from their actions."""

import abc
import collections
import copy
import dataclasses
import random
from collections.abc import Sequence
from typing import Any, ClassVar

from atgrpo_jax.common.types import Board, seed_of

KEPT = 512  # games of each task that are kept as they stand
CHECKED_SEEDS, CHECKED_STEPS = range(3), 20  # that are played to see whether a game is deterministic


class BadAction(ValueError):
    """Raised by ``Rules.step`` for a text that the game cannot carry out. It costs the player a turn."""


@dataclasses.dataclass(frozen=True)
class Scene:
    """What a game shows after some actions."""

    text: str  # for the seat that moves
    seat: int  # whose move it is, from 0
    values: tuple[float, ...]  # how well each seat stands, from 0 to 1
    done: bool
    solved: bool
    board: Board | None = None  # for people; the text, if there is none


@dataclasses.dataclass(frozen=True)
class Rules(abc.ABC):
    """A game that somebody wrote, as a config. ``game`` is an object of the library that it comes from.

    It must do the same whenever it is given the same seed and actions. Actions are texts.
    """

    seats: ClassVar[int] = 1  # players

    @abc.abstractmethod
    def start(self, seed: int) -> Any:
        """Returns a new game, at its beginning."""

    @abc.abstractmethod
    def step(self, game: Any, action: str) -> None:
        """Carries out an action, and so changes ``game``. Raises BadAction for one that cannot be."""

    @abc.abstractmethod
    def scene(self, game: Any) -> Scene: ...

    @abc.abstractmethod
    def read(self, text: str) -> str | None:
        """Returns the action in what a player said; None if there is none."""

    @abc.abstractmethod
    def choices(self, game: Any) -> Sequence[str]:
        """Returns some actions that the player who moves may try; at least one."""

    def best(self, game: Any) -> str | None:
        """Returns the best action, to be demonstrated; None if nobody knows it."""
        return None


class Replays:
    """Answers what a game shows after a list of actions, and so needs no state but the list.

    A game that ``copy.deepcopy`` can copy is stepped on from where it was; any other one is played again
    from its start. So many (``kept``) are remembered.

    Raises ValueError, with the step, for a game that is not deterministic under its seed.
    """

    def __init__(self, rules: Rules, kept: int = KEPT):
        self._rules = rules
        self._most = kept
        self._kept: collections.OrderedDict[tuple[int, tuple[str, ...]], tuple[Any, Scene]] = (
            collections.OrderedDict()
        )
        self.copies = all([self._checked(seed) for seed in CHECKED_SEEDS])

    def scene(self, seed: int, actions: tuple[str, ...]) -> Scene:
        """Returns what is shown after ``actions``. Raises BadAction if the last one cannot be carried out."""
        return self._at(seed, actions)[1]

    def choices(self, seed: int, actions: tuple[str, ...]) -> Sequence[str]:
        return self._rules.choices(self._game(seed, actions))

    def best(self, seed: int, actions: tuple[str, ...]) -> str | None:
        return self._rules.best(self._game(seed, actions))

    def _game(self, seed: int, actions: tuple[str, ...]) -> Any:
        game = self._at(seed, actions)[0]
        return self._played(seed, actions) if game is None else game

    def _at(self, seed: int, actions: tuple[str, ...]) -> tuple[Any, Scene]:
        key = seed, actions
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        before = self._kept.get((seed, actions[:-1]), (None, None))[0] if actions else None
        if before is None:
            game = self._played(seed, actions)
        else:
            game = copy.deepcopy(before)
            self._rules.step(game, actions[-1])
        # What cannot be copied is not kept: somebody might step it on.
        self._kept[key] = (game if self.copies else None), self._rules.scene(game)
        if len(self._kept) > self._most:
            self._kept.popitem(last=False)
        return self._kept[key]

    def _played(self, seed: int, actions: Sequence[str]) -> Any:
        game = self._rules.start(seed)
        for action in actions:
            self._rules.step(game, action)
        return game

    def _checked(self, seed: int) -> bool:
        """Plays random actions twice, and returns whether copies of the game play as it does."""
        rng = random.Random(seed_of("replays", seed))
        game = self._rules.start(seed)
        actions: list[str] = []
        scenes = [self._rules.scene(game)]
        while not scenes[-1].done and len(actions) < CHECKED_STEPS:
            action = rng.choice(list(self._rules.choices(game)))
            try:
                self._rules.step(game, action)
            except BadAction:
                break
            actions.append(action)
            scenes.append(self._rules.scene(game))
        again = self._rules.start(seed)
        for number, scene in enumerate(scenes):
            if number:
                self._rules.step(again, actions[number - 1])
            other = self._rules.scene(again)
            if other != scene:
                raise ValueError(_difference(seed, actions[:number], scene, other))
        return self._copied(seed, actions) == scenes

    def _copied(self, seed: int, actions: Sequence[str]) -> list[Scene] | None:
        """Returns what is shown if every step is made in a copy; None if there are no copies."""
        game = self._rules.start(seed)
        scenes = [self._rules.scene(game)]
        for action in actions:
            try:
                after = copy.deepcopy(game)
            except Exception:  # what copying raises is the library's affair; the game is replayed instead
                return None
            self._rules.step(after, action)
            if self._rules.scene(game) != scenes[-1]:  # the copy shares something with it
                return None
            game = after
            scenes.append(self._rules.scene(game))
        return scenes


def _difference(seed: int, actions: Sequence[str], one: Scene, other: Scene) -> str:
    fields = [f.name for f in dataclasses.fields(Scene)]
    name = next(name for name in fields if getattr(one, name) != getattr(other, name))
    return (
        f"is not deterministic under its seed: with seed {seed} its {name} differs at step {len(actions)} "
        f"(after {' '.join(actions[-3:]) or 'the start'}): {str(getattr(one, name))[:60]!r} and then "
        f"{str(getattr(other, name))[:60]!r}"
    )
