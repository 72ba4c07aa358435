"""Checks and reads rows of programming problems; an error names the bad field. See docs/data.md."""

import ast
import builtins
import functools
import json
import keyword
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from atgrpo_jax.tasks.code.outputs import JUDGES

# Names that every answer may use: those that the harnesses of LiveCodeBench and APPS import, except
# names that would hide one of Python's builtins.
_STARRED = (
    "typing", "string", "re", "datetime", "collections", "heapq", "bisect", "copy", "math", "random",
    "statistics", "itertools", "functools", "operator", "io", "sys", "json",
)  # fmt: skip
_MODULES = (*_STARRED[1:], "time", "fractions", "builtins")
PREAMBLE = (
    "".join(f"from {name} import *\n" for name in _STARRED)
    + f"import {', '.join(_MODULES)}\n"
    + "for _name in [_name for _name in dir(builtins) if _name[0] != '_']:\n    globals().pop(_name, None)\n"
)
# What these harnesses do besides: they allow deep recursion (as deep as LiveCodeBench does), and a
# function outside of any class counts as a method of ``Solution``.
HARNESS = (
    f"{PREAMBLE}sys.setrecursionlimit(50000)\n"
    "class Solution:\n    def __getattr__(self, name): return globals()[name]\n"
)
_JUDGES_OF = {"stdio": tuple(JUDGES), "call": ("livecodebench",), "candidate": ("tokens", "apps")}
_BROKEN = (SyntaxError, ValueError, RecursionError, MemoryError)


def fields_of(row: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Returns the fields of a ``Problem``. Raises ValueError that names the bad field.

    Args:
      row: a row of a problem file.
      path: path of that file; files of preambles are in the same folder.
    """
    mode = row.get("mode", "stdio")
    if not isinstance(mode, str) or mode not in _READERS:
        raise ValueError(f"mode = {_shown(mode)}, expected one of {', '.join(_READERS)}")
    try:
        common = {
            "id": _id(row.get("id")),
            "question": _text(row, "question"),
            "solution": _text(row, "solution", ""),
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
        _refuse(row, ("tolerance", "ignore_case"), f"mode {mode}")
    return fields


def _stdio(row: Mapping[str, Any], path: str) -> dict[str, Any]:
    inputs, outputs = _pairs(row)
    given = [lines(f"test_input[{i}]", value) for i, value in enumerate(inputs)]
    expected = [lines(f"test_output[{i}]", value) for i, value in enumerate(outputs)]
    judge, more = _judge(row, "stdio"), {}
    if judge == "tokens":
        more = {"tolerance": _tolerance(row.get("tolerance")), "ignore_case": _flag(row, "ignore_case")}
    else:
        _refuse(row, ("tolerance", "ignore_case"), f"judge {judge}")
    before = HARNESS if judge in ("apps", "livecodebench") else ""
    return {"form": "stdio", "tests": tuple(zip(given, expected, strict=True)), "before": before} | more


def _call(row: Mapping[str, Any], path: str) -> dict[str, Any]:
    statements = []
    for number, (given, expected) in enumerate(zip(*_pairs(row), strict=True)):
        place = f"test_input[{number}]"
        texts = [line for line in lines(place, given, numbers=False).split("\n") if line.strip()]
        arguments = ", ".join(repr(_json(place, line)) for line in texts)
        place = f"test_output[{number}]"
        result = _json(place, lines(place, expected, numbers=False))
        statements.append(f"assert candidate({arguments}) == {result!r}")
        parsed(f"test_input[{number}]", statements[-1])  # JSON may be nested too deep for Python
    names = (f"Solution().{_identifier(row)}",)
    return _function(row, statements, names) | {"before": HARNESS, "lists": True}


def _candidate(row: Mapping[str, Any], path: str) -> dict[str, Any]:
    apps = _judge(row, "candidate") == "apps"
    if row.get("before") is not None:
        before = _source(row, "before")
    elif "preamble" in row or not apps:
        before = _preamble(path, row["preamble"])
    else:
        before = HARNESS
    entry = _expression(row)
    statements = _statements(row, "tests")
    for number, (statement, tree) in enumerate(statements):
        if not {"candidate", entry} & _named(tree):
            raise ValueError(f"tests[{number}] = {_shown(statement)} does not call candidate")
    texts = [statement for statement, _ in statements]
    return _function(row, texts, (entry,)) | {"before": before + "\n", "lists": apps}


def _assert(row: Mapping[str, Any], path: str) -> dict[str, Any]:
    setup = _source(row, "setup", "")
    statements = [*_statements(row, "tests"), *_statements(row, "hard_tests", optional=True)]
    own = _defined(setup) | (set(dir(builtins)) - _functions(row.get("solution") or ""))
    names = sorted(set().union(*(_called(tree) for _, tree in statements)) - own)
    if not names:
        raise ValueError("tests call no function of the answer's")
    texts = [statement for statement, _ in statements]
    return _function(row, texts, tuple(names)) | {"setup": setup, "before": PREAMBLE}


def _check(row: Mapping[str, Any], path: str) -> dict[str, Any]:
    entry, question = _identifier(row), _text(row, "question")
    begun = f"{question}\n    pass\n"  # the answer and the tests may use what the question defines
    parsed("question", begun)
    tests = _source(row, "tests")
    if "check" not in _functions(tests):
        raise ValueError("tests define no function check")
    solution = _text(row, "solution", "")
    fields = _function(row, [f"check({entry})"], (entry,))
    # Compiled on its own, because it may begin with a ``from __future__`` import, which must come
    # first.
    before = f"{PREAMBLE}exec(compile({begun!r}, 'question.py', 'exec', dont_inherit=True), globals())\n"
    own = {"setup": tests, "starter": question, "before": before}
    return fields | own | {"solution": question + solution if solution else ""}


def _function(row: Mapping[str, Any], statements: Sequence[str], names: tuple[str, ...]) -> dict[str, Any]:
    tests = tuple((statement, "") for statement in statements)
    return {"form": "call", "tests": tests, "names": names, "starter": _text(row, "starter_code", "")}


_READERS: dict[str, Callable[[Mapping[str, Any], str], dict[str, Any]]] = {
    "stdio": _stdio, "call": _call, "candidate": _candidate, "assert": _assert, "check": _check,
}  # fmt: skip


# Fields


def _shown(value: Any) -> str:
    return repr(str(value)[:60])


def _id(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, (str, int, type(None))):
        raise ValueError(f"id = {_shown(value)} is neither a text nor a whole number")
    return "" if value is None else str(value)


def _text(row: Mapping[str, Any], name: str, default: str | None = None) -> str:
    """Returns a text field. A field that is null counts as missing. Raises KeyError if a field
    without a default is missing, ValueError if it is no text."""
    value = row.get(name)
    if value is None and default is not None:
        return default
    return _characters(name, row[name])


def _characters(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{name} = {_shown(value)} is no text")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{name} has half a character (a lone surrogate) at {error.start}") from error
    return value


def _list(row: Mapping[str, Any], name: str) -> list[Any]:
    if not isinstance(row[name], list):
        raise ValueError(f"{name} = {_shown(row[name])} is no list")
    return row[name]


def _pairs(row: Mapping[str, Any]) -> tuple[list[Any], list[Any]]:
    inputs, outputs = _list(row, "test_input"), _list(row, "test_output")
    if len(inputs) != len(outputs):
        raise ValueError(f"test_input has {len(inputs)} items, test_output {len(outputs)}")
    return inputs, outputs


def lines(name: str, value: Any, numbers: bool = True) -> str:
    """Returns a text that may be given as a list of its lines. With ``numbers``, the text or a line
    may also be a number."""
    if isinstance(value, list):
        found = [lines(f"{name}[{i}]", line, numbers) for i, line in enumerate(value) if _flat(name, line)]
        return "\n".join(found)
    whole = isinstance(value, int) and not isinstance(value, bool)
    number = whole or (isinstance(value, float) and math.isfinite(value))
    return str(value) if number and numbers else _characters(name, value)


def _flat(name: str, line: Any) -> bool:
    if isinstance(line, list):
        raise ValueError(f"{name} holds a list in a list: {_shown(line)}")
    return True


def _json(name: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name} is no JSON: {error}") from error


def _flag(row: Mapping[str, Any], name: str) -> bool:
    value = row.get(name)
    if value is not None and not isinstance(value, bool):
        raise ValueError(f"{name} = {_shown(value)} is neither true nor false")
    return bool(value)


def _tolerance(value: Any) -> float:
    if value is None:
        return 0.0
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"tolerance = {_shown(value)} is no number")
    if not 0 <= value < 1:  # refuses NaN, too; from 1 on, 0 would pass for any small number
        raise ValueError(f"tolerance = {_shown(value)} is not at least 0 and less than 1")
    return float(value)


def _judge(row: Mapping[str, Any], mode: str) -> str:
    allowed = _JUDGES_OF.get(mode, ("tokens",))
    judge = row.get("judge")
    if judge is None:
        return allowed[0]
    if not isinstance(judge, str) or judge not in allowed:
        raise ValueError(f"judge = {_shown(judge)}, in mode {mode} expected one of {', '.join(allowed)}")
    return judge


def _refuse(row: Mapping[str, Any], names: Sequence[str], where: str) -> None:
    """Raises ValueError for fields that would be ignored."""
    for name in names:
        if row.get(name) not in (None, False, 0):
            raise ValueError(f"{name} = {_shown(row[name])}: it has no meaning in {where}")


# Source


def parsed(name: str, source: str) -> ast.Module:
    """Returns the syntax tree of a program. Raises ValueError if it is not Python."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings about the source's style
        try:
            tree = ast.parse(source)
            compile(tree, name, "exec", dont_inherit=True)
            return tree
        except _BROKEN as error:
            words = f"{error.msg} (line {error.lineno})" if isinstance(error, SyntaxError) else str(error)
            raise ValueError(f"{name} is no Python: {words or type(error).__name__}") from error


def _source(row: Mapping[str, Any], name: str, default: str | None = None) -> str:
    text = _text(row, name, default)
    parsed(name, text)
    return text


def _statements(row: Mapping[str, Any], name: str, optional: bool = False) -> list[tuple[str, ast.Module]]:
    """Returns a field's tests as (text, syntax tree). Raises ValueError for one without a
    statement."""
    if row.get(name) is None and optional:
        return []
    found = []
    for number, value in enumerate(_list(row, name)):
        place = f"{name}[{number}]"
        statement = _characters(place, value).strip()
        found.append((statement, parsed(place, statement)))
        if not found[-1][1].body:
            raise ValueError(f"{place} is empty")
    return found


def _identifier(row: Mapping[str, Any]) -> str:
    name = _text(row, "entry_point")
    if not name.isidentifier() or keyword.iskeyword(name):
        raise ValueError(f"entry_point = {_shown(name)} is no name of a function")
    return name


def _expression(row: Mapping[str, Any]) -> str:
    """Returns the entry point, an expression that can be called: a name, an attribute, or an
    attribute of a call's result, such as ``Solution().add``."""
    text = _text(row, "entry_point").strip()
    body = parsed("entry_point", text).body
    node: ast.AST | None = body[0].value if len(body) == 1 and isinstance(body[0], ast.Expr) else None
    while isinstance(node, (ast.Attribute, ast.Call)):
        node = node.value if isinstance(node, ast.Attribute) else node.func
    if not isinstance(node, ast.Name):
        raise ValueError(f"entry_point = {_shown(text)} is nothing that can be called")
    return text


def _named(tree: ast.AST) -> set[str]:
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}


def _defined(source: str) -> set[str]:
    """Returns the names that a program defines anywhere."""
    found = set()
    for node in ast.walk(parsed("setup", source)):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            found |= {(item.asname or item.name).split(".")[0] for item in node.names}
    return found


def _functions(source: str) -> set[str]:
    """Returns the names of the functions at the top level of a program."""
    return {node.name for node in parsed("solution", source).body if isinstance(node, ast.FunctionDef)}


def _called(tree: ast.AST) -> set[str]:
    calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return {function.id for function in calls if isinstance(function, ast.Name)}


@functools.lru_cache
def _preambles(file: Path) -> Any:
    if not file.is_file():
        raise ValueError(f"preamble: no file {file}, and no field 'before'")
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"preamble: {file} cannot be read ({error})") from error


def _preamble(path: str, key: Any) -> str:
    """Returns the preamble ``key``. The preambles of ``NAME_SPLIT.jsonl.gz`` are in
    ``NAME_preamble_SPLIT.json`` in the same folder."""
    file = Path(path).expanduser()
    name, _, split = file.name.partition(".")[0].rpartition("_")
    beside = file.with_name(f"{name}_preamble_{split}.json") if file.name else file
    known = _preambles(beside)
    if not isinstance(key, str) or not isinstance(known, dict) or key not in known:
        raise ValueError(f"preamble = {_shown(key)}: {beside} has none of that name")
    parsed(f"preamble {key!r} of {beside}", _characters(f"preamble {key!r} of {beside}", known[key]))
    return known[key]
