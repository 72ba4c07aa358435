"""Checks and reads rows of programming problems, one function for each mode. See docs/data.md."""

import builtins
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from atgrpo_jax.tasks.code.fields import (
    flag,
    id_of,
    json_of,
    lines,
    pairs_of,
    refuse,
    shown,
    text_of,
    tolerance_of,
)
from atgrpo_jax.tasks.code.outputs import JUDGES
from atgrpo_jax.tasks.code.preambles import HARNESS, PREAMBLE, preamble
from atgrpo_jax.tasks.code.python_source import (
    called_in,
    defined_in,
    expression,
    functions_in,
    identifier,
    names_in,
    parsed,
    source_of,
    statements_of,
)

_JUDGES_OF = {"stdio": tuple(JUDGES), "call": ("livecodebench",), "candidate": ("tokens", "apps")}


def fields_of(row: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Returns the fields of a ``Problem``. Raises ValueError that names the bad field.

    Args:
      row: a row of a problem file.
      path: path of that file; files of preambles are in the same folder.
    """
    mode = row.get("mode", "stdio")
    if not isinstance(mode, str) or mode not in _READERS:
        raise ValueError(f"mode = {shown(mode)}, expected one of {', '.join(_READERS)}")
    try:
        common = {
            "id": id_of(row.get("id")),
            "question": text_of(row, "question"),
            "solution": text_of(row, "solution", ""),
            "judge": _judge(row, mode),
        }
        if not common["question"].strip():
            raise ValueError("question is empty")
        fields = common | _READERS[mode](row, path)
    except KeyError as error:
        raise ValueError(f"no field {error} in mode {mode}") from error
    parsed("solution", fields["solution"])
    if not fields["tests"]:
        raise ValueError(f"tests: there are none in {'test_input' if 'test_input' in row else 'tests'}")
    if mode != "stdio":
        refuse(row, ("tolerance", "ignore_case"), f"mode {mode}")
    return fields


def _stdio(row: Mapping[str, Any], path: str) -> dict[str, Any]:
    inputs, outputs = pairs_of(row)
    given = [lines(f"test_input[{i}]", value) for i, value in enumerate(inputs)]
    expected = [lines(f"test_output[{i}]", value) for i, value in enumerate(outputs)]
    judge = _judge(row, "stdio")
    more = {}
    if judge == "tokens":
        more = {"tolerance": tolerance_of(row.get("tolerance")), "ignore_case": flag(row, "ignore_case")}
    else:
        refuse(row, ("tolerance", "ignore_case"), f"judge {judge}")
    before = HARNESS if judge in ("apps", "livecodebench") else ""
    return {"form": "stdio", "tests": tuple(zip(given, expected, strict=True)), "before": before} | more


def _call(row: Mapping[str, Any], path: str) -> dict[str, Any]:
    statements = []
    for number, (given, expected) in enumerate(zip(*pairs_of(row), strict=True)):
        place = f"test_input[{number}]"
        texts = [line for line in lines(place, given, numbers=False).split("\n") if line.strip()]
        arguments = ", ".join(repr(json_of(place, line)) for line in texts)
        place = f"test_output[{number}]"
        result = json_of(place, lines(place, expected, numbers=False))
        statements.append(f"assert candidate({arguments}) == {result!r}")
        parsed(f"test_input[{number}]", statements[-1])  # JSON may be nested too deep for Python
    names = (f"Solution().{identifier(row)}",)
    return _function(row, statements, names) | {"before": HARNESS, "lists": True}


def _candidate(row: Mapping[str, Any], path: str) -> dict[str, Any]:
    apps = _judge(row, "candidate") == "apps"
    if row.get("before") is not None:
        before = source_of(row, "before")
    elif "preamble" in row or not apps:
        before = preamble(path, row["preamble"])
    else:
        before = HARNESS
    entry = expression(row)
    statements = statements_of(row, "tests")
    for number, (statement, tree) in enumerate(statements):
        if not {"candidate", entry} & names_in(tree):
            raise ValueError(f"tests[{number}] = {shown(statement)} does not call candidate")
    texts = [statement for statement, _ in statements]
    return _function(row, texts, (entry,)) | {"before": before + "\n", "lists": apps}


def _assert(row: Mapping[str, Any], path: str) -> dict[str, Any]:
    setup = source_of(row, "setup", "")
    statements = [*statements_of(row, "tests"), *statements_of(row, "hard_tests", optional=True)]
    own = defined_in(setup) | (set(dir(builtins)) - functions_in(row.get("solution") or ""))
    names = sorted(set().union(*(called_in(tree) for _, tree in statements)) - own)
    if not names:
        raise ValueError("tests call no function of the answer's")
    texts = [statement for statement, _ in statements]
    return _function(row, texts, tuple(names)) | {"setup": setup, "before": PREAMBLE}


def _check(row: Mapping[str, Any], path: str) -> dict[str, Any]:
    entry = identifier(row)
    question = text_of(row, "question")
    begun = f"{question}\n    pass\n"  # the answer and the tests may use what the question defines
    parsed("question", begun)
    tests = source_of(row, "tests")
    if "check" not in functions_in(tests):
        raise ValueError("tests define no function check")
    solution = text_of(row, "solution", "")
    fields = _function(row, [f"check({entry})"], (entry,))
    # Compiled on its own, because it may begin with a ``from __future__`` import, which must come
    # first.
    before = f"{PREAMBLE}exec(compile({begun!r}, 'question.py', 'exec', dont_inherit=True), globals())\n"
    own = {"setup": tests, "starter": question, "before": before}
    return fields | own | {"solution": question + solution if solution else ""}


def _function(row: Mapping[str, Any], statements: Sequence[str], names: tuple[str, ...]) -> dict[str, Any]:
    tests = tuple((statement, "") for statement in statements)
    return {"form": "call", "tests": tests, "names": names, "starter": text_of(row, "starter_code", "")}


_READERS: dict[str, Callable[[Mapping[str, Any], str], dict[str, Any]]] = {
    "stdio": _stdio, "call": _call, "candidate": _candidate, "assert": _assert, "check": _check,
}  # fmt: skip


def _judge(row: Mapping[str, Any], mode: str) -> str:
    allowed = _JUDGES_OF.get(mode, ("tokens",))
    judge = row.get("judge")
    if judge is None:
        return allowed[0]
    if not isinstance(judge, str) or judge not in allowed:
        raise ValueError(f"judge = {shown(judge)}, in mode {mode} expected one of {', '.join(allowed)}")
    return judge
