"""What answers are read as, and what comes of them: tables of texts in tests/pairs, by hand and by form.

A row is a text, what it says, and the outcome: "solved", "on" (the episode goes on), "dead", "invalid".
"""

import json
from pathlib import Path

import pytest

from atgrpo_jax.common.types import Outcome
from atgrpo_jax.tasks.games import plan_path, sokoban, sudoku, sudoku_puzzles
from atgrpo_jax.tasks.workflow import Workflow

FOLDER = Path(__file__).parent / "pairs"
ALONE = Workflow(("mover",))
GRID = plan_path.Instance(("..#", ".#.", "..."), start=(0, 0), goal=(2, 2))
ROOM = sokoban.Instance(("######", "#@   #", "# $  #", "#    #", "#   .#", "######"))
PUZZLE = (1, 2, 3, 0, 3, 0, 1, 2, 2, 1, 0, 3, 0, 3, 2, 1)
SOLUTION = (1, 2, 3, 4, 3, 4, 1, 2, 2, 1, 4, 3, 4, 3, 2, 1)
TASKS = {
    "plan_path": (plan_path.PlanPath(workflow=ALONE), GRID),
    "sokoban": (sokoban.Sokoban(workflow=ALONE), ROOM),
    "sudoku": (sudoku.Sudoku(workflow=Workflow(("filler",))), sudoku_puzzles.Instance(PUZZLE, SOLUTION)),
}


def rows(name):
    return [
        json.loads(line)
        for line in (FOLDER / f"{name}.jsonl").read_text(encoding="utf-8").split("\n")
        if line
    ]


def digits(fill):
    """A fill in a word: "-" is no digit or cell, "?" no fill at all, "big" is beyond any grid."""
    if fill == (-1, -1, -1):
        return "?"
    return "big" if max(fill) > 9 else "".join("-" if one < 0 else str(one) for one in fill)


def said(task, state, text):
    """What a text says, as in the tables."""
    actions = task.read(state, text)
    if isinstance(task, sudoku.Sudoku):
        return " ".join(map(digits, actions))
    return task.play(state, actions).carried.moves if actions else ""


@pytest.mark.parametrize("name", TASKS)
def test_answers_are_read_as_what_they_say(name):
    task, instance = TASKS[name]
    state = task.initial(instance)
    table = rows(name)
    assert len(table) >= 150 and len({text for text, _, _ in table}) == len(table)
    wrong = []
    for text, says, comes in table:
        step = task.act(state, task.decider, text)
        outcome = "solved" if step.solved else "dead" if step.done else "on"
        outcome = "invalid" if step.outcome is Outcome.INVALID else outcome
        if (said(task, state, text), outcome) != (says, comes):
            wrong.append((text, says, comes, said(task, state, text), outcome))
    assert not wrong
