"""Games of TextArena, for one player or two. A player's text goes to the game as it is.

TextArena is not among the extras of this package: its release needs openai, nltk and websockets, and some
of its games download word lists. ``pip install textarena==0.7.4`` brings it.
"""

import contextlib
import dataclasses
import importlib
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from typing import Any

from atgrpo_jax.common.checks import check_types, require
from atgrpo_jax.common.errors import one_line
from atgrpo_jax.tasks.environments.rules import BadAction, Rules, Scene

PACKAGE = "textarena"
LONGEST = 1000  # characters of an action
_OFFERED = re.compile(r"\[[^\[\]\n]{1,40}\]")  # how these games write actions


@dataclasses.dataclass
class Table:
    """A TextArena environment, what it shows, and the state of the random numbers that it goes on from."""

    env: Any
    chance: Any
    seat: int = 0
    text: str = ""
    done: bool = False
    rewards: Mapping[int, float] = dataclasses.field(default_factory=dict)  # of each seat, at the end
    forfeited: bool = False  # somebody made too many moves that the game does not know


@dataclasses.dataclass(frozen=True)
class TextArena(Rules):
    """A game of TextArena. The name of most has a form that ends in "-train", which shows the board.

    One player: solved if the reward is at least ``success``. Two players: solved if the game came to its
    end by its rules. A seat's value is 0 until then, and then (reward + 1) / 2: a victory is 1, a draw a
    half, a defeat 0.
    """

    id: str = ""  # e.g. "TicTacToe-v0-train"
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # arguments of ``textarena.make``
    players: int = 1  # each has a seat
    success: float = 1.0

    def __post_init__(self):
        check_types(self)
        require(self, "players", self.players in (1, 2), "must be 1 or 2")
        there = find_spec(PACKAGE) is not None
        require(self, "id", there, "needs TextArena: pip install textarena==0.7.4")
        try:
            self.start(0)
        except Exception as error:
            require(self, "id", False, f"it does not start: {type(error).__name__}: {one_line(error)}")

    @property
    def seats(self) -> int:  # type: ignore[override]
        return self.players

    def start(self, seed: int) -> Table:
        env = importlib.import_module(PACKAGE).make(self.id, **self.config)
        table = Table(env, random.Random(seed).getstate())
        with _own_chance(table):
            env.reset(num_players=self.players, seed=seed)
            table.seat, table.text = _shown(env)
        return table

    def step(self, game: Table, action: str) -> None:
        with _own_chance(game):
            try:
                game.done, _ = game.env.step(action=action)
                if game.done:
                    rewards, about = game.env.close()
                    game.rewards = dict(rewards or {})
                    game.forfeited = any(one.get("invalid_move") for one in about.values())
                    game.text = ""
                else:
                    game.seat, game.text = _shown(game.env)
            except Exception as error:  # of a text that the game's author did not think of
                raise BadAction(f"{type(error).__name__}: {one_line(error)}") from error

    def scene(self, game: Table) -> Scene:
        rewards = [float(game.rewards.get(seat, 0.0)) for seat in range(self.players)]
        fair = bool(game.done) and not game.forfeited
        if self.players == 1:
            values = [min(max(rewards[0], 0.0), 1.0)]
            solved = fair and rewards[0] >= self.success
        else:
            values = [min(max((reward + 1) / 2, 0.0), 1.0) * fair for reward in rewards]
            solved = fair
        return Scene(game.text, game.seat, tuple(values), bool(game.done), solved)

    def read(self, text: str) -> str | None:
        text = text.strip()
        return text if 0 < len(text) <= LONGEST else None

    def choices(self, game: Table) -> Sequence[str]:
        """Returns what the last lines offer in brackets, as these games write it."""
        return list(dict.fromkeys(_OFFERED.findall(game.text[-400:]))) or ["[0]"]


def _shown(env: Any) -> tuple[int, str]:
    seat, seen = env.get_observation()
    return seat, seen if isinstance(seen, str) else "\n".join(message for _, message, *_ in seen)


@contextlib.contextmanager
def _own_chance(table: Table) -> Iterator[None]:
    """Gives a game random numbers of its own: it draws them from ``random`` itself, as everybody does."""
    before = random.getstate()
    random.setstate(table.chance)
    try:
        yield
    finally:
        table.chance = random.getstate()
        random.setstate(before)
