"""Reads programming problems from files of several forms or makes them up, and tests answers."""

import dataclasses
import functools
import random
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from atgrpo_jax.common.types import seed_of
from atgrpo_jax.sandbox.protocol import Program, ProgramResult
from atgrpo_jax.tasks.code.outputs import same_output
from atgrpo_jax.tasks.code.rows import fields_of
from atgrpo_jax.tasks.data import read_rows, words_of
from atgrpo_jax.tasks.splits import in_split

MODULE = "program"  # ``__name__`` of an answer whose functions are called
Verdict = Literal["right", "wrong", "timeout"]
# Part of a harness: makes a function return lists in place of tuples, at any depth.
_LISTS = """
def _lists(value):
    if isinstance(value, (list, tuple)):
        return list(map(_lists, value))
    return {key: _lists(item) for key, item in value.items()} if isinstance(value, dict) else value
def _listed(function):
    return lambda *args, **named: _lists(function(*args, **named))
"""
_RUN_TESTS = """
for _test in _TESTS:
    try:
        exec(_test, globals())
        print(1, flush=True)
    except BaseException:
        print(0, flush=True)
"""


@dataclasses.dataclass(frozen=True)
class Problem:
    """A programming problem and its golden tests.

    ``form`` "stdio": a program reads and prints; ``tests`` are pairs (input, expected output).
    "call": functions are called under ``names``; ``tests`` are pairs (assert statement, ""), which
    run after ``setup``.
    """

    id: str
    question: str
    form: Literal["stdio", "call"]
    tests: tuple[tuple[str, str], ...]
    starter: str = ""  # code with which the answer begins
    before: str = ""  # code that is run before the answer
    names: tuple[str, ...] = ()
    setup: str = ""
    solution: str = ""  # a right answer, if one is known
    # These say how output is compared; see ``outputs.same_output``.
    tolerance: float = 0.0
    ignore_case: bool = False
    judge: str = "tokens"
    lists: bool = False  # tuples that functions return count as lists, which is what JSON has


def programs(
    problem: Problem, answer: str, most: int, timeouts: int, runs: Sequence[ProgramResult] = ()
) -> list[Program]:
    """Returns the programs to run next, given how those before ended; none if no more are needed.

    No more are needed when ``most`` tests have a verdict or ``timeouts`` of them reached a time
    limit. The very first program shows whether the answer runs at all.

    In the form "call", tests share a program until one of them ends it. That test is tried again at
    the start of a new program, which the rest then share. So each test has a program's whole
    limits.
    """
    known = verdicts(problem, runs, most)
    left = timeouts - known.count("timeout")
    rest = problem.tests[len(known) : most]
    if left <= 0 or not rest or any(run.end == "crash" for run in runs):
        return []
    if problem.form == "call" and runs and runs[0].end == "error":  # it fails before any call
        return []
    if problem.form == "stdio":  # run side by side, but no more than may still time out
        return [Program(answer, given, before=problem.before) for given, _ in rest[:left]]
    asked = called(problem, answer, [statement for statement, _ in rest])
    return [asked] if runs else [dataclasses.replace(asked, harness="", names=()), asked]


def passed(problem: Problem, runs: Sequence[ProgramResult], most: int) -> tuple[int, int]:
    """Returns how many tests an answer passes, and how many there are, given how ``programs``
    ended."""
    return verdicts(problem, runs, most).count("right"), len(problem.tests[:most])


def verdicts(problem: Problem, runs: Sequence[ProgramResult], most: int) -> list[Verdict]:
    """Returns the verdicts of the tests, from the first one to the last that ``runs`` of
    ``programs`` have reached."""
    found: list[Verdict] = []
    if problem.form == "stdio":
        for run, (_, expected) in zip(runs, problem.tests[:most], strict=False):
            found.append("right" if printed(problem, run, expected) else _wrong(run))
        return found
    for run in runs[1:]:
        said = [line for line in run.stdout.split("\n") if line in ("0", "1")]
        found += ["right" if line == "1" else "wrong" for line in said] or [_wrong(run)]
    return found[: len(problem.tests[:most])]


def told(problem: Problem, runs: Sequence[ProgramResult], most: int) -> str:
    """Returns a line for people on how the tests went; they are counted from 1."""
    found = verdicts(problem, runs, most)
    count = len(problem.tests[:most])
    parts = [f"{found.count('right')} of {count} golden tests passed"]
    for verdict in ("wrong", "timeout"):
        failed = [str(number) for number, one in enumerate(found, start=1) if one == verdict]
        parts += [f"{verdict}: {', '.join(failed)}"] if failed else []
    parts += [f"not run: {len(found) + 1} to {count}"] if len(found) < count else []
    return "; ".join(parts)


def printed(problem: Problem, run: ProgramResult, expected: str) -> bool:
    """Returns whether a program ended well and printed what it should."""
    return run.end == "ok" and same_output(
        run.stdout, expected, problem.tolerance, problem.ignore_case, problem.judge
    )


def _wrong(run: ProgramResult) -> Verdict:
    return "timeout" if run.end == "timeout" else "wrong"


def called(problem: Problem, answer: str, statements: Sequence[str]) -> Program:
    """Returns a program that runs assert statements on an answer's functions. The statements run in
    a process that the answer cannot reach.

    The answer is run as a module, not as a script, as judges do: its ``if __name__ == "__main__"``
    part does not run.
    """
    found = {alias(name): f"globals()[{name!r}]" for name in problem.names}
    if len(problem.names) == 1:
        found.setdefault("candidate", found[alias(problem.names[0])])
    given = ", ".join(f"{name!r}: _read({function})" for name, function in found.items())
    parts = (
        _LISTS,
        f"_read = {'_listed' if problem.lists else 'lambda function: function'}",
        f"_GIVEN = {{{given}}}",
        *(f"exec({source!r}, globals())" for source in (problem.before, problem.setup)),
        f"globals().update(_GIVEN)\n_TESTS = {list(statements)!r}",
        _RUN_TESTS,
    )
    harness = "\n".join(parts)
    return Program(answer, "", harness, problem.names, problem.before, MODULE)


def alias(name: str) -> str:
    """Returns the name by which tests call a function; "candidate" if ``name`` is an expression."""
    return name if name.isidentifier() else "candidate"


# Files


@functools.lru_cache
def read(path: str) -> tuple[Problem, ...]:
    """Returns the problems of a file. Raises ValueError that names the line and the field of a bad
    row."""
    problems = []
    for number, row in read_rows(path, {"question": str}):
        place = f"{path}:{number}"
        try:
            problems.append(problem_of(row if row.get("id") is not None else row | {"id": place}, path))
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from error
    return tuple(problems)


def key(problem: Problem) -> str:
    return words_of(problem.question)


def problem_of(row: Mapping[str, Any], path: str = "") -> Problem:
    """Returns the problem in a row of the file at ``path``. Raises ValueError that names the bad
    field."""
    return Problem(**fields_of(row, path))


# Made up


_OPERATIONS = {
    "sum": "sum(x)", "product": "__import__('math').prod(x)", "largest": "max(x)", "smallest": "min(x)",
    "spread (largest less smallest)": "max(x) - min(x)", "number of even ones": "sum(i % 2 == 0 for i in x)",
}  # fmt: skip


@functools.lru_cache(maxsize=4096)
def made_up(seed: int, split: str, index: int) -> Problem:
    """Returns a made-up problem: read some integers and print something about them."""
    rng = random.Random(seed_of("code", seed, split, index))
    while True:
        name = rng.choice(list(_OPERATIONS))
        count = rng.randint(2, 4)
        more = rng.randint(0, 99)
        question = f"Read {count} integers from one line. Print the {name} of them" + (
            f", plus {more}." if more else "."
        )
        solution = f"x = list(map(int, input().split()))\nprint({_OPERATIONS[name]} + {more})"
        given = []
        for _ in range(4):
            given.append([rng.randint(-20, 20) for _ in range(count)])
        results = [eval(_OPERATIONS[name], {"x": x}) + more for x in given]
        tests = tuple((" ".join(map(str, x)) + "\n", f"{y}\n") for x, y in zip(given, results, strict=True))
        problem = Problem(words_of(question), question, "stdio", tests, solution=solution)
        if in_split(question, split):
            return problem
