"""The conformance checker: our own tasks keep the contract, and each way of breaking it is called by name."""

import dataclasses
import itertools
import json
import math
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
from fakes import Sum

from atgrpo_jax.data import SPLITS
from atgrpo_jax.sandbox.pool import SandboxConfig
from atgrpo_jax.tasks.base import Step, Workflow
from atgrpo_jax.tasks.check import check
from atgrpo_jax.tasks.code import Code
from atgrpo_jax.tasks.math import Math
from atgrpo_jax.tasks.plan_path import PlanPath
from atgrpo_jax.tasks.sokoban import Sokoban
from atgrpo_jax.tasks.sudoku import Sudoku
from atgrpo_jax.types import Outcome, Reward


@pytest.mark.parametrize(
    "task",
    [
        PlanPath(),
        PlanPath(view="symbols", prompts="plan_path/full", workflow=Workflow(("mover",), turns=1)),
        Sokoban(boxes=2),
        Sokoban(workflow=Workflow(("mover",), turns=2)),
        Sudoku(workflow=Workflow(("filler",), turns=2)),
        Sudoku(),
        Sudoku(size=9, least_empty=30, most_empty=45, prompts="sudoku/full"),
    ],
    ids=lambda task: f"{type(task).__name__}, {' '.join(task.workflow.order)}, {task.prompts}",
)
def test_the_games_keep_the_contract(task):
    assert check(task, instances=6) == []


CALL = {
    "mode": "call", "question": "Add.", "entry_point": "add", "starter_code": "class Solution: ...",
    "solution": "class Solution:\n    def add(self, a, b):\n        return a + b",
    "test_input": ["1\n2", "[3]\n[4]"], "test_output": ["3", "[3, 4]"],
}  # fmt: skip


TWO = Workflow(("scout", "tool", "mover"))


def code_to_call(folder):
    """Problems that test a function, one of each split."""
    for split in SPLITS:
        (folder / f"{split}.jsonl").write_text(json.dumps(CALL | {"question": f"Add, in {split}."}))
    return Code(files={split: str(folder / f"{split}.jsonl") for split in SPLITS})


@pytest.mark.parametrize(
    "make",
    [
        lambda folder: PlanPath(prompts="plan_path/full", workflow=Workflow(("tool", "mover"))),
        lambda folder: PlanPath(prompts="plan_path/full", workflow=TWO, proposal=0.1),
        lambda folder: Sokoban(prompts="sokoban/full", workflow=Workflow(("tool", "mover"))),
        lambda folder: Sudoku(prompts="sudoku/full", workflow=Workflow(("tool", "filler"))),
        lambda folder: Math(workflow=Workflow(("reasoner1", "reasoner2", "tool1", "judge"), turns=2)),
        lambda folder: Math(workflow=Workflow(("reasoner",), turns=2)),
        lambda folder: Code(workflow=Workflow(("coder",))),
        code_to_call,
    ],
    ids=["PlanPath", "two proposers", "Sokoban", "Sudoku", "a judge", "Math alone", "Code alone", "calls"],
)
def test_what_runs_programs_keeps_the_contract(make, tmp_path):
    task = make(tmp_path)
    sandbox = SandboxConfig(workers=1, wall=2.0, cpu=1, packages=task.packages).build(task.warm_up)
    assert check(task, sandbox, instances=1, episodes=8) == []
    sandbox.close()


class Good(Sum):
    """Keeps the contract; the tests break it in one place each."""

    def instance(self, split, index):
        return f"{split} {index}"

    def act(self, state, role, text):
        if len(text) > 9 or not (text.isascii() and text.isdigit()):
            return Step(state, Reward.of(0.0), Outcome.INVALID, False, False)
        after = (*state, int(text) % 10)
        solved = sum(after) == 10
        return Step(after, Reward.of(float(solved), number=0.0), Outcome.OK, sum(after) >= 10, solved)


def test_a_good_task():
    assert check(Good(), instances=3) == []


COUNTER = itertools.count()


def with_act(change):
    """The task whose steps are changed by ``change(step, text)``."""

    class Changed(Good):
        def act(self, state, role, text):
            return change(super().act(state, role, text), text)

    return Changed()


def paying(reward, **fields):
    changed = with_act(lambda step, text: dataclasses.replace(step, reward=reward(step)))
    return dataclasses.replace(changed, **fields)


LONG = Workflow(order=("a", "b"), turns=12)
# Nothing is nearer to being solved after a 0.
to_and_fro = with_act(
    lambda step, text: dataclasses.replace(step, reward=Reward.of(step.reward.team, idle=float(text == "0")))
)


class ImpureInstances(Good):
    def instance(self, split, index):
        return next(COUNTER)


class SharedInstances(Good):
    def instance(self, split, index):
        return index


class ImpurePrompts(Good):
    def prompt(self, state, role):
        return [{"role": "user", "content": str(next(COUNTER))}]


class ImpureDemonstrations(Good):
    def demonstration(self, state, role, rng):
        return str(random.Random(next(COUNTER)).randrange(10))


class Remembers(Good):
    def act(self, state, role, text):
        step = super().act(state, role, text)
        return dataclasses.replace(step, state=(*step.state, next(COUNTER)))


class ChangesItsStates(Good):
    def initial(self, instance):
        return []

    def act(self, state, role, text):
        if text.isdigit():
            state.append(1)
        return Step(tuple(state), Reward.of(0.0), Outcome.OK, False, False)

    def prompt(self, state, role):
        return [{"role": "user", "content": role}]


class Raises(Good):
    def act(self, state, role, text):
        return super().act(state, role, text) if text else 1 / 0


@pytest.mark.parametrize(
    ("task", "rule"),
    [
        (ImpureInstances(), "instances are pure"),
        (SharedInstances(), "splits share no instance"),
        (ImpurePrompts(), "prompts are pure"),
        (ImpureDemonstrations(), "demonstrations depend on their rng only"),
        (Remembers(), "siblings do not disturb each other"),
        (ChangesItsStates(), "states do not change"),
        (Raises(), "no text raises"),
        (paying(lambda step: Reward.of(math.inf)), "rewards are finite"),
        (paying(lambda step: Reward(0.0, 1.0, {"part": 2.0})), "parts sum to the local reward"),
        (
            with_act(lambda step, text: dataclasses.replace(step, solved=True, done=False)),
            "what is solved is done",
        ),
        (paying(lambda step: Reward.of(-5.0 * step.solved, wandering=1.0)), "failing pays less than solving"),
        (to_and_fro, "failing pays less than solving"),
        (paying(lambda step: Reward.of(11.0 * step.solved)), "rewards are bounded"),
        (paying(lambda step: Reward.of(0.0, lost=-11.0)), "rewards are bounded"),
        (paying(lambda step: Reward.of(0.0, wandering=1.0), workflow=LONG), "rewards are bounded"),
        (paying(lambda step: Reward.of(-0.6), workflow=LONG), "rewards are bounded"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_breaks_it_is_named(task, rule):
    problems = check(task, instances=3)
    assert rule in {problem.rule for problem in problems}
    assert all(str(problem).startswith(problem.rule) for problem in problems)


def test_the_bound_is_the_users():
    task = paying(lambda step: Reward.of(100.0 * step.solved))
    assert {problem.rule for problem in check(task, instances=1)} == {"rewards are bounded"}
    assert check(task, instances=3, bound=100.0) == []


def checked(tmp_path, *args):
    command = [sys.executable, "-m", "atgrpo_jax.tasks.check", "--instances=3", *args]
    return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)


@pytest.mark.slow
def test_as_a_user_runs_it(tmp_path):
    ended = checked(tmp_path, "--gin_file=plan.gin")
    assert ended.returncode == 0, ended.stderr
    assert "instances/s" in ended.stdout and ended.stdout.endswith("PlanPath keeps the contract\n")
    ended = checked(tmp_path, "--gin_file=plan.gin", "--gin_param=rollout.RolloutConfig.max_tokens = 4")
    assert ended.returncode == 2 and "demonstrations fit RolloutConfig.max_tokens: one of" in ended.stdout
    assert "error: PlanPath breaks the contract in 1 places" in ended.stderr


@pytest.mark.slow
def test_the_example_in_the_docs(tmp_path):
    text = (Path(__file__).parents[1] / "docs" / "your-task.md").read_text()
    code, gin = re.findall(r"^```(?:python)?\n(.*?)^```", text, re.DOTALL | re.MULTILINE)[:2]
    (tmp_path / "sorting.py").write_text(code)
    (tmp_path / "sorting.gin").write_text(gin)
    ended = checked(tmp_path, "--gin_file=sorting.gin")
    assert ended.returncode == 0 and "Sorting keeps the contract" in ended.stdout, ended.stdout + ended.stderr


@pytest.mark.slow
def test_another_process_must_make_the_same_instances(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from atgrpo_jax.tasks.plan_path import PlanPath\n\n\n"
        "class Hashing(PlanPath):\n"
        "    def instance(self, split, index):\n"
        "        return super().instance(split, index + hash(split) % 1000)\n"
    )
    (tmp_path / "mine.gin").write_text(
        "from __gin__ import dynamic_registration\nimport mine\nfrom atgrpo_jax import experiment\n"
        'include "parts/tiny.gin"\nexperiment.Experiment.task = @mine.Hashing()\nmine.Hashing.size = 6\n'
    )
    ended = checked(tmp_path, "--gin_file=mine.gin")
    assert ended.returncode == 2, ended.stdout + ended.stderr
    assert "every process makes the same instances: train 0 is another one" in ended.stdout
