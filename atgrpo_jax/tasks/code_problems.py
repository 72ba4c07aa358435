"""Programming problems: read from files of several forms, or made up, and how an answer to one is tested."""

import ast
import builtins
import dataclasses
import functools
import json
import math
import random
import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

from atgrpo_jax.data import read_rows, words_of
from atgrpo_jax.sandbox.base import Program, Run
from atgrpo_jax.tasks.games import in_split
from atgrpo_jax.types import seed_of

# What an answer that is a function or a class may take for granted.
PREAMBLE = (
    "from typing import *\nfrom collections import *\nfrom itertools import *\nfrom functools import *\n"
    "from heapq import *\nfrom bisect import *\n"
    "import collections, functools, heapq, itertools, math, re, string\n"
)
Verdict = Literal["right", "wrong", "timeout"]
_RUN_TESTS = """
for _test in _TESTS:
    try:
        exec(_test, globals())
        print(1, flush=True)
    except BaseException:
        print(0, flush=True)
"""


_NUMBER = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[-+]?[0-9]{1,4})?", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Problem:
    """``form`` "stdio": a program reads and prints; ``tests`` are pairs of texts. "call": functions are
    called under ``names``; ``tests`` are pairs of an assert statement and "", after ``setup``."""

    id: str
    question: str
    form: Literal["stdio", "call"]
    tests: tuple[tuple[str, str], ...]
    starter: str = ""  # where the answer begins
    before: str = ""  # what comes before it
    names: tuple[str, ...] = ()
    setup: str = ""
    solution: str = ""  # a right answer, if one is known
    tolerance: float = 0.0  # of numbers that are printed


def programs(
    problem: Problem, answer: str, most: int, timeouts: int, runs: Sequence[Run] = ()
) -> list[Program]:
    """Those that are next, given how the ones before have ended, until ``most`` tests have a verdict or
    ``timeouts`` of them were ended at a time limit. The first of all shows whether the answer runs.

    Where functions are called, tests share a program until one of them ends it. That one is tried again in a
    program of its own, which the rest then share: so each test has a program's whole limits.
    """
    source, known = problem.before + answer, verdicts(problem, runs, most)
    left, rest = timeouts - known.count("timeout"), problem.tests[len(known) : most]
    if left <= 0 or not rest or any(run.end == "crash" for run in runs):
        return []
    if problem.form == "stdio":  # side by side, but no more than may be ended so
        return [Program(source, given) for given, _ in rest[:left]]
    asked = called(problem, answer, [statement for statement, _ in rest])
    return [asked] if runs else [Program(source), asked]


def passed(problem: Problem, runs: Sequence[Run], most: int) -> tuple[int, int]:
    """How many tests an answer passes, and of how many, given how ``programs`` have ended."""
    return verdicts(problem, runs, most).count("right"), len(problem.tests[:most])


def verdicts(problem: Problem, runs: Sequence[Run], most: int) -> list[Verdict]:
    """Of the tests from the first on, as far as the runs of ``programs`` go."""
    found: list[Verdict] = []
    if problem.form == "stdio":
        for run, (_, expected) in zip(runs, problem.tests[:most], strict=False):
            right = run.end == "ok" and same_output(run.stdout, expected, problem.tolerance)
            found.append("right" if right else _wrong(run))
        return found
    for run in runs[1:]:
        said = [line for line in run.stdout.splitlines() if line in ("0", "1")]
        found += ["right" if line == "1" else "wrong" for line in said] or [_wrong(run)]
    return found[: len(problem.tests[:most])]


def _wrong(run: Run) -> Verdict:
    return "timeout" if run.end == "timeout" else "wrong"


def called(problem: Problem, answer: str, statements: Sequence[str]) -> Program:
    """Runs assert statements on an answer's functions, in a process that the answer does not reach."""
    given = "".join(f"{alias(name)!r}: globals()[{name!r}], " for name in problem.names)
    parts = f"_GIVEN = {{{given}}}", problem.before, problem.setup, "globals().update(_GIVEN)"
    harness = "\n".join((*parts, f"_TESTS = {list(statements)!r}", _RUN_TESTS))
    return Program(problem.before + answer, harness=harness, names=problem.names)


def alias(name: str) -> str:
    """What tests call a name that is no plain one."""
    return name if name.isidentifier() else "candidate"


def same_output(printed: str, expected: str, tolerance: float = 0.0) -> bool:
    """Token by token, whatever the white space; numbers exactly, or within a tolerance (absolute or
    relative) if there is one."""
    one, other = printed.split(), expected.split()
    return len(one) == len(other) and all(_same(a, b, tolerance) for a, b in zip(one, other, strict=True))


def _same(one: str, other: str, tolerance: float) -> bool:
    if one == other:
        return True
    if not (_NUMBER.fullmatch(one) and _NUMBER.fullmatch(other)):
        return False
    if Decimal(one) == Decimal(other):  # floats of different integers may be equal
        return True
    a, b = float(one), float(other)
    return tolerance > 0 and math.isfinite(b) and abs(a - b) <= tolerance * max(1.0, abs(b))


# Files


@functools.lru_cache
def read(path: str) -> tuple[Problem, ...]:
    """Raises ValueError naming the line and the field of a bad row."""
    problems = []
    for number, row in read_rows(path, {"question": str}):
        place = f"{path}:{number}"
        try:
            problems.append(problem_of({"id": place} | row, path))
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from error
    return tuple(problems)


def key(problem: Problem) -> str:
    return words_of(problem.question)


def problem_of(row: Mapping[str, Any], path: str = "") -> Problem:
    """Of a row with a question, of the file at ``path``. Raises ValueError naming the field that is bad."""
    mode = row.get("mode", "stdio")
    if mode not in _READERS:
        raise ValueError(f"mode = {mode!r}, expected one of {', '.join(_READERS)}")
    solution = row.get("solution") or ""
    if not isinstance(solution, str):
        raise ValueError(f"solution = {str(solution)[:60]!r} is no text")
    given = {"id": str(row.get("id", "")), "question": row["question"], "solution": solution}
    try:
        fields = _READERS[mode](row, path)
    except KeyError as error:
        raise ValueError(f"no field {error} in mode {mode}") from error
    except (TypeError, AttributeError, SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError(str(error)) from error
    if not fields["tests"]:
        raise ValueError("tests: there are none")
    return Problem(**given | fields)


def _stdio(row: Mapping[str, Any], path: str) -> dict[str, Any]:
    inputs, outputs = _list(row, "test_input"), _list(row, "test_output")
    if len(inputs) != len(outputs):
        raise ValueError(f"test_input has {len(inputs)} items, test_output {len(outputs)}")
    tests = tuple((str(i), str(o)) for i, o in zip(inputs, outputs, strict=True))
    return {"form": "stdio", "tests": tests, "tolerance": float(row.get("tolerance") or 0.0)}


def _list(row: Mapping[str, Any], name: str) -> list[Any]:
    if not isinstance(row[name], list):
        raise ValueError(f"{name} = {str(row[name])[:60]!r} is no list")
    return row[name]


def _call(row: Mapping[str, Any], path: str) -> dict[str, Any]:
    tests = []
    for given, expected in zip(_list(row, "test_input"), _list(row, "test_output"), strict=True):
        values = [json.loads(line) for line in given.splitlines() if line.strip()]
        arguments = ", ".join(map(repr, values))
        tests.append((f"assert candidate({arguments}) == {json.loads(expected)!r}", ""))
    names = (f"Solution().{row['entry_point']}",)
    return _function(row, tests, names) | {"before": PREAMBLE}


def _candidate(row: Mapping[str, Any], path: str) -> dict[str, Any]:
    before = row.get("before")
    if before is None:
        before = _preambles(path)[row["preamble"]]
    return _function(row, [(test, "") for test in _list(row, "tests")], (row["entry_point"],)) | {
        "before": before + "\n"
    }


def _assert(row: Mapping[str, Any], path: str) -> dict[str, Any]:
    setup, statements = row.get("setup") or "", [*_list(row, "tests"), *(row.get("hard_tests") or ())]
    own = _defined(setup) | (set(dir(builtins)) - _functions(row.get("solution") or ""))
    names = sorted(set().union(*(_called(statement) for statement in statements)) - own)
    if not names:
        raise ValueError("tests call no function of the answer's")
    return _function(row, [(s, "") for s in statements], tuple(names)) | {"setup": setup, "before": PREAMBLE}


def _check(row: Mapping[str, Any], path: str) -> dict[str, Any]:
    fields = _function(row, [(f"check({row['entry_point']})", "")], (row["entry_point"],))
    solution = row["question"] + row["solution"] if row.get("solution") else ""
    setup = f"{row['question']}\n    pass\n{row['tests']}"  # tests may use what the question defines
    own = {"setup": setup, "starter": row["question"], "before": PREAMBLE, "solution": solution}
    return fields | own


def _function(
    row: Mapping[str, Any], tests: Sequence[tuple[str, str]], names: tuple[str, ...]
) -> dict[str, Any]:
    return {"form": "call", "tests": tuple(tests), "names": names, "starter": row.get("starter_code") or ""}


_READERS = {"stdio": _stdio, "call": _call, "candidate": _candidate, "assert": _assert, "check": _check}


def _defined(source: str) -> set[str]:
    """Names that a program defines at its top or anywhere below."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            found |= {(item.asname or item.name).split(".")[0] for item in node.names}
    return found


def _functions(source: str) -> set[str]:
    """Names of the functions at the top of a program; none if it is not Python."""
    try:
        return {node.name for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)}
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return set()


def _called(statement: str) -> set[str]:
    calls = [node.func for node in ast.walk(ast.parse(statement.strip())) if isinstance(node, ast.Call)]
    return {function.id for function in calls if isinstance(function, ast.Name)}


@functools.lru_cache
def _preambles(path: str) -> dict[str, str]:
    """Of ``NAME_SPLIT.jsonl.gz`` they are in ``NAME_preamble_SPLIT.json`` beside it."""
    file = Path(path).expanduser()
    name, _, split = file.name.partition(".")[0].rpartition("_")
    beside = file.with_name(f"{name}_preamble_{split}.json")
    if not beside.is_file():
        raise ValueError(f"preamble: no file {beside}, and no field 'before'")
    return json.loads(beside.read_text(encoding="utf-8"))


# Made up


_OPERATIONS = {
    "sum": "sum(x)", "product": "__import__('math').prod(x)", "largest": "max(x)", "smallest": "min(x)",
    "spread (largest less smallest)": "max(x) - min(x)", "number of even ones": "sum(i % 2 == 0 for i in x)",
}  # fmt: skip


@functools.lru_cache(maxsize=4096)
def made_up(seed: int, split: str, index: int) -> Problem:
    """Read some integers, print something about them."""
    rng = random.Random(seed_of("code", seed, split, index))
    while True:
        name, count, more = rng.choice(list(_OPERATIONS)), rng.randint(2, 4), rng.randint(0, 99)
        question = f"Read {count} integers from one line. Print the {name} of them" + (
            f", plus {more}." if more else "."
        )
        solution = f"x = list(map(int, input().split()))\nprint({_OPERATIONS[name]} + {more})"
        given = [[rng.randint(-20, 20) for _ in range(count)] for _ in range(4)]
        results = [eval(_OPERATIONS[name], {"x": x}) + more for x in given]
        tests = tuple((" ".join(map(str, x)) + "\n", f"{y}\n") for x, y in zip(given, results, strict=True))
        problem = Problem(words_of(question), question, "stdio", tests, solution=solution)
        if in_split(question, split):
            return problem
