"""Rows of files of programming problems: how they are read, and how they are refused."""

import json
import math
import random
import warnings

import pytest
import shared_code
from fuzz import fuzz
from hypothesis import given
from hypothesis import strategies as st
from shared_code import TASK, block, judged, say, tried

from atgrpo_jax.sandbox.protocol import ProgramResult
from atgrpo_jax.tasks.code import code_problems
from atgrpo_jax.tasks.code.code import Code, State
from atgrpo_jax.tasks.code.code_problems import passed, programs

# Fixtures
sandbox = shared_code.sandbox


ROWS = {
    "stdio": {"test_input": ["1\n"], "test_output": ["2\n"], "solution": "print(int(input()) + 1)"},
    "call": {
        "test_input": ["[1, 2]\n3"], "test_output": ["6"], "entry_point": "f",
        "solution": "class Solution:\n    def f(self, x: List[int], y): return sum(x) + y",
    },
    "candidate": {
        "tests": ["assert candidate(x = [1]) == 1"], "entry_point": "Solution().f",
        "before": "from typing import *",
        "solution": "class Solution:\n    def f(self, x: List[int]): return sum(x)",
    },
    "assert": {
        "tests": ["assert first([3]) == N", "assert sorted(set(first([[4], 3]))) == [4]"], "setup": "N = 3",
        "solution": "def first(x): return x[0]",
    },
    "check": {
        "question": "def f(x):\n    \"\"\"One more.\"\"\"\n", "entry_point": "f",
        "solution": "    return x + 1",
        "tests": "def check(candidate):\n    for i in range(3):\n        assert candidate(i) == i + 1\n",
    },
}  # fmt: skip


@pytest.mark.parametrize("mode", ROWS)
def test_rows_of_each_mode(sandbox, tmp_path, mode):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"question": "?", "mode": mode} | ROWS[mode]) + "\n")
    (problem,) = code_problems.read(str(path))
    runs = tried(sandbox, problem, problem.solution)
    assert passed(problem, runs, 8) == (len(problem.tests),) * 2, runs
    assert passed(problem, tried(sandbox, problem, "def f(*x): pass"), 8)[0] == 0


STDIO = {"test_input": ["1"], "test_output": ["1"]}
CALL = {"mode": "call", "entry_point": "f", "test_input": ["1"], "test_output": ["1"]}
CANDIDATE = {"mode": "candidate", "entry_point": "f", "tests": ["assert candidate(1)"], "before": ""}
CHECK = {"mode": "check"} | ROWS["check"]


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"mode": "essay"}, r"a.jsonl:1: mode = 'essay', expected one of stdio, call"),
        ({"mode": ["call"]}, r":1: mode = \"\['call'\]\", expected one of"),
        ({"mode": None}, r":1: mode = 'None', expected one of"),
        ({"question": " \n"}, r":1: question is empty"),
        ({"question": "\ud800"}, r":1: half of a character .* stands alone"),
        (STDIO | {"id": ["a"]}, r":1: id = .* is neither a text nor a whole number"),
        (STDIO | {"id": True}, r":1: id = 'True' is neither"),
        ({"test_input": ["1"]}, r":1: no field 'test_output' in mode stdio"),
        ({"test_input": ["1"], "test_output": []}, r":1: test_input has 1 items, test_output 0"),
        ({"test_input": [], "test_output": []}, r":1: tests: there are none"),
        ({"test_input": 1, "test_output": 1}, r":1: test_input = '1' is no list"),
        ({"test_input": None, "test_output": ["1"]}, r":1: test_input = 'None' is no list"),
        ({"test_input": "12", "test_output": "34"}, r":1: test_input = '12' is no list"),
        ({"test_input": ["1"], "test_output": [None]}, r":1: test_output\[0\] = 'None' is no text"),
        ({"test_input": ["1", True], "test_output": ["1", "1"]}, r":1: test_input\[1\] = 'True' is no text"),
        ({"test_input": [{}], "test_output": ["1"]}, r":1: test_input\[0\] = '{}' is no text"),
        ({"test_input": [["1", None]], "test_output": ["1"]}, r":1: test_input\[0\]\[1\] = 'None' is no"),
        ({"test_input": [["1", ["2"]]], "test_output": ["1"]}, r":1: test_input\[0\] holds a list in a list"),
        ({"test_input": ["1"], "test_output": [math.inf]}, r":1: test_output\[0\] = 'inf' is no text"),
        (STDIO | {"solution": ["x"]}, r":1: solution = .* is no text"),
        (STDIO | {"solution": "print 1"}, r":1: solution is no Python: Missing parentheses"),
        (STDIO | {"solution": "x\0"}, r":1: solution is no Python: source code string cannot contain null"),
        *((STDIO | {"tolerance": t}, r":1: tolerance = .* is not at least 0 and less than 1")
          for t in (math.inf, math.nan, -1, -1e-9, 1, 1.5, 1e300, -math.inf, 10**400)),
        *((STDIO | {"tolerance": t}, r":1: tolerance = .* is no number")
          for t in ("1e-6", "inf", True, [], {})),
        (STDIO | {"judge": "codewars"}, r":1: judge = 'codewars', in mode stdio expected one of tokens"),
        (STDIO | {"judge": ["apps"]}, r":1: judge = "),
        (STDIO | {"judge": "apps", "tolerance": 1e-3}, r":1: tolerance = '0.001': it has no meaning in"),
        (STDIO | {"ignore_case": "no"}, r":1: ignore_case = 'no' is neither true nor false"),
        (STDIO | {"ignore_case": 1}, r":1: ignore_case = '1' is neither"),
        (CALL | {"tolerance": math.inf}, r":1: tolerance = 'inf': it has no meaning in mode call"),
        (CALL | {"judge": "apps"}, r":1: judge = 'apps', in mode call expected one of livecodebench"),
        (CALL | {"entry_point": 5}, r":1: entry_point = '5' is no text"),
        (CALL | {"entry_point": None}, r":1: entry_point = 'None' is no text"),
        (CALL | {"entry_point": "f()"}, r":1: entry_point = 'f\(\)' is no name of a function"),
        (CALL | {"entry_point": ""}, r":1: entry_point = '' is no name"),
        (CALL | {"entry_point": "class"}, r":1: entry_point = 'class' is no name"),
        (CALL | {"starter_code": ["class A:"]}, r":1: starter_code = .* is no text"),
        (CALL | {"test_input": ["x"]}, r":1: test_input\[0\] is no JSON: Expecting value"),
        (CALL | {"test_input": [1]}, r":1: test_input\[0\] = '1' is no text"),
        (CALL | {"test_output": [""]}, r":1: test_output\[0\] is no JSON: Expecting value"),
        (CALL | {"test_output": ["1", "2"]}, r":1: test_input has 1 items, test_output 2"),
        (CALL | {"test_output": ["9" * 5000]}, r":1: test_output\[0\] is no JSON: Exceeds the limit"),
        (CALL | {"test_input": ["[" * 300 + "]" * 300]}, r":1: test_input\[0\] is no Python: too many"),
        (CANDIDATE | {"before": None, "preamble": "p0"}, r"preamble: no file .*_preamble_"),
        (CANDIDATE | {"before": None}, r":1: no field 'preamble' in mode candidate"),
        (CANDIDATE | {"before": 5}, r":1: before = '5' is no text"),
        (CANDIDATE | {"before": "import"}, r":1: before is no Python: "),
        (CANDIDATE | {"entry_point": "a b"}, r":1: entry_point is no Python"),
        (CANDIDATE | {"entry_point": "5"}, r":1: entry_point = '5' is nothing that can be called"),
        (CANDIDATE | {"entry_point": "f = 5"}, r":1: entry_point = 'f = 5' is nothing that can be called"),
        (CANDIDATE | {"tests": "assert candidate(1)"}, r":1: tests = 'assert candidate\(1\)' is no list"),
        (CANDIDATE | {"tests": [5]}, r":1: tests\[0\] = '5' is no text"),
        (CANDIDATE | {"tests": [["assert candidate(1)"]]}, r":1: tests\[0\] = .* is no text"),
        (CANDIDATE | {"tests": ["assert candidate("]}, r":1: tests\[0\] is no Python: '\(' was never closed"),
        (CANDIDATE | {"tests": ["assert candidate(1)", "# none"]}, r":1: tests\[1\] is empty"),
        (CANDIDATE | {"tests": ["assert g(1)"]}, r":1: tests\[0\] = 'assert g\(1\)' does not call candidate"),
        (CANDIDATE | {"judge": "livecodebench"}, r":1: judge = .* in mode candidate expected one of tokens"),
        ({"mode": "assert", "tests": ["assert ("]}, r":1: tests\[0\] is no Python: '\(' was never closed"),
        ({"mode": "assert", "tests": ["assert max(1, 2) == 2"]}, r":1: tests call no function of the answer"),
        ({"mode": "assert", "tests": ["assert f(1)"], "setup": ["x = 1"]}, r":1: setup = .* is no text"),
        ({"mode": "assert", "tests": ["assert f(1)"], "setup": "x ="}, r":1: setup is no Python"),
        ({"mode": "assert", "tests": ["assert f(1)"], "hard_tests": "f"}, r":1: hard_tests = 'f' is no list"),
        ({"mode": "assert", "tests": [], "hard_tests": []}, r":1: tests call no function"),
        (CHECK | {"question": "Add one."}, r":1: question is no Python: "),
        (CHECK | {"tests": ["def check(f): pass"]}, r":1: tests = .* is no text"),
        (CHECK | {"tests": "def check(f:"}, r":1: tests is no Python"),
        (CHECK | {"tests": "def verify(f): pass"}, r":1: tests define no function check"),
        (CHECK | {"solution": "return x"}, r":1: solution is no Python"),
        (CHECK | {"entry_point": "Solution().f"}, r":1: entry_point = .* is no name of a function"),
    ],
)  # fmt: skip
def test_bad_rows_are_named(tmp_path, row, says):
    (tmp_path / "a.jsonl").write_text(json.dumps({"question": "?"} | row) + "\n")
    with pytest.raises(ValueError, match=says):
        Code(files={"train": str(tmp_path / "a.jsonl")})


def test_half_a_character_is_named_by_its_field():
    """What no file could hold, a task of somebody's may still hand over."""
    row = {"question": "q", "test_input": ["\udfff"], "test_output": ["1"]}
    with pytest.raises(ValueError, match=r"test_input\[0\] has half a character"):
        code_problems.problem_of(row)


def test_rows_that_are_read_as_they_are_meant():
    def tests(**row):
        return code_problems.problem_of({"question": "?"} | row).tests

    lines = tests(test_input=[["3", "4"], [5, 6.5], []], test_output=[["7"], 12, ""])
    assert lines == (("3\n4", "7"), ("5\n6.5", "12"), ("", ""))
    given = '"a\u2028b\u0085c"\r\n\r\n{"k": [null, true, -0.0, 1e400]}\n'
    call = CALL | {"test_input": [given], "test_output": ["[NaN]"]}
    ((statement, _),) = tests(**call)
    assert statement == "assert candidate('a\\u2028b\\x85c', {'k': [None, True, -0.0, inf]}) == [nan]"
    assert tests(**CALL | {"test_input": [["1", "2"]]})[0][0] == "assert candidate(1, 2) == 1"
    (one,) = tests(mode="assert", tests=["  assert f(1) == '\\d'\r\n"], hard_tests=None)
    assert one == ("assert f(1) == '\\d'", "")
    null = dict.fromkeys(("id", "solution", "starter_code", "tolerance", "judge", "ignore_case", "setup"))
    assert code_problems.problem_of({"question": "?"} | STDIO | null) == code_problems.problem_of(
        {"question": "?"} | STDIO
    )


def test_a_row_without_an_id_has_its_place_for_one(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"question": "?", "id": None} | STDIO))
    (problem,) = code_problems.read(str(tmp_path / "a.jsonl"))
    assert problem.id == f"{tmp_path}/a.jsonl:1"


LEAVES = st.none() | st.booleans() | st.integers(-3, 10**30) | st.floats() | st.sampled_from(
    ["", "1", "f", "x =", "assert f(1)", "def check(f): pass", "\ud800", "\0", "'\\d'", "[1", "(" * 300]
)  # fmt: skip
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
    st.sampled_from(["a", "1"]), inner, max_size=2), max_leaves=4)  # fmt: skip
FIELDS = (
    "id", "question", "mode", "solution", "test_input", "test_output", "tolerance", "ignore_case", "judge",
    "entry_point", "starter_code", "before", "preamble", "tests", "hard_tests", "setup",
)  # fmt: skip
BASES = st.sampled_from([{"question": "?", "mode": mode} | row for mode, row in ROWS.items()])


@fuzz(200)
@given(BASES, st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=2))
def test_a_row_with_anything_in_it_is_refused_by_its_field_or_can_be_played(base, odd):
    try:
        problem = code_problems.problem_of(base | odd)
    except ValueError as error:
        words = str(error)
        assert any(name in words for name in ("preamble", *odd)), (odd, words)
        return
    assert isinstance(problem.id, str) and isinstance(problem.starter, str) and problem.tests
    assert 0 <= problem.tolerance < 1 and all(
        isinstance(text, str) for pair in problem.tests for text in pair
    )
    state = State(problem)
    for role in TASK.workflow.speakers:
        assert TASK.prompt(state, role)[0]["content"].encode()
        assert isinstance(TASK.demonstration(state, role, random.Random(0)), str)
    first, *_ = programs(problem, "pass", 8, 2)
    with warnings.catch_warnings():  # a preamble may hold "\\d", of which Python only warns
        warnings.simplefilter("ignore")
        compile(first.before, "before", "exec", dont_inherit=True)
    assert not passed(problem, [ProgramResult("ok", "\0 is what no row expects")] * 9, 8)[0]


def test_a_tester_may_write_a_tuple_for_a_list(sandbox):
    problem = code_problems.problem_of({"question": "?"} | CALL | {"test_output": ["[1, [2]]"]})
    state = say(sandbox, State(problem), "coder", block("def f(x): return (1, (2,))")).state
    for value in ("(1, [2])", "[1, (2,)]"):
        assert say(sandbox, state, "tester", block(f"assert candidate(1) == {value}")).done
    assert not say(sandbox, state, "tester", block("assert candidate(1) == [1, 2]")).done


def test_a_plain_entry_point_is_also_called_candidate(sandbox):
    row = CANDIDATE | {"tests": ["assert candidate(1) == 2", "assert f(2) == 3"]}
    assert judged(sandbox, "def f(x): return x + 1", **row) == (2, 2)
    assert judged(sandbox, "def f(x): return x", **row) == (0, 2)
