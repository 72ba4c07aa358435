"""Defines Sudoku: fill a grid so that every row, column and box holds every digit once.

It is the task of arXiv 2510.11062 without the faults of its reference code: given digits stay, a
puzzle has exactly one solution, splits share no puzzle, and the lists that prompts ask for are
read. The ``filler`` decides; see game.py for the roles.
"""

import dataclasses
import math
import random
import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from atgrpo_jax.common.checks import check_types, require
from atgrpo_jax.tasks.data import absolute, files_of, pick, rows_of
from atgrpo_jax.tasks.games.game import Game, Played, Proposal
from atgrpo_jax.tasks.games.sudoku_grids import Grid, candidates
from atgrpo_jax.tasks.games.sudoku_puzzles import Instance, draw, read_puzzles
from atgrpo_jax.tasks.texts import last_list
from atgrpo_jax.tasks.workflow import Workflow

Fill = tuple[int, int, int]  # row, column, digit; all -1 if an item is not a fill


@dataclasses.dataclass(frozen=True)
class Filled:
    """A list of fills and the grid after them. ``refused`` holds the numbers, from 1, of the fills
    that were not carried out: they are outside the grid, name a given cell, or name a digit that
    the row, column or box already has."""

    fills: tuple[Fill, ...]
    grid: Grid
    refused: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class State:
    instance: Instance
    grid: Grid
    proposal: Proposal | None = None  # its ``carried`` is a Filled


@dataclasses.dataclass(frozen=True)
class Sudoku(Game):
    """Sudoku pays what ``Game`` says. Fills gain the change of (right - wrong) / (cells that are
    empty at the start); a cell is right if it is as in the solution. Cells that were not given may
    be filled again.
    """

    decider: ClassVar[str] = "filler"

    workflow: Workflow = Workflow(order=("scout", "filler"))
    prompts: str = "sudoku/short"  # a folder of templates; see tasks/prompts.py
    size: Literal[4, 9] = 4  # cells on a side of the grid
    least_empty: int = 4  # fewest cells that are empty at the start
    most_empty: int = 10  # most cells that are empty at the start
    # Files of puzzles for each split, with rows {"size": 4, "puzzle": digits}; see docs/data.md. If
    # empty, puzzles are generated.
    files: Mapping[str, str | tuple[str, ...]] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        check_types(self)
        most = {4: 12, 9: 60}[self.size]
        within = 1 <= self.least_empty <= self.most_empty <= most
        rule = (
            f"must be from 1 to most_empty, and that at most {most}: fewer digits seldom leave one solution"
        )
        require(self, "least_empty", within, rule)
        object.__setattr__(self, "files", absolute(self.files))
        super().__post_init__()

    def instance(self, split: str, index: int) -> Instance:
        """Returns a puzzle of the files, or a generated one. Raises ValueError for an unknown
        split, a bad row of a file, or if no such puzzle is found; IndexError past the end of a
        held-out split's files."""
        if self.files:
            return pick(self.file_rows(split), self.seed, split, index)
        return draw(self.size, self.least_empty, self.most_empty, self.seed, split, index)

    def file_rows(self, split: str) -> tuple[Instance, ...]:
        return rows_of(files_of(self.files), split, read_puzzles, _key) if self.files else ()

    @property
    def sources(self) -> Mapping[str, Any]:
        return self.files

    def initial(self, instance: Instance) -> State:
        return State(instance, instance.puzzle)

    def read(self, state: State, text: str) -> Sequence[Fill]:
        """Returns the fills in a list such as ``[013 021]`` or ``[[0, 1, 3], [0, 2, 1]]``. The list
        may also give the whole grid, row by row: ``[[1, 2, 3, 4], ...]``; then cells that already
        have their digit are left out."""
        size = state.instance.size
        items = _items(text)
        rows = [item for item in items if len(item) == size]
        if len(items) == len(rows) == size:
            return [
                (r, c, digit)
                for r, row in enumerate(rows)
                for c, digit in enumerate(row)
                if state.grid[r * size + c] != digit
            ]
        return [(*item,) if len(item) == 3 else (-1, -1, -1) for item in items]

    def play(self, state: State, actions: Sequence[Fill]) -> Played:
        instance = state.instance
        filled = fill(state, actions)
        empty = instance.puzzle.count(0)
        solved = filled.grid == instance.solution
        return Played(
            State(instance, filled.grid),
            filled,
            (_right(instance, filled.grid) - _right(instance, state.grid)) / empty,
            len(filled.refused) / len(filled.fills),
            solved=solved,
            shortest=solved and len(filled.fills) == sum(map(int.__ne__, state.grid, filled.grid)),
        )

    def values(self, state: State) -> dict[str, Any]:
        size = state.instance.size
        instance = state.instance
        cells = [divmod(i, size) for i in range(size * size)]
        own = zip(cells, instance.puzzle, state.grid, strict=True)
        own_fills = [(r, c, digit) for (r, c), given, digit in own if digit and not given]
        return {
            "size": size,
            "rows": [state.grid[i : i + size] for i in range(0, size * size, size)],
            "given": [f"{r}{c}{d}" for (r, c), d in zip(cells, instance.puzzle, strict=True) if d],
            "filled": [f"{r}{c}{d}" for r, c, d in own_fills],
            "box": "2x2" if size == 4 else "3x3",
        }

    def shown(self, state: State, carried: Filled) -> dict[str, Any]:
        return {"fills": _write(carried.fills), "wrong": carried.refused}

    def drawn(self, state: State) -> list[list[str]]:
        """Returns the grid: digits that were given, filled, and what the proposal would fill."""
        size = state.instance.size
        carried = state.proposal.carried if state.proposal else None
        proposed = state.grid if carried is None else carried.grid

        def kind(place: int) -> str:
            digit = state.grid[place]
            if proposed[place] != digit:
                return f"proposed {proposed[place] or ''}".rstrip()
            if not digit:
                return "floor"
            if state.instance.puzzle[place]:
                return f"given {digit}"
            return f"{'filled' if digit == state.instance.solution[place] else 'wrong'} {digit}"

        side = math.isqrt(size)
        rows = []
        for r in range(size):
            cells = [kind(r * size + c) for c in range(size)]
            boxes = [cells[start : start + side] for start in range(0, size, side)]
            rows.append([cell for box in boxes for cell in ("", *box)][1:])
        bands = [rows[start : start + side] for start in range(0, size, side)]
        return [row for band in bands for row in ([""], *band)][1:]

    def demonstrated(self, state: State, rng: random.Random) -> str:
        """Returns fills of all cells that are not as in the solution, the easiest one next (fewest
        digits that fit). Each fill has, with some probability, a random digit instead, one that
        fits if several fit."""
        size = state.instance.size
        solution = state.instance.solution
        grid = list(state.grid)
        fills = []
        for i, (digit, right) in enumerate(zip(state.grid, solution, strict=True)):
            if digit not in (0, right):
                grid[i] = 0
        while 0 in grid:
            fits = {i: candidates(tuple(grid), i) for i, digit in enumerate(grid) if not digit}
            easiest = min(fits, key=lambda i: len(fits[i]))
            grid[easiest] = solution[easiest]
            digit = solution[easiest]
            if rng.random() < self.demonstration_error:
                digit = rng.choice(fits[easiest] if len(fits[easiest]) > 1 else range(1, size + 1))
            fills.append((*divmod(easiest, size), digit))
        return _write(fills)

    def repeated(self, state: State, carried: Filled) -> str:
        return _write(carried.fills)


def words(size: int = 4) -> tuple[str, ...]:
    """Returns pieces of text for a ``TinyTokenizer``, so that prompts and answers are short. Every
    fill is one piece."""
    return (
        "scout", "filler", "given", " filled", " wrong", " solved",
        "list empty cells with digits in brackets",
        *(f" {r}{c}{d}" for r in range(size) for c in range(size) for d in range(1, size + 1)),
    )  # fmt: skip


def fill(state: State, fills: Sequence[Fill]) -> Filled:
    """Carries out fills, one after the other."""
    size = state.instance.size
    grid = list(state.grid)
    refused = []
    for number, (r, c, digit) in enumerate(fills, 1):
        place = r * size + c
        if 0 <= r < size and 0 <= c < size and not state.instance.puzzle[place]:
            before = grid[place]
            grid[place] = 0
            if digit in candidates(tuple(grid), place):
                grid[place] = digit
                continue
            grid[place] = before
        refused.append(number)
    return Filled(tuple(fills), tuple(grid), tuple(refused))


def _key(instance: Instance) -> Grid:
    return instance.puzzle


def _items(text: str) -> list[tuple[int, ...]]:
    """Returns the items of the last list in brackets, each as its digits. An item is a word of
    digits, or a list or tuple of numbers. A number that is negative or not whole becomes -1."""
    found = last_list(text)
    if found is None:
        return []
    if not isinstance(found, str):
        words = [_words(group) for group in found]
        whole = all(len(group) == 1 and len(group[0]) > 1 for group in words)
        return [tuple(map(_digit, group[0] if whole else group)) for group in words]
    numbers = _words(found)
    if numbers and all(re.fullmatch(r"-?\d(\.\d+)?", number) for number in numbers):  # one fill, or one row
        return [tuple(map(_digit, numbers))]
    return [tuple(map(_digit, number)) for number in numbers]


def _words(text: str) -> list[str]:
    return re.findall(r"(?<![\d.])-?\d+(?:\.\d+)?", text)


def _digit(word: str) -> int:
    return int(word[:9]) if word.isdigit() else -1


def _write(fills: Sequence[Fill]) -> str:
    return "[" + "".join(f" {r}{c}{digit}" if r >= 0 else " ?" for r, c, digit in fills) + "]"


def _right(instance: Instance, grid: Grid) -> int:
    """Returns how many cells are filled as in the solution, minus those that are filled otherwise.
    The given cells do not count."""
    own = [(s, g) for p, s, g in zip(instance.puzzle, instance.solution, grid, strict=True) if not p and g]
    return sum(1 if solution == digit else -1 for solution, digit in own)
