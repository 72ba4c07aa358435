"""Solves Sudoku grids, says which digits fit, and makes random complete grids."""

import functools
import itertools
import random
from collections.abc import Iterator

Grid = tuple[int, ...]  # row by row; 0 is an empty cell
MAX_GUESSES = 20_000  # the solver's limit: a second or two. Known hard 9x9 puzzles need up to 7,138


def candidates(grid: Grid, place: int) -> list[int]:
    """Returns the digits that no other cell in the row, column and box of a cell has."""
    size = round(len(grid) ** 0.5)
    taken = {grid[i] for i in _peers(size)[place]}
    return [digit for digit in range(1, size + 1) if digit not in taken]


class TooHard(ValueError):
    """Says that a puzzle needs more guesses than are allowed."""


def solutions(grid: Grid, most: int = MAX_GUESSES) -> Iterator[Grid]:
    """Yields all ways to complete a grid. Raises TooHard after ``most`` guesses."""
    size = round(len(grid) ** 0.5)
    every = (1 << size) - 1
    filled = list(grid)
    guesses = itertools.count(1)
    free = [every] * (3 * size)  # for each row, column and box, the digits that it lacks, as bits
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
    """Returns the next choices as (cell, digit as a bit), few of them; None if no cell is empty.

    They are the digits for the empty cell that the fewest digits fit, or the cells for one digit in
    a row, column or box if these are fewer (at most two). An empty list is a dead end.
    """
    fits = [0] * len(filled)
    fewest = size + 1
    chosen = -1
    for place, (row, column, box) in enumerate(_units_of(size)):
        if not filled[place]:
            fits[place] = free[row] & free[column] & free[box]
            count = fits[place].bit_count()
            if count < fewest:
                fewest = count
                chosen = place
    if chosen < 0:
        return None
    if fewest > 1:
        for unit, places in enumerate(_places_of(size)):
            once = twice = thrice = 0  # digits, as bits, that fit at least so many cells
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
    """Returns for each cell the other cells of its row, column and box."""
    units = _units_of(size)
    peers = []
    for place, own in enumerate(units):
        peers.append([i for i, other in enumerate(units) if i != place and set(own) & set(other)])
    return peers


@functools.cache
def _units_of(size: int) -> list[tuple[int, int, int]]:
    """Returns for each cell the indices of its row, column and box. Rows have the first ``size``
    indices, then come columns, then boxes."""
    side = round(size**0.5)
    cells = itertools.product(range(size), repeat=2)
    return [(r, size + c, 2 * size + r // side * side + c // side) for r, c in cells]


@functools.cache
def _places_of(size: int) -> list[list[int]]:
    """Returns the cells of each row, column and box."""
    units = _units_of(size)
    places: list[list[int]] = [[] for _ in range(3 * size)]
    for place, own in enumerate(units):
        for unit in own:
            places[unit].append(place)
    return places


def full_grid(size: int, rng: random.Random) -> Grid:
    """Returns a random complete grid."""

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
