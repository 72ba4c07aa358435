"""Reads the tests that a tester writes, runs them, and writes golden tests in the same form."""

import ast
import functools
import re
from collections.abc import Iterator

from atgrpo_jax.sandbox.protocol import Program, ProgramResult
from atgrpo_jax.tasks.code.code_problems import Problem, alias, called, printed
from atgrpo_jax.tasks.code.python_source import parsed
from atgrpo_jax.tasks.texts import python_block

SHOWN = 1000  # characters of each text of a test that roles are shown
LONGEST = 10_000  # most characters of each text of a tester's test


def read_test(problem: Problem, text: str) -> tuple[str, str] | None:
    """Returns a tester's test, (input, expected output) or (call, its value); None without one.

    Arguments and value must be literals, because an assert that any program passes is no test.
    """
    if problem.form == "stdio":
        found = [_fenced(name, text) for name in ("input", "output")]
        if not all(found):
            return None
        given = found[0][-1]
        expected = found[1][-1].strip()
        return (given, expected) if expected and max(len(given), len(expected)) <= LONGEST else None
    code = python_block(text)
    if code is None or len(code) > LONGEST:
        return None
    try:
        (statement,) = parsed("test", code).body
        assert isinstance(statement, ast.Assert) and isinstance(statement.test, ast.Compare)
        assert len(statement.test.ops) == 1 and isinstance(statement.test.ops[0], ast.Eq)
        call = statement.test.left
        value = statement.test.comparators[0]
        assert isinstance(call, ast.Call) and isinstance(call.func, ast.Name)
        assert call.func.id in map(alias, problem.names)
        for part in (value, *call.args, *(named.value for named in call.keywords)):
            ast.literal_eval(part)
        return ast.unparse(call), ast.unparse(value)
    except (AssertionError, ValueError, MemoryError, RecursionError, TypeError):
        return None


def _fenced(name: str, text: str) -> list[str]:
    """Returns the blocks whose tag is ``name``. They may have spaces or capitals in the tag line,
    and need no end."""
    text = text.replace("\r\n", "\n")
    return re.findall(rf"```[ \t]*{name}[ \t]*\n(.*?)(?:```|\Z)", text, re.DOTALL | re.IGNORECASE)


def run_of(problem: Problem, code: str, test: tuple[str, str]) -> Program:
    given, expected = test
    if problem.form == "stdio":
        return Program(code, given, before=problem.before)
    wanted = f"_lists({expected})" if problem.lists else f"({expected})"
    shown = f"_value = {given}\nprint(repr(_value)[:{SHOWN}], flush=True)\nassert _value == {wanted}"
    return called(problem, code, [shown])


def passes(problem: Problem, run: ProgramResult, test: tuple[str, str]) -> bool:
    if problem.form == "stdio":
        return printed(problem, run, test[1])
    return run.stdout.rstrip().rpartition("\n")[2] == "1"


def shown_output(problem: Problem, run: ProgramResult) -> str:
    """Returns what a program printed for a test, in the form that roles are shown."""
    if problem.form == "call":
        value, _, _ = run.stdout.rstrip().rpartition("\n")
        return value or "an error"
    return run.stdout if run.end == "ok" else f"{run.stdout}\n({run.end}) {run.stderr[-300:]}".strip()


def written(problem: Problem, given: str, expected: str) -> str:
    """Returns a test as text that ``read_test`` can read."""
    if problem.form == "stdio":
        return f"```input\n{given.rstrip()}\n```\n```output\n{expected.rstrip()}\n```"
    return f"```python\nassert {given} == {expected}\n```"


def some_test(problem: Problem) -> tuple[str, str]:
    """Returns a test that has the right form and is probably wrong."""
    return ("", "0") if problem.form == "stdio" else (f"{alias(problem.names[0])}()", "None")


@functools.lru_cache(maxsize=1024)
def writable(problem: Problem) -> tuple[tuple[str, str], ...]:
    """Returns the golden tests that a tester could write, as ``read_test`` returns them. They are
    used for demonstrations, which exist for training problems only."""
    pairs = problem.tests if problem.form == "stdio" else _equalities(problem)
    return tuple(filter(None, (read_test(problem, written(problem, *pair)) for pair in pairs)))


def _equalities(problem: Problem) -> Iterator[tuple[str, str]]:
    """Yields both sides of the equalities in golden tests, also in HumanEval's ``check``."""
    source = "\n".join((problem.setup, *(statement for statement, _ in problem.tests)))
    try:
        tree = parsed("tests", source)
    except ValueError:
        return
    for node in ast.walk(tree):
        match node:
            case ast.Assert(ast.Compare(call, [ast.Eq()], [value])):
                pass
            case ast.Assert(ast.Compare(call, [ast.In()], [ast.Tuple([value, *_])])):  # one will do
                pass
            case _:
                continue
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "candidate":
            call.func.id = alias(problem.names[0])
        yield ast.unparse(call), ast.unparse(value)
