"""How problem sets are read. With ATGRPO_DATA, a folder of them: that every file of it can be."""

import gzip

import pytest

from atgrpo_jax.data import read_rows, words_of


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
