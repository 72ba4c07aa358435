"""Rows of programming problems, as the originals have them, become rows that the code task reads."""

import base64
import gzip
import json
import pickle
import zlib

import pytest
from shared_prepare import APPS, APPS_CALL, CONTEST, LCB, LCB_CALL, problems, written

from atgrpo_jax.tasks.code import code_problems
from atgrpo_jax.tools import sources
from atgrpo_jax.tools.sources import LONGEST


def test_apps(tmp_path):
    count, left_out = written(tmp_path, "apps", APPS, APPS_CALL, APPS | {"input_output": ""})
    assert (count, left_out) == (2, {"no tests": 1})
    stdio, call = problems(tmp_path)
    assert (stdio.id, stdio.form, stdio.tests[1]) == ("apps-7", "stdio", ("2\n", "3\n"))
    assert stdio.solution == "print(int(input()) + 1)"
    assert (call.form, call.names, call.tests[0][0]) == ("call", ("inc",), "assert inc(1) in (2, [2])")


@pytest.mark.parametrize(
    ("result", "right", "wrong"),
    [
        ([[1]], ["[1]", "[[1]]"], ["1", "[2]"]),  # a list of one, or one around it
        ([1], ["1", "[1]"], ["[[1]]"]),
        ([1, 2], ["[1, 2]"], ["1", "[[1, 2]]"]),
        ("ab", ["'ab'"], ["'a'", "['ab']"]),
        ([], ["[]"], ["None"]),
    ],
)
def test_results_of_apps_in_a_list_of_one_or_bare(tmp_path, result, right, wrong):
    tests = {"fn_name": "f", "inputs": [["x", [1]]], "outputs": [result]}
    written(tmp_path, "apps", APPS | {"input_output": json.dumps(tests)})
    statement = problems(tmp_path)[0].tests[0][0]

    def passes(value):
        try:
            exec(statement, {"f": lambda text, numbers: eval(value)})
        except AssertionError:
            return False
        return True

    assert [value for value in (*right, *wrong) if passes(value)] == right


def test_results_too_long_to_print_are_left_out(tmp_path):
    huge = '{"fn_name": "f", "inputs": [[1]], "outputs": [' + "9" * 5000 + "]}"
    both = {"inputs": ["1", "2"], "outputs": ["1" * 20_000, "2" * (LONGEST + 1)]}
    only = {"inputs": ["2"], "outputs": ["2" * (LONGEST + 1)]}
    rows = [APPS | {"input_output": tests} for tests in (huge, json.dumps(both), json.dumps(only))]
    count, left_out = written(tmp_path, "apps", *rows, '{"answer": ' + "9" * 5000 + "}")
    assert count == 1 and left_out == {
        "an integer is longer than Python reads": 2,
        f"results are longer than {LONGEST} characters": 1,
    }
    assert problems(tmp_path)[0].tests == (("1", "1" * 20_000),)


def test_codecontests(tmp_path):
    written(tmp_path, "codecontests", CONTEST, CONTEST | {"input_file": "in.txt"})
    (problem,) = problems(tmp_path)
    assert problem.tests == (("1 2\n", "3\n"), ("3 4\n", "7\n"))
    assert problem.solution.startswith("print(sum")


def test_livecodebench(tmp_path):
    written(tmp_path, "livecodebench", LCB, LCB_CALL)
    stdio, call = problems(tmp_path)
    assert stdio.tests == (("1", "2"), ("3", "4"))
    assert (call.names, call.tests[0][0]) == (("Solution().total",), "assert candidate([1, 2], 3) == 6")


def reread(tmp_path):
    """The problems of a file that is written more than once."""
    with gzip.open(tmp_path / "data" / "out.jsonl.gz", "rt", encoding="utf-8") as lines:
        return [code_problems.problem_of(json.loads(line)) for line in lines]


def test_rows_say_whose_rules_hold(tmp_path):
    written(tmp_path, "apps", APPS, APPS_CALL)
    assert [(p.judge, p.lists) for p in reread(tmp_path)] == [("apps", False), ("apps", True)]
    written(tmp_path, "codecontests", CONTEST)
    assert [p.judge for p in reread(tmp_path)] == ["codecontests"]
    written(tmp_path, "livecodebench", LCB, LCB_CALL)
    assert [(p.judge, p.lists) for p in reread(tmp_path)] == [
        ("livecodebench", False),
        ("livecodebench", True),
    ]


def test_a_solution_is_the_first_that_is_python(tmp_path):
    sources = ["print 1", "print(", "print(1)", "print(2)"]
    solutions = {"language": [3, 3, 3, 3, 1], "solution": [*sources, "puts 1"]}
    written(tmp_path, "codecontests", CONTEST | {"solutions": solutions})
    assert reread(tmp_path)[0].solution == "print(1)"
    written(
        tmp_path, "apps", APPS | {"solutions": json.dumps(sources)}, APPS_CALL | {"solutions": '["exec x"]'}
    )
    assert [p.solution for p in reread(tmp_path)] == ["print(1)", ""]


def test_numbers_that_json_made_texts_of(tmp_path):
    tests = {"fn_name": "f", "inputs": [[{"1": {"2": 3}}, {"4": 5}], [{"a": 1}]],
             "outputs": [{"6": 7}, [{"-8": 9}]]}  # fmt: skip
    written(tmp_path, "apps", APPS | {"input_output": json.dumps(tests)})
    assert [statement for statement, _ in reread(tmp_path)[0].tests] == [
        "assert f({1: {'2': 3}}, {'4': 5}) in ({6: 7}, [{6: 7}])",
        "assert f({'a': 1}) in ({-8: 9}, [{-8: 9}])",
    ]


def test_tests_as_lists_of_lines_and_separators_within_texts(tmp_path):
    lines = {"inputs": [["1", "2"], "3"], "outputs": [["4", 5], ["6"]]}
    nothing = {"inputs": ["1"], "outputs": [None]}
    rows = APPS | {"input_output": json.dumps(lines)}, APPS | {"input_output": json.dumps(nothing)}
    assert written(tmp_path, "apps", *rows) == (1, {"not a row of apps": 1})
    assert reread(tmp_path)[0].tests == (("1\n2", "4\n5"), ("3", "6"))
    case = {"input": '"a\u2028b"\n"\x85"', "output": '"\u2029"', "testtype": "functional"}
    written(tmp_path, "livecodebench", LCB_CALL | {"public_test_cases": json.dumps([case])})
    (statement, _) = reread(tmp_path)[0].tests[0]
    assert statement == "assert candidate('a\\u2028b', '\\x85') == '\\u2029'"


def test_private_tests_that_are_code_are_not_loaded(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "written"), "w"))

    evil = base64.b64encode(zlib.compress(pickle.dumps(Evil()))).decode()
    damaged = LCB | {"private_test_cases": LCB["private_test_cases"][:40]}
    rows = LCB, LCB | {"private_test_cases": evil}, damaged, LCB_CALL | {"metadata": "{}"}
    count, left_out = written(tmp_path, "livecodebench", *rows)
    assert count == 1 and left_out == {
        "private tests are not plain data": 1,
        "not a row of livecodebench": 1,
        "no name of the function": 1,
    }
    assert not (tmp_path / "written").exists()


def test_private_tests_that_inflate_to_more_than_a_bound_are_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "INFLATED", 1 << 20)
    case = {"input": "1", "output": "x" * (2 << 20), "testtype": "stdin"}
    bomb = base64.b64encode(zlib.compress(pickle.dumps(json.dumps([case])))).decode()
    assert len(bomb) < 10_000
    assert written(tmp_path, "livecodebench", LCB, LCB | {"private_test_cases": bomb}) == (
        1,
        {"private tests are larger than 1 MB": 1},
    )
