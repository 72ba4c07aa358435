"""Plan-Path: walk from start to goal on a grid with obstacles, by lists of moves.

The task of arXiv 2510.11062, with the faults of its reference code mended: the current position is
shown on every turn, splits share no instance, progress telescopes (so wandering pays nothing), and the
turn limit is not success.

Roles of this form: the ``scout`` proposes a list, which is simulated; the ``mover`` sees where it ends
and what it hits, and its own list is executed. With ``Workflow(order=("mover",))`` the mover is alone.
"""

import collections
import dataclasses
import functools
import random
import re
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
    """A list of moves carried out from some cell. A blocked or unknown move leaves the walker in place."""

    moves: str
    end: Cell
    bumps: tuple[int, ...]  # 1-based numbers of the moves that were blocked or unknown
    taken: int  # moves carried out before the goal or the list ended it, bumps included


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
    # How prompts show the grid: "cells" names every free cell by row and column, "symbols" draws it.
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
        lines.append("list moves U D L R in brackets")
        lines.append(f"at {name(state.position)} goal {name(goal)}")
        return [{"role": "user", "content": "\n".join(lines)}]

    def act(self, state: State, role: str, text: str) -> Step:
        moves = parse_moves(text)
        turns = self.workflow.turns
        if moves is None:
            reward = Reward.of(0.0, invalid=-self.invalid / turns)
            return Step(dataclasses.replace(state, proposal=None), reward, Outcome.INVALID, False, False)
        walk = walk_from(state.instance, state.position, moves)
        distance = distances(state.instance)
        gained = distance[state.position] - distance[walk.end]
        share = gained / distance[state.instance.start]
        bounded = min(max(share, -1.0), 1.0)
        illegal = -self.illegal / turns * len(walk.bumps) / walk.taken
        arrived = walk.end == state.instance.goal
        shortest = self.shortest * (arrived and gained == walk.taken)
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
            best = [m for m in MOVES if distance.get(_shift(cell, m), 10**9) < distance[cell]]
            wrong = rng.random() < self.demonstration_error
            move = rng.choice(list(MOVES) if wrong else best)
            moves += move
            if state.instance.free(_shift(cell, move)):
                cell = _shift(cell, move)
        return self._write(state.instance, state.position, moves)

    def _write(self, instance: Instance, cell: Cell, moves: str) -> str:
        """A list of moves; in the "cells" view each is followed by the cell it leads to, so that whoever
        writes it need not count."""
        if self.view == "symbols":
            return f"[{moves}]"
        text = ""
        for move in moves:
            target = _shift(cell, move)
            cell = target if instance.free(target) else cell
            text += f"{move} {name(cell)}"
        return f"[{text}]"


def parse_moves(text: str) -> str | None:
    """The moves in the last bracketed list of ``text``, or None if there is none or it is empty.

    Accepts ``[URD]``, ``[U, R, D]``, ``['U', "R"]``, lower case, and names of cells between the moves.
    Anything else in the list is kept as "?": an unknown move.
    """
    lists = re.findall(r"\[([^\[\]]*)\]", text)
    if not lists:
        return None
    moves = re.sub(r"[\s\d,'\"]", "", lists[-1]).upper()
    return re.sub(r"[^UDLR]", "?", moves) or None


def walk_from(instance: Instance, cell: Cell, moves: str) -> Walk:
    bumps, taken = [], 0
    for taken, move in enumerate(moves, start=1):
        target = _shift(cell, move)
        if move in MOVES and instance.free(target):
            cell = target
        else:
            bumps.append(taken)
        if cell == instance.goal:
            break
    return Walk(moves[:taken], cell, tuple(bumps), taken)


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
    """ "cells": the name of every free cell, ``##`` for a blocked one. "symbols": ``.`` and ``#``, ``@``
    at the current position and ``G`` at the goal."""
    if view == "cells":
        return "\n".join(
            "".join(f" {name((r, c))}" if cell == "." else " ##" for c, cell in enumerate(row))
            for r, row in enumerate(state.instance.rows)
        )
    rows = [list(row) for row in state.instance.rows]
    rows[state.instance.goal[0]][state.instance.goal[1]] = "G"
    rows[state.position[0]][state.position[1]] = "@"
    return "\n".join("".join(row) for row in rows)


def _shift(cell: Cell, move: str) -> Cell:
    down, right = MOVES.get(move, (0, 0))
    return cell[0] + down, cell[1] + right


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
