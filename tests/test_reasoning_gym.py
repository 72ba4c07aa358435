"""reasoning-gym's generators as a task: what is paid, what splits share, and what scorers may evaluate."""

import dataclasses
import random

import pytest
from fakes import say

from atgrpo_jax.common.types import Outcome
from atgrpo_jax.sandbox.pool import SandboxConfig
from atgrpo_jax.sandbox.protocol import ProgramResult
from atgrpo_jax.tasks.environments import reasoning_problems
from atgrpo_jax.tasks.environments.reasoning import Attempt, ReasoningGym, State
from atgrpo_jax.tasks.environments.reasoning_problems import Problem, score_of
from atgrpo_jax.tasks.workflow import Workflow
from atgrpo_jax.tools.check_task import check

DIGITS = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
SUMS = ReasoningGym(config=DIGITS)
ALONE = ReasoningGym(config=DIGITS, workflow=Workflow(("solver",), turns=3))
PROBLEM = Problem(1, "2 + 3 =", "5")
START = State(PROBLEM)


def scored(score):
    return [ProgramResult("ok", f"{score}\n")]


def test_the_team_is_paid_for_its_last_answer():
    """turns = 2, partial = 0.2, verdict = 0.5, invalid = 0.1."""
    wrong = SUMS.act(START, "solver", " 4 ", scored(0.25))
    assert wrong.reward.team == 0 and wrong.reward.parts == {"score": pytest.approx(0.05)} and not wrong.done
    rejected = SUMS.act(wrong.state, "checker", "Rejected.", [])
    assert rejected.reward.parts == {"verdict": 0.25} and not rejected.done
    right = SUMS.act(rejected.state, "solver", "5", scored(1.0))
    assert right.reward.team == 1 and right.reward.parts == {"score": pytest.approx(0.15)} and not right.done
    accepted = SUMS.act(right.state, "checker", "accept", [])
    assert accepted.reward.parts == {"verdict": 0.25} and accepted.done and accepted.solved
    # At the turn limit the last answer is the team's, whatever the checker says of it.
    refused = SUMS.act(right.state, "checker", "reject", [])
    assert refused.reward.parts == {"verdict": 0.0} and refused.done and refused.solved


def test_a_wrong_answer_that_is_accepted_ends_the_episode():
    state = State(PROBLEM, (Attempt("4", 0.0),))
    step = SUMS.act(state, "checker", "accept", [])
    assert step.done and not step.solved and step.reward.parts == {"verdict": 0.0}


def test_a_right_answer_that_is_lost_again_is_paid_back():
    state = State(PROBLEM, (Attempt("5", 1.0),))
    step = SUMS.act(state, "solver", "6", scored(0.0))
    assert step.reward.team == -1 and step.reward.parts == {"score": -0.2}


def test_no_answer_and_no_verdict_cost_the_same():
    silent = SUMS.act(START, "solver", "  ", [])
    assert silent.reward.parts == {"score": 0.0, "invalid": -0.05} and silent.outcome is Outcome.INVALID
    assert SUMS.programs(START, "solver", "  ", []) == []
    vague = SUMS.act(silent.state, "checker", "accept or reject", [])
    assert vague.reward.parts == {"invalid": -0.05} and vague.outcome is Outcome.INVALID and not vague.done


def test_alone_the_first_answer_is_the_last():
    right = ALONE.act(START, "solver", "5", scored(1.0))
    assert right.done and right.solved and right.reward.team == 1
    wrong = ALONE.act(START, "solver", "4", scored(0.5))
    assert wrong.done and not wrong.solved and wrong.reward.parts == {"score": pytest.approx(0.1)}


@pytest.mark.parametrize(
    ("run", "score"),
    [
        (ProgramResult("ok", "0.5\n"), 0.5),
        (ProgramResult("ok", "7"), 1.0),
        (ProgramResult("ok", "-1"), 0.0),
        (ProgramResult("ok", "nan"), 0.0),
        (ProgramResult("ok", "0.5\n1.0"), 0.0),
        (ProgramResult("error", "1.0"), 0.0),
        (ProgramResult("timeout", "1.0"), 0.0),
    ],
)
def test_a_scorer_that_raises_or_prints_nonsense_scores_nothing(run, score):
    assert score_of(run) == score


def test_a_scorer_that_never_ends_is_a_timeout():
    step = SUMS.act(START, "solver", "5", [ProgramResult("timeout")])
    assert step.outcome is Outcome.TOOL_TIMEOUT and step.reward.team == 0


def test_a_generator_that_makes_another_problem_in_the_sandbox_is_no_fault_of_the_solver():
    step = SUMS.act(START, "solver", "5", scored(-1.0))
    assert step.outcome is Outcome.TOOL_CRASH and step.reward.team == 0 and step.reward.local == 0


def test_tags_hold_the_answer():
    tagged = ReasoningGym(config=DIGITS, form="tags", prompts="reasoning_gym/full")
    (program,) = tagged.programs(START, "solver", "<answer>1</answer> no: <answer> 5 </answer> so.", [])
    assert program.harness == "print(score('5'))"
    for text in ("5", "<answer>5", "<answer></answer>", "<think><answer>5</answer></think>"):
        assert tagged.programs(START, "solver", text, []) == []
    shown = tagged.prompt(State(PROBLEM, (Attempt("4", 0.0), Attempt(None, 0.0))), "checker")[0]["content"]
    assert "rejected:\n\n4" in shown and "The answer to check:\n\nnothing" in shown


def test_who_is_shown_what():
    rejected = State(PROBLEM, (Attempt("4", 0.0),))
    assert SUMS.prompt(rejected, "solver")[0]["content"] == "solver\n2 + 3 =\nrejected 4"
    assert SUMS.prompt(rejected, "checker")[0]["content"] == "checker\n2 + 3 =\nanswer 4"


def test_splits_share_no_problem_and_held_out_ones_have_each_once():
    """Of 200 sums and differences of two digits about one in eight is for tests."""
    train = {SUMS.instance("train", index).question for index in range(300)}
    held = {}
    for split in ("validation", "test"):
        held[split] = []
        with pytest.raises(IndexError, match="makes too few different instances: "):
            while len(held[split]) < 200:
                held[split].append(SUMS.instance(split, len(held[split])).question)
        assert len(set(held[split])) == len(held[split]) > 10
        assert not train & set(held[split])
    assert not set(held["validation"]) & set(held["test"])
    again = ReasoningGym(config=DIGITS)
    assert [again.instance("test", index).question for index in (5, 0)] == [held["test"][5], held["test"][0]]


def test_demonstrations_are_the_generators_answers_or_wrong():
    rng = random.Random(0)
    perfect = ReasoningGym(config=DIGITS, demonstration_error=0.0)
    assert perfect.demonstration(START, "solver", rng) == "5"
    assert perfect.demonstration(State(PROBLEM, (Attempt("5", 1.0),)), "checker", rng) == "accept"
    assert perfect.demonstration(State(PROBLEM, (Attempt("4", 0.0),)), "checker", rng) == "reject"
    faulty = ReasoningGym(config=DIGITS, demonstration_error=1.0)
    assert faulty.demonstration(State(PROBLEM, (Attempt("4", 0.0),)), "checker", rng) == "accept"
    assert perfect.demonstration(State(Problem(1, "?", None)), "solver", rng) == "unknown"


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"name": "no_such"}, "'no_such' makes no problem: ValueError: Dataset 'no_such' not registered"),
        ({"config": {"terms": 2}}, "'chain_sum' makes no problem: TypeError"),
        ({"config": {"seed": 2}}, "seed and size are set by the task"),
        ({"workflow": Workflow(("checker", "solver"))}, r"expected \('solver',\) or"),
        ({"verdict": 0.95}, "with invalid it must be at most 1"),
    ],
)
def test_it_refuses(wrong, says):
    with pytest.raises(ValueError, match=says):
        ReasoningGym(**wrong)


def test_without_the_package_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setattr(reasoning_problems, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r'needs reasoning-gym: pip install "atgrpo_jax\[reasoning-gym\]"'):
        ReasoningGym()


@pytest.fixture(scope="module")
def sandbox():
    config = SandboxConfig(workers=1, wall_s=20.0, cpu_s=5, packages=SUMS.packages)
    opened = config.build(SUMS.warm_up)
    yield opened
    opened.close()


def test_scorers_run_in_the_sandbox_and_evaluate_no_programs(sandbox):
    """``spiral_matrix`` evaluates what looks like a list, ``countdown`` what sympy reads."""
    spiral = ReasoningGym(name="spiral_matrix")
    state = spiral.initial(spiral.instance("train", 0))
    assert say(sandbox, spiral, state, "solver", state.problem.answer).reward.team == 1
    listed = str([int(word) for word in state.problem.answer.split()])
    assert say(sandbox, spiral, state, "solver", listed).state.last.score > 0
    reads_the_answer = "[__import__('sys').modules['__main__'].entry['answer']]"
    assert say(sandbox, spiral, state, "solver", reads_the_answer).state.last.score == 0
    other = State(dataclasses.replace(state.problem, question="Is this another one?"))
    assert say(sandbox, spiral, other, "solver", "1").outcome is Outcome.TOOL_CRASH
    reach = ReasoningGym(name="countdown")
    state = reach.initial(reach.instance("train", 0))
    assert say(sandbox, reach, state, "solver", state.problem.answer).reward.team == 1
    step = say(sandbox, reach, state, "solver", "exec('1')")
    assert not step.state.last.right


@pytest.mark.thorough
@pytest.mark.parametrize("task", [SUMS, ALONE], ids=["team", "alone"])
def test_it_keeps_the_contract(task, sandbox):
    assert check(task, sandbox, instances=1, episodes=6) == []
