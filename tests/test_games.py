"""What the games have in common: tools, proposals, and that failing does not pay."""

import random

import pytest

from atgrpo_jax.sandbox.base import Program, Run
from atgrpo_jax.tasks.base import ToolTask, Workflow
from atgrpo_jax.tasks.games import python_block
from atgrpo_jax.tasks.plan_path import PlanPath
from atgrpo_jax.tasks.sokoban import Sokoban
from atgrpo_jax.tasks.sudoku import Sudoku
from atgrpo_jax.types import Outcome

GAMES = {"plan_path": (PlanPath, "mover"), "sokoban": (Sokoban, "mover"), "sudoku": (Sudoku, "filler")}


def with_tool(name):
    game, decider = GAMES[name]
    return game(prompts=f"{name}/full", workflow=Workflow(("tool", decider)))


@pytest.mark.parametrize("name", GAMES)
def test_a_tool_proposes_what_its_program_prints(name):
    task, scouted = with_tool(name), GAMES[name][0]()
    decider = task.workflow.order[-1]
    assert isinstance(task, ToolTask) and task.tools == ("tool",) and scouted.tools == ()
    state = task.initial(task.instance("train", 0))
    words = scouted.demonstration(state, "scout", random.Random(1))
    text = f"So:\n```python\nprint({words!r})\n```"
    assert task.programs(state, "tool", text) == [Program(f"print({words!r})")]
    assert task.programs(state, decider, text) == []
    step = task.act(state, "tool", text, [Run("ok", words, "", True)])
    told = scouted.act(state, "scout", words)
    parts = dict(step.reward.parts)
    assert parts.pop("code") == pytest.approx(0.1 / 4) and parts == told.reward.parts
    assert (step.reward.team, step.outcome, step.done) == (0.0, Outcome.OK, False)
    found, other = step.state.proposal, told.state.proposal
    assert (found.carried, found.solved) == (other.carried, other.solved)
    assert found.output == words and f"print({words!r})" in task.prompt(step.state, decider)[0]["content"]


@pytest.mark.parametrize("name", GAMES)
@pytest.mark.parametrize(
    ("text", "run", "local", "outcome"),
    [
        ("no program", None, -0.1, Outcome.INVALID),
        ("```python\nx(\n```", Run("error", "", "SyntaxError", False), -0.1, Outcome.INVALID),
        ("```python\n1/0\n```", Run("error", "", "ZeroDivisionError", True), 0.05 - 0.1, Outcome.INVALID),
        ("```python\n1\n```", Run("ok", "", "", True), 0.1 - 0.1, Outcome.INVALID),
        ("```python\n1\n```", Run("timeout", "[", "", True), 0.05 - 0.1, Outcome.TOOL_TIMEOUT),
    ],
)
def test_what_becomes_of_a_program_is_paid_and_shown(name, text, run, local, outcome):
    task = with_tool(name)
    state = task.initial(task.instance("train", 0))
    step = task.act(state, "tool", text, [run] if run else [])
    assert step.reward.local == pytest.approx(local / 4) and step.outcome is outcome
    shown = task.prompt(step.state, task.workflow.order[-1])[0]["content"]
    assert "No list was found in that." in shown and (run is None or run.stderr in shown)


def test_a_list_of_a_program_that_fails_after_it_counts():
    task = with_tool("plan_path")
    state = task.initial(task.instance("train", 0))
    step = task.act(state, "tool", "```python\n?\n```", [Run("error", "[R]", "Error", True)])
    assert step.outcome is Outcome.OK and step.reward.parts["code"] == pytest.approx(0.05 / 4)


@pytest.mark.parametrize(
    ("text", "block"),
    [
        ("```python\na\n```", "a"),
        ("```py\na\n```\n```\nb\n```", "a"),
        ("```python\na\n```\nthen\n```python\nb\nc\n```", "b\nc"),
        ("```\na\n```", "a"),
        ("```json\n{}\n```", "{}"),
        ("```python\na", None),
        ("a", None),
    ],
)
def test_python_block(text, block):
    assert python_block(text) == block


def test_long_programs_and_outputs_are_shown_shortened():
    task = with_tool("plan_path")
    state = task.initial(task.instance("train", 0))
    text = f"```python\n# {'x' * 9000}\n```"
    step = task.act(state, "tool", text, [Run("ok", "y" * 9000, "", True)])
    assert 2000 < len(task.prompt(step.state, "mover")[0]["content"]) < 6000


@pytest.mark.parametrize("weight", ["progress", "shortest", "illegal", "invalid", "proposal", "code"])
def test_every_weight_matters(weight):
    def pay(task):
        state = task.initial(task.instance("train", 0))
        words = "R" * 30, task.demonstration(state, "mover", random.Random(0)), ""
        lists = [task.act(state, "mover", f"[{word.strip('[]')}]") for word in words]
        tool = task.act(state, "tool", "```python\n1\n```", [Run("ok", words[1], "", True)])
        return [step.reward.local for step in (*lists, tool)]

    settings = {"view": "symbols", "demonstration_error": 0.0, "demonstration_moves": 99}
    order = Workflow(("tool", "mover"))
    usual, other = (
        PlanPath(prompts="plan_path/full", workflow=order, **settings, **change)
        for change in ({}, {weight: 0.0})
    )
    assert pay(usual) != pay(other)
