"""What docs/workflows.md shows is so: its gin lines, and its tasks."""

import random

import pytest
from shared_workflows import PAGE, blocks, talk

from atgrpo_jax.run.gin_config import load
from atgrpo_jax.tasks.course import Course
from atgrpo_jax.tasks.protocol import Task
from atgrpo_jax.tasks.workflow import Workflow
from atgrpo_jax.tools.check_task import check

TASKS = [talk.Talk, talk.Agreeing, talk.Judged, talk.Checked, talk.Routed, talk.Planned, talk.Chat]
LINES = blocks("")


def played(task, *said):
    """Plays an episode about 3 + 4 with these words, and returns who spoke when, and how it ended."""
    words = iter(said)
    course = Course(task, task.initial((3, 4)))
    stages = []
    while speakers := course.next():
        stages.append(" ".join(speakers))
        for role in speakers:
            course.take(task.act(course.state, role, next(words)))
    assert next(words, None) is None
    return ", ".join(stages), course.end


def test_the_page_has_examples():
    assert len(LINES) == 9 and len(TASKS) == PAGE.count("class ") - 1  # but for the state


@pytest.mark.parametrize("lines", LINES)
def test_a_turn_is_what_the_page_says(lines):
    bindings = [line for line in lines.splitlines() if not line.startswith("#")]
    experiment = load([], ["import talk", "experiment.Experiment.task = @talk.Talk()", *bindings])
    stages = experiment.task.workflow.stages
    assert lines.startswith(f"# {', '.join(map(' '.join, stages))}\n")


def test_a_turn_is_repeated_until_it_is_right():
    task = talk.Talk(Workflow(("a", "b"), turns=3))
    assert played(task, "7", "1", "2", "7") == ("a, b, a, b", "solved")
    assert played(task, *"123456") == ("a, b, a, b, a, b", "turn_limit")


def test_a_debate_ends_when_all_agree():
    debaters = "debater0 debater1"
    assert played(talk.Agreeing(), "7", "1", "7", "7") == (f"{debaters}, {debaters}", "solved")
    assert played(talk.Agreeing(), "1", "1") == (debaters, "ended")
    assert played(talk.Agreeing(), *"717171") == (", ".join([debaters] * 3), "turn_limit")


def test_a_judge_speaks_after_the_last_round():
    stages = f"{', '.join(['debater0 debater1'] * 3)}, judge"
    assert played(talk.Judged(), *"777777", "7") == (stages, "solved")
    assert played(talk.Judged(), *"777777", "1") == (stages, "ended")


def test_a_checker_ends_it():
    assert played(talk.Checked(), "1", "no", "7", "yes") == ("maker, checker, maker, checker", "solved")
    assert played(talk.Checked(), "1", "yes") == ("maker, checker", "ended")
    assert played(talk.Checked(), *["7", "no"] * 4) == (", ".join(["maker, checker"] * 4), "turn_limit")


def test_the_one_whom_the_router_names_speaks():
    assert played(talk.Routed(), "bob", "7") == ("router, bob", "solved")
    assert played(talk.Routed(), "both", *[]) == ("router", "turn_limit")


def test_those_whom_the_planner_names_speak():
    stages = "planner, worker0 worker2, planner"
    assert played(talk.Planned(), "worker2 worker0", "7", "1", "7") == (stages, "solved")
    assert played(talk.Planned(), "nobody", "7") == ("planner, planner", "solved")


def test_who_is_named_in_a_chat_speaks_next():
    assert played(talk.Chat(), "1 cid", "? cid", "7") == ("ann, cid, cid", "solved")
    assert played(talk.Chat(), "1") == ("ann", "ended")
    assert played(talk.Chat(), *["7 bob"] * 9) == (", ".join(["ann", *["bob"] * 8]), "turn_limit")


@pytest.mark.parametrize("kind", TASKS, ids=lambda kind: kind.__name__)
def test_its_demonstrations_solve_some_of_it(kind):
    """The warm start would be for nothing otherwise."""
    task = kind()
    assert isinstance(task, Task)
    ends = []
    for index in range(20):
        course = Course(task, task.initial(task.instance("train", index)))
        while speakers := course.next():
            for role in speakers:
                said = task.demonstration(course.state, role, random.Random(str((index, course.turn, role))))
                course.take(task.act(course.state, role, said))
        ends.append(course.end)
    assert ends.count("solved") >= 2


@pytest.mark.thorough
@pytest.mark.parametrize("kind", TASKS, ids=lambda kind: kind.__name__)
def test_its_tasks_keep_the_contract(kind):
    assert check(kind(), instances=1, episodes=30) == []
