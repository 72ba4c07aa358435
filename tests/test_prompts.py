"""Each role's prompt at turns 1 and 2 against tests/golden, for people to read when templates change.

``python tests/test_prompts.py`` writes the files anew.
"""

import dataclasses
from pathlib import Path

import pytest

from atgrpo_jax.sandbox.protocol import ProgramResult
from atgrpo_jax.tasks import prompts
from atgrpo_jax.tasks.breadth.breadth import Breadth
from atgrpo_jax.tasks.code.code import Code
from atgrpo_jax.tasks.code.code_problems import Problem
from atgrpo_jax.tasks.course import speaks
from atgrpo_jax.tasks.environments.gymnasium_games import FrozenLake
from atgrpo_jax.tasks.environments.reasoning import ReasoningGym
from atgrpo_jax.tasks.environments.stepwise import StepWise
from atgrpo_jax.tasks.games.plan_path import PlanPath
from atgrpo_jax.tasks.games.sokoban import Sokoban
from atgrpo_jax.tasks.games.split_sight import SplitSight
from atgrpo_jax.tasks.games.sudoku import Sudoku
from atgrpo_jax.tasks.math.math import Math
from atgrpo_jax.tasks.protocol import ToolTask
from atgrpo_jax.tasks.search.search import Search
from atgrpo_jax.tasks.workflow import Workflow

GOLDEN = Path(__file__).parent / "golden"
# Texts of two turns, by role; a tool's is what its program prints.
GAME = {"scout": "[R, R, D]", "tool": "[R, R, D]", "mover": "[R, D]"}
SIGHT = {"seer": "[12 22 31]", "mover": "[R]"}
DIGITS = {"scout": "[[0, 0, 1], [0, 1, 2]]", "tool": "[[0, 0, 1]]", "filler": "[[0, 0, 1], [0, 1, 2]]"}
TEST = "```input\n1 2\n```\n```output\n3\n```"
SEARCH = {
    "planner": "<ask> the boss of Ada", "searcher": "<search> the boss of Ada",
    "reasoner": "<answer> Bob", "agent": "<search> the boss of Ada",
}  # fmt: skip
ASSERT = "```python\nassert f(1) == 3\n```"


PLANNED = Breadth(
    open=2, workflow=Workflow(("planner", "worker", "aggregator"), turns=1, seats={"worker": 2})
)
BREADTH = {
    "planner": "[a b]", "worker0": "3", "worker1": "4", "aggregator": "[1 2 3 4]",
    "router": "adder", "reader": "1", "sorter": "2", "adder": "3",
}  # fmt: skip
GCD = ReasoningGym(name="gcd", config={"max_value": 20})
VERDICTS = {"solver": "4", "checker": "reject"}
LAKE = StepWise(game=FrozenLake(size=4), workflow=Workflow(("adviser", "player"), turns=3))
WALK = {"adviser": "right", "player": "right"}


class Call(Code):
    def instance(self, split, index):
        return Problem("f", "Add two.", "call", (("assert f(1) == 3", ""),), "def f(x):", names=("f",))


CALL = Call()
SILENT = {"breadth_planner", "breadth_full", "breadth_router"}  # those who do not speak have no prompt
CASES = {
    "plan_path_short": (PlanPath(), GAME),
    "plan_path_full": (PlanPath(prompts="plan_path/full", view="symbols"), GAME),
    "plan_path_tool": (PlanPath(prompts="plan_path/full", workflow=Workflow(("tool", "mover"))), GAME),
    "sokoban_short": (Sokoban(), GAME),
    "sokoban_full": (Sokoban(prompts="sokoban/full", view="symbols"), GAME),
    "sokoban_tool": (Sokoban(prompts="sokoban/full", workflow=Workflow(("tool", "mover"))), GAME),
    "split_sight_short": (SplitSight(), SIGHT),
    "split_sight_full": (SplitSight(prompts="split_sight/full"), SIGHT),
    "split_sight_halves": (SplitSight(prompts="split_sight/full", split="halves", words=1), SIGHT),
    "split_sight_alone": (
        SplitSight(prompts="split_sight/full", split="none", workflow=Workflow(("mover",))),
        SIGHT,
    ),
    "sudoku_short": (Sudoku(), DIGITS),
    "sudoku_full": (Sudoku(prompts="sudoku/full"), DIGITS),
    "math_full": (Math(), {"tool": "13", "reasoner": "Surely \\boxed{12}."}),
    "math_judge": (
        Math(workflow=Workflow(("reasoner1", "reasoner2", "tool", "judge"), turns=3)),
        {"reasoner1": "\\boxed{1}", "reasoner2": "No idea.", "tool": "2", "judge": "\\boxed{1}"},
    ),
    "math_checker": (
        Math(workflow=Workflow(("reasoner", "checker"), turns=3)),
        {"reasoner": "Surely \\boxed{12}.", "checker": "Two is missing. \\boxed{reject}"},
    ),
    "math_debate": (
        Math(
            prompts="math/debate",
            workflow=Workflow(("reasoner", "judge"), turns=3, seats={"reasoner": 2}),
        ),
        {"reasoner0": "Surely \\boxed{12}.", "reasoner1": "No idea.", "judge": "\\boxed{12}"},
    ),
    "math_short": (
        Math(prompts="math/short", workflow=Workflow(("reasoner", "checker"), turns=3)),
        {"reasoner": "\\boxed{12}", "checker": "\\boxed{reject}"},
    ),
    "code_full": (Code(), {"coder": "```python\nprint(4)\n```", "tester": TEST}),
    "code_call": (CALL, {"coder": "```python\ndef f(x):\n    return 4\n```", "tester": ASSERT}),
    "search_short": (Search(), SEARCH),
    "search_full": (Search(prompts="search/full", results=2), SEARCH),
    "search_agent": (Search(prompts="search/full", workflow=Workflow(("agent",), turns=2)), SEARCH),
    "breadth_planner": (PLANNED, BREADTH),
    "breadth_full": (dataclasses.replace(PLANNED, prompts="breadth/full"), BREADTH),
    "breadth_router": (
        Breadth(
            prompts="breadth/full",
            count=2,
            workflow=Workflow(("router", ("reader", "sorter", "adder")), turns=2),
        ),
        BREADTH,
    ),
    "reasoning_gym_short": (GCD, VERDICTS),
    "reasoning_gym_full": (dataclasses.replace(GCD, prompts="reasoning_gym/full"), VERDICTS),
    "stepwise_short": (LAKE, WALK),
    "stepwise_full": (dataclasses.replace(LAKE, prompts="stepwise/full"), WALK),
    "sudoku_tool": (Sudoku(prompts="sudoku/full", workflow=Workflow(("tool", "filler"))), DIGITS),
}


def rendered(name):
    task, texts = CASES[name]
    state = task.initial(task.instance("train", 1))
    shown = []
    for turn in (1, 2):
        for role in task.workflow.speakers:
            if name in SILENT and not speaks(task, state, role):
                continue
            content = task.prompt(state, role)[0]["content"]
            shown.append(f"######## turn {turn}, {role}\n{content}\n")
            text, printed = texts[role], ""
            if role == "tool":
                text, printed = f"```python\nprint({text!r})\n```", text
            if not isinstance(task, ToolTask):
                state = task.act(state, role, text).state
                continue
            runs = []
            while len(task.programs(state, role, text, runs)):
                runs += [ProgramResult("ok", printed, "", True)] * len(task.programs(state, role, text, runs))
            state = task.act(state, role, text, runs).state
    return "\n".join(shown)


@pytest.mark.parametrize("name", CASES)
def test_prompts(name):
    assert rendered(name) == (GOLDEN / f"{name}.txt").read_text(encoding="utf-8")


def test_all_shipped_templates_are_shown():
    used = {task.prompts for task, _ in CASES.values()}
    assert used == {str(path.parent.relative_to(prompts.SHIPPED)) for path in prompts.SHIPPED.rglob("*.txt")}


def test_a_folder_of_ones_own(tmp_path, monkeypatch):
    (tmp_path / "mover.txt").write_text("Go from {{ position }} to {{ goal }}{% include '_end.txt' %}")
    (tmp_path / "_end.txt").write_text("!")
    task = PlanPath(prompts=str(tmp_path), workflow=Workflow(("mover",)))
    state = task.initial(task.instance("train", 0))
    assert task.prompt(state, "mover")[0]["content"].endswith("!")
    before = task.prompts_digest
    monkeypatch.chdir(tmp_path.parent)
    assert PlanPath(prompts=tmp_path.name, workflow=Workflow(("mover",))) == task  # from wherever it is read
    (tmp_path / "_end.txt").write_text("?")
    assert PlanPath(prompts=str(tmp_path), workflow=Workflow(("mover",))).prompts_digest != before


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{% if %}", r"mover.txt, line 1: Expected an expression"),
        ("{{ nothing_of_the_kind }}", "is undefined"),
    ],
)
def test_a_template_that_is_none(tmp_path, text, says):
    (tmp_path / "mover.txt").write_text(text)
    with pytest.raises(ValueError, match=says):
        PlanPath(prompts=str(tmp_path), workflow=Workflow(("mover",)))


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for case in CASES:
        (GOLDEN / f"{case}.txt").write_text(rendered(case), encoding="utf-8")
