"""Defines split sight: Plan-Path where nobody sees all, so that a team has something to tell.

A ``seer`` sees walls and writes a message of a few words. A ``mover`` is shown the message, and
decides where to walk. ``SplitSight.split`` says who sees what; docs/split-sight.md says more.
"""

import dataclasses
import itertools
import random
import re
from collections.abc import Iterable
from typing import Literal

from atgrpo_jax.common.checks import check_types, require
from atgrpo_jax.common.types import Message, Outcome, Reward, seed_of
from atgrpo_jax.tasks import prompts
from atgrpo_jax.tasks.games.grid import MOVES, Cell, move_of, name, parse_moves, shift
from atgrpo_jax.tasks.games.listener import Cells, chance, map_of, most_useful, shortest_moves, walls
from atgrpo_jax.tasks.games.plan_path import Instance, board, distances, draw
from atgrpo_jax.tasks.protocol import Transition
from atgrpo_jax.tasks.splits import SPLITS, in_split
from atgrpo_jax.tasks.texts import last_list
from atgrpo_jax.tasks.workflow import Workflow

SEER = "seer"
MOVER = "mover"
ORDERS = (((MOVER,),), ((SEER,), (MOVER,)))
# A longer number or word counts as several, so no word says more than the name of a cell may.
_WORD = re.compile(r"[0-9]{1,2}|[A-Za-z]{1,12}")


@dataclasses.dataclass(frozen=True)
class State:
    instance: Instance
    position: Cell
    message: str | None = None  # what the mover hears in this turn; None before the seer spoke


@dataclasses.dataclass(frozen=True)
class SplitSight:
    """Split sight is a task and its config in one. Rewards:

    mover    team = 1 if it reaches the goal; local = progress * (d - d') / F - hit / turns if a
             blocked or unknown move stopped it. d and d' are the BFS distances to the goal before
             and after, F is that of the farthest cell.
    seer     told / turns * (the chance that a walker arrives who believes what the mover sees and
             hears; see listener.py). No team part, because it moves nobody.

    An answer without a list costs ``invalid / turns``. Over an episode progress telescopes to less
    than progress * D / F if it fails (D is the distance from the start), and to just that if it
    arrives; all else is divided by the number of turns. So no team earns more in a failed episode
    than in a solved one: ``__post_init__`` refuses weights that would allow it.
    """

    workflow: Workflow = Workflow(order=(SEER, MOVER), turns=1)
    prompts: str = "split_sight/short"  # a folder of templates; see tasks/prompts.py
    seed: int = 0  # other seeds make other problems
    size: int = 4  # cells on a side of the grid
    obstacles: float = 0.35  # probability that a cell is blocked
    least_moves: int = 3  # from start to goal
    # "walls": the seer sees all walls, but not where the mover is; the mover sees no wall. "halves":
    # the seer sees the walls of the left half, the mover those of the right half, and both see where
    # the mover is. "none": both see everything. The goal is always seen.
    split: Literal["walls", "halves", "none"] = "walls"
    words: int = 3  # of a message; the rest is cut
    # What the mover hears: what the seer said; nothing; what the best seer would say here; or what
    # the best seer would say of another instance.
    heard: Literal["said", "nothing", "oracle", "other"] = "said"
    progress: float = 0.3
    hit: float = 0.1
    invalid: float = 0.1
    told: float = 0.5
    demonstration_error: float = 0.3  # probability that a demonstrated move or word is a random one
    prompts_digest: str = dataclasses.field(init=False, default="")  # of the templates' content

    def __post_init__(self):
        check_types(self)
        require(self, "size", 2 <= self.size <= 10, "must be 2 to 10: names of cells have two digits")
        require(self, "obstacles", 0 <= self.obstacles < 1, "must be in [0, 1)")
        for field in ("least_moves", "words"):
            require(self, field, getattr(self, field) >= 1, "must be at least 1")
        require(self, "demonstration_error", 0 <= self.demonstration_error <= 1, "must be in [0, 1]")
        for field in ("progress", "hit", "invalid", "told"):
            require(self, field, getattr(self, field) >= 0, "must not be negative")
        known = self.workflow.stages in ORDERS
        require(self, "workflow", known, f'order must be ("{SEER}", "{MOVER}") or ("{MOVER}",)')
        seers = len(self.workflow.speakers) - 1
        failed = self.told * seers
        solved = 1 - max(self.hit, self.invalid) - self.invalid * seers
        rule = f"failing could pay {failed:.3g} and solving only {solved:.3g}; lower told, hit or invalid"
        require(self, "told", failed <= solved + 1e-9, rule)
        prompts.settle(self, self.workflow.speakers)

    def instance(self, split: str, index: int) -> Instance:
        """Returns a generated grid. Raises ValueError for an unknown split, or if no grid is found."""
        return draw("SplitSight", self.size, self.obstacles, self.seed, split, index, self.least_moves)

    def initial(self, instance: Instance) -> State:
        return State(instance, instance.start)

    def prompt(self, state: State, role: str) -> list[Message]:
        seen = sorted(self.seen(state.instance, role))
        values = {
            "size": self.size,
            "split": self.split,
            "words": self.words,
            "sees_walls": role == SEER or self.split != "walls",
            "walls": [name(cell) for cell in seen],
            "position": name(state.position) if role == MOVER or self.split != "walls" else None,
            "goal": name(state.instance.goal),
            "message": state.message,
        }
        return prompts.render(self.prompts, role, values)

    def act(self, state: State, role: str, text: str) -> Transition:
        return self._told(state, text) if role == SEER else self._moved(state, text)

    def drawn(self, state: State) -> list[list[str]]:
        """Returns the whole grid. What the message names is marked: walls, and free cells in red."""
        rows = board(state.instance, state.position, ())
        for r, c in self.known(state) - self.seen(state.instance, MOVER):
            rows[r][c] = "wall !" if rows[r][c] == "wall" else "wrong !"
        return rows

    def demonstration(self, state: State, role: str, rng: random.Random) -> str:
        """Returns an answer for the warm start, from what the role may know. Each word or move is
        random with some probability."""
        if role == SEER:
            cells = [(r, c) for r in range(self.size) for c in range(self.size)]
            named = self.oracle(state.instance, state.position)
            return _listed(rng.choice(cells) if self._errs(rng) else cell for cell in named)
        believed = map_of(state.instance, self.known(state))
        if state.position not in distances(believed):  # the message cannot be true
            believed = map_of(state.instance, self.seen(state.instance, MOVER))
        walk = [state.position]
        for _ in range(distances(believed)[state.position]):
            inside = [move for move in MOVES if self._inside(shift(walk[-1], move))]
            best = shortest_moves(believed, walk[-1])
            walk.append(shift(walk[-1], rng.choice(inside if self._errs(rng) or not best else best)))
        return _listed(walk)

    # Who knows what

    def seen(self, instance: Instance, role: str) -> Cells:
        """Returns the walls that a role sees."""
        if self.split == "walls":
            return walls(instance) if role == SEER else frozenset()
        if self.split == "halves":
            left = self.size // 2
            return frozenset(cell for cell in walls(instance) if (cell[1] < left) == (role == SEER))
        return walls(instance)

    def known(self, state: State) -> Cells:
        """Returns the cells that the mover takes for blocked: what it sees, and what the message
        names."""
        words = [word for word in (state.message or "").split() if len(word) == 2 and word.isdigit()]
        named = frozenset((int(word[0]), int(word[1])) for word in words)
        return self.seen(state.instance, MOVER) | frozenset(cell for cell in named if self._inside(cell))

    def oracle(self, instance: Instance, position: Cell) -> tuple[Cell, ...]:
        """Returns the walls that the best seer names, the most useful one first."""
        starts = self._starts(instance, position)
        return most_useful(instance, self.seen(instance, MOVER), starts, self.words)

    def _starts(self, instance: Instance, position: Cell) -> tuple[Cell, ...]:
        """Returns where the mover may be, as far as the seer knows. In the split "walls" it is where
        an episode may begin."""
        if self.split != "walls":
            return (position,)
        distance = distances(instance)
        return tuple(sorted(cell for cell in distance if distance[cell] >= self.least_moves))

    # What becomes of what they say

    def _told(self, state: State, text: str) -> Transition:
        found = last_list(text)
        said = found if isinstance(found, str) else " ".join(found or ())
        after = dataclasses.replace(state, message=self._heard(state, said))
        turns = self.workflow.turns
        if found is None:
            reward = Reward.of(0.0, invalid=-self.invalid / turns)
            return Transition(after, reward, Outcome.INVALID, False, False)
        starts = self._starts(state.instance, state.position)
        told = self.told / turns * chance(state.instance, self.known(after), starts)
        return Transition(after, Reward.of(0.0, told=told), Outcome.OK, False, False)

    def _heard(self, state: State, said: str) -> str:
        instance = state.instance
        if self.heard == "said":
            return " ".join(word[0] for word in itertools.islice(_WORD.finditer(said), self.words))
        if self.heard == "nothing":
            return ""
        if self.heard == "other":
            split = next(split for split in SPLITS if in_split(instance, split))
            instance = self.instance(split, seed_of("other", instance))
            return " ".join(map(name, self.oracle(instance, instance.start)))
        return " ".join(map(name, self.oracle(instance, state.position)))

    def _moved(self, state: State, text: str) -> Transition:
        instance = state.instance
        turns = self.workflow.turns
        items = parse_moves(text, state.position)[: self.size**2]
        if not items:
            reward = Reward.of(0.0, invalid=-self.invalid / turns)
            return Transition(State(instance, state.position), reward, Outcome.INVALID, False, False)
        end, stopped = walked(instance, state.position, items)
        distance = distances(instance)
        gained = (distance[state.position] - distance[end]) / max(distance.values())
        solved = end == instance.goal
        reward = Reward.of(float(solved), progress=self.progress * gained, hit=-self.hit / turns * stopped)
        return Transition(State(instance, end), reward, Outcome.OK, solved, solved)

    def _errs(self, rng: random.Random) -> bool:
        return rng.random() < self.demonstration_error

    def _inside(self, cell: Cell) -> bool:
        return min(cell) >= 0 and max(cell) < self.size


def walked(instance: Instance, cell: Cell, items: list[str]) -> tuple[Cell, bool]:
    """Carries out the items that ``parse_moves`` returned, up to the goal or the first one that is
    blocked or no move. Returns the cell reached, and whether such an item ended the walk.

    Who could bump and go on would feel the way without being told.
    """
    for item in items:
        target = shift(cell, move_of(cell, item))
        if target == cell or not instance.free(target):
            return cell, True
        cell = target
        if cell == instance.goal:
            break
    return cell, False


def words() -> tuple[str, ...]:
    """Returns pieces of text for a ``TinyTokenizer``, so that prompts and answers are short."""
    return (
        "seer", "mover", "at", "goal", "blocked", "hears", "name cells in brackets",
        "list cells in brackets", *(f" {row}{column}" for row in range(10) for column in range(10)),
    )  # fmt: skip


def _listed(cells: Iterable[Cell]) -> str:
    return f"[{''.join(f' {name(cell)}' for cell in cells)}]"
