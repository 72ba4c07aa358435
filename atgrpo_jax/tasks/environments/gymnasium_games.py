"""Games of Gymnasium whose actions are few and have names, and whose observations become text."""

import collections
import dataclasses
import functools
import importlib
import re
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any, Literal

from atgrpo_jax.common.checks import check_types, require
from atgrpo_jax.common.types import Board
from atgrpo_jax.tasks.environments.rules import Rules, Scene

PACKAGE = "gymnasium"
LOOKED_AT = 200  # last characters of a text in which an action is looked for
_COLOURED = re.compile(r"\x1b\[[0-9;]*m(.*?)\x1b\[0m", re.DOTALL)


@dataclasses.dataclass
class Table:
    """A Gymnasium environment with what its last step said."""

    env: Any
    observation: Any
    total: float = 0.0  # rewards so far
    last: float = 0.0  # the last reward
    terminated: bool = False
    truncated: bool = False


@dataclasses.dataclass(frozen=True)
class Gymnasium(Rules):
    """An environment that is registered with Gymnasium, and whose action space is ``Discrete``.

    To show another text, to read another spelling, to make the environment yourself, or to know better how
    well a player stands, make a class of your own of this one, and override ``text``, ``read``, ``make``
    or ``value``; and ``board`` for another picture. ``FrozenLake`` is an example.

    An episode is solved if the environment terminates with a reward of at least ``success``.
    """

    id: str = ""  # e.g. "Taxi-v4"
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # arguments of ``gymnasium.make``
    actions: tuple[str, ...] = ()  # the name of each action, in the order of their numbers; else numbers
    success: float = 1.0
    returns: tuple[float, float] = (0.0, 1.0)  # sums of rewards that are the worst and the best
    # "render": what the environment draws as text (mode "ansi"); coloured text is put in <>.
    # "observation": the observation as Python writes it.
    view: Literal["render", "observation"] = "render"

    def __post_init__(self):
        check_types(self)
        object.__setattr__(self, "actions", tuple(self.actions))
        object.__setattr__(self, "returns", tuple(self.returns))
        require(self, "returns", self.returns[0] < self.returns[1], "the worst must be below the best")
        there = find_spec(PACKAGE) is not None
        require(self, "id", there, 'needs Gymnasium: pip install "atgrpo_jax[gymnasium]"')
        try:
            space = self.make(0).action_space
        except importlib.import_module(f"{PACKAGE}.error").Error as error:
            require(self, "id", False, " ".join(str(error).split()))
        require(self, "id", hasattr(space, "n"), f"its actions must be Discrete, not {space}")
        count = int(space.n)
        names = self.actions or tuple(str(number) for number in range(count))
        object.__setattr__(self, "actions", names)
        require(self, "actions", len(names) == count, f"{self.id} has {count} actions")
        plain = all(re.fullmatch(r"[\w-]+", name) for name in names) and len(set(names)) == len(names)
        require(self, "actions", plain, "names are different words of letters and digits")

    def make(self, seed: int) -> Any:
        """Returns an environment, not yet reset. ``seed`` is for those that are made by chance."""
        mode = {"render_mode": "ansi"} if self.view == "render" else {}
        return importlib.import_module(PACKAGE).make(self.id, **mode, **self.config)

    def text(self, table: Table) -> str:
        """Returns what the player is shown."""
        if self.view == "observation":
            return str(table.observation)
        return _COLOURED.sub(r"<\1>", str(table.env.render())).strip()

    def board(self, table: Table) -> Board | None:
        """Returns a picture for people; None if the text will do."""
        return None

    def value(self, table: Table) -> float:
        """Returns how well the player stands, from 0 to 1: by the rewards so far."""
        worst, best = self.returns
        return min(max((table.total - worst) / (best - worst), 0.0), 1.0)

    def solved(self, table: Table) -> bool:
        return table.terminated and table.last >= self.success

    # Rules

    def start(self, seed: int) -> Table:
        env = self.make(seed)
        observation, _ = env.reset(seed=seed)
        return Table(env, observation)

    def step(self, game: Table, action: str) -> None:
        game.observation, reward, game.terminated, game.truncated, _ = game.env.step(
            self.actions.index(action)
        )
        game.last = float(reward)
        game.total += game.last

    def scene(self, game: Table) -> Scene:
        done = bool(game.terminated or game.truncated)
        return Scene(self.text(game), 0, (self.value(game),), done, self.solved(game), self.board(game))

    def read(self, text: str) -> str | None:
        """Returns the last action that is named."""
        named = [word for word in re.findall(r"[\w-]+", text[-LOOKED_AT:].lower()) if word in self._spelled]
        return self._spelled[named[-1]] if named else None

    def choices(self, game: Table) -> Sequence[str]:
        return self.actions

    @functools.cached_property
    def _spelled(self) -> dict[str, str]:
        return {name.lower(): name for name in self.actions}


@dataclasses.dataclass(frozen=True)
class FrozenLake(Gymnasium):
    """Gymnasium's FrozenLake, on a map that the seed makes. Cells are named by row and column.

    How well the player stands is the share of the shortest way that lies behind it; 0 in a hole.
    """

    id: str = "FrozenLake-v1"
    actions: tuple[str, ...] = ("left", "down", "right", "up")
    size: int = 4  # cells on a side of the map
    holes: float = 0.2  # probability that a cell is one
    slippery: bool = False  # whether chance may turn a step aside

    def __post_init__(self):
        require(self, "size", 2 <= self.size <= 10, "must be from 2 to 10: cells are named by one digit each")
        require(self, "holes", 0 <= self.holes < 1, "must be in [0, 1)")
        super().__post_init__()

    def make(self, seed: int) -> Any:
        lake = importlib.import_module(f"{PACKAGE}.envs.toy_text.frozen_lake")
        drawn = lake.generate_random_map(self.size, 1 - self.holes, seed)
        make = importlib.import_module(PACKAGE).make
        return make(self.id, desc=drawn, is_slippery=self.slippery, **self.config)

    def text(self, table: Table) -> str:
        cells = _cells(table.env)
        size = len(cells)
        holes = [f"{place // size}{place % size}" for place, kind in enumerate("".join(cells)) if kind == "H"]
        at = f"{table.observation // size}{table.observation % size}"
        return " ".join((f"{size}x{size} holes", *holes)) + f"\nat {at}"

    def board(self, table: Table) -> Board:
        kinds = {"S": "floor", "F": "floor", "H": "hole", "G": "goal"}
        rows = [[kinds[cell] for cell in row] for row in _cells(table.env)]
        row, column = divmod(int(table.observation), len(rows))
        at = rows[row][column]
        rows[row][column] = {"goal": "done", "hole": "wrong @"}.get(at, "agent")
        return tuple(map(tuple, rows))

    def value(self, table: Table) -> float:
        """Returns 1 at the goal, less for each step that is left, and 0 in a hole alone."""
        left = _left(tuple(_cells(table.env)))
        place = int(table.observation)
        return 1 - left[place] / (max(left.values()) + 1) if place in left else 0.0

    def best(self, game: Table) -> str | None:
        """Returns the first step of a shortest way, as if the ice were not slippery."""
        left = _left(tuple(_cells(game.env)))
        near = _near(int(game.observation), self.size)
        return min(near, key=lambda name: (left.get(near[name], 1000), self.actions.index(name)))


def _cells(env: Any) -> list[str]:
    return ["".join(cell.decode() for cell in row) for row in env.unwrapped.desc]


def _near(place: int, size: int) -> dict[str, int]:
    """Returns the cell that each action leads to; an action that leads off the map is left out."""
    row, column = divmod(place, size)
    steps = {"left": (0, -1), "down": (1, 0), "right": (0, 1), "up": (-1, 0)}
    places = {name: (row + down, column + right) for name, (down, right) in steps.items()}
    return {name: r * size + c for name, (r, c) in places.items() if 0 <= r < size and 0 <= c < size}


@functools.lru_cache(maxsize=1024)
def _left(cells: tuple[str, ...]) -> dict[int, int]:
    """Returns the steps to the goal from each cell that is no hole and can reach it."""
    flat = "".join(cells)
    goal = flat.index("G")
    left = {goal: 0}
    queue = collections.deque([goal])
    while queue:
        place = queue.popleft()
        for near in _near(place, len(cells)).values():
            if flat[near] != "H" and near not in left:
                left[near] = left[place] + 1
                queue.append(near)
    return left
