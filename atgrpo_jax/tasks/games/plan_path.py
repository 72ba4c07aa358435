"""Defines Plan-Path: walk from start to goal on a grid with obstacles, by lists of moves.

It is the task of arXiv 2510.11062 without the faults of its reference code: the current position is
shown on every turn, splits share no instance, progress telescopes (so wandering pays nothing), and
reaching the turn limit is not success.

The ``mover`` decides; see game.py for the roles.
"""

import collections
import dataclasses
import functools
import random
from collections.abc import Collection, Sequence
from typing import Any, ClassVar, Literal

from atgrpo_jax.common.checks import check_types, require
from atgrpo_jax.common.types import seed_of
from atgrpo_jax.tasks.games.game import LONGEST, Game, Played, Proposal
from atgrpo_jax.tasks.games.grid import MOVES, Cell, move_of, name, parse_moves, shift
from atgrpo_jax.tasks.splits import in_split
from atgrpo_jax.tasks.workflow import Workflow

MAX_DRAWS = 20_000


@dataclasses.dataclass(frozen=True)
class Instance:
    rows: tuple[str, ...]  # "." free, "#" blocked
    start: Cell
    goal: Cell

    def free(self, cell: Cell) -> bool:
        row, column = cell
        return 0 <= row < len(self.rows) and 0 <= column < len(self.rows[0]) and self.rows[row][column] == "."


@dataclasses.dataclass(frozen=True)
class Walk:
    """A list of moves that was carried out from some cell, up to the goal or the end of the list. A
    blocked or unknown move leaves the walker in place."""

    moves: str  # "?" is an unknown move
    end: Cell
    bumps: tuple[int, ...]  # numbers, from 1, of the moves that were blocked or unknown


@dataclasses.dataclass(frozen=True)
class State:
    instance: Instance
    position: Cell
    proposal: Proposal | None = None  # its ``carried`` is a Walk


@dataclasses.dataclass(frozen=True)
class PlanPath(Game):
    """Plan-Path pays what ``Game`` says. A walk gains (d - d') / D, where d and d' are the BFS
    distances to the goal before and after it, and D is the distance from the start."""

    decider: ClassVar[str] = "mover"

    workflow: Workflow = Workflow(order=("scout", "mover"))
    prompts: str = "plan_path/short"  # a folder of templates; see tasks/prompts.py
    size: int = 6  # cells on a side of the grid
    obstacles: float = 0.22  # probability that a cell is blocked
    # "cells": cells are named by row and column, prompts name the blocked ones, and a list names
    # the cell that each move leads to, so that nobody has to count. "symbols": prompts draw the
    # grid, and lists consist of U D L R. Answers may use either spelling in both views.
    view: Literal["cells", "symbols"] = "cells"
    demonstration_moves: int = 6  # most moves in one demonstrated list

    def __post_init__(self):
        check_types(self)
        require(self, "size", self.size >= 2, "must be at least 2")
        require(self, "obstacles", 0 <= self.obstacles < 1, "must be in [0, 1)")
        rule = 'names cells by one digit each; use "symbols" above size 10'
        require(self, "view", self.view == "symbols" or self.size <= 10, rule)
        require(self, "demonstration_moves", self.demonstration_moves >= 1, "must be at least 1")
        super().__post_init__()

    def instance(self, split: str, index: int) -> Instance:
        """Returns a generated grid. Raises ValueError for an unknown split, or if no solvable grid
        is found."""
        return draw("PlanPath", self.size, self.obstacles, self.seed, split, index)

    def initial(self, instance: Instance) -> State:
        return State(instance, instance.start)

    def read(self, state: State, text: str) -> Sequence[str]:
        return parse_moves(text, state.position)

    def longest(self, state: State) -> int:
        return max(LONGEST, self.size**2)

    def play(self, state: State, actions: Sequence[str]) -> Played:
        instance = state.instance
        distance = distances(state.instance)
        walk = walk_from(instance, state.position, actions)
        gained = distance[state.position] - distance[walk.end]
        arrived = walk.end == instance.goal
        return Played(
            State(instance, walk.end),
            walk,
            gained / distance[instance.start],
            len(walk.bumps) / len(walk.moves),
            solved=arrived,
            shortest=arrived and gained == len(walk.moves),
        )

    def values(self, state: State) -> dict[str, Any]:
        return {
            "board": render(state, self.view),
            "view": self.view,
            "size": self.size,
            "position": name(state.position),
            "goal": name(state.instance.goal),
        }

    def shown(self, state: State, carried: Walk) -> dict[str, Any]:
        return {
            "moves": self._write(state.instance, state.position, carried.moves),
            "end": name(carried.end),
            "hits": carried.bumps,
        }

    def drawn(self, state: State) -> list[list[str]]:
        """Returns the grid, with the way that the proposal would take."""
        moves = state.proposal.carried.moves if state.proposal and state.proposal.carried else ""
        cell = state.position
        way = {cell := _reached(state.instance, cell, move) for move in moves}
        return board(state.instance, state.position, way)

    def demonstrated(self, state: State, rng: random.Random) -> str:
        """Returns the beginning of a shortest path; each move is random with some probability."""
        goal = state.instance.goal
        distance = distances(state.instance)
        cell = state.position
        moves = ""
        while cell != goal and len(moves) < min(distance[state.position], self.demonstration_moves):
            open_ = {m: shift(cell, m) for m in MOVES if state.instance.free(shift(cell, m))}
            best = [m for m, target in open_.items() if distance[target] < distance[cell]]
            wrong = rng.random() < self.demonstration_error
            moves += rng.choice(list(open_) if wrong else best)
            cell = open_[moves[-1]]
        return self._write(state.instance, state.position, moves)

    def repeated(self, state: State, carried: Walk) -> str:
        return self._write(state.instance, state.position, carried.moves)

    def _write(self, instance: Instance, cell: Cell, moves: str) -> str:
        """Returns a list that ``parse_moves`` can read. In the "cells" view it begins with the cell
        that it starts from."""
        if self.view == "symbols":
            return f"[{moves}]"
        text = f" {name(cell)}"
        for move in moves:
            cell = _reached(instance, cell, move)
            text += f" {name(cell)}"
        return f"[{text}]"


def walk_from(instance: Instance, cell: Cell, moves: Sequence[str]) -> Walk:
    """Carries out the items that ``parse_moves`` returned. A cell that is not next to the walker is
    an unknown move."""
    carried = ""
    bumps = []
    for item in moves:
        carried += move_of(cell, item)
        reached = _reached(instance, cell, carried[-1])
        if reached == cell:
            bumps.append(len(carried))
        cell = reached
        if cell == instance.goal:
            break
    return Walk(carried, cell, tuple(bumps))


@functools.lru_cache(maxsize=4096)
def distances(instance: Instance) -> dict[Cell, int]:
    """Returns the BFS distance to the goal from every cell that can reach it."""
    distance = {instance.goal: 0}
    queue = collections.deque([instance.goal])
    while queue:
        cell = queue.popleft()
        for move in MOVES:
            near = shift(cell, move)
            if instance.free(near) and near not in distance:
                distance[near] = distance[cell] + 1
                queue.append(near)
    return distance


def render(state: State, view: str) -> str:
    """Returns the grid as text. "cells" gives the size and the names of all blocked cells.
    "symbols" draws ``.`` and ``#``, ``@`` at the current position and ``G`` at the goal."""
    rows = state.instance.rows
    if view == "cells":
        blocked = [name((r, c)) for r, row in enumerate(rows) for c, cell in enumerate(row) if cell == "#"]
        return " ".join((f"{len(rows)}x{len(rows[0])} blocked", *blocked))
    drawn = [list(row) for row in rows]
    drawn[state.instance.goal[0]][state.instance.goal[1]] = "G"
    drawn[state.position[0]][state.position[1]] = "@"
    return "\n".join("".join(row) for row in drawn)


def board(instance: Instance, position: Cell, way: Collection[Cell]) -> list[list[str]]:
    """Returns the cells of the grid, as ``Drawn.drawn`` does; cells of ``way`` are "proposed"."""

    def kind(cell: Cell) -> str:
        if cell == position:
            return "done" if cell == instance.goal else "agent"
        if cell == instance.goal:
            return "proposed G" if cell in way else "goal"
        return "wall" if not instance.free(cell) else "proposed" if cell in way else "floor"

    return [[kind((r, c)) for c in range(len(row))] for r, row in enumerate(instance.rows)]


def _reached(instance: Instance, cell: Cell, move: str) -> Cell:
    """Returns the cell that a move leads to; ``cell`` itself if the move is blocked or unknown."""
    target = shift(cell, move)
    return target if instance.free(target) else cell


def _draw_row(size: int, obstacles: float, rng: random.Random) -> str:
    return "".join("#" if rng.random() < obstacles else "." for _ in range(size))


@functools.lru_cache(maxsize=4096)
def draw(
    task: str, size: int, obstacles: float, seed: int, split: str, index: int, least_moves: int = 1
) -> Instance:
    """Returns a random grid of a split, in which the goal is at least ``least_moves`` moves away.

    Raises ValueError for an unknown split, or if none is found; it names the ``task``'s field.
    """
    rng = random.Random(seed_of("plan_path", seed, split, index))
    for _ in range(MAX_DRAWS):
        rows = tuple(_draw_row(size, obstacles, rng) for _ in range(size))
        free = [(r, c) for r in range(size) for c in range(size) if rows[r][c] == "."]
        if len(free) < 2:
            continue
        start, goal = rng.sample(free, 2)
        instance = Instance(rows, start, goal)
        if in_split(instance, split) and distances(instance).get(start, 0) >= least_moves:
            return instance
    far = f" with a way of at least {least_moves} moves" if least_moves > 1 else ""
    raise ValueError(
        f"{task}.obstacles = {obstacles}: no solvable {size}x{size} grid{far} for split {split} in "
        f"{MAX_DRAWS} draws; lower it or enlarge {task}.size"
    )
