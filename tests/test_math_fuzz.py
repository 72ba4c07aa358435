"""What generated texts, rows and answers do to the readers of mathematics."""

import json
import re
import string
from fractions import Fraction

import pytest
from fuzz import fuzz
from hypothesis import given
from hypothesis import strategies as st

from atgrpo_jax.answers.equality import equal
from atgrpo_jax.tasks.math.boxes import boxed
from atgrpo_jax.tasks.math.math_problems import LONGEST, Problem, plainly_equal, plainly_same, problem_of
from atgrpo_jax.tools.downloads import Unusable
from atgrpo_jax.tools.truths import truth_of

some = fuzz(80)
PIECES = (
    *(
        "\\boxed",
        "\\fbox",
        "\\frac",
        "\\sqrt",
        "\\text",
        "\\left",
        "\\right",
        "\\pm",
        "\\cup",
        "\\in",
        "\\circ",
    ),
    *(
        "\\{",
        "\\}",
        "{",
        "}",
        "(",
        ")",
        "[",
        "]",
        "|",
        ",",
        ";",
        "and ",
        "or ",
        "=",
        "<",
        "\\le ",
        "^",
        "_",
        "**",
    ),
    *(
        "+",
        "-",
        "*",
        "/",
        "!",
        "%",
        "$",
        "\\$",
        ".",
        " ",
        "\n",
        "\\\\",
        "\\",
        "&",
        ":",
        "'",
        '"',
        "√",
        "½",
        "²",
        "π",
    ),
    *(
        "x",
        "e",
        "i",
        "pi",
        "oo",
        "log",
        "sin",
        "Interval",
        "Matrix",
        "cm",
        " hours ",
        " million ",
        "\\(",
        "\\]",
        "1",
        "2",
        "10",
        "0.5",
        "1e5",
        "\u2028",
    ),
    *(
        "\\begin{pmatrix}",
        "\\end{pmatrix}",
        "\\infty",
        "\\emptyset",
        "\\ldots",
        "52_8",
        "1,234",
        "\ud800",
        "\x00",
    ),
)
letters = st.text(st.sampled_from(string.printable + "¾√αΩ４\u2028\ue000\ue001\ud800\U0001d7d8"), max_size=40)
texts = st.lists(st.sampled_from(PIECES), max_size=14).map("".join) | letters
short = texts.filter(lambda text: text.strip() != "")
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=2),
    max_leaves=4,
)


@some
@given(texts, st.booleans())
def test_boxed_gives_a_short_answer_or_none(text, several):
    found = boxed(text, several)
    assert found is None or 0 < len(found.strip()) == len(found) <= LONGEST


@some
@given(texts, letters.filter(lambda text: text.strip()))
def test_a_last_box_is_found_behind_any_text(before, content):
    content = re.sub(r"[{}\\]", "7", content)
    assert boxed(before + "\\boxed{" + content + "} q.e.d.") == content.strip()


@some
@given(short, short, st.booleans())
def test_plain_equality_has_no_sides(one, other, multiple):
    problem = Problem("1", "?", one, multiple=multiple)
    assert plainly_same(one, one) is True
    assert plainly_equal(problem, one, other) is plainly_equal(problem, other, one)


def written(number: Fraction):
    """A number in the words of LaTeX, Python and sympy."""
    p, q = number.numerator, number.denominator
    yield from (f"{p}/{q}", rf"\frac{{{p}}}{{{q}}}", rf"-\dfrac{{{-p}}}{{{q}}}", f"Rational({p}, {q})")
    yield from (
        f"Fraction({p}, {q})",
        f"x = {p}/{q}",
        f"[{p}/{q}]",
        rf"\left({p}/{q}\right)",
        f"{p * 7}/{q * 7}",
    )


numbers = st.fractions(-9, 9, max_denominator=12)


@some
@given(numbers, numbers, st.data())
def test_numbers_are_equal_whatever_they_are_written_in(one, other, data):
    truth, answer = (data.draw(st.sampled_from(list(written(number)))) for number in (one, other))
    assert equal(truth, answer) is (one == other), (truth, answer)


@some
@given(short, short)
def test_the_judge_answers_whatever_it_is_asked(truth, answer):
    assert equal(truth, answer) in (True, False)


@some
@given(
    st.fixed_dictionaries(
        {}, optional=dict.fromkeys(("answer", "answers", "multiple", "tolerance", "id"), values)
    )
)
def test_rows_are_read_or_refused_by_field(row):
    try:
        problem = problem_of({"question": "?"} | row)
    except ValueError as error:
        assert str(error).partition(" = ")[0] in ("answer", "multiple", "tolerance")
        return
    assert 0 < len(problem.answer) <= LONGEST and type(problem.multiple) is bool
    assert 0 <= problem.tolerance < float("inf")


@some
@given(values, values)
def test_answers_of_downloads_are_made_or_left_out(found, solution):
    try:
        answer = truth_of(found, solution)
    except (Unusable, TypeError):
        return
    assert problem_of({"question": "?", "answer": answer}).answer == answer
    json.dumps(answer)


@pytest.mark.parametrize(
    "text", ["\\boxed" * 40, "(" * 199, "-" * 199 + "1", "2^" * 99 + "2", "!" * 200, "\\frac" * 40]
)
def test_deep_texts(text):
    assert equal("7", text) is False
