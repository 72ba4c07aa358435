"""What the games have in common: tools, proposals, and that failing does not pay."""

import random

import pytest

from atgrpo_jax.common.types import Outcome
from atgrpo_jax.sandbox.protocol import Program, ProgramResult
from atgrpo_jax.tasks.games.game import LONGEST
from atgrpo_jax.tasks.games.plan_path import Instance, PlanPath, distances
from atgrpo_jax.tasks.games.sokoban import Sokoban
from atgrpo_jax.tasks.games.sudoku import Sudoku
from atgrpo_jax.tasks.protocol import ToolTask
from atgrpo_jax.tasks.workflow import Workflow

GAMES = {"plan_path": (PlanPath, "mover"), "sokoban": (Sokoban, "mover"), "sudoku": (Sudoku, "filler")}


def with_tool(name):
    game, decider = GAMES[name]
    return game(prompts=f"{name}/full", workflow=Workflow(("tool", decider)))


@pytest.mark.parametrize("name", GAMES)
def test_a_tool_proposes_what_its_program_prints(name):
    task, scouted = with_tool(name), GAMES[name][0]()
    decider = task.workflow.speakers[-1]
    assert isinstance(task, ToolTask) and task.tools == ("tool",) and scouted.tools == ()
    state = task.initial(task.instance("train", 0))
    words = scouted.demonstration(state, "scout", random.Random(1))
    text = f"So:\n```python\nprint({words!r})\n```"
    assert task.programs(state, "tool", text) == [Program(f"print({words!r})")]
    assert task.programs(state, decider, text) == []
    step = task.act(state, "tool", text, [ProgramResult("ok", words, "", True)])
    told = scouted.act(state, "scout", words)
    parts = dict(step.reward.parts)
    assert parts.pop("code") == pytest.approx(0.1 / 4) and parts == told.reward.parts
    assert (step.reward.team, step.outcome, step.done) == (0.0, Outcome.OK, False)
    found, other = step.state.proposal, told.state.proposal
    assert (found.carried, found.solved) == (other.carried, other.solved)
    assert found.output == words and f"print({words!r})" in task.prompt(step.state, decider)[0]["content"]


@pytest.mark.parametrize(
    ("game", "field"),
    [(PlanPath, "size"), (Sokoban, "boxes"), (Sokoban, "least_moves"), (Sudoku, "most_empty")],
)
def test_a_field_of_another_type_is_named(game, field):
    with pytest.raises(ValueError, match=rf"{game.__name__}.{field} = '5': expected int"):
        game(**{field: "5"})


@pytest.mark.parametrize("name", GAMES)
@pytest.mark.parametrize(
    ("text", "run", "local", "outcome"),
    [
        ("no program", None, -0.1, Outcome.INVALID),
        ("```python\nx(\n```", ProgramResult("error", "", "SyntaxError", False), -0.1, Outcome.INVALID),
        (
            "```python\n1/0\n```",
            ProgramResult("error", "", "ZeroDivisionError", True),
            0.05 - 0.1,
            Outcome.INVALID,
        ),
        ("```python\n1\n```", ProgramResult("ok", "", "", True), 0.1 - 0.1, Outcome.INVALID),
        (
            "```python\n1\n```",
            ProgramResult("timeout", "[U R D L 001 012]", "", True),
            0.05 - 0.1,
            Outcome.TOOL_TIMEOUT,
        ),
    ],
)
def test_what_becomes_of_a_program_is_paid_and_shown(name, text, run, local, outcome):
    task = with_tool(name)
    state = task.initial(task.instance("train", 0))
    step = task.act(state, "tool", text, [run] if run else [])
    assert step.reward.local == pytest.approx(local / 4) and step.outcome is outcome
    shown = task.prompt(step.state, task.workflow.speakers[-1])[0]["content"]
    assert "No list was found in that." in shown and (run is None or run.stderr in shown)


def test_a_list_of_a_program_that_fails_after_it_counts():
    task = with_tool("plan_path")
    state = task.initial(task.instance("train", 0))
    step = task.act(state, "tool", "```python\n?\n```", [ProgramResult("error", "[R]", "Error", True)])
    assert step.outcome is Outcome.OK and step.reward.parts["code"] == pytest.approx(0.05 / 4)


# What programs print and models say, repeated up to the longest output.
SHAPES = ("9, ", "[", "[[1, 2], ", "(0, 1), ", "R", "'R', ", "a", "[R]", "0\n", "[0, 2, 3], ", "≤", "```\n")


@pytest.mark.parametrize("name", GAMES)
def test_what_others_are_shown_of_a_proposal_is_bounded(name):
    task = with_tool(name)
    state = task.initial(task.instance("train", 0))
    decider = task.workflow.speakers[-1]

    def shown(length, shape, around):
        before, after = around
        printed = f"{before}{(shape * length)[:length]}{after}"
        text = f"```python\n# {printed}\n```"
        step = task.act(state, "tool", text, [ProgramResult("ok", printed, printed[-2000:], True)])
        return task.prompt(step.state, decider)[0]["content"]

    plain = len(task.prompt(state, decider)[0]["content"])
    for shape in SHAPES:
        for around in (("", ""), ("[", "]")):
            long = shown(1 << 15, shape, around)
            assert plain < len(long) < plain + 7000
            assert "... (cut after 750 characters; it ends with:)" in long


@pytest.mark.parametrize("name", GAMES)
def test_a_list_counts_up_to_the_longest_that_is_of_use(name):
    """What comes after that neither pays nor costs; an honest list is shorter."""
    game, decider = GAMES[name]
    task = game(workflow=Workflow((decider,)))
    state = task.initial(task.instance("train", 0))
    item = "[0, 0, 9], " if name == "sudoku" else "?, "
    first = task.act(state, decider, f"[{item * LONGEST}]")
    assert task.act(state, decider, f"[{item * (3 * LONGEST)}]") == first
    assert len(task.read(state, f"[{item * LONGEST}]")) == LONGEST == task.longest(state)
    assert first.reward.parts["illegal"] == pytest.approx(-0.1 / 4)


def test_no_shortest_path_is_longer_than_what_is_carried_out():
    rows = tuple("." * 41 if r % 2 == 0 else "#" * 41 for r in range(41))
    rows = tuple(
        row if r % 2 == 0 else "#" * 40 + "." if r % 4 == 1 else "." + "#" * 40 for r, row in enumerate(rows)
    )  # to and fro
    task = PlanPath(size=41, view="symbols", workflow=Workflow(("mover",)), obstacles=0.1)
    state = task.initial(Instance(rows, (0, 0), (40, 40)))
    turns = "".join("R" * 40 + "DD" + "L" * 40 + "DD" for _ in range(10)) + "R" * 40
    assert len(turns) == distances(state.instance)[0, 0] == 880
    step = task.act(state, "mover", f"[{turns}]")
    assert step.solved and step.reward.parts["shortest"] == task.shortest
    assert task.longest(state) == 41 * 41 > LONGEST


@pytest.mark.parametrize("weight", ["progress", "shortest", "illegal", "invalid", "proposal", "code"])
def test_every_weight_matters(weight):
    def pay(task):
        state = task.initial(task.instance("train", 0))
        words = "R" * 30, task.demonstration(state, "mover", random.Random(0)), ""
        lists = [task.act(state, "mover", f"[{word.strip('[]')}]") for word in words]
        tool = task.act(state, "tool", "```python\n1\n```", [ProgramResult("ok", words[1], "", True)])
        return [step.reward.local for step in (*lists, tool)]

    settings = {"view": "symbols", "demonstration_error": 0.0, "demonstration_moves": 99}
    order = Workflow(("tool", "mover"))
    usual, other = (
        PlanPath(prompts="plan_path/full", workflow=order, **settings, **change)
        for change in ({}, {weight: 0.0})
    )
    assert pay(usual) != pay(other)
