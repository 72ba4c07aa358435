"""Rooms of Sokoban: made by pulling boxes off their goals, so that all can be solved, or read from files."""

import collections
import dataclasses
import functools
import heapq
import itertools
import random
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from atgrpo_jax.data import read_rows
from atgrpo_jax.tasks.games import in_split
from atgrpo_jax.tasks.grid import MOVES, Cell, shift
from atgrpo_jax.types import seed_of

FAR = 1_000_000  # pushes to a goal from where there is no way
MAX_DRAWS = 2000  # rooms
MAX_PULLED = 20_000  # positions that are looked at in one room


@dataclasses.dataclass(frozen=True)
class Instance:
    """Drawn as usual: "#" wall, "$" box, "." goal, "@" player, "*" box on a goal, "+" player on one."""

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
    """Rows as in ``Instance``; ``shape`` is how many, and how long."""

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
    """goal -> cell -> pushes from the cell to the goal of a box that is alone in the room, with a player who
    gets everywhere; cells without a way are left out."""
    found = {}
    for goal in instance.goals:
        distance = {goal: 0}
        queue = collections.deque([goal])
        while queue:
            cell = queue.popleft()
            for move in MOVES:
                box = shift(cell, move)  # pulled there; the player then stands one further
                if box in instance.floor and shift(box, move) in instance.floor and box not in distance:
                    distance[box] = distance[cell] + 1
                    queue.append(box)
        found[goal] = distance
    return found


@functools.lru_cache(maxsize=1 << 16)
def pushes(instance: Instance, boxes: tuple[Cell, ...]) -> int:
    """At the least, each box as if it were alone, to goals of their own; ``FAR`` or more without a way."""
    distance = push_distances(instance)
    goals = sorted(instance.goals)
    return min(
        sum(distance[goal].get(box, FAR) for box, goal in zip(boxes, order, strict=True))
        for order in itertools.permutations(goals)
    )


@functools.lru_cache(maxsize=1 << 14)
def solve(instance: Instance, boxes: tuple[Cell, ...], player: Cell, most: int = 200_000) -> str | None:
    """Moves of a solution with the fewest pushes; None if there is none. A* over pushes.

    Raises RuntimeError after looking at ``most`` positions.
    """
    queue = [(pushes(instance, boxes), 0, 0, (frozenset(boxes), player), "")]
    seen: set[Any] = set()
    count = itertools.count(1)
    while queue:
        _, pushed, _, (at, stands), moves = heapq.heappop(queue)
        if at == instance.goals:
            return moves
        paths = _paths(instance, at, stands)
        position = at, min(paths)  # wherever the player can walk to is the same
        if position in seen:
            continue
        seen.add(position)
        if len(seen) > most:
            raise RuntimeError(f"no solution after {most} positions of {instance.rows}")
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
    """Cell -> moves that lead the player there without a push."""
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
    """(boxes, player) -> moves of a shortest solution, of positions from which there is one."""
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
    """Raises ValueError naming the line that holds no level."""
    levels = []
    for line, row in read_rows(path, {"grid": list}):
        try:
            levels.append(level_of(row["grid"]))
        except ValueError as error:
            raise ValueError(f"{path}:{line}: grid: {error}") from error
    return tuple(levels)


def level_of(grid: Sequence[Any]) -> Instance:
    """Raises ValueError for what is no level, or one without a way to play it."""
    rows = tuple(map(str, grid))
    symbols = "".join(rows)
    boxes = symbols.count("$") + symbols.count("*")
    goals = symbols.count(".") + symbols.count("*") + symbols.count("+")
    whole = len(set(map(len, rows))) == 1 and symbols.count("@") + symbols.count("+") == 1
    if not whole or not 1 <= boxes == goals <= 6:
        raise ValueError("expected rows of one length, one player, and as many boxes as goals, 1 to 6")
    level = Instance(rows)
    if not 0 < pushes(level, tuple(sorted(level.boxes))) < FAR:
        raise ValueError("it is solved, or no box can be brought to some goal")
    return level
