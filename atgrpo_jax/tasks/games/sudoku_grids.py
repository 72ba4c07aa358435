"""Sudoku grids: which digits fit, all solutions, a random complete grid."""

import functools
import itertools
import random
from collections.abc import Iterator

Grid = tuple[int, ...]  # row by row; 0 is an empty cell
MAX_GUESSES = 20_000  # of the solver: a second or two. Known hard puzzles of 9x9 take up to 7,138


def candidates(grid: Grid, place: int) -> list[int]:
    """Digits that row, column and box of an empty cell do not have."""
    size = round(len(grid) ** 0.5)
    taken = {grid[i] for i in _peers(size)[place]}
    return [digit for digit in range(1, size + 1) if digit not in taken]


class TooHard(ValueError):
    """A puzzle takes more guesses than are made."""


def solutions(grid: Grid, most: int = MAX_GUESSES) -> Iterator[Grid]:
    """All ways to complete a grid. Raises TooHard after ``most`` guesses."""
    size = round(len(grid) ** 0.5)
    every = (1 << size) - 1
    filled, guesses = list(grid), itertools.count(1)
    free = [every] * (3 * size)  # digits, as bits, that rows, columns and boxes lack
    for place, digit in enumerate(grid):
        for unit in _units_of(size)[place] if digit else ():
            free[unit] &= ~(1 << digit - 1)

    def search() -> Iterator[Grid]:
        ways = _fewest(filled, free, size)
        if ways is None:
            yield tuple(filled)
            return
        if len(ways) > 1 and next(guesses) > most:
            raise TooHard(f"more than {most} guesses are needed")
        for place, bit in ways:
            filled[place] = bit.bit_length()
            for unit in _units_of(size)[place]:
                free[unit] ^= bit
            yield from search()
            filled[place] = 0
            for unit in _units_of(size)[place]:
                free[unit] ^= bit

    return search()


def _fewest(filled: list[int], free: list[int], size: int) -> list[tuple[int, int]] | None:
    """The fewest ways to go on: the digits, as bits, that fit one cell, or the cells of a row, column or box
    that one digit fits. None if no cell is empty."""
    fits = [0] * len(filled)
    fewest, chosen = size + 1, -1
    for place, (row, column, box) in enumerate(_units_of(size)):
        if not filled[place]:
            fits[place] = free[row] & free[column] & free[box]
            count = fits[place].bit_count()
            if count < fewest:
                fewest, chosen = count, place
    if chosen < 0:
        return None
    if fewest > 1:
        for unit, places in enumerate(_places_of(size)):
            once = twice = thrice = 0  # digits that fit so many cells at the least
            for place in places:
                thrice |= twice & fits[place]
                twice |= once & fits[place]
                once |= fits[place]
            for some in (free[unit] & ~once, once & ~twice, twice & ~thrice if fewest > 2 else 0):
                if some:
                    bit = some & -some
                    return [(place, bit) for place in places if fits[place] & bit]
    return [(chosen, 1 << digit) for digit in range(size) if fits[chosen] >> digit & 1]


@functools.cache
def _peers(size: int) -> list[list[int]]:
    """For each cell the others of its row, column and box."""
    units = _units_of(size)
    return [
        [i for i, other in enumerate(units) if i != place and set(own) & set(other)]
        for place, own in enumerate(units)
    ]


@functools.cache
def _units_of(size: int) -> list[tuple[int, int, int]]:
    """For each cell the numbers of its row, column and box, among all of these."""
    side = round(size**0.5)
    cells = itertools.product(range(size), repeat=2)
    return [(r, size + c, 2 * size + r // side * side + c // side) for r, c in cells]


@functools.cache
def _places_of(size: int) -> list[list[int]]:
    """The cells of each row, column and box."""
    units = _units_of(size)
    return [[place for place, own in enumerate(units) if unit in own] for unit in range(3 * size)]


def full_grid(size: int, rng: random.Random) -> Grid:
    """A random complete grid."""

    def complete(grid: list[int]) -> bool:
        empty = {i: candidates(tuple(grid), i) for i, digit in enumerate(grid) if not digit}
        if not empty:
            return True
        place = min(empty, key=lambda i: (len(empty[i]), i))
        for digit in rng.sample(empty[place], len(empty[place])):
            grid[place] = digit
            if complete(grid):
                return True
        grid[place] = 0
        return False

    grid = [0] * (size * size)
    grid[:size] = rng.sample(range(1, size + 1), size)
    complete(grid)
    return tuple(grid)
