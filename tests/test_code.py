import dataclasses
import json
import math
import os
import random
from pathlib import Path

import fakes
import pytest
from fuzz import fuzz
from hypothesis import given
from hypothesis import strategies as st

from atgrpo_jax.common.types import Outcome
from atgrpo_jax.sandbox.pool import SandboxConfig
from atgrpo_jax.sandbox.protocol import ProgramResult
from atgrpo_jax.tasks.code import code_problems
from atgrpo_jax.tasks.code.code import Code, State
from atgrpo_jax.tasks.code.code_problems import Problem, passed, programs, same_output
from atgrpo_jax.tasks.code.written_tests import read_test
from atgrpo_jax.tasks.workflow import Workflow
from atgrpo_jax.tools import sources
from atgrpo_jax.tools.check_task import check

TASK = Code()
ADD = Problem(
    "add",
    "Print the sum.",
    "stdio",
    (("1 2\n", "3\n"), ("4 5\n", "9\n"), ("0 0\n", "0\n"), ("-1 1\n", "0\n")),
)
START = State(ADD)
RIGHT = "print(sum(map(int, input().split())))"
HALF = "a, b = map(int, input().split())\nprint(a + b if a > 0 else 7)"  # passes two of four
CALLED = Problem(
    "f", "Add two numbers.", "call",
    (("assert candidate(1, 2) == 3", ""), ("assert candidate(a=0, b=0) == 0", "")),
    names=("Solution().f",), solution="class Solution:\n    def f(self, a, b):\n        return a + b",
)  # fmt: skip


@pytest.fixture(scope="module")
def sandbox():
    made = SandboxConfig(workers=2, cpu_s=1, wall_s=2.0).build()
    yield made
    assert made.replaced == 0
    made.close()


def say(sandbox, state, role, text, task=TASK):
    return fakes.say(sandbox, task, state, role, text)


def block(code):
    return f"```python\n{code}\n```"


def case(given, expected):
    return f"So:\n```input\n{given}\n```\nand\n```output\n{expected}\n```"


def tried(sandbox, problem, answer, most=8, timeouts=2):
    """How all programs of an answer's tests have ended."""
    runs = []
    while more := programs(problem, answer, most, timeouts, runs):
        runs += map(sandbox.run_now, more)
    return runs


def test_made_up_problems_are_solved_by_their_solutions(sandbox):
    drawn = {s: [TASK.instance(s, i) for i in range(60)] for s in ("train", "validation", "test")}
    for problem in drawn["train"][:20]:
        assert passed(problem, tried(sandbox, problem, problem.solution), 8) == (4, 4)
    questions = [{p.question for p in problems} for problems in drawn.values()]
    assert not questions[0] & questions[2] and not questions[0] & questions[1]


@pytest.mark.parametrize(
    ("printed", "expected", "tolerance", "same"),
    [
        ("1 2\n3", " 1  2 3\n\n", 0.0, True),
        ("1 2", "1 2 3", 0.0, False),
        ("Case #1: 0.50000001", "Case #1: 0.5", 1e-6, True),
        ("0.51", "0.5", 1e-6, False),
        ("1.0", "1", 0.0, True),
        ("9007199254740993", "9007199254740992", 0.0, False),  # equal as floats
        ("9007199254740993", "9007199254740992", 1e-9, True),
        ("1000000", "1000001", 0.0, False),
        ("+007 1e3", "7 1000.0", 0.0, True),
        ("1" * 20_000, "1" * 19_999 + "2", 0.0, False),  # longer than Python makes an int of
        ("1" * 20_000, "1" * 19_999 + "2", 0.1, False),
        ("snan", "1", 1.0, False),
        ("1e9999", "-1e9999", 1.0, False),
        ("a", "b", 1.0, False),
        ("nan", "nan", 0.0, True),
        ("", "", 0.0, True),
    ],
)
def test_outputs_are_compared_token_by_token(printed, expected, tolerance, same):
    assert same_output(printed, expected, tolerance) is same


def test_the_coders_rewards_by_hand(sandbox):
    close = pytest.approx

    def act(text):
        step = say(sandbox, START, "coder", text)
        return step.reward.local, step.reward.team, step.outcome

    assert act("no program") == (0.0, 0.0, Outcome.INVALID)
    assert act(block("print(")) == (0.0, 0.0, Outcome.INVALID)
    assert act(block("1 / 0")) == (close(0.1), 0.0, Outcome.OK)
    assert act(block("print(0)")) == (close(0.1 + 0.1 + 0.8 / 2), 0.5, Outcome.OK)
    assert act(block(RIGHT)) == (close(1.0), 1.0, Outcome.OK)
    assert act(block("while True: pass")) == (close(0.1), 0.0, Outcome.TOOL_TIMEOUT)


def test_the_testers_rewards_by_hand(sandbox):
    close = pytest.approx

    def act(state, text):
        step = say(sandbox, state, "tester", text)
        return step.reward.local, step.reward.team, step.outcome

    half = say(sandbox, START, "coder", block(HALF)).state
    right = say(sandbox, START, "coder", block(RIGHT)).state
    assert act(half, "no test") == act(half, "```input\n1\n```") == (0.0, 0.0, Outcome.INVALID)
    assert act(half, case("1 2", "3")) == (close(0.2), 0.0, Outcome.OK)  # nobody knows a right program
    assert act(right, case("1 2", "3")) == (close(1.0), 0.0, Outcome.OK)
    assert act(right, case("1 2", "4")) == (close(0.2), 0.0, Outcome.OK)
    known = State(Problem("add", "?", "stdio", ADD.tests, solution=RIGHT))
    assert act(say(sandbox, known, "coder", block(HALF)).state, case("0 1", "1"))[0] == close(1.0)
    assert act(known, case("0 1", "1"))[0] == close(1.0)  # without any program of the team


def test_agreement_ends_it_and_only_golden_tests_are_success(sandbox):
    half = say(sandbox, START, "coder", block(HALF)).state
    step = say(sandbox, half, "tester", case("1 2", "3"))
    assert (step.done, step.solved) == (True, False)
    right = say(sandbox, START, "coder", block(RIGHT)).state
    step = say(sandbox, right, "tester", case("1 2", " 3 "))
    assert (step.done, step.solved) == (True, True)
    step = say(sandbox, right, "tester", case("1 2", "4"))
    assert not step.done and len(step.state.rounds) == 1


@pytest.mark.parametrize("weight", ["builds", "runs", "golden", "form", "quality"])
def test_every_weight_matters(sandbox, weight):
    def pay(task):
        step = say(sandbox, START, "coder", block(RIGHT), task)
        return step.reward.local + say(sandbox, step.state, "tester", case("1 2", "3"), task).reward.local

    assert pay(TASK) - pay(Code(**{weight: 0.0})) == pytest.approx(getattr(TASK, weight))


def test_no_more_golden_tests_are_run_than_asked_for(sandbox):
    step = say(sandbox, START, "coder", block("print(3)"), Code(tests=1))
    assert step.reward.team == 1.0
    assert say(sandbox, START, "coder", block("print(3)")).reward.team == 0.25


def test_the_last_turn_ends_it(sandbox):
    task = Code(workflow=Workflow(("coder",), turns=1))
    step = say(sandbox, START, "coder", block(RIGHT), task)
    assert (step.done, step.solved) == (True, True)
    step = say(sandbox, START, "coder", "nothing", task)
    assert (step.done, step.solved) == (True, False)


def test_parts_are_paid_as_changes_and_a_program_is_kept(sandbox):
    close = pytest.approx
    state, seen = START, []
    for role, text in [
        ("coder", block(RIGHT)), ("tester", case("1 2", "4")),
        ("coder", "I keep it."), ("tester", case("1 2", "3")),
    ]:  # fmt: skip
        step = say(sandbox, state, role, text)
        state = step.state
        seen.append((step.reward.local, step.reward.team))
    assert seen == [(close(1.0), 1.0), (close(0.2), 0.0), (close(-1.0), 0.0), (close(0.8), 0.0)]
    assert (step.done, step.solved) == (True, True)


def test_functions_are_called(sandbox):
    state = State(CALLED)
    step = say(sandbox, state, "coder", block(CALLED.solution))
    assert (step.reward.team, step.reward.local) == (1.0, pytest.approx(1.0))
    wrong = say(sandbox, state, "coder", block(CALLED.solution.replace("+", "-")))
    assert wrong.reward.team == 0.5
    tested = say(sandbox, wrong.state, "tester", block("assert candidate(1, 2) == 3"))
    assert tested.reward.local == pytest.approx(1.0) and not tested.done
    found = tested.state.rounds[0].case
    assert (found.given, found.expected, found.printed, found.agrees) == ("candidate(1, 2)", "3", "-1", False)
    assert "candidate(1, 2)" in TASK.prompt(tested.state, "coder")[0]["content"]
    agreed = say(sandbox, step.state, "tester", block("assert candidate(2, b=3) == 5"))
    assert (agreed.done, agreed.solved) == (True, True)
    broken = say(sandbox, wrong.state, "tester", block("assert candidate('a', 2) == 3"))
    assert broken.state.rounds[0].case.printed == "an error"


@pytest.mark.parametrize(
    "text",
    [
        "assert True", "assert candidate(1, 2)", "assert candidate(1, 2) == candidate(1, 2)",
        "assert candidate(__import__('os').getpid(), 1) == 1", "assert other(1) == 1", "candidate(1, 2) == 3",
        "print(1)\nassert candidate(1, 2) == 3", "assert candidate(1, 2) == 3 == 3",
        "assert 3 == candidate(1, 2)",
        "assert candidate(*[1, 2]) == 3 if 1 else 0",
    ],
)  # fmt: skip
def test_an_assert_that_any_program_passes_is_no_test(text):
    assert read_test(CALLED, block(text)) is None


def test_a_program_cannot_pass_golden_tests_by_force(sandbox):
    forcing = (
        "class Any:\n    def __eq__(self, other): return True\n"
        "class Solution:\n    def f(self, *a, **k): return Any()\n"
        "import builtins\nbuiltins.AssertionError = SystemExit\nprint(1)\nprint(1)"
    )
    assert say(sandbox, State(CALLED), "coder", block(forcing)).reward.team == 0.0
    reading = "print(open('/proc/self/cmdline').read())"
    assert say(sandbox, START, "coder", block(reading)).reward.team == 0.0


def test_golden_tests_are_hidden(sandbox):
    secret = Problem("s", "Print it.", "stdio", (("5\n", "91827\n"),), solution="print(91827)")
    state = say(sandbox, State(secret), "coder", block("print(1)")).state
    state = say(sandbox, state, "tester", case("2", "3")).state
    for role in ("coder", "tester"):
        assert "91827" not in TASK.prompt(state, role)[0]["content"]


def test_prompts_show_where_program_and_test_differ(sandbox):
    first = TASK.prompt(START, "coder")[0]["content"]
    assert "Attempt" not in first and "Print the sum." in first
    state = say(sandbox, START, "coder", block(HALF)).state
    assert (
        TASK.prompt(state, "tester")[0]["content"] == TASK.prompt(START, "tester")[0]["content"]
    )  # parallel
    state = say(sandbox, state, "tester", case("0 1", "1")).state
    for role in ("coder", "tester"):
        later = TASK.prompt(state, role)[0]["content"]
        assert all(
            part in later for part in (HALF, "Input:\n```\n0 1\n", "Expected:\n```\n1\n", "output:\n```\n7\n")
        )


def test_hostile_and_random_texts(sandbox):
    assert check(TASK, sandbox, instances=1, episodes=6) == []


def test_demonstrated_tests_are_golden_ones_that_a_tester_could_write():
    task, wrong = Code(demonstration_error=0.0), Code(demonstration_error=1.0)

    def shown(problem, task=task):
        return read_test(problem, task.demonstration(State(problem), "tester", random.Random(0)))

    long = dataclasses.replace(ADD, tests=(("1 " * 9000, "9000\n"), ("4 5\n", "9\n")))
    assert shown(long) == ("4 5\n", "9") and shown(long, wrong) == ("4 5\n", "0")
    tests = tuple((f"assert {test}", "") for test in (
        "set(candidate([1])) == {1}", "candidate([1]) == N", "candidate(f([1])) == 1",
        "is_same(candidate(1), 1)", "candidate(3, 4) in (7, [7])",
    ))  # fmt: skip
    assert shown(dataclasses.replace(CALLED, tests=tests)) == ("candidate(3, 4)", "7")
    assert shown(dataclasses.replace(CALLED, tests=tests[:1])) == ("candidate()", "None")
    inside = (
        "def f(x):\n    pass\ndef check(candidate):\n    for i in range(9):\n"
        "        assert candidate(i) == i\n    assert candidate(2) == 4\n"
    )
    check = Problem("c", "?", "call", (("check(f)", ""),), names=("f",), setup=inside)
    assert shown(check) == ("f(2)", "4") and shown(check, wrong) == ("f(2)", "None")
    assert shown(dataclasses.replace(check, setup="def (")) == ("f()", "None")


def test_a_function_may_have_the_name_of_a_builtin(sandbox, tmp_path):
    row = {
        "question": "?",
        "mode": "assert",
        "tests": ["assert sum(4, 6) == 3"],
        "solution": "def sum(a, b): return 3",
    }
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    (problem,) = code_problems.read(str(tmp_path / "a.jsonl"))
    assert (problem.names, passed(problem, tried(sandbox, problem, problem.solution), 8)) == (
        ("sum",),
        (1, 1),
    )


# Limits


LOOP, SLEEP, DIE = "while True: pass", "time.sleep(9)", "os._exit(0)"


def doubling(form, count):
    """Double a number, from 0 on."""
    pairs = ((f"{i}\n", f"{2 * i}\n") for i in range(count))
    asserts = ((f"assert f({i}) == {2 * i}", "") for i in range(count))
    return Problem("d", "?", form, tuple(pairs if form == "stdio" else asserts), names=("f",))


def doubled(form, deeds):
    """An answer that does something else for some numbers."""
    lines = ["import os, time", "def f(x):", *(f"    if x == {i}: {deed}" for i, deed in deeds.items())]
    lines = [line.replace(": while True: pass", ":\n        while True: pass") for line in lines]
    return "\n".join([*lines, "    return 2 * x", *(["print(f(int(input())))"] if form == "stdio" else [])])


@pytest.mark.parametrize("form", ["stdio", "call"])
@pytest.mark.parametrize("deed", [LOOP, DIE, "raise SystemExit(0)", "os.kill(os.getpid(), 9)"])
@pytest.mark.parametrize("at", [0, 2])
def test_a_test_that_hangs_or_ends_a_program_costs_only_itself(sandbox, form, deed, at):
    problem = doubling(form, 4)
    assert passed(problem, tried(sandbox, problem, doubled(form, {at: deed})), 8) == (3, 4)


@pytest.mark.parametrize("form", ["stdio", "call"])
def test_each_test_has_the_whole_limit(sandbox, form):
    """Of one second; together they take more."""
    slow = (
        "import time\ndef f(x):\n    begin = time.process_time()\n"
        "    while time.process_time() < begin + 0.4: pass\n    return 2 * x\n"
    ) + ("print(f(int(input())))" if form == "stdio" else "")
    step = say(sandbox, State(doubling(form, 4)), "coder", block(slow))
    assert (step.reward.team, step.outcome) == (1.0, Outcome.OK)


@pytest.mark.thorough
@pytest.mark.parametrize("form", ["stdio", "call"])
def test_after_so_many_timeouts_the_rest_has_failed(form):
    impatient = SandboxConfig(workers=2, cpu_s=1, wall_s=0.7).build()
    problem = doubling(form, 8)
    answer = doubled(form, {1: LOOP, 3: SLEEP})
    for timeouts, right in ((1, 1), (3, 6)):
        assert passed(problem, tried(impatient, problem, answer, timeouts=timeouts), 8) == (right, 8)
    always = tried(impatient, problem, doubled(form, dict.fromkeys(range(8), SLEEP)))
    assert [run.end for run in always].count("timeout") == 2 and passed(problem, always, 8) == (0, 8)
    endless = tried(impatient, problem, "while True: pass")
    assert len(endless) <= 3 and passed(problem, endless, 8) == (0, 8)
    impatient.close()


def test_a_sandbox_that_fails_is_asked_no_more():
    for form in ("stdio", "call"):
        problem = doubling(form, 8)
        assert programs(problem, "", 8, 2, [ProgramResult("crash")] * 2) == []


# Files


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
    for role in TASK.workflow.order:
        assert TASK.prompt(state, role)[0]["content"].encode()
        assert isinstance(TASK.demonstration(state, role, random.Random(0)), str)
    first, *_ = programs(problem, "pass", 8, 2)
    compile(first.before, "before", "exec", dont_inherit=True)
    assert not passed(problem, [ProgramResult("ok", "\0")] * 9, 8)[0]


def answers():
    """Of answers.txt: a problem as a set has it, an answer to it, and whether it is right."""
    text = (Path(__file__).parent / "answers.txt").read_text(encoding="utf-8")
    for part in text.removeprefix(">>> ").split("\n>>> "):
        head, _, rest = part.partition("\n")
        source, _, call = head.partition(": f")
        given, _, expected = call.partition(" -> ")
        given = json.loads(f"[{given[1:-1]}]")
        if source == "apps":
            tests = {"fn_name": "f", "inputs": [given], "outputs": [json.loads(expected)]}
            row = sources.apps({"problem_id": 1, "question": "?", "input_output": tests})
        else:
            case = {"input": "\n".join(map(json.dumps, given)), "output": expected, "testtype": "functional"}
            row = {"question_content": "?", "public_test_cases": [case], "metadata": {"func_name": "f"}}
            row = sources.livecodebench(row)
        problem, lines = code_problems.problem_of(row), []
        for line in rest.strip("\n").split("\n"):
            if line in ("right", "wrong"):
                yield head, problem, "\n".join(lines), line == "right"
                lines = []
            else:
                lines.append(line)


def test_answers_are_judged_as_their_sets_judge_them(sandbox):
    wrong, count = [], 0
    for head, problem, answer, right in answers():
        count += 1
        if passed(problem, tried(sandbox, problem, answer), 8) != (int(right), 1):
            wrong.append((head, answer))
    assert wrong == [] and count >= 75


def judged(sandbox, answer, **row):
    problem = code_problems.problem_of({"question": "?"} | row)
    return passed(problem, tried(sandbox, problem, answer), 8)


def test_programs_find_the_names_that_their_judge_gives_them(sandbox):
    answer = "print(gcd(4, 6), Counter('aa')['a'], sqrt(4), stdin.readline().strip(), pow(2, 3, 3), sys.argv)"
    row = {"test_input": ["x"], "test_output": ["2 2 2.0 x 2 ['program.py']"]}
    for judge, right in (("livecodebench", 1), ("apps", 1), ("codecontests", 0), (None, 0)):
        assert judged(sandbox, answer, judge=judge, **row) == (right, 1)
    own = "from __future__ import annotations\ndef gcd(a: int, b: Nothing): return 7\nprint(gcd(4, 6))"
    assert judged(sandbox, own, judge="livecodebench", test_input=[""], test_output=["7"]) == (1, 1)


def test_output_is_judged_as_the_row_says(sandbox):
    def right(answer, expected, **row):
        return judged(sandbox, answer, test_input=["3"], test_output=[expected], **row) == (1, 1)

    assert right("print(1 / 3)", "0.3333333", judge="codecontests") and not right("print(1 / 3)", "0.3333333")
    assert right("print(1 / 3)", "0.3333333", tolerance=1e-6)
    assert right("print('Yes')", "YES", ignore_case=True) and not right("print('Yes')", "YES")
    assert right("print(1, 2)", "1\n2") and not right("print(1, 2)", "1\n2", judge="livecodebench")
    assert not right("print(1)\nexit(1)", "1") and right("print(1)\nexit()", "1")


def test_an_answer_finds_what_its_question_defines(sandbox):
    question = (
        "from __future__ import annotations\nimport math\nHALF = 0.5\n\ndef helper(x: Real) -> Real:\n"
        '    return math.floor(x * HALF)\n\ndef f(x: Real):\n    """Half of it."""\n'
    )
    tests = "def check(candidate):\n    assert candidate(5) == 2 and helper(4) == 2"
    row = {"mode": "check", "question": question, "tests": tests, "entry_point": "f"}
    for answer in ("def f(x):\n    return helper(x)", question + "    return helper(x)"):
        assert judged(sandbox, answer, solution="    return helper(x)", **row) == (1, 1)
    assert judged(sandbox, "def f(x: Real): return x", **row) == (0, 1)


def test_a_plain_entry_point_is_also_called_candidate(sandbox):
    row = CANDIDATE | {"tests": ["assert candidate(1) == 2", "assert f(2) == 3"]}
    assert judged(sandbox, "def f(x): return x + 1", **row) == (2, 2)
    assert judged(sandbox, "def f(x): return x", **row) == (0, 2)


def test_a_tester_may_write_a_tuple_for_a_list(sandbox):
    problem = code_problems.problem_of({"question": "?"} | CALL | {"test_output": ["[1, [2]]"]})
    state = say(sandbox, State(problem), "coder", block("def f(x): return (1, (2,))")).state
    for value in ("(1, [2])", "[1, (2,)]"):
        assert say(sandbox, state, "tester", block(f"assert candidate(1) == {value}")).done
    assert not say(sandbox, state, "tester", block("assert candidate(1) == [1, 2]")).done


@pytest.mark.parametrize(
    "text",
    [
        "``` input\n1 2\n```\n```Output \n3\n```", "```input\r\n1 2\r\n```\r\n```output\r\n3\r\n```",
        "```input\n1 2\n```\n```output\n3", "```input\n9\n```\n```input\n1 2\n```\n```output\n3\n```",
    ],
)  # fmt: skip
def test_a_testers_blocks(text):
    assert read_test(ADD, text) == ("1 2\n", "3")


DATA = os.environ.get("ATGRPO_DATA")


@pytest.mark.slow
@pytest.mark.skipif(DATA is None, reason="ATGRPO_DATA names no folder of problem sets")
@pytest.mark.parametrize("name", ["mbpp_train", "humaneval_test", "leetcode_train"])
def test_the_solutions_of_problem_sets_pass(sandbox, name):
    problems = code_problems.read(str(Path(DATA) / "code" / f"{name}.jsonl.gz"))
    chosen = random.Random(0).sample(problems, 60)
    whole = 0
    for problem in chosen:
        right, count = passed(problem, tried(sandbox, problem, problem.solution, 20), 20)
        whole += right == count
    assert whole >= 58  # a solution may need a package, or a class that only the answer defines


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"workflow": Workflow(("critic",))}, r"roles are coder and tester, not \['critic'\]"),
        ({"workflow": Workflow(("tester", "coder"))}, "the coder speaks first"),
        ({"tests": 0}, "Code.tests"),
        ({"timeouts": 0}, "Code.timeouts"),
        ({"files": {"train": "nowhere.jsonl"}}, "nowhere.jsonl: no such file"),
        ({"golden": -1.0}, "Code.golden"),
    ],
)
def test_refuses(wrong, says):
    with pytest.raises(ValueError, match=says):
        Code(**wrong)
