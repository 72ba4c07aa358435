"""The code task: what coders and testers are shown, and what they are paid."""

import dataclasses
import random

import pytest
import shared_code
from shared_code import ADD, CALLED, HALF, RIGHT, START, TASK, block, case, say, tried

from atgrpo_jax.common.types import Outcome
from atgrpo_jax.tasks.code.code import Code, State
from atgrpo_jax.tasks.code.code_problems import Problem, passed
from atgrpo_jax.tasks.code.written_tests import read_test
from atgrpo_jax.tasks.workflow import Workflow
from atgrpo_jax.tools.check_task import check

# Fixtures
sandbox = shared_code.sandbox


def test_made_up_problems_are_solved_by_their_solutions(sandbox):
    drawn = {s: [TASK.instance(s, i) for i in range(60)] for s in ("train", "validation", "test")}
    for problem in drawn["train"][:20]:
        assert passed(problem, tried(sandbox, problem, problem.solution), 8) == (4, 4)
    questions = [{p.question for p in problems} for problems in drawn.values()]
    assert not questions[0] & questions[2] and not questions[0] & questions[1]


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


@pytest.mark.parametrize(
    "text",
    [
        "``` input\n1 2\n```\n```Output \n3\n```", "```input\r\n1 2\r\n```\r\n```output\r\n3\r\n```",
        "```input\n1 2\n```\n```output\n3", "```input\n9\n```\n```input\n1 2\n```\n```output\n3\n```",
    ],
)  # fmt: skip
def test_a_testers_blocks(text):
    assert read_test(ADD, text) == ("1 2\n", "3")


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
