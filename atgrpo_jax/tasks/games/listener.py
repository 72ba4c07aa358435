"""Says how good a map is: what becomes of a walker who believes it.

A map is the set of cells that the walker takes for blocked; all others are free to it. It takes,
at random, one of the steps that are shortest on its map. A wall that is not on the map stops it.
This is computed, not drawn, so a map always has the same worth.
"""

import functools
from collections.abc import Iterable

from atgrpo_jax.tasks.games.grid import MOVES, Cell, shift
from atgrpo_jax.tasks.games.plan_path import Instance, distances

Cells = frozenset[Cell]


def walls(instance: Instance) -> Cells:
    rows = enumerate(instance.rows)
    return frozenset((r, c) for r, row in rows for c, cell in enumerate(row) if cell == "#")


def map_of(instance: Instance, known: Cells) -> Instance:
    """Returns the grid as somebody believes it to be, to whom the ``known`` cells are blocked."""
    size = range(len(instance.rows))
    rows = tuple("".join("#" if (r, c) in known else "." for c in size) for r in size)
    return Instance(rows, instance.start, instance.goal)


def shortest_moves(instance: Instance, cell: Cell) -> list[str]:
    """Returns the moves that get nearer to the goal; none at the goal, or where no way leads to it."""
    distance = distances(instance)
    if cell not in distance:
        return []
    return [move for move in MOVES if distance.get(shift(cell, move)) == distance[cell] - 1]


def ends(instance: Instance, known: Cells, starts: Iterable[Cell]) -> dict[Cell, float]:
    """Returns where walkers end, with the share of them that does: at the goal, at walls that stop
    them, or at their start if their map has no way. As many set out from each of ``starts``."""
    believed = map_of(instance, known)
    places = list(starts)
    shares = dict.fromkeys(places, 1 / len(places))
    for cell in reversed(distances(believed)):  # the farthest first
        moves = shortest_moves(believed, cell)
        if cell in shares and instance.free(cell) and moves:
            share = shares.pop(cell) / len(moves)
            for move in moves:
                near = shift(cell, move)
                shares[near] = shares.get(near, 0.0) + share
    return shares


def chance(instance: Instance, known: Cells, starts: Iterable[Cell]) -> float:
    """Returns the share of walkers that arrive."""
    return min(1.0, ends(instance, known, starts).get(instance.goal, 0.0))  # sums of shares are rounded


@functools.lru_cache(maxsize=4096)
def most_useful(instance: Instance, known: Cells, starts: tuple[Cell, ...], count: int) -> tuple[Cell, ...]:
    """Returns at most ``count`` walls to tell to walkers who know some: each time the one that stops
    most of them, until none does."""
    told: list[Cell] = []
    while len(told) < count:
        stopped = {
            cell: share
            for cell, share in ends(instance, known | set(told), starts).items()
            if not instance.free(cell)
        }
        if not stopped:
            break
        told.append(max(sorted(stopped), key=lambda cell: stopped[cell]))
    return tuple(told)
