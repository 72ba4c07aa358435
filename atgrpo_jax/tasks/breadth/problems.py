"""Makes the small problems of breadth. Each has a kind, a few numbers, and one number as its answer."""

import dataclasses
import functools
import random
from collections.abc import Callable, Mapping, Sequence

from atgrpo_jax.common.types import seed_of
from atgrpo_jax.tasks.splits import in_split

# From a kind to its answer, before that is reduced by the modulus.
KINDS: Mapping[str, Callable[[Sequence[int]], int]] = {
    "first": lambda numbers: numbers[0],
    "last": lambda numbers: numbers[-1],
    "largest": max,
    "smallest": min,
    "sum": sum,
}
# From a specialist to the kinds that it knows.
SPECIALISTS: Mapping[str, Sequence[str]] = {
    "reader": ("first", "last"),
    "sorter": ("largest", "smallest"),
    "adder": ("sum",),
}
MAX_DRAWS = 20_000


@dataclasses.dataclass(frozen=True)
class Problem:
    kind: str
    numbers: tuple[int, ...]
    modulus: int  # all numbers are below it

    @property
    def answer(self) -> int:
        return KINDS[self.kind](self.numbers) % self.modulus


@dataclasses.dataclass(frozen=True)
class Instance:
    problems: tuple[Problem, ...]
    known: tuple[bool, ...]  # whether a problem comes with its answer


@dataclasses.dataclass(frozen=True)
class State:
    instance: Instance
    answers: tuple[int | None, ...]  # of each problem, whether they are right or not
    named: tuple[int, ...] = ()  # the problems that the planner named, one for each seat
    called: str = ""  # the specialist that the router named

    @property
    def open(self) -> list[int]:
        """Returns the places of the problems that have no answer."""
        return [place for place, answer in enumerate(self.answers) if answer is None]

    @property
    def solution(self) -> list[int]:
        return [problem.answer for problem in self.instance.problems]

    def filled(self, place: int, answer: int) -> "State":
        """Returns the state in which a problem has an answer."""
        return dataclasses.replace(self, answers=(*self.answers[:place], answer, *self.answers[place + 1 :]))


@functools.lru_cache(maxsize=4096)
def made_up(
    kinds: tuple[str, ...],
    numbers: int,
    largest: int,
    count: int,
    open_: int,
    seed: int,
    split: str,
    index: int,
) -> Instance:
    """Returns ``count`` problems of a split, of which at least one and at most ``open_`` are open.

    A problem decides its split itself, so no held-out problem is in any instance that is trained on.
    Raises ValueError for an unknown split, or if a split has no problem.
    """
    rng = random.Random(seed_of("breadth", seed, split, index))
    problems = tuple(_problem(kinds, numbers, largest, split, rng) for _ in range(count))
    left = set(rng.sample(range(count), count if open_ == count else rng.randint(1, open_)))
    return Instance(problems, tuple(place not in left for place in range(count)))


def words() -> tuple[str, ...]:
    """Returns the pieces that prompts and answers consist of, for ``TinyTokenizer``: one id each."""
    letters = "abcdefgh"
    return (
        "worker", "aggregator", "planner", "router", *SPECIALISTS, *(f" {kind}" for kind in KINDS), " is",
        *(f" {digit}" for digit in range(10)),
        *(f"\n{name}" for name in letters), *(f" {name}" for name in letters),
    )  # fmt: skip


def _problem(kinds: Sequence[str], numbers: int, largest: int, split: str, rng: random.Random) -> Problem:
    for _ in range(MAX_DRAWS):
        drawn = tuple(rng.randint(0, largest) for _ in range(numbers))
        problem = Problem(rng.choice(kinds), drawn, largest + 1)
        if in_split(problem, split):
            return problem
    raise ValueError(
        f"Breadth.largest = {largest}: split {split} has no problem with {numbers} numbers; enlarge it"
    )
