"""Solves rooms of Sokoban with the fewest pushes, or says how far they are from that."""

import collections
import functools
import heapq
import itertools
from collections.abc import Iterable
from typing import Any

from atgrpo_jax.tasks.games.grid import MOVES, Cell, shift
from atgrpo_jax.tasks.games.sokoban_rooms import Instance

FAR = 1_000_000  # counts as the pushes to a goal that a box cannot reach
MAX_SOLVED = 10_000  # positions that the solver looks at: a second or two, more in large rooms


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
                    key = taken | 1 << goal
                    total = pushed + distance.get(box, FAR)
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
        paths = paths_of(instance, at, stands)
        position = at, min(paths)  # the same wherever the player can walk to
        if position in seen:
            continue
        seen.add(position)
        if len(seen) > most:
            raise TooHard(f"no solution after {most} positions of {instance.rows}")
        for box, move in itertools.product(sorted(at), MOVES):
            behind = shift(box, move, -1)
            beyond = shift(box, move)
            if behind in paths and beyond in instance.floor and beyond not in at:
                after = at ^ {box, beyond}
                left = pushes(instance, tuple(sorted(after)))
                if left < FAR:
                    rank = pushed + 1 + left
                    node = after, box
                    heapq.heappush(queue, (rank, pushed + 1, next(count), node, moves + paths[behind] + move))
    return None


def paths_of(instance: Instance, boxes: Iterable[Cell], player: Cell) -> dict[Cell, str]:
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
