"""Breadth: what the problems are, what each role sees and is paid, and who speaks in which workflow."""

import dataclasses
import random

import pytest

from atgrpo_jax.common.types import Outcome
from atgrpo_jax.run.gin_config import load
from atgrpo_jax.tasks.breadth.breadth import Breadth
from atgrpo_jax.tasks.breadth.problems import KINDS, Instance, Problem, words
from atgrpo_jax.tasks.course import Course
from atgrpo_jax.tasks.splits import in_split
from atgrpo_jax.tasks.workflow import Workflow
from atgrpo_jax.tokens.tokens import TinyTokenizer
from atgrpo_jax.tools.check_task import check_experiment

SPECIALISTS = ("reader", "sorter", "adder")
TWO = Workflow(("worker", "aggregator"), turns=1, seats={"worker": 2})
TEAM = Breadth(count=2, workflow=TWO)
SINGLE = Breadth(count=2, workflow=Workflow(("aggregator",), turns=1))
ROUTED = Breadth(count=2, workflow=Workflow(("router", SPECIALISTS), turns=2))
PLANNED = Breadth(
    count=3, open=2, workflow=Workflow(("planner", "worker", "aggregator"), turns=1, seats={"worker": 2})
)
ALL = [TEAM, SINGLE, ROUTED, PLANNED]
SUM, LARGEST, FIRST = (Problem(kind, numbers, 10) for kind, numbers in
                       (("sum", (5, 7, 4)), ("largest", (2, 8, 3)), ("first", (9, 0, 1))))  # fmt: skip


def start(task, *problems, known=()):
    """The first state of an instance of these problems; those in ``known`` come with their answers."""
    return task.initial(Instance(problems, tuple(problem in known for problem in problems)))


def played(task, state, *said):
    """Plays an episode with these words: who spoke, what it was paid, and how it ended."""
    words = iter(said)
    course = Course(task, state)
    seen = []
    while speakers := course.next():
        for role in speakers:
            step = task.act(course.state, role, next(words))
            paid = {name: value for name, value in step.reward.parts.items() if value}
            seen.append((role, paid | ({"team": step.reward.team} if step.reward.team else {})))
            course.take(step)
    assert next(words, None) is None
    return seen, course.end


def shown(task, state, role):
    (message,) = task.prompt(state, role)
    return message["content"]


def test_the_answers_of_all_kinds():
    answers = {kind: Problem(kind, (5, 9, 4), 10).answer for kind in KINDS}
    assert answers == {"first": 5, "last": 4, "largest": 9, "smallest": 4, "sum": 8}


def test_a_held_out_problem_is_in_no_instance_that_is_trained_on():
    for split in ("train", "validation", "test"):
        for index in range(50):
            made = PLANNED.instance(split, index)
            assert all(in_split(problem, split) for problem in made.problems)
            assert 1 <= made.known.count(False) <= 2
    both = {made.known.count(False) for made in (PLANNED.instance("train", i) for i in range(50))}
    assert both == {1, 2}
    assert not any(TEAM.instance("train", 0).known)


def test_workers_see_a_problem_each_and_the_aggregator_all_of_it():
    state = start(TEAM, SUM, LARGEST)
    assert shown(TEAM, state, "worker0") == "worker sum 5 7 4"
    assert shown(TEAM, state, "worker1") == "worker largest 2 8 3"
    after = TEAM.act(state, "worker1", " 3").state
    assert shown(TEAM, after, "aggregator") == "aggregator\na sum 5 7 4\nb largest 2 8 3 is 3"


def test_workers_and_an_aggregator():
    state = start(TEAM, SUM, LARGEST)
    right, half = {"right": 0.5}, {"share": 0.25}
    seen, end = played(TEAM, state, "6", "[3]", " 6 8")
    assert (seen, end) == (
        [("worker0", right), ("worker1", {}), ("aggregator", {"share": 0.5, "team": 1})], "solved"
    )  # fmt: skip
    seen, end = played(TEAM, state, "six", "8", "I think [6, 3]")
    assert (seen, end) == (
        [("worker0", {"invalid": -0.1}), ("worker1", right), ("aggregator", half)],
        "ended",
    )
    assert played(TEAM, state, "6", "8", "6 8 1") == (
        [("worker0", right), ("worker1", right), ("aggregator", {"invalid": -0.1})], "ended"
    )  # fmt: skip


def test_a_single_agent_is_an_aggregator_who_is_told_nothing():
    state = start(SINGLE, SUM, LARGEST)
    assert shown(SINGLE, state, "aggregator") == "aggregator\na sum 5 7 4\nb largest 2 8 3"
    assert played(SINGLE, state, "6 8") == ([("aggregator", {"share": 0.5, "team": 1})], "solved")


def test_a_router_calls_a_specialist_for_one_problem_a_turn():
    state = start(ROUTED, SUM, LARGEST)
    assert shown(ROUTED, state, "router") == "router sum 5 7 4"
    routed, right = {"routed": 0.25}, {"right": 0.25}
    assert played(ROUTED, state, "adder", "6", "[sorter]", "8") == (
        [("router", routed), ("adder", right), ("router", routed), ("sorter", right | {"team": 1})], "solved"
    )  # fmt: skip
    wrong = [("router", routed), ("adder", {}), ("router", {}), ("adder", right)]
    assert played(ROUTED, state, "adder", "5", "reader or adder", "8") == (wrong, "ended")
    # Nobody is called, and so the first problem comes again in the second turn.
    assert played(ROUTED, state, "anybody", "adder", "6") == (
        [("router", {"invalid": -0.05}), ("router", routed), ("adder", right)], "turn_limit"
    )  # fmt: skip


def test_a_specialist_is_told_the_kinds_that_it_knows():
    called = {name: dataclasses.replace(start(ROUTED, SUM, LARGEST), called=name) for name in SPECIALISTS}
    assert shown(ROUTED, called["adder"], "adder") == "adder sum 5 7 4"
    assert shown(ROUTED, called["sorter"], "sorter") == "sorter 5 7 4"


def test_a_planner_names_open_problems_and_only_then_workers_speak():
    state = start(PLANNED, SUM, LARGEST, FIRST, known=(LARGEST,))
    assert shown(PLANNED, state, "planner") == "planner\na sum 5 7 4\nb largest 2 8 3 is 8\nc first 9 0 1"
    right, all_right = {"right": 0.5}, ("aggregator", {"share": 0.5, "team": 1})
    after = PLANNED.act(state, "planner", " c a").state
    assert shown(PLANNED, after, "worker0") == "worker first 9 0 1"
    assert played(PLANNED, state, " c a", "9", "6", "6 8 9") == (
        [("planner", {"named": 0.5}), ("worker0", right), ("worker1", right), all_right], "solved"
    )  # fmt: skip
    assert played(PLANNED, state, "[c]", "9", "6 8 9") == (
        [("planner", {"named": 0.25}), ("worker0", right), all_right], "solved"
    )  # fmt: skip
    # b has an answer, which stays; the third name is one too many.
    seen, _ = played(PLANNED, state, "a b c", "6", "1", "6 8 9")
    assert seen[0] == ("planner", {"named": 0.25, "wasted": -0.125}) and seen[2] == ("worker1", {})
    assert PLANNED.act(PLANNED.act(state, "planner", "b").state, "worker0", "1").state.answers == (
        None,
        8,
        None,
    )
    assert played(PLANNED, state, "d 7", "6 8 9") == ([("planner", {"invalid": -0.1}), all_right], "solved")


def test_a_planner_of_two_turns_without_an_aggregator_goes_on_with_what_is_open():
    task = dataclasses.replace(
        PLANNED, workflow=Workflow(("planner", "worker"), turns=2, seats={"worker": 2}), open=2
    )
    state = start(task, SUM, LARGEST, FIRST, known=(LARGEST,))
    assert played(task, state, "a", "6", "c", "9") == (
        [("planner", {"named": 0.125}), ("worker0", {"right": 0.25}),
         ("planner", {"named": 0.25}), ("worker0", {"right": 0.25, "team": 1})], "solved"
    )  # fmt: skip

    # The last one who speaks ends it, whatever it says; what is right already is not paid by the team again.
    once = [("planner", {"named": 0.25, "wasted": -0.0625}), ("worker0", {"right": 0.25, "team": 1})]
    state = start(task, SUM, LARGEST, known=(LARGEST,))
    assert played(task, state, "a b", "6", "no number") == (
        [*once, ("worker1", {"invalid": -0.05})],
        "solved",
    )
    assert played(task, state, "a b", "6", "8") == ([*once, ("worker1", {"right": 0.25})], "solved")


@pytest.mark.parametrize("task", ALL, ids=lambda task: task.workflow.order[0])
def test_without_errors_demonstrations_solve_it(task):
    perfect = dataclasses.replace(task, demonstration_error=0.0)
    for index in range(20):
        course = Course(perfect, perfect.initial(perfect.instance("train", index)))
        while speakers := course.next():
            for role in speakers:
                said = perfect.demonstration(course.state, role, random.Random(index))
                course.take(perfect.act(course.state, role, said))
        assert course.end == "solved"


@pytest.mark.parametrize("task", ALL, ids=lambda task: task.workflow.order[0])
def test_prompts_and_answers_of_the_tiny_form_are_words(task):
    """One id each: a prompt of a model that reads bytes would be four times as long."""
    tokenizer = TinyTokenizer(words())
    for role in task.workflow.speakers:
        state = task.initial(task.instance("train", 0))
        ids = tokenizer.prompt_ids(task.prompt(state, role))
        ids += tokenizer.answer_ids(task.demonstration(state, role, random.Random(0)))
        assert min(ids) >= 256


def test_the_form_for_models_asks_in_words():
    task = dataclasses.replace(PLANNED, prompts="breadth/full", largest=99)
    state = start(task, Problem("sum", (60, 70, 4), 100), LARGEST, FIRST, known=(LARGEST,))
    asked = shown(task, state, "planner")
    assert "(a) What is the sum of 60, 70, 4, modulo 100?\n(b) Which number is the largest of" in asked
    assert "2, 8, 3? A colleague answers: 8\n(c)" in asked and "You have 2 workers." in asked
    routed = dataclasses.replace(ROUTED, prompts="breadth/full", largest=99)
    state = start(routed, SUM, LARGEST)
    assert "sorter: knows questions about the largest and the smallest" in shown(routed, state, "router")
    assert "You are the reader of" in shown(routed, state, "reader")
    assert "which is not one that you know" in shown(routed, state, "reader")


def test_a_number_that_is_too_long_is_no_answer():
    step = TEAM.act(start(TEAM, SUM, LARGEST), "worker0", "9" * 5000)
    assert step.outcome is Outcome.INVALID and step.state.answers == (None, None)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"count": 0}, "Breadth.count = 0: must be from 1 to 26"),
        ({"kinds": ("median",)}, "Breadth.kinds = .*expected some of first, last"),
        ({"kinds": ()}, "Breadth.kinds"),
        ({"open": 5}, "Breadth.open = 5: must be from 0 to count = 4"),
        ({"count": 3}, "a worker for each problem: seats = {'worker': 3}"),
        ({"right": 0.8}, "Breadth.right = 0.8: with costs of 0.25, failing could pay more .*at most 0.75"),
        ({"waste": -1.0}, "Breadth.waste"),
        ({"workflow": Workflow(("judge",))}, r"not \['judge'\]"),
        ({"workflow": Workflow(("aggregator", "worker"))}, "it speaks last, and alone"),
        ({"workflow": Workflow(("router",))}, "nobody answers"),
        ({"workflow": Workflow(("planner", "aggregator"))}, "as many workers as may be open: 4"),
        ({"workflow": Workflow(("router", "adder"))}, "no specialist knows first, largest, last, smallest"),
        ({"workflow": ROUTED.workflow}, "turns must be at least 4"),
        ({"workflow": Workflow(("adder", "aggregator"))}, "only a router calls specialists"),
        ({"workflow": Workflow(("aggregator",), turns=2)}, "ends the first turn: turns must be 1"),
        ({"workflow": Workflow(("router", ("reader", "sorter", "adder"), "aggregator"), turns=4)},
         "a router goes from problem to problem, a turn each, and an aggregator ends the first"),
        ({"workflow": Workflow(("aggregator",), seats={"aggregator": 2})}, "only worker may have"),
    ],
)  # fmt: skip
def test_refuses(wrong, says):
    with pytest.raises(ValueError, match=says):
        Breadth(**wrong)


def test_a_split_without_a_problem_is_refused():
    """Two problems in all, both of them for training."""
    few = Breadth(count=1, numbers=1, largest=1, kinds=("sum",), workflow=Workflow(("worker",), turns=1))
    with pytest.raises(ValueError, match="Breadth.largest = 1: split test has no problem with 1 numbers"):
        few.instance("test", 0)


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["breadth", "breadth_single", "breadth_router", "breadth_planner"])
def test_the_shipped_files_keep_the_contract(name):
    assert check_experiment(load(f"{name}.gin"), instances=1) == []


def test_a_single_agent_draws_as_many_tokens_as_the_team():
    """In training, if answers have the form that is demonstrated; and as many demonstrated ones."""
    team, single = load("breadth.gin"), load("breadth_single.gin")
    count = team.task.count
    of_team, of_single = 2 * count + count + 1, count + 1
    assert of_single * single.rollout.candidates == pytest.approx(of_team * team.rollout.candidates, rel=0.05)
    shown = [x.warm_start.instances * tokens for x, tokens in ((team, of_team), (single, of_single))]
    assert shown[1] == pytest.approx(shown[0], rel=0.05)
