"""Problem sets as they are downloaded -> the rows that tasks read (docs/data.md), from files on this machine.

    python -m atgrpo_jax.prepare --source=apps --out=data/code_train.jsonl.gz apps/train.jsonl

Reads JSON lines, JSON, CSV, Boxoban's text (each also gzipped) and, with pyarrow installed, Parquet. Rows
that cannot be used are counted by the reason, and the first of them are named.
"""

import base64
import collections
import contextlib
import dataclasses
import gzip
import io
import json
import pickle
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

from absl import flags

from atgrpo_jax.cli import run
from atgrpo_jax.downloads import Unusable, rows_in, said
from atgrpo_jax.errors import ConfigError, RunError
from atgrpo_jax.progress import say
from atgrpo_jax.sandbox.pool import SandboxConfig
from atgrpo_jax.tasks import code_problems, math_problems
from atgrpo_jax.tasks.sokoban_rooms import level_of
from atgrpo_jax.truths import check_truth, truth_of
from atgrpo_jax.types import hash_bytes

PYTHON3 = 3  # the language of a solution in CodeContests
LONGEST = SandboxConfig.output_kb << 10  # characters of a result: a program may print no more
NAMED = 3  # places of rows left out, for each reason
# What DAPO writes around every problem.
DAPO_BEFORE = (
    "Solve the following math problem step by step. The last line of your response should be of the form "
    "Answer: $Answer (without quotes) where $Answer is the answer to the problem."
)
DAPO_AFTER = 'Remember to put your answer on its own line after "Answer:".'


def apps(row: dict[str, Any]) -> dict[str, Any]:
    """APPS: github.com/hendrycks/apps, or its JSON lines on a hub."""
    tests = _json(row["input_output"], "no tests")
    inputs, outputs = _list(tests.get("inputs") or []), _list(tests.get("outputs") or [])
    solutions = _json(row.get("solutions") or "[]", "")
    common = {
        "id": f"apps-{row.get('problem_id', row.get('id'))}",
        "question": row["question"],
        "solution": solutions[0] if solutions else "",
    }
    if name := tests.get("fn_name"):
        method = "class Solution" in (row.get("starter_code") or "")
        called = "candidate" if method else name
        calls = [f"{called}({', '.join(map(repr, _list(given)))})" for given in inputs]
        calls, results = _short(calls, list(map(_result, outputs)))
        return common | {
            "mode": "candidate",
            "entry_point": f"Solution().{name}" if method else name,
            "starter_code": row.get("starter_code") or "",
            "before": "from typing import *\n",
            "tests": [f"assert {call} {result}" for call, result in zip(calls, results, strict=True)],
        }
    given, expected = _short(list(map(_text, inputs)), list(map(_text, outputs)))
    return common | {"mode": "stdio", "test_input": given, "test_output": expected}


def _result(expected: Any) -> str:
    """What a call must give. A list of one may be the value, or be around it: APPS' own tests take both."""
    if isinstance(expected, list) and len(expected) == 1:
        return f"in ({expected[0]!r}, {expected!r})"
    return f"== {expected!r}"


def codecontests(row: dict[str, Any]) -> dict[str, Any]:
    """CodeContests: github.com/google-deepmind/code_contests, its Parquet or JSON lines on a hub."""
    question = row["description"]
    given: list[str] = []
    expected: list[str] = []
    for name in ("public_tests", "private_tests", "generated_tests"):
        tests = row.get(name) or {}
        given += _list(tests.get("input") or [])
        expected += _list(tests.get("output") or [])
    if row.get("input_file"):
        raise Unusable("reads a file")
    given, expected = _short(given, expected)
    found = row.get("solutions") or {}
    pairs = zip(found.get("language") or [], found.get("solution") or [], strict=True)
    python = [source for language, source in pairs if language in (PYTHON3, "PYTHON3")]
    return {
        "id": f"codecontests-{row.get('name')}",
        "question": question,
        "mode": "stdio",
        "test_input": given,
        "test_output": expected,
        "solution": python[0] if python else "",
    }


def livecodebench(row: dict[str, Any]) -> dict[str, Any]:
    """LiveCodeBench: the JSON lines of code_generation_lite; private tests included."""
    question = f"{row.get('question_title', '')}\n\n{row['question_content']}".strip()
    tests = _json(row.get("public_test_cases") or "[]", "") + _private(row.get("private_test_cases"))
    given, expected = _short([test["input"] for test in tests], [test["output"] for test in tests])
    common = {
        "id": f"lcb-{row.get('question_id')}",
        "question": question,
        "starter_code": row.get("starter_code") or "",
        "test_input": given,
        "test_output": expected,
    }
    if tests[0].get("testtype") == "functional":
        name = _json(row.get("metadata") or "{}", "").get("func_name")
        if not name:
            raise Unusable("no name of the function")
        return common | {"mode": "call", "entry_point": name}
    return common | {"mode": "stdio"}


def answers(row: dict[str, Any]) -> dict[str, Any]:
    """Polaris, AIME, DAPO and their like: a problem and an answer, under one of the usual names."""
    question = _first(row, ("problem", "Problem", "question", "Question", "prompt"))
    if isinstance(question, list):  # a conversation
        question = next(said["content"] for said in reversed(question) if said.get("role", "user") == "user")
    answer = _first(row, ("answer", "Answer", "final_answer", "expected_answer"))
    if answer is None:
        answer = (_json(row.get("reward_model") or "{}", "") or {}).get("ground_truth")
    if question is None:
        raise ValueError("no field that holds the question")
    answer = truth_of(answer, row.get("solution"))
    name = _first(row, ("id", "ID", "unique_id", "problem_idx"))
    if name is None and isinstance(row.get("extra_info"), dict):
        name = row["extra_info"].get("index")
    question = question.strip().removeprefix(DAPO_BEFORE).removesuffix(DAPO_AFTER).strip()
    return {"id": "" if name is None else str(name), "question": question, "answer": answer}


def olympiadbench(row: dict[str, Any]) -> dict[str, Any]:
    """OlympiadBench: github.com/OpenBMB/OlympiadBench; text only, with an answer that can be compared."""
    question, found = row["question"], row.get("final_answer")
    if not found:
        raise Unusable("no answer: a proof")
    if any(row.get(f"image_{i}") for i in range(1, 10)) or "<image_" in question:
        raise Unusable("has pictures")
    if row.get("answer_type") == "Need_human_evaluate":
        raise Unusable("an answer that people must judge")
    return {
        "id": f"olympiadbench-{row.get('id')}",
        "question": question,
        "answer": truth_of(_list(found)),
        "multiple": bool(row.get("is_multiple_answer")),
        "tolerance": row.get("error") or None,
    }


def boxoban(row: dict[str, Any]) -> dict[str, Any]:
    """Boxoban: github.com/google-deepmind/boxoban-levels, its text files."""
    rows = row["grid"]
    if not set("".join(rows)) <= set("#@$. "):
        raise ValueError("expected no symbols but #, @, $, . and space")
    if [len(line) for line in rows] != [10] * 10:
        raise ValueError("expected 10 rows of 10")
    return row


def _code(row: dict[str, Any]) -> None:
    code_problems.problem_of(row)


def _math(row: dict[str, Any]) -> None:
    check_truth(math_problems.problem_of(row))


def _sokoban(row: dict[str, Any]) -> None:
    level_of(row["grid"])


# What makes a row, and what raises ValueError for one that the task does not read.
SOURCES: dict[str, tuple[Callable[[dict[str, Any]], dict[str, Any]], Callable[[dict[str, Any]], None]]] = {
    "apps": (apps, _code),
    "codecontests": (codecontests, _code),
    "livecodebench": (livecodebench, _code),
    "answers": (answers, _math),
    "olympiadbench": (olympiadbench, _math),
    "boxoban": (boxoban, _sokoban),
}


@dataclasses.dataclass
class Converted:
    """How many rows are written, and for each reason how many are left out, and where the first are."""

    written: int = 0
    left_out: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    places: dict[str, list[str]] = dataclasses.field(default_factory=dict)

    def leave_out(self, reason: str, place: str) -> None:
        self.left_out[reason] += 1
        places = self.places.setdefault(reason, [])
        if len(places) < NAMED:
            places.append(place)


def convert(source: str, files: list[str], out: str) -> Converted:
    """What the rows of files are made into is in ``out``, each once.

    Raises RunError for a file that cannot be read, or of which no row is in the source's form, and if no row
    could be used; ``out`` is then as it was before.
    """
    done, seen = Converted(), set()
    with _replacing(Path(out).expanduser()) as target:
        for place, row in (found for file in files for found in _usable(source, file, done)):
            name = hash_bytes(json.dumps(row | {"id": ""}))
            if name in seen:
                done.leave_out("the same as a row before", place)
                continue
            seen.add(name)
            target.write(json.dumps(row, ensure_ascii=False) + "\n")
            done.written += 1
        if not done.written:
            reasons = (f"{count} {reason}" for reason, count in done.left_out.most_common())
            raise RunError(f"no row could be used: {', '.join(reasons)}")
    return done


def _usable(source: str, file: str, done: Converted) -> Iterator[tuple[str, dict[str, Any]]]:
    """A file's rows as the task reads them, and where they were; what is left out goes to ``done``."""
    fits, misfit = 0, "there is none at all"
    for number, given in enumerate(rows_in(Path(file).expanduser(), levels=source == "boxoban"), 1):
        place = f"{file}, row {number}"
        try:
            row = _made(source, given)
        except Unusable as reason:
            done.leave_out(str(reason), place)
        except (LookupError, TypeError, ValueError, AttributeError, StopIteration) as error:
            done.leave_out(f"not a row of {source}", f"{place} ({said(error)})")
            misfit = f"row {number}: {said(error)}"
            continue
        else:
            yield place, row
        fits += 1
    if not fits:
        raise RunError(f"{file}: no row of {source} in it ({misfit})")


def _made(source: str, given: Any) -> dict[str, Any]:
    """The row that a task reads, of one of a source's; a text is that row's JSON."""
    make, check = SOURCES[source]
    row = _json(given, "")
    if not isinstance(row, dict):
        raise ValueError("no JSON object")
    made = make(row)
    if not all(isinstance(made.get(name, ""), str) for name in ("question", "solution", "starter_code")):
        raise ValueError("the question or the solution is no text")
    json.dumps(made, ensure_ascii=False).encode()  # halves of characters cannot be written
    check(made)
    return made


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[TextIO]:
    """To write a file that takes the place of another once it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    try:
        with (gzip.open if path.suffix == ".gz" else open)(partial, "wt", encoding="utf-8") as target:
            yield target
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


# Fields


def _json(text: Any, reason: str) -> Any:
    """A field that holds JSON, or what it would hold."""
    if not text and reason:
        raise Unusable(reason)
    try:
        return json.loads(text) if isinstance(text, str) else text
    except json.JSONDecodeError as error:
        raise ValueError(f"malformed JSON: {error}") from error
    except ValueError as error:
        raise Unusable("an integer is longer than Python reads") from error
    except RecursionError as error:
        raise ValueError("JSON nested too deep") from error


def _list(found: Any) -> list[Any]:
    if not isinstance(found, list):
        raise TypeError(f"{str(found)[:60]!r} is no list")
    return found


def _short(given: list[Any], expected: list[Any]) -> tuple[list[Any], list[Any]]:
    """Tests whose results are short enough for a program to print. Raises Unusable if none are."""
    if not given:
        raise Unusable("no tests")
    if len(given) != len(expected):
        raise Unusable("not as many results as inputs")
    kept = [pair for pair in zip(given, expected, strict=True) if len(pair[1]) <= LONGEST]
    if not kept:
        raise Unusable(f"results are longer than {LONGEST} characters")
    return [one for one, _ in kept], [other for _, other in kept]


def _text(part: Any) -> str:
    """A text, or its lines."""
    return "\n".join(map(str, part)) if isinstance(part, list) else str(part)


def _first(row: dict[str, Any], names: tuple[str, ...]) -> Any:
    return next((row[name] for name in names if row.get(name) not in (None, "")), None)


class _Texts(pickle.Unpickler):
    """Makes nothing but plain data: a download may hold anything."""

    def find_class(self, module: str, name: str) -> Any:
        raise Unusable("private tests are not plain data")


def _private(text: str | None) -> list[dict[str, Any]]:
    """JSON, or JSON that is pickled, compressed and in base 64."""
    if not text:
        return []
    if text.lstrip().startswith("["):
        return _json(text, "")
    try:
        return _json(_Texts(io.BytesIO(zlib.decompress(base64.b64decode(text)))).load(), "")
    except Unusable:
        raise
    except Exception as error:  # a damaged pickle may raise any
        raise ValueError(f"private tests are damaged: {error!r}") from error


def main(argv: list[str], source: str | None, out: str | None) -> None:
    if source not in SOURCES:
        raise ConfigError(f"--source={source}: expected one of {', '.join(SOURCES)}")
    if out is None or len(argv) < 2:
        raise ConfigError("give --out=FILE and the files to read")
    done = convert(source, argv[1:], out)
    for reason, count in done.left_out.most_common():
        say(f"left out: {count} ({reason}): {'; '.join(done.places[reason])}{'; ...' * (count > NAMED)}")
    print(f"{done.written} problems in {out}")


if __name__ == "__main__":
    kind = flags.DEFINE_string("source", None, f"What the files are: {', '.join(SOURCES)}.")
    file = flags.DEFINE_string("out", None, "The file to write, e.g. data/code_train.jsonl.gz.")
    run(lambda argv: main(argv, kind.value, file.value))
