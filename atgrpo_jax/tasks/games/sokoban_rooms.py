"""Makes rooms of Sokoban by pulling boxes off their goals, so that all can be solved."""

import collections
import dataclasses
import functools
import random
from collections.abc import Collection

from atgrpo_jax.common.types import seed_of
from atgrpo_jax.tasks.games.grid import MOVES, Cell, shift
from atgrpo_jax.tasks.splits import in_split

MAX_DRAWS = 2000  # rooms that are drawn for one instance
MAX_PULLED = 20_000  # positions that are looked at in one room


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
    rows = []
    for r in range(height):
        rows.append("".join(symbol((r, c)) for c in range(width)))
    return tuple(rows)


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
            back = shift(player, move, -1)
            box = shift(player, move)
            if back not in floor or back in boxes:
                continue
            # The player came from ``back``, or pushed the box away from where the player is now.
            for before in [boxes, boxes ^ {box, player}] if box in boxes else [boxes]:
                state = before, back
                if before != goals and state not in distance:
                    distance[state] = steps + 1
                    queue.append(state)
    return distance
