"""Makers and a checker, and debates, on sums whose answers are plain numbers: no program is run."""

import dataclasses
import random

import pytest

from atgrpo_jax.common.types import Outcome
from atgrpo_jax.sandbox.protocol import ProgramResult
from atgrpo_jax.tasks.course import Course
from atgrpo_jax.tasks.math.boxes import verdict
from atgrpo_jax.tasks.math.math import Math
from atgrpo_jax.tasks.math.math_problems import Problem
from atgrpo_jax.tasks.math.said import State
from atgrpo_jax.tasks.workflow import Workflow
from atgrpo_jax.tools.check_task import check

SEVEN = State(Problem("2", "What is 3 + 4?", "7"))
YES, NO = "\\boxed{accept}", "4 was left out. \\boxed{reject}"
PAIR = Math(prompts="math/short", workflow=Workflow(("reasoner", "checker"), turns=3))
THREE = {"reasoner": 3}
DEBATE = Math(
    prompts="math/debate", decides="majority", workflow=Workflow(("reasoner",), turns=2, seats=THREE)
)
HEARD = Math(
    prompts="math/debate",
    decides="majority",
    judged="last turn",
    workflow=Workflow(("reasoner", "judge"), turns=2, seats=THREE),
)


def played(task, *said):
    """Plays an episode with these texts; a number is boxed, None is no answer. Returns who spoke with what
    pay, (team, local), the end, and the number of turns."""
    texts = iter(said)
    course = Course(task, SEVEN)
    pay = []
    while speakers := course.next():
        for role in speakers:
            given = next(texts)
            text = "Dunno." if given is None else f"\\boxed{{{given}}}" if isinstance(given, int) else given
            assert task.programs(course.state, role, text, []) == []
            step = task.act(course.state, role, text, [])
            pay.append((role, round(step.reward.team, 9), round(step.reward.local, 9)))
            course.take(step)
    assert next(texts, None) is None
    return pay, course.end, course.turns


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Step 2 is wrong. \\boxed{reject}", "reject"),
        ("\\boxed{\\text{Accept}}", "accept"),
        ("\\boxed{accepted.}", "accept"),
        ("\\boxed{reject}, no: \\boxed{accept}", "accept"),  # the last box counts
        ("accept", None),
        ("\\boxed{7}", None),
        ("\\boxed{accept or reject}", None),
        ("\\boxed{}", None),
    ],
)
def test_verdicts(text, said):
    assert verdict(text) == said


def test_acceptance_ends_it_and_only_a_right_answer_is_success():
    pay = [("reasoner", 1.0, 1.0), ("checker", 0.0, 1.0)]
    assert played(PAIR, 7, YES) == (pay, "solved", 1)
    pay = [("reasoner", 0.0, 0.2), ("checker", 0.0, 0.2)]  # the form of the verdict is all it is paid
    assert played(PAIR, 8, YES) == (pay, "ended", 1)


def test_a_maker_corrects_itself_and_a_verdict_is_paid_as_its_change():
    pay, end, turns = played(PAIR, 8, NO, 7, NO, 7, YES)
    assert pay == [
        ("reasoner", 0.0, 0.2), ("checker", 0.0, 1.0),  # rightly rejected
        ("reasoner", 1.0, 0.8), ("checker", 0.0, -0.8),  # wrongly rejected
        ("reasoner", 0.0, 0.0), ("checker", 0.0, 0.8),
    ]  # fmt: skip
    assert (end, turns) == ("solved", 3)


def test_the_last_turn_ends_it_whatever_the_checker_says():
    assert played(PAIR, 8, NO, 8, NO, 7, NO)[1:] == ("solved", 3)
    assert played(PAIR, 7, NO, 7, NO, 8, NO)[1:] == ("ended", 3)


def test_neither_verdict_pays_without_looking():
    """Of a right and a wrong answer, each constant verdict is right once; no verdict is never."""
    for constant, expected in ((YES, 1.2), (NO, 1.2), (None, 0.0)):
        rest = [] if constant == YES else [1, constant] * 2
        first = [played(PAIR, answer, constant, *rest)[0][1][2] for answer in (7, 8)]
        assert sum(first) == pytest.approx(expected)
    assert sum(played(PAIR, *said)[0][1][2] for said in ((7, YES), (8, NO, 7, YES))) == 2.0


def test_accepting_may_pay_less_than_rejecting():
    task = dataclasses.replace(PAIR, accepts=0.1)
    assert played(task, 7, YES)[0][1] == ("checker", 0.0, 0.3)
    assert played(task, 8, NO, 7, YES)[0][1::2] == [("checker", 0.0, 1.0), ("checker", 0.0, -0.7)]


def test_no_verdict_is_invalid_and_ends_nothing():
    step = PAIR.act(PAIR.act(SEVEN, "reasoner", "\\boxed{7}", []).state, "checker", "\\boxed{7}", [])
    assert (step.outcome, step.done, step.reward.local) == (Outcome.INVALID, False, 0.0)


def test_a_verdict_is_of_the_teams_answer_as_it_stands():
    """The maker gives none in the second turn, so its first one is judged again."""
    pay, end, _ = played(PAIR, 7, NO, None, YES)
    assert pay[2:] == [("reasoner", 0.0, -1.0), ("checker", 0.0, 0.8)] and end == "solved"
    assert played(PAIR, None, YES) == ([("reasoner", 0.0, 0.0), ("checker", 0.0, 0.2)], "ended", 1)


def test_makers_who_agree_are_checked_all_the_same():
    task = Math(workflow=Workflow((("reasoner1", "reasoner2"), "checker"), turns=2))
    assert played(task, 7, 7, NO, 7, 7, YES)[1:] == ("solved", 2)


def said_to(task, role, *texts):
    """The prompt of ``role`` after these texts of those who speak first."""
    course = Course(task, SEVEN)
    waiting = []
    for text in texts:
        waiting = waiting or list(course.next())
        course.take(task.act(course.state, waiting.pop(0), text, []))
    assert role in course.next()
    return task.prompt(course.state, role)[0]["content"]


def test_who_hears_whom_of_maker_and_checker():
    task = Math(workflow=PAIR.workflow)
    long = "x" * 5000 + "\\boxed{8}"
    heard = said_to(task, "checker", long)
    assert "The answer to check: 8" in heard and "cut after 500 characters" in heard and len(heard) < 3000
    heard = said_to(task, "reasoner", long, NO)
    assert "4 was left out." in heard and "The verdict: reject" in heard and len(heard) < 3000
    assert "There is no verdict" in said_to(task, "reasoner", long, "Hm.")
    assert "There is no answer yet" in said_to(task, "checker", "Hm.")
    short = said_to(PAIR, "reasoner", "\\boxed{8}", NO)
    assert short == "reasoner\nown \\boxed{8}\nchecker 4 was left out. \\boxed{reject}\nWhat is 3 + 4?"


@pytest.mark.parametrize(
    ("error", "verdicts"), [(0.0, {7: "accept", 8: "reject"}), (1.0, {7: "reject", 8: "accept"})]
)
def test_demonstrated_verdicts(error, verdicts):
    task = Math(workflow=PAIR.workflow, demonstration_error=error)
    for answer, said in verdicts.items():
        state = task.act(SEVEN, "reasoner", f"\\boxed{{{answer}}}", []).state
        assert verdict(task.demonstration(state, "checker", random.Random(0))) == said


def test_the_majority_is_the_teams_answer():
    # A right one, then a tie that the later one wins, then the majority.
    pay, end, turns = played(DEBATE, 7, 8, 7, 8, 7, 8)
    assert pay == [
        ("reasoner0", 1.0, 1.0), ("reasoner1", -1.0, 0.2), ("reasoner2", 1.0, 1.0),
        ("reasoner0", -1.0, -0.8), ("reasoner1", 1.0, 0.8), ("reasoner2", -1.0, -0.8),
    ]  # fmt: skip
    assert (end, turns) == ("ended", 2)
    assert played(DEBATE, 1, 2, 3, 7, 7, 8)[1] == "solved"  # the last one alone would say 8
    assert played(DEBATE, 1, 2, 3, 7, 7, None)[1] == "solved"
    assert played(DEBATE, 1, 2, 3, 4, 7, 5)[1] == "ended"  # of three the last one counts


def test_a_debate_ends_early_when_all_agree():
    assert played(DEBATE, 7, 7, 7)[1:] == ("solved", 1)
    assert played(DEBATE, 8, 8, 8)[1:] == ("ended", 1)
    assert played(DEBATE, 7, 7, None, 7, 7, 7)[1:] == ("solved", 2)


def test_a_judge_hears_the_last_round_alone():
    pay, end, turns = played(HEARD, 7, 8, 8, 7, 8, 8, 7)
    assert [role for role, *_ in pay] == [*HEARD.workflow.stages[0]] * 2 + ["judge"]
    assert (pay[-1], end, turns) == (("judge", 1.0, 1.0), "solved", 2)
    # Without an answer of the judge the majority's counts; agreement needs no judge, in any round.
    assert played(HEARD, 7, 8, 8, 7, 7, 8, None)[1] == "solved"
    assert played(HEARD, 7, 7, 7)[1:] == ("solved", 1)
    assert played(HEARD, 7, 8, 8, 7, 7, 7)[1:] == ("solved", 2)
    assert [role for role, *_ in played(HEARD, 7, 8, 8, 8, 8, 8)[0]].count("judge") == 0


def test_who_hears_whom_in_a_debate():
    said = ["First \\boxed{7}", "Second \\boxed{8}", "Third \\boxed{9}"]
    assert "First" not in said_to(DEBATE, "reasoner2")
    heard = said_to(DEBATE, "reasoner1", *said)
    assert heard.count("Another said:") == 2 and "You said:\n\nSecond" in heard
    again = [text.replace("d \\", "d again \\") for text in said]
    judge = said_to(HEARD, "judge", *said, *again)
    assert "Third again" in judge and "Third \\boxed" not in judge and judge.count("Another said:") == 3


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"workflow": Workflow(("checker",))}, "a judge or checker is one, and hears the others"),
        ({"workflow": Workflow(("reasoner", "judge", "checker"))}, "a judge or checker is one"),
        ({"workflow": Workflow((("reasoner", "checker"),))}, "a judge or checker is one"),
        ({"judged": "last turn"}, "Math.judged.*there is no judge"),
        ({"judged": "never"}, "Math.judged"),
        ({"decides": "loudest"}, "Math.decides"),
        ({"signs": "+/"}, r"Math.signs.*must be some of \+-\*"),
        ({"signs": ""}, "Math.signs"),
        ({"least_terms": 4}, "Math.terms.*must be at least least_terms = 4"),
        ({"least_terms": 1}, "Math.least_terms"),
    ],
)
def test_refuses(wrong, says):
    with pytest.raises(ValueError, match=says):
        Math(**wrong)


def test_sums_of_some_signs():
    sums = [
        Math(signs="+-", least_terms=3, terms=3, largest=9).instance("train", index) for index in range(100)
    ]
    assert all("*" not in problem.question and eval(problem.id) == int(problem.answer) for problem in sums)
    assert {len(problem.id.split()) for problem in sums} == {5}
    assert {sign for sign in "+-" for problem in sums if sign in problem.id} == {"+", "-"}


def test_demonstrated_answers_may_show_their_working():
    task = Math(working=True, demonstration_error=0.0, workflow=PAIR.workflow)
    state = State(Problem("2 + 3 * 4 - 5", "?", "9"))
    assert task.demonstration(state, "reasoner", random.Random(0)) == "5 14 \\boxed{9}"
    state = State(Problem("3 + 4", "?", "7"))
    assert task.demonstration(state, "reasoner", random.Random(0)) == "\\boxed{7}"


class Nothing:
    """Runs no program, as if none ended well; answers that are no numbers are then not equal."""

    async def run(self, program):
        return ProgramResult("error")


@pytest.mark.thorough
@pytest.mark.parametrize("task", [PAIR, HEARD], ids=["checker", "debate and judge"])
def test_they_keep_the_contract(task):
    assert check(task, Nothing(), instances=1, episodes=30) == []


@pytest.mark.parametrize("turns", [1, 2])
def test_a_judge_who_hears_the_last_turn_of_one_reasoner_speaks_after_it(turns):
    task = Math(
        prompts="math/debate", judged="last turn", workflow=Workflow(("reasoner", "judge"), turns=turns)
    )
    pay, end, spoken = played(task, *[8] * turns, 7)
    assert [role for role, *_ in pay] == ["reasoner"] * turns + ["judge"] and (end, spoken) == (
        "solved",
        turns,
    )
