"""The conformance checker: our own tasks keep the contract, and users run it on theirs."""

import json
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest
from fakes import say

from atgrpo_jax.sandbox.pool import SandboxConfig
from atgrpo_jax.tasks.code.code import Code
from atgrpo_jax.tasks.games.plan_path import PlanPath
from atgrpo_jax.tasks.games.sokoban import Sokoban
from atgrpo_jax.tasks.games.sudoku import Sudoku
from atgrpo_jax.tasks.math.math import Math
from atgrpo_jax.tasks.splits import SPLITS
from atgrpo_jax.tasks.workflow import Workflow
from atgrpo_jax.tools.check_task import check


@pytest.mark.thorough
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
    ids=lambda task: f"{type(task).__name__}, {' '.join(task.workflow.speakers)}, {task.prompts}",
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


@pytest.mark.thorough
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
    sandbox = SandboxConfig(workers=1, wall_s=2.0, cpu_s=1, packages=task.packages).build(task.warm_up)
    assert check(task, sandbox, instances=1, episodes=8) == []
    sandbox.close()


def checked(tmp_path, *args):
    command = [sys.executable, "-m", "atgrpo_jax.tools.check_task", "--instances=3", *args]
    return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)


@pytest.mark.slow
def test_as_a_user_runs_it(tmp_path):
    ended = checked(tmp_path, "--gin_file=plan.gin")
    assert ended.returncode == 0, ended.stderr
    assert "instances/s" in ended.stdout and ended.stdout.endswith("PlanPath keeps the contract\n")
    ended = checked(tmp_path, "--gin_file=plan.gin", "--gin_param=rollout.RolloutConfig.max_tokens = 4")
    assert ended.returncode == 2 and "demonstrations fit RolloutConfig.max_tokens: one of" in ended.stdout
    assert "error: PlanPath breaks the contract in 2 places" in ended.stderr


@pytest.mark.slow
def test_the_example_in_the_docs(tmp_path):
    text = (Path(__file__).parents[1] / "docs" / "your-task.md").read_text()
    code, gin = re.findall(r"^```(?:python)?\n(.*?)^```", text, re.DOTALL | re.MULTILINE)[:2]
    (tmp_path / "sorting.py").write_text(code)
    (tmp_path / "sorting.gin").write_text(gin)
    ended = checked(tmp_path, "--gin_file=sorting.gin")
    assert ended.returncode == 0 and "Sorting keeps the contract" in ended.stdout, ended.stdout + ended.stderr


def test_the_scorer_in_the_docs(tmp_path):
    """A scorer that evaluates texts keeps the contract in the sandbox; in the run's process it would not."""
    text = (Path(__file__).parents[1] / "docs" / "your-task.md").read_text()
    (code,) = (
        block
        for block in re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
        if "sympify" in block
    )
    module = sys.modules["countdown"] = types.ModuleType("countdown")
    exec(code, module.__dict__)
    del sys.modules["countdown"]
    task = module.Countdown()
    sandbox = SandboxConfig(workers=1, wall_s=5.0, cpu_s=4, packages=task.packages).build(task.warm_up)
    state = (2, 3, 4)
    assert say(sandbox, task, state, "solver", "2*3 - 4").solved
    assert not say(sandbox, task, state, "solver", "2+3 - 4").solved
    hanging = say(sandbox, task, (9, 9, 9), "solver", "9**9**9")
    assert not hanging.solved
    assert task.programs(state, "solver", "__import__('os')._exit(77) + 2*3-4", []) == []
    assert check(task, sandbox, instances=1, episodes=4) == []
    sandbox.close()


@pytest.mark.slow
def test_another_process_must_make_the_same_instances(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from atgrpo_jax.tasks.games.plan_path import PlanPath\n\n\n"
        "class Hashing(PlanPath):\n"
        "    def instance(self, split, index):\n"
        "        return super().instance(split, index + hash(split) % 1000)\n"
    )
    (tmp_path / "mine.gin").write_text(
        "from __gin__ import dynamic_registration\nimport mine\nfrom atgrpo_jax.run import experiment\n"
        'include "parts/tiny.gin"\nexperiment.Experiment.task = @mine.Hashing()\nmine.Hashing.size = 6\n'
    )
    ended = checked(tmp_path, "--gin_file=mine.gin")
    assert ended.returncode == 2, ended.stdout + ended.stderr
    assert "every process makes the same instances: train 0 is another one" in ended.stdout
