"""Turns downloaded problem sets, in files on this machine, into rows for tasks (docs/data.md).

    python -m atgrpo_jax.tools.prepare --source=apps --out=data/code_train.jsonl.gz apps/train.jsonl

Reads JSON lines, JSON, CSV, Boxoban's text (each also gzipped) and, with pyarrow installed,
Parquet. Rows that cannot be used are counted for each reason, and the first of them are named.
"""

import collections
import contextlib
import dataclasses
import gzip
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

from absl import flags

from atgrpo_jax.common.cli import run_main
from atgrpo_jax.common.errors import ConfigError, RunError
from atgrpo_jax.common.progress import counted, say
from atgrpo_jax.common.types import hash_bytes
from atgrpo_jax.tasks.code import code_problems
from atgrpo_jax.tasks.games.sokoban_levels import level_of
from atgrpo_jax.tasks.math import math_problems
from atgrpo_jax.tasks.search.questions import problem_in, question_of
from atgrpo_jax.tools.downloads import Unusable, json_of, list_of, rows_in, said
from atgrpo_jax.tools.passages import hotpotqa, musique
from atgrpo_jax.tools.sources import apps, codecontests, livecodebench
from atgrpo_jax.tools.truths import check_truth, truth_of

MOST_PLACES = 3  # how many places of left-out rows are named for each reason
# DAPO writes these texts around every problem.
DAPO_BEFORE = (
    "Solve the following math problem step by step. The last line of your response should be of the form "
    "Answer: $Answer (without quotes) where $Answer is the answer to the problem."
)
DAPO_AFTER = 'Remember to put your answer on its own line after "Answer:".'


def answers(row: dict[str, Any]) -> dict[str, Any]:
    """Converts a row of Polaris, AIME, DAPO and the like: fields for a problem and its answer."""
    question = _first(row, ("problem", "Problem", "question", "Question", "prompt"))
    if isinstance(question, list):  # a conversation
        question = next(said["content"] for said in reversed(question) if said.get("role", "user") == "user")
    answer = _first(row, ("answer", "Answer", "final_answer", "expected_answer"))
    if answer is None:
        answer = (json_of(row.get("reward_model") or "{}", "") or {}).get("ground_truth")
    if question is None:
        raise ValueError("no field that holds the question")
    answer = truth_of(answer, row.get("solution"))
    name = _first(row, ("id", "ID", "unique_id", "problem_idx"))
    if name is None and isinstance(row.get("extra_info"), dict):
        name = row["extra_info"].get("index")
    question = question.strip().removeprefix(DAPO_BEFORE).removesuffix(DAPO_AFTER).strip()
    return {"id": "" if name is None else str(name), "question": question, "answer": answer}


def olympiadbench(row: dict[str, Any]) -> dict[str, Any]:
    """Converts a row of OlympiadBench (github.com/OpenBMB/OlympiadBench).

    Only problems without pictures, and with an answer that can be compared, are taken.
    """
    question = row["question"]
    found = row.get("final_answer")
    if not found:
        raise Unusable("no answer: a proof")
    if any(row.get(f"image_{i}") for i in range(1, 10)) or "<image_" in question:
        raise Unusable("has pictures")
    if row.get("answer_type") == "Need_human_evaluate":
        raise Unusable("an answer that people must judge")
    return {
        "id": f"olympiadbench-{row.get('id')}",
        "question": question,
        "answer": truth_of(list_of(found)),
        "multiple": bool(row.get("is_multiple_answer")),
        "tolerance": row.get("error") or None,
    }


def boxoban(row: dict[str, Any]) -> dict[str, Any]:
    """Checks a level of Boxoban's text files (github.com/google-deepmind/boxoban-levels)."""
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


def _search(row: dict[str, Any]) -> None:
    problem_in(question_of(row), None, False)


# Source -> a function that makes a row, and one that raises if the task cannot use the row.
SOURCES: dict[str, tuple[Callable[[dict[str, Any]], dict[str, Any]], Callable[[dict[str, Any]], None]]] = {
    "apps": (apps, _code),
    "codecontests": (codecontests, _code),
    "livecodebench": (livecodebench, _code),
    "answers": (answers, _math),
    "olympiadbench": (olympiadbench, _math),
    "boxoban": (boxoban, _sokoban),
    "hotpotqa": (hotpotqa, _search),
    "2wikimultihopqa": (hotpotqa, _search),
    "musique": (musique, _search),
}


@dataclasses.dataclass
class Converted:
    """Counts the rows that are written, and for each reason those that are left out.

    ``places`` says for each reason where the first ``MOST_PLACES`` of them are.
    """

    written: int = 0
    left_out: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    places: dict[str, list[str]] = dataclasses.field(default_factory=dict)

    def leave_out(self, reason: str, place: str) -> None:
        self.left_out[reason] += 1
        places = self.places.setdefault(reason, [])
        if len(places) < MOST_PLACES:
            places.append(place)


def convert(source: str, files: list[str], out: str) -> Converted:
    """Converts the rows of files and writes them to ``out``, equal ones only once.

    Raises RunError if a file cannot be read, has no row in the source's form, or if no row could be
    used. ``out`` is then as it was before.
    """
    done = Converted()
    seen = set()
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
    """Yields the place and the converted row for each row of a file that can be used.

    The others are counted in ``done``.
    """
    fits = 0
    misfit = "there is none at all"
    for number, given in enumerate(rows_in(Path(file).expanduser(), levels=source == "boxoban"), 1):
        place = f"{file}, row {number}"
        try:
            row = _converted(source, given)
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


def _converted(source: str, given: Any) -> dict[str, Any]:
    """Converts one row of a source, which may be a JSON text, and checks the result."""
    make, check = SOURCES[source]
    row = json_of(given, "")
    if not isinstance(row, dict):
        raise ValueError("no JSON object")
    made = make(row)
    if not all(isinstance(made.get(name, ""), str) for name in ("question", "solution", "starter_code")):
        raise ValueError("the question or the solution is no text")
    json.dumps(made, ensure_ascii=False).encode()  # raises for lone surrogates
    check(made)
    return made


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[TextIO]:
    """Opens a file to write, which replaces ``path`` once it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    try:
        with (gzip.open if path.suffix == ".gz" else open)(partial, "wt", encoding="utf-8") as target:
            yield target
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


# Fields


def _first(row: dict[str, Any], names: tuple[str, ...]) -> Any:
    return next((row[name] for name in names if row.get(name) not in (None, "")), None)


def main(argv: list[str], source: str | None, out: str | None) -> None:
    if source not in SOURCES:
        raise ConfigError(f"--source={source}: expected one of {', '.join(SOURCES)}")
    if out is None or len(argv) < 2:
        raise ConfigError("give --out=FILE and the files to read")
    done = convert(source, argv[1:], out)
    for reason, count in done.left_out.most_common():
        say(
            f"left out: {count} ({reason}): {'; '.join(done.places[reason])}{'; ...' * (count > MOST_PLACES)}"
        )
    print(f"{counted(done.written, 'problem')} in {out}")


if __name__ == "__main__":
    kind = flags.DEFINE_string(
        "source", None, f"What the files are: {', '.join(SOURCES)}. E.g. --source=apps"
    )
    file = flags.DEFINE_string("out", None, "The file to write. E.g. --out=data/code_train.jsonl.gz")
    run_main(lambda argv: main(argv, kind.value, file.value))
