"""Mathematics with several who reason, several who write programs, and a judge: 3, 5 and 7 agents."""

import fakes
import pytest

from atgrpo_jax.common.types import Outcome
from atgrpo_jax.sandbox.pool import SandboxConfig
from atgrpo_jax.tasks.math.math import Math, Problem, State
from atgrpo_jax.tasks.workflow import Workflow

SEVEN = State(Problem("1", "What is 3 + 4?", "7"))
AGENTS = pytest.mark.parametrize("agents", [3, 5, 7])


def aggregation(agents, turns=2):
    """As in gin/paper/aggregation_*.gin."""
    numbers = range(1, agents // 2 + 1)
    others = *(f"reasoner{i}" for i in numbers), *(f"tool{i}" for i in numbers)
    return Math(workflow=Workflow((others, "judge"), turns=turns))


@pytest.fixture(scope="module")
def sandbox():
    made = SandboxConfig(workers=1, packages=Math.packages, cpu_s=2, wall_s=4.0).build(Math.warm_up)
    yield made
    made.close()


def words(role, answer):
    """A role's text that gives an answer; a program that breaks, or no answer at all, for None."""
    if role.startswith("tool"):
        return "```python\n1 / 0\n```" if answer is None else f"```python\nprint({answer})\n```"
    return "I do not know." if answer is None else f"\\boxed{{{answer}}}"


def turn(sandbox, task, state, answers):
    """Steps of a turn, by role; ``answers`` of those not named is 7."""
    steps = {}
    for role in task.workflow.speakers:
        steps[role] = fakes.say(sandbox, task, state, role, words(role, answers.get(role, 7)))
        state = steps[role].state
    return steps


def pay(steps):
    return {role: (round(step.reward.team, 9), round(step.reward.local, 9)) for role, step in steps.items()}


@AGENTS
def test_an_episode_by_hand(sandbox, agents):
    task = aggregation(agents)
    others = {f"reasoner{i}": 8 for i in range(2, 4)} | {f"tool{i}": None for i in range(2, 4)}
    first = turn(sandbox, task, SEVEN, {"tool1": 8, "judge": 8} | others)
    # The first reasoner is right, so is the team, until the last reasoner, or the judge, says otherwise.
    wrong = {f"reasoner{i}": (-1.0 if i == 2 else 0.0, 0.2) for i in range(2, 4)}
    broken = {f"tool{i}": (0.0, 0.1) for i in range(2, 4)}
    judged = {"judge": (-1.0 if agents == 3 else 0.0, 0.2)}
    expected = {"reasoner1": (1.0, 1.0), "tool1": (0.0, 0.2), **wrong, **broken, **judged}
    assert pay(first) == {role: expected[role] for role in task.workflow.speakers}
    assert all(first[r].outcome is Outcome.INVALID for r in broken if r in first)
    assert not any(step.done or step.solved for step in first.values())
    # All come round: each is paid what it has gained, the team once, and agreement ends it.
    second = turn(sandbox, task, first["judge"].state, {})
    gained = {role: (0.0, 0.8) for role in (*wrong, "tool1", "judge")} | {role: (0.0, 0.9) for role in broken}
    expected = {"reasoner1": (1.0, 0.0)} | gained
    assert pay(second) == {role: expected[role] for role in task.workflow.speakers}
    assert [role for role, step in second.items() if step.done] == ["judge"] and second["judge"].solved
    for role in task.workflow.speakers:
        assert first[role].reward.local + second[role].reward.local == pytest.approx(1.0)
    assert sum(step.reward.team for step in (*first.values(), *second.values())) == 1.0


@AGENTS
def test_only_agreement_of_all_ends_it_early_and_it_may_be_wrong(sandbox, agents):
    task = aggregation(agents)
    eight = dict.fromkeys(task.workflow.speakers, 8)
    agreed = turn(sandbox, task, SEVEN, eight)["judge"]
    assert (agreed.done, agreed.solved, agreed.reward.team) == (True, False, 0.0)
    for odd in ({"tool1": 7}, {"tool1": None}, {"reasoner1": None}, {"judge": 7}):
        assert not turn(sandbox, task, SEVEN, eight | odd)["judge"].done


@AGENTS
def test_the_judge_decides_the_last_turn(sandbox, agents):
    task = aggregation(agents, turns=1)
    wrong = dict.fromkeys(task.workflow.speakers[:-1], 8)
    judge = turn(sandbox, task, SEVEN, wrong)["judge"]
    assert (judge.reward.team, judge.reward.local, judge.solved) == (1.0, pytest.approx(1.0), True)
    judge = turn(sandbox, task, SEVEN, {"judge": 8})["judge"]
    assert (judge.reward.team, judge.done, judge.solved) == (-1.0, True, False)
    silent = turn(sandbox, task, SEVEN, {"judge": None})[
        "judge"
    ]  # then the last reasoner's answer is the team's
    assert (silent.reward.team, silent.solved, silent.outcome) == (0.0, True, Outcome.INVALID)


@AGENTS
def test_who_hears_whom(sandbox, agents):
    task = aggregation(agents)
    state = SEVEN
    for role in task.workflow.speakers[:-1]:
        assert "Its answer" not in task.prompt(state, role)[0]["content"]
        state = fakes.say(sandbox, task, state, role, words(role, 7)).state
    assert task.prompt(state, "judge")[0]["content"].count("Its answer: 7") == agents - 1
    state = fakes.say(sandbox, task, state, "judge", words("judge", 8)).state
    for role in task.workflow.speakers[:-1]:
        assert task.prompt(state, role)[0]["content"].count("Its answer") == agents
