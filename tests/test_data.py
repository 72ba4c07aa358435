"""How problem sets are read. With ATGRPO_DATA, a folder of them: that every file of it can be."""

import functools
import gzip
import json
import os
import random
from pathlib import Path

import fakes
import pytest

from atgrpo_jax.sandbox.pool import SandboxConfig
from atgrpo_jax.tasks.code import code_problems
from atgrpo_jax.tasks.code.code import Code, State
from atgrpo_jax.tasks.code.written_tests import read_test
from atgrpo_jax.tasks.data import pick, read_rows, rows_of, words_of
from atgrpo_jax.tasks.games.sokoban import Sokoban
from atgrpo_jax.tasks.games.sokoban_levels import read_levels
from atgrpo_jax.tasks.math import math_problems
from atgrpo_jax.tasks.math.boxes import boxed
from atgrpo_jax.tasks.math.math import Math
from atgrpo_jax.tasks.math.math_problems import listed, plainly_equal
from atgrpo_jax.tasks.workflow import Workflow
from atgrpo_jax.tools.prepare import convert


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
        ("Find |A ∪ B|.", "Find |A ∩ B|."),
        ("What is √16?", "What is 16?"),
        ("Find ∑a.", "Find ∏a."),
        ("Is x ∈ S?", "Is x ∉ S?"),
        ("Find f'(2).", "Find f(2)."),
        ("What is (2 + 3) * 4?", "What is 2 + (3 * 4)?"),
        ("Find ⌊7/2⌋.", "Find ⌈7/2⌉."),
        ("Find |x|.", "Find x."),
        ("Find [x].", "Find {x}."),
        ("What is 1.5 + 2?", "What is 1,5 + 2?"),
        ("What is 3.5?", "What is 3 5?"),
        ("What is x²?", "What is x2?"),
        ("What is x₁?", "What is x₂?"),
        ("What is x_1?", "What is x1?"),
        ("What is 2^{10}?", "What is 2^{1}0?"),
        ("Find $\\Delta$.", "Find $\\delta$."),
        ("Find α.", "Find β."),
        ("If A = 2a = 4, find A.", "If A = 2a = 4, find a."),
        ("Find AB.", "Find ab."),
        ("Divide in 1:2.", "Divide in 1,2."),
        ("[1, 2; 3, 4]", "[1; 2, 3; 4]"),
        ("a & b", "a | b"),
        ("a and ~b", "a and b"),
        ("Print 'a'.", "Print `a`."),
        ("5° north", "5 north"),
        ("is a ≤ b", "is a < b"),
        ("f ∘ g", "f · g"),
        ("30°", "30'"),
        ("p → q", "p ← q"),
        ("3 # 4", "3 @ 4"),
    ],
)
def test_problems_that_differ_in_a_sign_are_two(one, other):
    assert words_of(one) != words_of(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("What is  2+3 ?", "what is 2 + 3."),
        ("Solve $x + 1 = 2$.", "Solve\nx+1 = 2"),
        ("Solve \\(x\\).", "Solve $x$ ."),
        ("So: \\[x = 1\\]", "So $$x=1$$"),
        ("Find $x^{2}$.", "Find $x^2$."),
        ("At $0^\\circ$.", "At $0^{\\circ}$."),
        ("Find $\\left(x\\right)$.", "Find $(x)$."),
        ("Take 1\\,000.", "Take 1 000."),
        ("However, take 2.", "however take 2"),
        ("5 − 3", "5 - 3"),
        ("Print “yes”.", 'Print "yes"'),
        ("a\u00a0b\u200b", "a b"),
        ("f(1,2)", "f( 1, 2 )"),
        ("Take 2. Then add 3.", "Take 2 . Then add 3"),
    ],
)
def test_what_is_set_otherwise_is_one_problem(one, other):
    assert words_of(one) == words_of(other)


def test_digits_are_not_run_together():
    assert words_of("What is 2 3?") != words_of("What is 23?")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"a": ' + "9" * 5000 + "}", r"a.jsonl:1: no JSON \(Exceeds the limit"),
        ("[" * 100_000, r"a.jsonl:1: no JSON"),
        ('{"a": 1, "b": 2, "a": 3}', r"a.jsonl:1: no JSON .field 'a' is given twice"),
        ('{"a": {"b": 2, "b": 2}}', r"a.jsonl:1: no JSON .field 'b' is given twice"),
        ('{"a": "\\ud800"}', r"a.jsonl:1: half of a character .'.ud800'. stands alone"),
        ('{"a": "\x00"}', r"a.jsonl:1: no JSON .Invalid control character"),
        ('\n{"a": 1} {"a": 2}', r"a.jsonl:2: no JSON .Extra data"),
        ('{"a": 1}\r\n\r\n{', r"a.jsonl:3: no JSON"),
    ],
)
def test_json_that_python_does_not_read_is_named(tmp_path, line, says):
    (tmp_path / "a.jsonl").write_text(line)
    with pytest.raises(ValueError, match=says):
        list(read_rows(str(tmp_path / "a.jsonl"), {}))


def test_rows_are_lines_and_not_what_looks_like_one(tmp_path):
    """Only a line feed ends a row; a mark of the encoding at the beginning is none of the row's."""
    rows = [{"a": "x\u2028y\x85z\x0b"}, {"a": "\U0001f600"}]
    text = "\r\n".join(
        json.dumps(row, ensure_ascii=kind) for row, kind in zip(rows, (False, True), strict=True)
    )
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + text.encode() + b"\n\n")
    assert list(read_rows(str(tmp_path / "a.jsonl"), {"a": str})) == [(1, rows[0]), (2, rows[1])]


@pytest.mark.parametrize(
    ("value", "kind", "says"),
    [(True, int, "a = 'True' is no int"), (1, str, "'1' is no str"), (None, list, "'None' is no list")],
)
def test_a_field_of_another_type_is_named(tmp_path, value, kind, says):
    (tmp_path / "a.jsonl").write_text(json.dumps({"a": value}))
    with pytest.raises(ValueError, match=f"a.jsonl:1: .*{says}"):
        list(read_rows(str(tmp_path / "a.jsonl"), {"a": kind}))


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


@functools.cache
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
    rooms = [level.rows for level in read(path) if level.shape == (10, 10)][:300]
    if not rooms:
        pytest.skip("rooms of other sizes")
    levels = ("\n".join((f"; {number}", *rows, "")) for number, rows in enumerate(rooms))
    (tmp_path / "000.txt").write_text("\n".join(levels))
    done = convert("boxoban", [str(tmp_path / "000.txt")], str(tmp_path / "out.jsonl.gz"))
    assert done.written == len(rooms)
    assert [level.rows for level in read_levels(str(tmp_path / "out.jsonl.gz"))] == rooms
