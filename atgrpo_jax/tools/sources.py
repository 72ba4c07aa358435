"""Turns downloaded sets of programming problems into rows for the task (docs/data.md)."""

import base64
import contextlib
import io
import pickle
import zlib
from typing import Any

from atgrpo_jax.sandbox.pool import SandboxConfig
from atgrpo_jax.tasks.code.fields import lines
from atgrpo_jax.tasks.code.python_source import parsed
from atgrpo_jax.tools.downloads import Unusable, json_of, list_of

PYTHON3 = 3  # the language of a solution in CodeContests
LONGEST = SandboxConfig.output_kb << 10  # characters of a result; programs cannot print more
INFLATED = 1 << 28  # bytes of private tests, at most


def apps(row: dict[str, Any]) -> dict[str, Any]:
    """Converts a row of APPS: github.com/hendrycks/apps, or its JSON lines on a hub."""
    tests = json_of(row["input_output"], "no tests")
    inputs = list_of(tests.get("inputs") or [])
    outputs = list_of(tests.get("outputs") or [])
    common = {
        "id": f"apps-{row.get('problem_id', row.get('id'))}",
        "question": row["question"],
        "solution": _python3(list_of(json_of(row.get("solutions") or "[]", ""))),
        "judge": "apps",
    }
    if name := tests.get("fn_name"):
        if not isinstance(name, str):
            raise TypeError(f"fn_name = {str(name)[:60]!r} is no text")
        method = "class Solution" in (row.get("starter_code") or "")
        called = "candidate" if method else name
        calls = [f"{called}({', '.join(map(repr, _with_numbers(list_of(given))))})" for given in inputs]
        calls, results = _short(calls, list(map(_result, outputs)))
        return common | {
            "mode": "candidate",
            "entry_point": f"Solution().{name}" if method else name,
            "starter_code": row.get("starter_code") or "",
            "tests": [f"assert {call} {result}" for call, result in zip(calls, results, strict=True)],
        }
    given, expected = _short(_texts("inputs", inputs), _texts("outputs", outputs))
    return common | {"mode": "stdio", "test_input": given, "test_output": expected}


def _with_numbers(items: list[Any]) -> list[Any]:
    """Restores numbers that JSON has made texts: the keys of a dictionary that comes first."""
    if not items or not isinstance(items[0], dict):
        return items
    return [_keys(items[0]), *items[1:]]


def _keys(found: dict[str, Any]) -> dict[Any, Any]:
    try:
        return {int(key): value for key, value in found.items()}
    except ValueError:
        return found


def _result(expected: Any) -> str:
    """Returns the end of an assertion on what a call must return.

    A list of one item may be the value or only be around it; APPS' own tests accept both.
    """
    if isinstance(expected, dict):
        expected = [expected]
    if isinstance(expected, list) and len(expected) == 1:
        expected = _with_numbers(expected)
        return f"in ({expected[0]!r}, {expected!r})"
    return f"== {expected!r}"


def _python3(sources: list[Any]) -> str:
    """Returns the first of the sources that is valid Python 3; "" if none is."""
    for source in sources:
        if not isinstance(source, str):
            raise TypeError(f"solution {str(source)[:60]!r} is no text")
        with contextlib.suppress(ValueError):
            parsed("solution", source)
            return source
    return ""


def codecontests(row: dict[str, Any]) -> dict[str, Any]:
    """Converts a row of CodeContests: Parquet or JSON lines on a hub.

    It comes from github.com/google-deepmind/code_contests.
    """
    question = row["description"]
    given: list[str] = []
    expected: list[str] = []
    for name in ("public_tests", "private_tests", "generated_tests"):
        tests = row.get(name) or {}
        given += list_of(tests.get("input") or [])
        expected += list_of(tests.get("output") or [])
    if row.get("input_file"):
        raise Unusable("reads a file")
    given, expected = _short(_texts("input", given), _texts("output", expected))
    found = row.get("solutions") or {}
    pairs = zip(found.get("language") or [], found.get("solution") or [], strict=True)
    python = [source for language, source in pairs if language in (PYTHON3, "PYTHON3")]
    return {
        "id": f"codecontests-{row.get('name')}",
        "question": question,
        "mode": "stdio",
        "test_input": given,
        "test_output": expected,
        "solution": _python3(python),
        "judge": "codecontests",
    }


def livecodebench(row: dict[str, Any]) -> dict[str, Any]:
    """Converts a row of LiveCodeBench's code_generation_lite; private tests are included."""
    question = f"{row.get('question_title', '')}\n\n{row['question_content']}".strip()
    tests = json_of(row.get("public_test_cases") or "[]", "") + _private(row.get("private_test_cases"))
    given = _texts("input", [test["input"] for test in tests])
    given, expected = _short(given, _texts("output", [test["output"] for test in tests]))
    common = {
        "id": f"lcb-{row.get('question_id')}",
        "question": question,
        "starter_code": row.get("starter_code") or "",
        "test_input": given,
        "test_output": expected,
    }
    if tests[0].get("testtype") == "functional":
        name = json_of(row.get("metadata") or "{}", "").get("func_name")
        if not name:
            raise Unusable("no name of the function")
        return common | {"mode": "call", "entry_point": name}
    return common | {"mode": "stdio", "judge": "livecodebench"}


def _short(given: list[Any], expected: list[Any]) -> tuple[list[Any], list[Any]]:
    """Returns the tests whose results a program can print. Raises Unusable if there are none."""
    if not given:
        raise Unusable("no tests")
    if len(given) != len(expected):
        raise Unusable("not as many results as inputs")
    kept = [pair for pair in zip(given, expected, strict=True) if len(pair[1]) <= LONGEST]
    if not kept:
        raise Unusable(f"results are longer than {LONGEST} characters")
    return [one for one, _ in kept], [other for _, other in kept]


def _texts(name: str, found: list[Any]) -> list[str]:
    """Returns the texts of a field; some may be given as lists of lines."""
    return [lines(f"{name}[{number}]", one) for number, one in enumerate(found)]


class _Texts(pickle.Unpickler):
    """Loads nothing but plain data, because a download may hold anything."""

    def find_class(self, module: str, name: str) -> Any:
        raise Unusable("private tests are not plain data")


def _private(text: str | None) -> list[dict[str, Any]]:
    """Reads private tests: JSON, or JSON that is pickled, compressed and in base 64."""
    if not text:
        return []
    if text.lstrip().startswith("["):
        return json_of(text, "")
    try:
        inflating = zlib.decompressobj()
        data = inflating.decompress(base64.b64decode(text), INFLATED)
        if inflating.unconsumed_tail:
            raise Unusable(f"private tests are larger than {INFLATED >> 20} MB")
        return json_of(_Texts(io.BytesIO(data)).load(), "")
    except Unusable:
        raise
    except Exception as error:  # a damaged pickle may raise any error
        raise ValueError(f"private tests are damaged: {error!r}") from error
