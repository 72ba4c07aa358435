"""Instances a second that the games make, and how long their oracles take for one: as JSON, one line each.

    python benchmarks/generators.py

The oracle is what demonstrations follow: of Plan-Path the distances to the goal, of Sokoban a solution with
the fewest pushes, of Sudoku the search for all solutions. On one core.
"""

import argparse
import statistics
import time
from collections.abc import Callable

from items import report

from atgrpo_jax.tasks.games.game import Game
from atgrpo_jax.tasks.games.plan_path import PlanPath, distances
from atgrpo_jax.tasks.games.sokoban import Sokoban
from atgrpo_jax.tasks.games.sokoban_solver import solve
from atgrpo_jax.tasks.games.sudoku import Sudoku
from atgrpo_jax.tasks.games.sudoku_grids import solutions

GAMES = (
    *(PlanPath(size=size, view="symbols") for size in (6, 10, 20)),
    *(Sokoban(boxes=boxes) for boxes in (1, 2, 3, 4)),
    Sudoku(),
    Sudoku(size=9, least_empty=30, most_empty=50),
)
ORACLES: dict[type[Game], Callable] = {
    PlanPath: distances,
    Sokoban: lambda room: solve(room, tuple(sorted(room.boxes)), room.player),
    Sudoku: lambda instance: list(solutions(instance.puzzle)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=5.0, help="of making instances of each game")
    seconds = parser.parse_args().seconds
    for game in GAMES:
        report("generators", **measured(game, seconds))


def measured(game: Game, seconds: float) -> dict[str, object]:
    instances, began = [], time.perf_counter()
    while time.perf_counter() - began < seconds:
        instances.append(game.instance("train", len(instances)))
    rate = len(instances) / (time.perf_counter() - began)
    distances.cache_clear()  # making a maze has asked it already
    times = [1000 * timed(lambda i=i: ORACLES[type(game)](i)) for i in instances[:500]]
    return {
        "game": type(game).__name__,
        "size": game.size,
        "boxes": getattr(game, "boxes", None),
        "instances_per_s": round(rate, 1),
        "oracle_ms": round(statistics.fmean(times), 3),
        "oracle_ms_most": round(max(times), 3),
    }


def timed(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
