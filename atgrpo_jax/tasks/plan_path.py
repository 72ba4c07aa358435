"""Plan-Path: walk from start to goal on a grid with obstacles, by lists of moves.

The task of arXiv 2510.11062, with the faults of its reference code mended: the current position is
shown on every turn, splits share no instance, progress telescopes (so wandering pays nothing), and the
turn limit is not success.

Roles of this form: the ``scout`` proposes a list, which is simulated; the ``mover`` sees where it leads
and what it hits, and its own list is executed. With ``Workflow(order=("mover",))`` the mover is alone.
"""

import collections
import dataclasses
import functools
import random
import re
from collections.abc import Sequence
from typing import Literal

from atgrpo_jax.checks import check_types, require
from atgrpo_jax.tasks.base import Step, Workflow
from atgrpo_jax.types import Message, Outcome, Reward, hash_bytes, seed_of

Cell = tuple[int, int]  # row, column

MOVES: dict[str, Cell] = {"U": (-1, 0), "D": (1, 0), "L": (0, -1), "R": (0, 1)}
# Of 16 equal parts of all possible instances, those numbered below belong to each split.
SPLIT_PARTS = {"train": range(0, 12), "validation": range(12, 14), "test": range(14, 16)}
MAX_DRAWS = 20_000


@dataclasses.dataclass(frozen=True)
class Instance:
    rows: tuple[str, ...]  # "." free, "#" blocked
    start: Cell
    goal: Cell

    def free(self, cell: Cell) -> bool:
        row, column = cell
        return 0 <= row < len(self.rows) and 0 <= column < len(self.rows[0]) and self.rows[row][column] == "."


@dataclasses.dataclass(frozen=True)
class Walk:
    """A list of moves carried out from some cell, up to the goal or the end of the list. A blocked or
    unknown move leaves the walker in place."""

    moves: str  # "?" is an unknown one
    end: Cell
    bumps: tuple[int, ...]  # 1-based numbers of the moves that were blocked or unknown


@dataclasses.dataclass(frozen=True)
class State:
    instance: Instance
    position: Cell
    proposal: Walk | None = None  # the scout's, this turn


@dataclasses.dataclass(frozen=True)
class PlanPath:
    """Task and config. Rewards, with d the BFS distance to the goal and D its value at the start:

    mover   team 1 at the goal; local = progress * g + shortest * [at the goal by a shortest path]
            - illegal / turns * (share of blocked moves), where g = (d - d') / D
    scout   proposal / turns * (1 at the goal + the mover's first two terms) of the simulated walk, and the
            same cost of blocked moves; no team part: it moves nobody

    An answer without a list costs ``invalid / turns``. The mover's progress telescopes over an episode and
    its bonus is paid once, at the end; the scout's g is clipped to [-1, 1], and its terms and all costs are
    divided by the number of turns. So no team earns more over a failed episode than over a solved one:
    ``__post_init__`` refuses weights for which that would not hold.
    """

    size: int = 6
    obstacles: float = 0.22  # probability that a cell is blocked
    seed: int = 0
    # "cells": cells are named by row and column, prompts name the blocked ones, and a list names the cell
    # that each move leads to, so that nobody need count. "symbols": prompts draw the grid, lists are of
    # U D L R. Answers may use either spelling in both.
    view: Literal["cells", "symbols"] = "cells"
    workflow: Workflow = Workflow(order=("scout", "mover"))
    progress: float = 0.3
    shortest: float = 0.5
    illegal: float = 0.1
    invalid: float = 0.1
    proposal: float = 0.25
    demonstration_error: float = 0.3  # probability that a demonstrated move is a random one
    demonstration_moves: int = 6  # at most, in one list

    def __post_init__(self):
        check_types(self)
        require(self, "size", self.size >= 2, "must be at least 2")
        require(self, "obstacles", 0 <= self.obstacles < 1, "must be in [0, 1)")
        require(
            self,
            "view",
            self.view == "symbols" or self.size <= 10,
            'names cells by one digit each; use "symbols" above size 10',
        )
        require(self, "demonstration_error", 0 <= self.demonstration_error <= 1, "must be in [0, 1]")
        require(self, "demonstration_moves", self.demonstration_moves >= 1, "must be at least 1")
        unknown = set(self.workflow.order) - {"scout", "mover"}
        require(self, "workflow", not unknown, f"roles are scout and mover, not {sorted(unknown)}")
        require(self, "workflow", "mover" in self.workflow.order, "nobody moves without a mover")
        for name in ("progress", "shortest", "illegal", "invalid", "proposal"):
            require(self, name, getattr(self, name) >= 0, "must not be negative")
        failed = self.progress + self.proposal * (1 + self.progress + self.shortest)
        cost = max(self.invalid, self.illegal)
        scout_cost = max(self.invalid, self.illegal + self.proposal * self.progress)
        solved = 1 + self.progress - cost - scout_cost
        require(
            self,
            "proposal",
            failed <= solved + 1e-9,
            f"failing could pay {failed:.3g} and solving only {solved:.3g}; lower proposal, shortest, "
            "illegal or invalid",
        )
        self.instance("train", 0)  # an unreachable grid is refused here

    # Instances

    def instance(self, split: str, index: int) -> Instance:
        """Raises ValueError for an unknown split, or if no solvable grid turns up."""
        return _draw(self.size, self.obstacles, self.seed, split, index)

    # Play

    def initial(self, instance: Instance) -> State:
        return State(instance, instance.start)

    def prompt(self, state: State, role: str) -> list[Message]:
        goal = state.instance.goal
        lines = [role]
        if (walk := state.proposal) is not None:
            end = "the goal" if walk.end == goal else name(walk.end)
            hits = " hits at " + " ".join(map(str, walk.bumps)) if walk.bumps else ""
            moves = self._write(state.instance, state.position, walk.moves)
            lines.append(f"scout {moves} ends at {end}{hits}")
        # What all roles see comes last, and the position after everything of varying length: the nearer and
        # the more regular its place, the sooner a small model learns to read it.
        lines.append(render(state, self.view))
        lines.append(f"list {'cells' if self.view == 'cells' else 'moves U D L R'} in brackets")
        lines.append(f"at {name(state.position)} goal {name(goal)}")
        return [{"role": "user", "content": "\n".join(lines)}]

    def act(self, state: State, role: str, text: str) -> Step:
        walk = walk_from(state.instance, state.position, parse_moves(text))
        turns = self.workflow.turns
        if not walk.moves:
            reward = Reward.of(0.0, invalid=-self.invalid / turns)
            return Step(dataclasses.replace(state, proposal=None), reward, Outcome.INVALID, False, False)
        distance = distances(state.instance)
        gained = distance[state.position] - distance[walk.end]
        share = gained / distance[state.instance.start]
        bounded = min(max(share, -1.0), 1.0)
        illegal = -self.illegal / turns * len(walk.bumps) / len(walk.moves)
        arrived = walk.end == state.instance.goal
        shortest = self.shortest * (arrived and gained == len(walk.moves))
        if role == "scout":
            proposal = arrived + self.progress * bounded + shortest
            reward = Reward.of(0.0, proposal=self.proposal / turns * proposal, illegal=illegal)
            after = dataclasses.replace(state, proposal=walk)
            return Step(after, reward, Outcome.OK, False, False)
        reward = Reward.of(float(arrived), progress=self.progress * share, shortest=shortest, illegal=illegal)
        return Step(State(state.instance, walk.end), reward, Outcome.OK, arrived, arrived)

    def demonstration(self, state: State, role: str, rng: random.Random) -> str:
        """A shortest path in which each move is, with some probability, a random one.

        A mover that was shown a proposal reaching the goal repeats it.
        """
        goal, distance = state.instance.goal, distances(state.instance)
        if role == "mover" and state.proposal is not None and state.proposal.end == goal:
            return self._write(state.instance, state.position, state.proposal.moves)
        cell, moves = state.position, ""
        while cell != goal and len(moves) < min(distance[state.position], self.demonstration_moves):
            open_ = {m: _shift(cell, m) for m in MOVES if state.instance.free(_shift(cell, m))}
            best = [m for m, target in open_.items() if distance[target] < distance[cell]]
            wrong = rng.random() < self.demonstration_error
            moves += rng.choice(list(open_) if wrong else best)
            cell = open_[moves[-1]]
        return self._write(state.instance, state.position, moves)

    def _write(self, instance: Instance, cell: Cell, moves: str) -> str:
        """A list that ``parse_moves`` reads; in the "cells" view it begins with the cell it starts from."""
        if self.view == "symbols":
            return f"[{moves}]"
        text = f" {name(cell)}"
        for move in moves:
            cell = _reached(instance, cell, move)
            text += f" {name(cell)}"
        return f"[{text}]"


def parse_moves(text: str) -> list[str]:
    """The moves in the last bracketed list of ``text``; none if there is no list.

    A move is one of U, D, L, R or the name of the cell that it leads to: reads ``[URD]``, ``[U, R, D]``,
    ``['U', "R"]``, lower case, and ``[03 04 14]``. Anything else in the list is kept as "?".
    """
    lists = re.findall(r"\[([^\[\]]*)\]", text)
    items = re.findall(r"\d+|[^\s\d,'\"]", lists[-1].upper()) if lists else []
    return [item if item in MOVES or item.isdigit() else "?" for item in items]


def walk_from(instance: Instance, cell: Cell, moves: Sequence[str]) -> Walk:
    """Carries out what ``parse_moves`` read. A list may begin with the cell it starts from; a cell that is
    not next to the walker's is an unknown move."""
    if moves and moves[0] == name(cell):
        moves = moves[1:]
    carried, bumps = "", []
    for item in moves:
        carried += item if item in MOVES else _move_to(cell, item)
        reached = _reached(instance, cell, carried[-1])
        if reached == cell:
            bumps.append(len(carried))
        cell = reached
        if cell == instance.goal:
            break
    return Walk(carried, cell, tuple(bumps))


@functools.lru_cache(maxsize=4096)
def distances(instance: Instance) -> dict[Cell, int]:
    """BFS distance to the goal of every cell that can reach it."""
    distance = {instance.goal: 0}
    queue = collections.deque([instance.goal])
    while queue:
        cell = queue.popleft()
        for move in MOVES:
            near = _shift(cell, move)
            if instance.free(near) and near not in distance:
                distance[near] = distance[cell] + 1
                queue.append(near)
    return distance


def name(cell: Cell) -> str:
    """Row and column, e.g. "03"; "12,3" if either has two digits."""
    return f"{cell[0]}{cell[1]}" if max(cell) < 10 else f"{cell[0]},{cell[1]}"


def render(state: State, view: str) -> str:
    """ "cells": the size, and the names of all blocked cells. "symbols": ``.`` and ``#``, ``@`` at the
    current position and ``G`` at the goal."""
    rows = state.instance.rows
    if view == "cells":
        blocked = [name((r, c)) for r, row in enumerate(rows) for c, cell in enumerate(row) if cell == "#"]
        return " ".join((f"{len(rows)}x{len(rows[0])} blocked", *blocked))
    drawn = [list(row) for row in rows]
    drawn[state.instance.goal[0]][state.instance.goal[1]] = "G"
    drawn[state.position[0]][state.position[1]] = "@"
    return "\n".join("".join(row) for row in drawn)


def _shift(cell: Cell, move: str) -> Cell:
    down, right = MOVES.get(move, (0, 0))
    return cell[0] + down, cell[1] + right


def _move_to(cell: Cell, target: str) -> str:
    """The move that leads from ``cell`` to the cell of that name; "?" if none does."""
    return next((move for move in MOVES if name(_shift(cell, move)) == target), "?")


def _reached(instance: Instance, cell: Cell, move: str) -> Cell:
    """Where a move leads: ``cell`` itself if it is blocked or unknown."""
    target = _shift(cell, move)
    return target if instance.free(target) else cell


@functools.lru_cache(maxsize=4096)
def _draw(size: int, obstacles: float, seed: int, split: str, index: int) -> Instance:
    if split not in SPLIT_PARTS:
        raise ValueError(f"split {split!r}: expected one of {', '.join(SPLIT_PARTS)}")
    rng = random.Random(seed_of("plan_path", seed, split, index))
    for _ in range(MAX_DRAWS):
        cells = [[rng.random() < obstacles for _ in range(size)] for _ in range(size)]
        free = [(r, c) for r in range(size) for c in range(size) if not cells[r][c]]
        if len(free) < 2:
            continue
        start, goal = rng.sample(free, 2)
        rows = tuple("".join("#" if blocked else "." for blocked in row) for row in cells)
        instance = Instance(rows, start, goal)
        # The instance itself decides its split, so no two splits can share one.
        part = hash_bytes(repr(instance))[0] % 16
        if part in SPLIT_PARTS[split] and start in distances(instance):
            return instance
    raise ValueError(
        f"PlanPath.obstacles = {obstacles}: no solvable {size}x{size} grid for split {split} "
        f"in {MAX_DRAWS} draws; lower it or enlarge PlanPath.size"
    )
