"""The conformance checker: our own tasks keep the contract, and each way of breaking it is called by name."""

import dataclasses
import itertools
import math
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
from fakes import Sum

from atgrpo_jax.sandbox.pool import SandboxConfig
from atgrpo_jax.tasks.base import Step, Workflow
from atgrpo_jax.tasks.check import check
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
        Sudoku(),
        Sudoku(size=9, least_empty=30, most_empty=45, prompts="sudoku/full"),
    ],
    ids=lambda task: f"{type(task).__name__}, {task.prompts}",
)
def test_the_games_keep_the_contract(task):
    assert check(task, instances=6) == []


def test_a_game_with_a_tool_keeps_the_contract():
    task = PlanPath(prompts="plan_path/full", workflow=Workflow(("tool", "mover")))
    sandbox = SandboxConfig(workers=1, wall=2.0, cpu=1).build()
    assert check(task, sandbox, instances=1, episodes=4) == []
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


def paying(reward):
    return with_act(lambda step, text: dataclasses.replace(step, reward=reward(step)))


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
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_breaks_it_is_named(task, rule):
    problems = check(task, instances=3)
    assert rule in {problem.rule for problem in problems}
    assert all(str(problem).startswith(problem.rule) for problem in problems)


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
