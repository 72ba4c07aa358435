"""What the tests of the code task share: problems, answers to them, and a sandbox."""

import fakes
import pytest

from atgrpo_jax.sandbox.pool import SandboxConfig
from atgrpo_jax.tasks.code import code_problems
from atgrpo_jax.tasks.code.code import Code, State
from atgrpo_jax.tasks.code.code_problems import Problem, passed, programs

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


def judged(sandbox, answer, **row):
    problem = code_problems.problem_of({"question": "?"} | row)
    return passed(problem, tried(sandbox, problem, answer), 8)
