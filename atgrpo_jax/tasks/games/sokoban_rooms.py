"""Makes rooms of Sokoban by pulling boxes off their goals, so that all can be solved; or reads them
from files."""

import collections
import dataclasses
import functools
import heapq
import itertools
import random
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from atgrpo_jax.common.types import seed_of
from atgrpo_jax.tasks.data import read_rows
from atgrpo_jax.tasks.games.grid import MOVES, Cell, shift
from atgrpo_jax.tasks.splits import in_split

FAR = 1_000_000  # counts as the pushes to a goal that a box cannot reach
MAX_DRAWS = 2000  # rooms that are drawn for one instance
MAX_PULLED = 20_000  # positions that are looked at in one room
MAX_SOLVED = 10_000  # positions that the solver looks at: a second or two, more in large rooms
MAX_TRIED = 1000  # positions that the check of a file's level looks at: 30 ms
MAX_SIDE = 50  # rows, and columns, of a file's level
MAX_BOXES = 6  # of a file's level
FLOORS = str.maketrans("-_", "  ")  # other ways to write free floor


@dataclasses.dataclass(frozen=True)
class Instance:
    """A room, drawn with the usual symbols: "#" wall, "$" box, "." goal, "@" player, "*" box on a
    goal, "+" player on a goal, " " floor."""

    rows: tuple[str, ...]

    def __post_init__(self):
        symbols = "".join(self.rows)
        assert len(set(map(len, self.rows))) == 1, self.rows
        assert symbols.count("@") + symbols.count("+") == 1, self.rows

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.rows), len(self.rows[0])

    @functools.cached_property
    def floor(self) -> frozenset[Cell]:
        return self._where("$.@*+ ")

    @functools.cached_property
    def goals(self) -> frozenset[Cell]:
        return self._where(".*+")

    @functools.cached_property
    def boxes(self) -> frozenset[Cell]:
        return self._where("$*")

    @functools.cached_property
    def player(self) -> Cell:
        (cell,) = self._where("@+")
        return cell

    def _where(self, symbols: str) -> frozenset[Cell]:
        return frozenset(
            (r, c) for r, row in enumerate(self.rows) for c, symbol in enumerate(row) if symbol in symbols
        )


def drawn(
    shape: tuple[int, int],
    floor: Collection[Cell],
    goals: Collection[Cell],
    boxes: Collection[Cell],
    player: Cell,
) -> tuple[str, ...]:
    """Returns rows as in ``Instance``; ``shape`` is (number of rows, their length)."""

    def symbol(cell: Cell) -> str:
        if cell in boxes:
            return "*" if cell in goals else "$"
        if cell == player:
            return "+" if cell in goals else "@"
        return "." if cell in goals else " " if cell in floor else "#"

    height, width = shape
    return tuple("".join(symbol((r, c)) for c in range(width)) for r in range(height))


@functools.lru_cache(maxsize=4096)
def push_distances(instance: Instance) -> dict[Cell, dict[Cell, int]]:
    """Returns goal -> cell -> fewest pushes of a box from the cell to the goal. The box is alone in
    the room, and the player can get everywhere. Cells without a way are left out."""
    found = {}
    for goal in instance.goals:
        distance = {goal: 0}
        queue = collections.deque([goal])
        while queue:
            cell = queue.popleft()
            for move in MOVES:
                box = shift(cell, move)  # it is pulled here; the player then stands one further
                if box in instance.floor and shift(box, move) in instance.floor and box not in distance:
                    distance[box] = distance[cell] + 1
                    queue.append(box)
        found[goal] = distance
    return found


@functools.lru_cache(maxsize=1 << 16)
def pushes(instance: Instance, boxes: tuple[Cell, ...]) -> int:
    """Returns the fewest pushes that bring all boxes to goals of their own, each box as if it were
    alone; ``FAR`` or more if there is no way."""
    distances = [push_distances(instance)[goal] for goal in sorted(instance.goals)]
    least = {0: 0}  # goals that the boxes so far take, as bits -> fewest pushes
    for box in boxes:
        after: dict[int, int] = {}
        for taken, pushed in least.items():
            for goal, distance in enumerate(distances):
                if not taken >> goal & 1:
                    key, total = taken | 1 << goal, pushed + distance.get(box, FAR)
                    after[key] = min(total, after.get(key, total))
        least = after
    (found,) = least.values()
    return found


class TooHard(RuntimeError):
    """Says that the solver has looked at as many positions as it may."""


@functools.lru_cache(maxsize=1 << 14)
def solve(instance: Instance, boxes: tuple[Cell, ...], player: Cell, most: int = MAX_SOLVED) -> str | None:
    """Returns the moves of a solution with the fewest pushes; None if there is none. Uses A* over
    pushes.

    Raises TooHard after looking at ``most`` positions.
    """
    queue = [(pushes(instance, boxes), 0, 0, (frozenset(boxes), player), "")]
    seen: set[Any] = set()
    count = itertools.count(1)
    while queue:
        _, pushed, _, (at, stands), moves = heapq.heappop(queue)
        if at == instance.goals:
            return moves
        paths = _paths(instance, at, stands)
        position = at, min(paths)  # the same wherever the player can walk to
        if position in seen:
            continue
        seen.add(position)
        if len(seen) > most:
            raise TooHard(f"no solution after {most} positions of {instance.rows}")
        for box, move in itertools.product(sorted(at), MOVES):
            behind, beyond = shift(box, move, -1), shift(box, move)
            if behind in paths and beyond in instance.floor and beyond not in at:
                after = at ^ {box, beyond}
                left = pushes(instance, tuple(sorted(after)))
                if left < FAR:
                    rank = pushed + 1 + left
                    node = after, box
                    heapq.heappush(queue, (rank, pushed + 1, next(count), node, moves + paths[behind] + move))
    return None


def _paths(instance: Instance, boxes: Iterable[Cell], player: Cell) -> dict[Cell, str]:
    """Returns cell -> moves that lead the player there without a push, as few as possible."""
    free = instance.floor - set(boxes)
    paths = {player: ""}
    queue = collections.deque([player])
    while queue:
        cell = queue.popleft()
        for move in MOVES:
            near = shift(cell, move)
            if near in free and near not in paths:
                paths[near] = paths[cell] + move
                queue.append(near)
    return paths


@functools.lru_cache(maxsize=4096)
def draw_room(
    size: int, boxes: int, walls: float, least: int, most: int, seed: int, split: str, index: int
) -> Instance:
    rng = random.Random(seed_of("sokoban", size, boxes, walls, least, most, seed, split, index))
    inner = [(r, c) for r in range(1, size - 1) for c in range(1, size - 1)]
    for _ in range(MAX_DRAWS):
        floor = {cell for cell in inner if rng.random() >= walls}
        if len(floor) < 2 * boxes + 1:
            continue
        goals = frozenset(rng.sample(sorted(floor), boxes))
        far = [
            state
            for state, distance in _pulled(floor, goals, most).items()
            if distance >= least and not state[0] & goals
        ]
        if not far:
            continue
        found, player = far[rng.randrange(len(far))]
        instance = Instance(drawn((size, size), floor, goals, found, player))
        if in_split(instance, split):
            return instance
    raise ValueError(
        f"Sokoban: no {size}x{size} room with {boxes} boxes and a solution of {least} to {most} moves for "
        f"split {split} in {MAX_DRAWS} draws; change size, walls, least_moves or most_moves"
    )


def _pulled(floor, goals, most) -> dict[tuple[frozenset[Cell], Cell], int]:
    """Returns (boxes, player) -> number of moves of a shortest solution, for positions that have
    one."""
    distance = {(goals, cell): 0 for cell in sorted(floor - goals)}
    queue = collections.deque(distance)
    while queue and len(distance) < MAX_PULLED:
        boxes, player = queue.popleft()
        steps = distance[boxes, player]
        if steps == most:
            break
        for move in MOVES:
            back, box = shift(player, move, -1), shift(player, move)
            if back not in floor or back in boxes:
                continue
            # The player came from ``back``, or pushed the box away from where the player is now.
            for before in [boxes, boxes ^ {box, player}] if box in boxes else [boxes]:
                state = before, back
                if before != goals and state not in distance:
                    distance[state] = steps + 1
                    queue.append(state)
    return distance


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
    near = _paths(level, (), level.player)  # where the player could get if there were no boxes
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
    floor, goals = (sum(_bit(cell, width) for cell in cells) for cells in (level.floor, level.goals))
    useful = sum(near)
    queue = [(0, sum(_bit(cell, width) for cell in level.boxes), _bit(level.player, width))]
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
