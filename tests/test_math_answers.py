"""Answers that are right and answers that are not: tests/math_answers.txt."""

from pathlib import Path

import pytest

from atgrpo_jax.answers.equality import equal


def pairs():
    """Truths with each answer and whether it is right."""
    truth = None
    for line in Path(__file__).with_name("math_answers.txt").read_text(encoding="utf-8").split("\n"):
        if line.startswith(("+ ", "- ")):
            yield truth, line[2:], line[0] == "+"
        elif line.strip() and not line.startswith("# "):
            truth = line


PAIRS = list(pairs())


@pytest.mark.parametrize("truth", dict.fromkeys(truth for truth, _, _ in PAIRS))
def test_answers(truth):
    expected = {answer: right for of, answer, right in PAIRS if of == truth}
    assert {answer: equal(truth, answer) for answer in expected} == expected
