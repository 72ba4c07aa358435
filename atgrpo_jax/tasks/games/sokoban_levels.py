"""Reads levels of Sokoban from files, and refuses those that cannot be played."""

import functools
import heapq
from collections.abc import Iterable, Sequence
from typing import Any

from atgrpo_jax.tasks.data import read_rows
from atgrpo_jax.tasks.games.grid import Cell
from atgrpo_jax.tasks.games.sokoban_rooms import Instance
from atgrpo_jax.tasks.games.sokoban_solver import FAR, paths_of, push_distances, pushes

MAX_TRIED = 1000  # positions that the check of a file's level looks at: 30 ms
MAX_SIDE = 50  # rows, and columns, of a file's level
MAX_BOXES = 6  # of a file's level
FLOORS = str.maketrans("-_", "  ")  # other ways to write free floor


@functools.lru_cache
def read_levels(path: str) -> tuple[Instance, ...]:
    """Returns the levels of a file. Raises ValueError that names the line of a bad level."""
    levels = []
    for line, row in read_rows(path, {"grid": list}):
        try:
            levels.append(level_of(row["grid"]))
        except ValueError as error:
            raise ValueError(f"{path}:{line}: grid: {error}") from error
    return tuple(levels)


def level_of(grid: Sequence[Any]) -> Instance:
    """Returns a level. Raises ValueError if the rows are no level, or if ``MAX_TRIED`` positions
    are enough to show that it cannot be solved."""
    for number, row in enumerate(grid):
        if not isinstance(row, str):
            raise ValueError(f"expected rows of text, and row {number} is {str(row)[:60]!r}")
    rows = tuple(row.rstrip("\r\n").translate(FLOORS) for row in grid)
    for number, row in enumerate(rows):
        strange = next((symbol for symbol in row if symbol not in "#$.@*+ "), None)
        if strange is not None:
            raise ValueError(
                f"{strange!r} in row {number} is no symbol of a level: expected # wall, space, - or _ floor, "
                "$ box, . goal, * box on a goal, @ player, + player on a goal"
            )
    symbols = "".join(rows)
    boxes = symbols.count("$") + symbols.count("*")
    goals = symbols.count(".") + symbols.count("*") + symbols.count("+")
    players = symbols.count("@") + symbols.count("+")
    lengths = sorted({len(row) for row in rows})
    if len(lengths) != 1 or players != 1 or not 1 <= boxes == goals <= MAX_BOXES:
        raise ValueError(
            f"expected rows of one length, one player, and as many boxes as goals, 1 to {MAX_BOXES}; "
            f"there are {len(lengths)} lengths of rows, {players} players, {boxes} boxes and {goals} goals"
        )
    if max(len(rows), *lengths) > MAX_SIDE:
        raise ValueError(f"{len(rows)} rows of {lengths[0]} symbols; at most {MAX_SIDE} of each are read")
    level = Instance(rows)
    _playable(level)
    return level


def _playable(level: Instance) -> None:
    """Raises ValueError for a level that has no wall around it, is already solved, or cannot be
    solved."""
    height, width = level.shape
    near = paths_of(level, (), level.player)  # where the player could get if there were no boxes
    if any(r in (0, height - 1) or c in (0, width - 1) for r, c in near):
        raise ValueError("there is no wall around the player: the floor goes on to the edge")
    apart = sorted((level.boxes ^ level.goals) - set(near))
    if apart:
        raise ValueError(f"no way leads the player to the box or goal at (row, column) {apart[0]}")
    if not 0 < pushes(level, tuple(sorted(level.boxes))) < FAR:
        raise ValueError("it is solved, or no box can be brought to some goal")
    if not _hopeful(level, MAX_TRIED):
        raise ValueError("it cannot be solved: all that can be pushed ends where nothing is left to push")


def _hopeful(level: Instance, most: int) -> bool:
    """Returns false if the first ``most`` positions show that there is no solution, else true.

    Sets of cells are numbers with a bit for each cell. Positions with boxes near the goals come
    first.
    """
    width = level.shape[1]
    near: dict[int, int] = {}  # pushes from a cell to the nearest goal
    for distance in push_distances(level).values():
        for cell, pushed in distance.items():
            near[_bit(cell, width)] = min(pushed, near.get(_bit(cell, width), pushed))
    floor = _bits(level.floor, width)
    goals = _bits(level.goals, width)
    useful = sum(near)
    queue = [(0, _bits(level.boxes, width), _bit(level.player, width))]
    seen: set[tuple[int, int]] = set()
    while queue:
        rank, boxes, reached = heapq.heappop(queue)
        reached = _flood(reached, floor & ~boxes, width)
        position = boxes, reached & -reached
        if position in seen:
            continue
        seen.add(position)
        if len(seen) > most:
            return True
        for step in (1, -1, width, -width):
            free = useful & ~boxes
            movable = boxes & _moved(reached, step) & _moved(free, -step)
            while movable:
                box = movable & -movable
                movable ^= box
                target = _moved(box, step)
                after = boxes ^ box ^ target
                if after == goals:
                    return True
                heapq.heappush(queue, (rank + near[target] - near[box], after, box))
    return False


def _bits(cells: Iterable[Cell], width: int) -> int:
    return sum(_bit(cell, width) for cell in cells)


def _bit(cell: Cell, width: int) -> int:
    return 1 << cell[0] * width + cell[1]


def _moved(cells: int, step: int) -> int:
    """Returns a set of cells moved by ``step`` bits. No cell leaves its row, because there are
    walls around the player."""
    return cells << step if step > 0 else cells >> -step


def _flood(cells: int, free: int, width: int) -> int:
    """Returns all cells of ``free`` that can be walked to from ``cells``."""
    while True:
        wider = (cells | cells << 1 | cells >> 1 | cells << width | cells >> width) & free
        if wider == cells:
            return cells
        cells = wider
