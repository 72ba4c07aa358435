"""How programs are tried on the tests of a problem, as the problem sets judge them."""

import json
import os
import random
from pathlib import Path

import pytest
import shared_code
from shared_code import block, judged, say, tried

from atgrpo_jax.common.types import Outcome
from atgrpo_jax.sandbox.pool import SandboxConfig
from atgrpo_jax.sandbox.protocol import ProgramResult
from atgrpo_jax.tasks.code import code_problems
from atgrpo_jax.tasks.code.code import State
from atgrpo_jax.tasks.code.code_problems import Problem, passed, programs, same_output
from atgrpo_jax.tools import sources

# Fixtures
sandbox = shared_code.sandbox


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
