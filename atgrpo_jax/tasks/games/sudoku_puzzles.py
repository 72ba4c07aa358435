"""Reads Sudoku puzzles from files, or draws them. Each has exactly one solution."""

import dataclasses
import functools
import itertools
import random
from collections.abc import Mapping
from typing import Any

from atgrpo_jax.common.types import seed_of
from atgrpo_jax.tasks.data import read_rows
from atgrpo_jax.tasks.games.sudoku_grids import Grid, TooHard, candidates, full_grid, solutions
from atgrpo_jax.tasks.splits import in_split

MAX_DRAWS = 2000


@dataclasses.dataclass(frozen=True)
class Instance:
    puzzle: Grid
    solution: Grid

    @property
    def size(self) -> int:
        return round(len(self.puzzle) ** 0.5)


@functools.lru_cache
def read_puzzles(path: str) -> tuple[Instance, ...]:
    """Returns the puzzles of a file of JSON lines, in its order. Raises ValueError that names the
    line and the field of a bad row."""
    return tuple(
        _puzzle(row, f"{path}:{number}") for number, row in read_rows(path, {"size": int, "puzzle": str})
    )


def _puzzle(row: dict[str, Any], place: str) -> Instance:
    size = row["size"]
    if size not in (4, 9):
        raise ValueError(f"{place}: size = {size}: expected 4 or 9")
    grid = _digits(row | {"puzzle": row["puzzle"].replace(".", "0")}, "puzzle", size, place)
    if 0 not in grid:
        raise ValueError(f"{place}: puzzle: no cell is empty")
    twice = [divmod(i, size) for i, digit in enumerate(grid) if digit and digit not in candidates(grid, i)]
    if twice:
        raise ValueError(f"{place}: puzzle: given digits contradict each other at (row, column) {twice}")
    try:
        found = list(itertools.islice(solutions(grid), 2))
    except TooHard as error:
        raise ValueError(f"{place}: puzzle: whether it has one solution is not clear: {error}") from error
    if len(found) != 1:
        raise ValueError(f"{place}: puzzle: it has {'more than one solution' if found else 'no solution'}")
    if row.get("solution") is not None and _digits(row, "solution", size, place) != found[0]:
        raise ValueError(f"{place}: solution: it is not the puzzle's, which is {''.join(map(str, found[0]))}")
    return Instance(grid, found[0])


def _digits(row: Mapping[str, Any], field: str, size: int, place: str) -> Grid:
    text = row[field]
    rule = f"{place}: {field} = {str(text)[:90]!r}: expected {size * size} digits from 0 to {size}"
    if not isinstance(text, str):
        raise ValueError(f"{rule}, as one text")
    wrong = next((symbol for symbol in text if symbol not in "0123456789"[: size + 1]), None)
    if wrong is not None:
        raise ValueError(f"{rule}, not {wrong!r}")
    if len(text) != size * size:
        raise ValueError(f"{rule}, not {len(text)}")
    return tuple(map(int, text))


@functools.lru_cache(maxsize=4096)
def draw(size: int, least: int, most: int, seed: int, split: str, index: int) -> Instance:
    """Returns a puzzle of a split with ``least`` to ``most`` empty cells.

    Raises ValueError if none is found.
    """
    rng = random.Random(seed_of("sudoku", size, least, most, seed, split, index))
    for _ in range(MAX_DRAWS):
        solution = full_grid(size, rng)
        wanted = rng.randint(least, most)
        puzzle = list(solution)
        for place in rng.sample(range(size * size), size * size):
            if puzzle.count(0) == wanted:
                break
            puzzle[place] = 0
            if len(list(itertools.islice(solutions(tuple(puzzle)), 2))) > 1:
                puzzle[place] = solution[place]
        instance = Instance(tuple(puzzle), solution)
        if puzzle.count(0) == wanted and in_split(instance, split):
            return instance
    raise ValueError(
        f"Sudoku: no {size}x{size} puzzle with {least} to {most} empty cells and one solution for split "
        f"{split} in {MAX_DRAWS} draws; lower most_empty"
    )
