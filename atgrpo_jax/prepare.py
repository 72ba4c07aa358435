"""Problem sets as they are downloaded -> the rows that tasks read (docs/data.md), from files on this machine.

    python -m atgrpo_jax.prepare --source=apps --out=data/code_train.jsonl.gz apps/train.jsonl

Reads JSON lines, JSON, CSV (each also gzipped) and, with pyarrow installed, Parquet. What cannot be used is
counted by its reason.
"""

import base64
import collections
import csv
import gzip
import io
import json
import pickle
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from absl import flags

from atgrpo_jax.cli import run
from atgrpo_jax.errors import ConfigError, RunError
from atgrpo_jax.progress import say

PYTHON3 = 3  # the language of a solution in CodeContests


class Unusable(Exception):
    """Why a row is left out."""


def apps(row: dict[str, Any]) -> dict[str, Any]:
    """APPS: github.com/hendrycks/apps, or its JSON lines on a hub."""
    tests = _json(row.get("input_output"), "no tests")
    inputs, outputs = tests.get("inputs") or [], tests.get("outputs") or []
    if not inputs:
        raise Unusable("no tests")
    solutions = _json(row.get("solutions") or "[]", "")
    common = {
        "id": f"apps-{row.get('problem_id', row.get('id'))}",
        "question": row["question"],
        "solution": solutions[0] if solutions else "",
    }
    if name := tests.get("fn_name"):
        # Arguments are lists of values, results sometimes in a list of one.
        results = [out[0] if isinstance(out, list) and len(out) == 1 else out for out in outputs]
        method = "class Solution" in (row.get("starter_code") or "")
        return common | {
            "mode": "candidate",
            "entry_point": f"Solution().{name}" if method else name,
            "starter_code": row.get("starter_code") or "",
            "before": "from typing import *\n",
            "tests": [
                f"assert {'candidate' if method else name}(*{list(given)!r}) == {result!r}"
                for given, result in zip(inputs, results, strict=True)
            ],
        }
    return common | {
        "mode": "stdio",
        "test_input": list(map(_text, inputs)),
        "test_output": list(map(_text, outputs)),
    }


def codecontests(row: dict[str, Any]) -> dict[str, Any]:
    """CodeContests: github.com/google-deepmind/code_contests, its Parquet or JSON lines on a hub."""
    given: list[str] = []
    expected: list[str] = []
    for name in ("public_tests", "private_tests", "generated_tests"):
        tests = row.get(name) or {}
        given += tests.get("input") or []
        expected += tests.get("output") or []
    if not given:
        raise Unusable("no tests")
    if row.get("input_file"):
        raise Unusable("reads a file")
    found = row.get("solutions") or {}
    pairs = zip(found.get("language") or [], found.get("solution") or [], strict=True)
    python = [source for language, source in pairs if language in (PYTHON3, "PYTHON3")]
    return {
        "id": f"codecontests-{row.get('name')}",
        "question": row["description"],
        "mode": "stdio",
        "test_input": given,
        "test_output": expected,
        "solution": python[0] if python else "",
    }


def livecodebench(row: dict[str, Any]) -> dict[str, Any]:
    """LiveCodeBench: the JSON lines of code_generation_lite; private tests included."""
    tests = _json(row.get("public_test_cases") or "[]", "") + _private(row.get("private_test_cases"))
    if not tests:
        raise Unusable("no tests")
    common = {
        "id": f"lcb-{row.get('question_id')}",
        "question": f"{row.get('question_title', '')}\n\n{row['question_content']}".strip(),
        "starter_code": row.get("starter_code") or "",
        "test_input": [test["input"] for test in tests],
        "test_output": [test["output"] for test in tests],
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
        question = question[0]["content"]
    answer = _first(row, ("answer", "Answer", "final_answer", "expected_answer"))
    if question is None or answer in (None, ""):
        raise Unusable("no question or no answer")
    name = _first(row, ("id", "ID", "unique_id", "problem_idx"))
    return {"id": str(name or ""), "question": question, "answer": str(answer)}


def olympiadbench(row: dict[str, Any]) -> dict[str, Any]:
    """OlympiadBench: github.com/OpenBMB/OlympiadBench; text only, with an answer that can be compared."""
    found = row.get("final_answer")
    if not found:
        raise Unusable("no answer: a proof")
    if any(row.get(f"image_{i}") for i in range(1, 10)) or "<image_" in row["question"]:
        raise Unusable("has pictures")
    if len(found) > 1:
        raise Unusable("several answers")
    answer = str(found[0]).strip("$")
    return {"id": f"olympiadbench-{row.get('id')}", "question": row["question"], "answer": answer}


SOURCES: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "apps": apps,
    "codecontests": codecontests,
    "livecodebench": livecodebench,
    "answers": answers,
    "olympiadbench": olympiadbench,
}


def convert(source: str, files: list[str], out: str) -> tuple[int, collections.Counter[str]]:
    """Rows written, and what was left out by reason. Raises RunError for a file that cannot be read."""
    left_out: collections.Counter[str] = collections.Counter()
    written = 0
    path = Path(out).expanduser()
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with (gzip.open if path.suffix == ".gz" else open)(partial, "wt", encoding="utf-8") as target:
        for file in files:
            for place, row in _rows(Path(file).expanduser()):
                try:
                    made = SOURCES[source](row)
                except Unusable as reason:
                    left_out[str(reason)] += 1
                    continue
                except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
                    raise RunError(f"{place}: not a row of {source}: {error!r}") from error
                target.write(json.dumps(made, ensure_ascii=False) + "\n")
                written += 1
    partial.replace(path)
    return written, left_out


def _rows(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    kind = file.name.removesuffix(".gz").rpartition(".")[2]
    try:
        if kind == "parquet":
            yield from _parquet(file)
            return
        with (gzip.open if file.suffix == ".gz" else open)(file, "rt", encoding="utf-8", newline="") as text:
            if kind == "csv":
                rows: Iterator[Any] = csv.DictReader(text)
            elif kind == "json":
                whole = json.load(text)
                rows = iter(whole if isinstance(whole, list) else whole.values())
            else:
                rows = (json.loads(line) for line in text if line.strip())
            for number, row in enumerate(rows, 1):
                yield f"{file}, row {number}", row
    except (OSError, EOFError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise RunError(f"{file}: cannot be read ({error})") from error


def _parquet(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise RunError(f"{file}: Parquet needs pyarrow: pip install pyarrow") from error
    try:
        rows = parquet.read_table(file).to_pylist()
    except (OSError, ValueError) as error:
        raise RunError(f"{file}: cannot be read ({error})") from error
    for number, row in enumerate(rows, 1):
        yield f"{file}, row {number}", row


def _json(text: Any, reason: str) -> Any:
    """A field that holds JSON, or what it would hold."""
    if not text and reason:
        raise Unusable(reason)
    return json.loads(text) if isinstance(text, str) else text


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
        return json.loads(text)
    return json.loads(_Texts(io.BytesIO(zlib.decompress(base64.b64decode(text)))).load())


def main(argv: list[str], source: str | None, out: str | None) -> None:
    if source not in SOURCES:
        raise ConfigError(f"--source={source}: expected one of {', '.join(SOURCES)}")
    if out is None or len(argv) < 2:
        raise ConfigError("give --out=FILE and the files to read")
    written, left_out = convert(source, argv[1:], out)
    for reason, count in left_out.most_common():
        say(f"left out: {count} ({reason})")
    if not written:
        raise RunError("no row could be used")
    print(f"{written} problems in {out}")


if __name__ == "__main__":
    kind = flags.DEFINE_string("source", None, f"What the files are: {', '.join(SOURCES)}.")
    file = flags.DEFINE_string("out", None, "The file to write, e.g. data/code_train.jsonl.gz.")
    run(lambda argv: main(argv, kind.value, file.value))
