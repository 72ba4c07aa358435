"""Defines Sokoban: push every box onto a goal.

It is the task of arXiv 2510.11062 without the faults of its reference code: success means that all
boxes are on goals, never that a step limit was reached, and moving a box to and fro pays nothing.
The ``mover`` decides; see game.py for the roles.
"""

import dataclasses
import itertools
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal

from atgrpo_jax.common.checks import check_types, require
from atgrpo_jax.tasks.data import absolute, files_of, pick, rows_of
from atgrpo_jax.tasks.games.game import Game, Played, Proposal
from atgrpo_jax.tasks.games.grid import MOVES, Cell, move_of, name, parse_moves, shift
from atgrpo_jax.tasks.games.sokoban_levels import read_levels
from atgrpo_jax.tasks.games.sokoban_rooms import Instance, draw_room, drawn
from atgrpo_jax.tasks.games.sokoban_solver import FAR, MAX_SOLVED, TooHard, pushes, solve
from atgrpo_jax.tasks.workflow import Workflow


@dataclasses.dataclass(frozen=True)
class Walk:
    """A list of moves that was carried out, up to the solution or the end of the list."""

    moves: str  # "?" is an unknown move
    player: Cell
    boxes: tuple[Cell, ...]
    bumps: tuple[int, ...]  # numbers, from 1, of the moves that changed nothing
    stuck: bool  # the boxes can no longer be pushed to goals of their own (``pushes`` is FAR)


@dataclasses.dataclass(frozen=True)
class State:
    instance: Instance
    player: Cell
    boxes: tuple[Cell, ...]  # sorted
    proposal: Proposal | None = None  # its ``carried`` is a Walk

    @property
    def solved(self) -> bool:
        return frozenset(self.boxes) == self.instance.goals


@dataclasses.dataclass(frozen=True)
class Sokoban(Game):
    """Sokoban pays what ``Game`` says. A walk gains the change of done = max(0, 1 - d / D). Here d
    is the fewest pushes that bring the boxes to goals of their own, each box as if it were alone
    (``pushes``), and D is d at the start. If no pushes can do that, the episode ends: done is 0
    then, and the whole walk counts as illegal. (At a higher cost teams learnt not to push:
    docs/log.md.) The ``shortest`` bonus is for a solution in d pushes, whatever its moves.
    """

    decider: ClassVar[str] = "mover"
    # Positions that the solver looks at for a demonstration; if it finds no answer in them, the
    # demonstrated moves are random.
    positions: ClassVar[int] = MAX_SOLVED

    workflow: Workflow = Workflow(order=("scout", "mover"))
    prompts: str = "sokoban/short"  # a folder of templates; see tasks/prompts.py
    size: int = 6  # cells on a side of the room, with the walls around it
    boxes: int = 1  # and so many goals
    walls: float = 0.15  # probability that a cell within the room is a wall
    least_moves: int = 4  # limits of the number of moves in a shortest solution
    most_moves: int = 30  # see least_moves
    # Files of levels for each split, with rows {"grid": [row, ...]}; see docs/data.md. If empty,
    # rooms are generated.
    levels: Mapping[str, str | tuple[str, ...]] = dataclasses.field(default_factory=dict)
    view: Literal["cells", "symbols"] = "cells"  # as in Plan-Path
    demonstration_moves: int = 12  # most moves in one demonstrated list

    def __post_init__(self):
        check_types(self)
        require(self, "size", 4 <= self.size <= 10 or self.view == "symbols", 'above 10 use view "symbols"')
        require(self, "size", self.size >= 4, "must be at least 4")
        require(self, "boxes", 1 <= self.boxes <= 4, "must be from 1 to 4")
        require(self, "walls", 0 <= self.walls < 1, "must be in [0, 1)")
        require(self, "least_moves", 1 <= self.least_moves <= self.most_moves, "must be from 1 to most_moves")
        require(self, "demonstration_moves", self.demonstration_moves >= 1, "must be at least 1")
        object.__setattr__(self, "levels", absolute(self.levels))
        largest = max((max(level.shape) for level in self._levels()), default=0)
        rule = (
            f'names cells by one digit each, and there are levels of {largest} rows or columns: use "symbols"'
        )
        require(self, "view", largest <= 10 or self.view == "symbols", rule)
        super().__post_init__()

    def instance(self, split: str, index: int) -> Instance:
        """Returns a level of the files, or a generated room. Raises ValueError for an unknown
        split, a bad row of a file, or if no such room is found; IndexError past the end of a
        held-out split's files."""
        if self.levels:
            return pick(self.file_rows(split), self.seed, split, index)
        limits = self.least_moves, self.most_moves
        return draw_room(self.size, self.boxes, self.walls, *limits, self.seed, split, index)

    def file_rows(self, split: str) -> tuple[Instance, ...]:
        return rows_of(files_of(self.levels), split, read_levels, _rows) if self.levels else ()

    def _levels(self) -> Iterator[Instance]:
        for _, paths in files_of(self.levels):
            for path in paths:
                yield from read_levels(path)

    @property
    def sources(self) -> Mapping[str, Any]:
        return self.levels

    def initial(self, instance: Instance) -> State:
        return State(instance, instance.player, tuple(sorted(instance.boxes)))

    def read(self, state: State, text: str) -> Sequence[str]:
        return parse_moves(text, state.player)

    def play(self, state: State, actions: Sequence[str]) -> Played:
        walk = walk_from(state, actions)
        after = State(state.instance, walk.player, walk.boxes)
        whole = pushes(state.instance, tuple(sorted(state.instance.boxes)))
        before = pushes(state.instance, state.boxes)
        left = pushes(state.instance, walk.boxes)
        done = 0.0 if walk.stuck else max(0.0, 1 - left / whole)  # share of the way, after the walk
        carried = len(walk.moves)
        return Played(
            after,
            walk,
            done - max(0.0, 1 - before / whole),
            1.0 if walk.stuck else len(walk.bumps) / carried,
            solved=after.solved,
            shortest=after.solved and _pushed(state, walk.moves) == before,
            dead=walk.stuck,
        )

    def values(self, state: State) -> dict[str, Any]:
        instance = state.instance
        return {
            "rows": drawn(
                instance.shape,
                instance.floor,
                instance.goals,
                state.boxes,
                state.player,
            ),
            "view": self.view,
            "walls": _inner_walls(instance),
            "boxes": list(map(name, state.boxes)),
            "goals": list(map(name, sorted(instance.goals))),
            "player": name(state.player),
        }

    def shown(self, state: State, carried: Walk) -> dict[str, Any]:
        return {
            "moves": self._write(state, carried.moves),
            "boxes": list(map(name, carried.boxes)),
            "player": name(carried.player),
            "at": carried.player,
            "hits": carried.bumps,
            "stuck": carried.stuck,
        }

    def drawn(self, state: State) -> list[list[str]]:
        """Returns the room. Where the proposal would leave boxes and player, floor is "proposed"."""
        instance = state.instance
        carried = state.proposal.carried if state.proposal else None
        proposed = {} if carried is None else {cell: "$" for cell in carried.boxes} | {carried.player: "@"}

        def kind(cell: Cell) -> str:
            if cell in state.boxes:
                return "done $" if cell in instance.goals else "box"
            if cell == state.player:
                return "agent +" if cell in instance.goals else "agent"
            if cell in proposed:
                return f"proposed {proposed[cell]}"
            return "goal" if cell in instance.goals else "floor" if cell in instance.floor else "wall"

        height, width = instance.shape
        return [[kind((r, c)) for c in range(width)] for r in range(height)]

    def demonstrated(self, state: State, rng: random.Random) -> str:
        """Returns the beginning of a solution; each move is random with some probability."""
        moves = ""
        at = state
        best = self._solution(state)
        count = min(len(best), self.demonstration_moves) if best else self.demonstration_moves
        for _ in range(count):
            if best == "":
                best = self._solution(at)
            if not best or rng.random() < self.demonstration_error:
                open_ = [m for m in MOVES if walk_from(at, m).bumps == ()]
                move = rng.choice(open_ or list(MOVES))
                best = "" if best is not None else None
            else:
                move = best[0]
                best = best[1:]
            walk = walk_from(at, move)
            at = State(state.instance, walk.player, walk.boxes)
            moves += move
            if at.solved:
                break
        return self._write(state, moves)

    def _solution(self, state: State) -> str | None:
        """Returns the moves of a solution; "" if there is none, None if that is too hard to
        tell."""
        try:
            return solve(state.instance, state.boxes, state.player, self.positions) or ""
        except TooHard:
            return None

    def repeated(self, state: State, carried: Walk) -> str:
        return self._write(state, carried.moves)

    def _write(self, state: State, moves: str) -> str:
        """Returns a list that ``read`` can read. In the "cells" view it begins with the player's
        cell."""
        if self.view == "symbols":
            return f"[{moves}]"
        text = f" {name(state.player)}"
        at = state
        for move in moves:
            walk = walk_from(at, move)
            at = State(state.instance, walk.player, walk.boxes)
            text += f" {name(at.player)}"
        return f"[{text}]"


def words() -> tuple[str, ...]:
    """Returns pieces of text for a ``TinyTokenizer``, so that prompts and answers are short."""
    return (
        "scout", "mover", " walls", " boxes", " goals", "at", " ends at", " solved", " stuck", " hits at",
        "list cells in brackets", "list moves U D L R in brackets",
        *(f" {row}{column}" for row in range(10) for column in range(10)),
    )  # fmt: skip


def walk_from(state: State, actions: Sequence[str]) -> Walk:
    """Carries out moves, given as moves or as cells next to the player. A move that is blocked or
    unknown changes nothing."""
    instance = state.instance
    player = state.player
    boxes = set(state.boxes)
    carried = ""
    bumps = []
    for item in actions:
        move = move_of(player, item)
        carried += move
        target = shift(player, move)
        beyond = shift(target, move)
        if target in boxes and beyond in instance.floor and beyond not in boxes:
            boxes ^= {target, beyond}
        if target == player or target not in instance.floor or target in boxes:
            bumps.append(len(carried))
        else:
            player = target
        if boxes == instance.goals:
            break
    stuck = pushes(instance, tuple(sorted(boxes))) >= FAR
    return Walk(carried, player, tuple(sorted(boxes)), tuple(bumps), stuck)


def _rows(instance: Instance) -> tuple[str, ...]:
    return instance.rows


def _pushed(state: State, moves: str) -> int:
    at = state
    count = 0
    for move in moves:
        walk = walk_from(at, move)
        count += walk.boxes != at.boxes
        at = State(state.instance, walk.player, walk.boxes)
    return count


def _inner_walls(instance: Instance) -> list[str]:
    height, width = instance.shape
    inner = itertools.product(range(1, height - 1), range(1, width - 1))
    return [name(cell) for cell in inner if cell not in instance.floor]
