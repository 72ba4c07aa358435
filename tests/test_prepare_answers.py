"""Rows of mathematical problems, as the originals have them, become rows that the math task reads."""

import pytest
from shared_prepare import written

from atgrpo_jax.tasks.math import math_problems
from atgrpo_jax.tasks.math.math import Math
from atgrpo_jax.tools.prepare import DAPO_AFTER, DAPO_BEFORE

MATRIX = "\\begin{pmatrix} 1 \\\\[2pt] 2 \\end{pmatrix}"


def test_answers_and_olympiadbench(tmp_path):
    rows = {"problem": "1 + 1?", "answer": 2}, {"Question": "2?", "Answer": "$4$"}, {"problem": "a proof"}
    count, left_out = written(tmp_path, "answers", *rows)
    assert (count, left_out) == (2, {"no answer": 1})
    task = Math(files={"train": str(tmp_path / "data" / "out.jsonl.gz")})
    assert {task.instance("train", i).answer for i in range(2)} == {"2", "4"}
    several = ["1", "2"]
    rows = (
        {"problem": "?", "answer": ["3"]},
        {"problem": "?", "answer": several},
        {"problem": "?", "answer": {}},
    )
    count, left_out = written(tmp_path, "answers", *rows, {"problem": "?", "answer": "9" * 20_000})
    assert count == 1 and left_out == {
        "several answers": 1,
        "not a row of answers": 1,
        "the answer is longer than 200 characters": 1,
    }


@pytest.mark.parametrize(
    ("answer", "truth"),
    [
        ("She lays 3*4 = <<3*4=12>>12 eggs a day, for as long as she likes.\n#### 12", "12"),
        ("So it is 1,080.\n#### 1,080", "1,080"),
        ('["36"]', "36"),
        ('["\\\\frac{1}{2}"]', "\\frac{1}{2}"),
        ("[0, 1]", "[0, 1]"),
        ("$12", "12"),
        ("12 dollars", "12 dollars"),
        ("The answer is \\boxed{\\frac{3}{4}}.", "\\frac{3}{4}"),
        (2.5, "2.5"),
        ("\\text{no real solutions}", "\\text{no real solutions}"),
        ("42 or 43", "42 or 43"),
        ("\\(5\\)", "5"),
        ("$\\(\\frac{1}{2}\\)$", "\\frac{1}{2}"),
        ("\\[ 5 \\].", "5"),
        ("\\(3\\), \\(4\\)", "3, 4"),
        (f"\\[{MATRIX}\\]", MATRIX),
        ("3 hours 20 minutes", "3 hours 20 minutes"),
    ],
)
def test_answers_as_their_sets_write_them(tmp_path, answer, truth):
    assert written(tmp_path, "answers", {"problem": "?", "answer": answer}) == (1, {})
    assert math_problems.read(str(tmp_path / "data" / "out.jsonl.gz"))[0].answer == truth


def test_answers_that_nobody_can_give_are_left_out_by_name(tmp_path):
    given = {
        "a word for no answer": ["proof", "N/A", "nan", "None", float("nan"), "null", float("inf"), "Proof."],
        "several answers": ['["1", "2"]', ["1", "2"]],
        "no answer": ["", "####", None, []],
        "a sentence, of more than 8 words": ["She eats 3 of them and sells the others at 2 dollars each"],
        "an answer that cannot be read: numbers among words": [
            "42 (or 43)",
            "42 I believe",
            "1 in 6",
            "10 to 12",
            "7 remainder 2",
            "3 hours 20",
        ],
    }
    rows = [{"problem": f"{answer}?", "answer": answer} for answers in given.values() for answer in answers]
    count, left_out = written(tmp_path, "answers", {"problem": "?", "answer": "1"}, *rows)
    assert (count, left_out) == (1, {reason: len(answers) for reason, answers in given.items()})


def test_skywork_and_math_themselves(tmp_path):
    skywork = {"prompt": [{"role": "user", "content": "6 * 6?"}], "reward_model": {"ground_truth": '["36"]'}}
    solved = {"problem": "3 + 4?", "solution": "It is $\\boxed{7}$, not $\\boxed{8$.", "level": "Level 1"}
    assert written(tmp_path, "answers", skywork, solved, solved | {"solution": "Easy."}) == (
        2,
        {"no answer": 1},
    )
    read = math_problems.read(str(tmp_path / "data" / "out.jsonl.gz"))
    assert [problem.answer for problem in read] == ["36", "7"]


def test_olympiadbench(tmp_path):
    one = {"id": 3, "question": "?", "final_answer": ["$\\frac{1}{2}$"], "image_1": None}
    two = {
        "id": 4,
        "question": "What?",
        "final_answer": ["$1$,$2$"],
        "is_multiple_answer": True,
        "error": "1e-1",
    }
    rows = one, two, one | {"final_answer": None}, one | {"final_answer": ["1", "2"]}, one | {"image_1": "x"}
    count, left_out = written(tmp_path, "olympiadbench", *rows, two | {"answer_type": "Need_human_evaluate"})
    assert count == 2 and sorted(left_out) == [
        "an answer that people must judge", "has pictures", "no answer: a proof", "several answers",
    ]  # fmt: skip
    task = Math(files={"test": str(tmp_path / "data" / "out.jsonl.gz")})
    assert task.instance("test", 0).answer == "\\frac{1}{2}"
    found = task.instance("test", 1)
    assert (found.answer, found.multiple, found.tolerance) == ("1,2", True, 0.1)


def test_dapo(tmp_path):
    row = {
        "prompt": [{"role": "user", "content": f"{DAPO_BEFORE}\n\nWhat is $1 + 1$?\n\n{DAPO_AFTER}"}],
        "reward_model": {"ground_truth": "2", "style": "rule"},
        "extra_info": {"index": "9a9b"},
    }
    count, left_out = written(tmp_path, "answers", row, row | {"extra_info": {"index": "again"}})
    assert (count, left_out) == (1, {"the same as a row before": 1})
    problem = Math(files={"train": str(tmp_path / "data" / "out.jsonl.gz")}).instance("train", 0)
    assert (problem.id, problem.question, problem.answer) == ("9a9b", "What is $1 + 1$?", "2")
