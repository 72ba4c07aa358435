"""How problem sets are read. With ATGRPO_DATA, a folder of them: that every file of it can be."""

import gzip
import os
import random
from pathlib import Path

import fakes
import pytest

from atgrpo_jax.data import pick, read_rows, rows_of, words_of
from atgrpo_jax.prepare import convert
from atgrpo_jax.sandbox.pool import SandboxConfig
from atgrpo_jax.tasks import code_problems, math_problems
from atgrpo_jax.tasks.base import Workflow
from atgrpo_jax.tasks.code import Code, State, read_test
from atgrpo_jax.tasks.math import Math, boxed
from atgrpo_jax.tasks.math_problems import listed, plainly_equal
from atgrpo_jax.tasks.sokoban import Sokoban
from atgrpo_jax.tasks.sokoban_rooms import read_levels


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("What is 2 + 3?", "What is 2 - 3?"),
        ("What is 2*3?", "What is 2/3?"),
        ("Solve x^2 = 4.", "Solve x2 = 4."),
        ("Is a < b?", "Is a > b?"),
        ("What is 5!?", "What is 5?"),
        ("What is 20% of 5?", "What is 20 of 5?"),
        ("Find $\\sin x$.", "Find $\\cos x$."),
        ("2 × 3", "2 ÷ 3"),
    ],
)
def test_problems_that_differ_in_a_sign_are_two(one, other):
    assert words_of(one) != words_of(other)


def test_the_same_words_are_one_problem():
    assert words_of("What is  2+3 ?") == words_of("what is 2 + 3.") != words_of("What is 23?")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"a": ' + "9" * 5000 + "}", r"a.jsonl:1: no JSON \(Exceeds the limit"),
        ("[" * 100_000, r"a.jsonl:1: no JSON"),
    ],
)
def test_json_that_python_does_not_read_is_named(tmp_path, line, says):
    (tmp_path / "a.jsonl").write_text(line)
    with pytest.raises(ValueError, match=says):
        list(read_rows(str(tmp_path / "a.jsonl"), {}))


def test_a_damaged_file_is_named(tmp_path):
    whole = gzip.compress(b'{"a": 1}\n' * 1000)
    for number, damaged in enumerate((whole[:-20], whole[:15] + b"\xff" * 20 + whole[35:])):
        path = tmp_path / f"{number}.jsonl.gz"
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=rf"{number}.jsonl.gz: cannot be read"):
            list(read_rows(str(path), {}))


def read_lines(path):
    return tuple(Path(path).read_text().split())


def test_a_problem_of_a_later_split_is_not_in_an_earlier_one(tmp_path):
    """Train gives way to validation and to test, validation to test; what comes twice comes once."""
    words = {"train": "a b c d b e", "validation": "B f d", "test": "c f g"}
    for split, text in words.items():
        (tmp_path / split).write_text(text)
    files = tuple((split, (str(tmp_path / split),)) for split in words)
    found = {split: rows_of(files, split, read_lines, str.lower) for split in words}
    assert found == {"train": ("a", "e"), "validation": ("B", "d"), "test": ("c", "f", "g")}


def test_training_goes_through_all_problems_and_again_in_another_order():
    rows = tuple("abcdefghij")
    first, second, other = (
        [pick(rows, seed, "train", i) for i in range(start, start + 10)]
        for seed, start in ((0, 0), (0, 10), (1, 0))
    )
    assert sorted(first) == sorted(second) == sorted(other) == list(rows)
    assert first != second and first != other and first != list(rows)
    assert [pick(rows, 0, "test", i) for i in range(10)] == list(rows)
    with pytest.raises(IndexError):
        pick(rows, 0, "test", 10)


# A folder of problem sets


DATA = os.environ.get("ATGRPO_DATA")
READERS = {"math": math_problems.read, "code": code_problems.read, "sokoban": read_levels}
needs_data = pytest.mark.skipif(DATA is None, reason="ATGRPO_DATA names no folder of problem sets")


def files(*folders):
    found = [
        path for folder in folders for path in sorted(Path(DATA or "").glob(f"{folder}/*.jsonl.gz")) if DATA
    ]
    return pytest.mark.parametrize("path", found, ids=lambda path: path.name.partition(".")[0])


def read(path):
    return READERS[path.parent.name](str(path))


@needs_data
@files("math", "code", "sokoban")
def test_every_row_is_read(path):
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        assert len(read(path)) == sum(1 for _ in lines) > 0


@needs_data
@files("math", "code", "sokoban")
def test_tasks_take_every_file(path):
    given = {"train": str(path)}
    if path.parent.name == "sokoban":
        task = Sokoban(levels=given, view="symbols")
    else:
        task = {"math": Math, "code": Code}[path.parent.name](files=given)
    assert all(task.instance("train", index) in read(path) for index in range(3))


@needs_data
@files("math")
def test_an_answer_is_equal_to_itself(path):
    for problem in read(path):
        assert plainly_equal(problem, problem.answer, boxed(f"So \\boxed{{{problem.answer}}}.")), problem


@pytest.fixture(scope="module")
def sandbox():
    made = SandboxConfig(workers=1, packages=Math.packages).build(Math().warm_up)
    yield made
    made.close()


@needs_data
@pytest.mark.slow
@files("math")
def test_an_answer_is_equal_to_itself_written_otherwise(sandbox, path):
    task = Math(workflow=Workflow(("reasoner",), 1))
    for problem in random.Random(0).sample(read(path), 20):
        parts = listed(problem.answer) if problem.multiple else [problem.answer]
        text = ", ".join(reversed(parts)).replace("\\frac", "\\dfrac ").replace("+", " + ")
        step = fakes.say(sandbox, task, task.initial(problem), "reasoner", f"\\boxed{{{text}}}")
        assert step.solved, (problem, text)


@needs_data
@files("code")
def test_every_problem_has_a_demonstrated_test(path):
    task = Code(demonstration_error=0.0)
    for problem in read(path):
        text = task.demonstration(State(problem), "tester", random.Random(0))
        assert read_test(problem, text) is not None, (problem.id, text)


@needs_data
@files("sokoban")
def test_boxoban_as_text_becomes_the_same_levels(tmp_path, path):
    rooms = [level.rows for level in read(path) if level.shape == (10, 10)]
    if not rooms:
        pytest.skip("rooms of other sizes")
    levels = ("\n".join((f"; {number}", *rows, "")) for number, rows in enumerate(rooms))
    (tmp_path / "000.txt").write_text("\n".join(levels))
    done = convert("boxoban", [str(tmp_path / "000.txt")], str(tmp_path / "out.jsonl.gz"))
    assert done.written == len(rooms)
    assert [level.rows for level in read_levels(str(tmp_path / "out.jsonl.gz"))] == rooms
