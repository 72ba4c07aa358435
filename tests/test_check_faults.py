"""The conformance checker calls each way of breaking the contract by its name."""

import contextlib
import dataclasses
import itertools
import math
import os
import random
import re
import signal
import sys
import time

import pytest
from fakes import Sum

from atgrpo_jax.common.errors import ConfigError
from atgrpo_jax.common.types import Outcome, Reward
from atgrpo_jax.run import gin_config
from atgrpo_jax.tasks.prompts import shortened
from atgrpo_jax.tasks.protocol import Transition
from atgrpo_jax.tasks.workflow import Workflow
from atgrpo_jax.tools.check_task import check


class Good(Sum):
    """Keeps the contract; the tests break it in one place each."""

    def instance(self, split, index):
        return f"{split} {index}"

    def act(self, state, role, text):
        if len(text) > 9 or not (text.isascii() and text.isdigit()):
            return Transition(state, Reward.of(0.0), Outcome.INVALID, False, False)
        after = (*state, int(text) % 10)
        solved = sum(after) == 10
        return Transition(after, Reward.of(float(solved), number=0.0), Outcome.OK, sum(after) >= 10, solved)


def test_a_good_task():
    assert check(Good(), instances=3) == []


COUNTER = itertools.count()


def with_act(change):
    """The task whose steps are changed by ``change(step, text)``."""

    class Changed(Good):
        def act(self, state, role, text):
            return change(super().act(state, role, text), text)

    return Changed()


def paying(reward, **fields):
    changed = with_act(lambda step, text: dataclasses.replace(step, reward=reward(step)))
    return dataclasses.replace(changed, **fields)


LONG = Workflow(order=("a", "b"), turns=12)
# Nothing is nearer to being solved after a 0.
to_and_fro = with_act(
    lambda step, text: dataclasses.replace(step, reward=Reward.of(step.reward.team, idle=float(text == "0")))
)


class ImpureInstances(Good):
    def instance(self, split, index):
        return next(COUNTER)


class SharedInstances(Good):
    def instance(self, split, index):
        return index


class ImpurePrompts(Good):
    def prompt(self, state, role):
        return [{"role": "user", "content": str(next(COUNTER))}]


class ImpureDemonstrations(Good):
    def demonstration(self, state, role, rng):
        return str(random.Random(next(COUNTER)).randrange(10))


class Remembers(Good):
    def act(self, state, role, text):
        step = super().act(state, role, text)
        return dataclasses.replace(step, state=(*step.state, next(COUNTER)))


class ChangesItsStates(Good):
    def initial(self, instance):
        return []

    def act(self, state, role, text):
        if text.isdigit():
            state.append(1)
        return Transition(tuple(state), Reward.of(0.0), Outcome.OK, False, False)

    def prompt(self, state, role):
        return [{"role": "user", "content": role}]


class Raises(Good):
    def act(self, state, role, text):
        return super().act(state, role, text) if text else 1 / 0


@pytest.mark.parametrize(
    ("task", "rule"),
    [
        (ImpureInstances(), "instances are pure"),
        (SharedInstances(), "splits share no instance"),
        (ImpurePrompts(), "prompts are pure"),
        (ImpureDemonstrations(), "demonstrations depend on their rng only"),
        (Remembers(), "siblings do not disturb each other"),
        (ChangesItsStates(), "states do not change"),
        (Raises(), "no text raises"),
        (paying(lambda step: Reward.of(math.inf)), "rewards are finite"),
        (paying(lambda step: Reward(0.0, 1.0, {"part": 2.0})), "parts sum to the local reward"),
        (
            with_act(lambda step, text: dataclasses.replace(step, solved=True, done=False)),
            "what is solved is done",
        ),
        (paying(lambda step: Reward.of(-5.0 * step.solved, wandering=1.0)), "failing pays less than solving"),
        (to_and_fro, "failing pays less than solving"),
        (paying(lambda step: Reward.of(11.0 * step.solved)), "rewards are bounded"),
        (paying(lambda step: Reward.of(0.0, lost=-11.0)), "rewards are bounded"),
        (paying(lambda step: Reward.of(0.0, wandering=1.0), workflow=LONG), "rewards are bounded"),
        (paying(lambda step: Reward.of(-0.6), workflow=LONG), "rewards are bounded"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_breaks_it_is_named(task, rule):
    problems = check(task, instances=3)
    assert rule in {problem.rule for problem in problems}
    assert all(str(problem).startswith(problem.rule) for problem in problems)


class Evaluates(Good):
    """Scores by a library that takes any text for Python."""

    def act(self, state, role, text):
        with contextlib.suppress(Exception):
            eval(text)
        return super().act(state, role, text)


class EvaluatesWithoutNames(Good):
    def act(self, state, role, text):
        with contextlib.suppress(Exception):
            eval(text, {"__builtins__": {}})
        return super().act(state, role, text)


class Exits(Good):
    def act(self, state, role, text):
        if text == "####":
            sys.exit(0)
        return super().act(state, role, text)


class Killed(Good):
    def act(self, state, role, text):
        if "漢" in text:
            os.kill(os.getpid(), signal.SIGSEGV)
        return super().act(state, role, text)


class Hangs(Good):
    def act(self, state, role, text):
        while text == "{{ 7 * 7 }} {% for %}":
            time.sleep(1)
        return super().act(state, role, text)


@pytest.mark.parametrize(
    ("task", "says"),
    [
        (Evaluates(), "is evaluated as Python, in the process of the run"),
        (EvaluatesWithoutNames(), "is evaluated as Python, in the process of the run"),
        (Exits(), "'####' ends the process with code 0"),
        (Killed(), "'é漢.*' ends the process by SIGSEGV"),
        (Hangs(), "'{{ 7 . 7 }} {% for %}' does not end within 3 seconds"),
    ],
    ids=lambda value: "" if isinstance(value, str) else type(value).__name__,
)
def test_a_text_that_ends_or_holds_up_the_process_is_named(task, says):
    """What was found besides is not lost."""
    type(task).instance = SharedInstances.instance
    found = check(task, instances=2, episodes=4, patience=3.0)
    seen = [problem.seen for problem in found if problem.rule == "no text ends or holds up the process"]
    assert any(re.search(rf"train 0, turn 0, a: .*{says}", one) for one in seen), found
    assert "splits share no instance" in {problem.rule for problem in found}


ALONE = Workflow(("a",))


class Quadratic(Good):
    """What the regular expression has to choose from grows with the square of a text's length."""

    def act(self, state, role, text):
        if not text.strip("1"):
            re.search("1+y", text[:24_000])
        return super().act(state, role, text)


class Shows(Good):
    """Whatever is said, the next role sees."""

    def initial(self, instance):
        return ("",)

    def prompt(self, state, role):
        return [{"role": "user", "content": f"{role} {state[-1]}"}]

    def act(self, state, role, text):
        return Transition((text,), Reward.of(0.0), Outcome.OK, False, False)


class ShowsBounded(Shows):
    def prompt(self, state, role):
        return [{"role": "user", "content": f"{role} {shortened(state[-1], 100)}"}]


def test_work_and_prompts_are_bounded():
    (found,) = {problem.rule for problem in check(Quadratic(), instances=1, episodes=0, patience=60.0)}
    assert found == "time grows as texts do"
    found = [problem for problem in check(Shows(ALONE), instances=1, episodes=0)]
    assert {problem.rule for problem in found} == {"prompts are bounded"}
    says = "turn 0, a: a long text of '1' of 131,072 characters makes a's next prompt 131,074 long: cut what"
    assert any(says in str(problem) for problem in found), list(map(str, found))
    assert check(ShowsBounded(ALONE), instances=1, episodes=0) == []


class NoAct(Good):
    act = property(lambda self: self.nothing)


class NoState(Good):
    def initial(self, instance):
        raise KeyError("size")


class NoPrompt(Good):
    def prompt(self, state, role):
        return f"{role}, go on"


class PromptRaises(Good):
    def prompt(self, state, role):
        return 1 / 0


class NoDemonstration(Good):
    def demonstration(self, state, role, rng):
        return None


class NoStep(Good):
    def act(self, state, role, text):
        return state, 1.0, False


class NoReward(Good):
    def act(self, state, role, text):
        return Transition(state, 1.0, Outcome.OK, False, False)


class RaisesOnGood(Good):
    def act(self, state, role, text):
        return (
            [][int(text)]
            if text.isdigit() and text.isascii() and len(text) < 9
            else super().act(state, role, text)
        )


class Environment:
    pass


class Unnamed(Good):
    def initial(self, instance):
        return Environment()


@pytest.mark.parametrize(
    ("task", "says"),
    [
        (NoAct(), r"a task has all methods: NoAct has no act$"),
        (
            NoState(),
            r"the first state can be made: train 0: KeyError: 'size' \(test_check_faults.py, line \d+\)",
        ),
        (NoPrompt(), r"prompts are lists of messages: train 0, turn 0, a: 'a, go on' is none"),
        (
            PromptRaises(),
            r"prompts are lists of messages: train 0, turn 0, a: ZeroDivisionError: .*check_faults.py, line",
        ),
        (NoDemonstration(), r"demonstrations are texts: train 0, turn 0, a: 'None' is none"),
        (
            NoStep(),
            r"no text raises: train 0, turn 0, a: '\d': TypeError: act returns tuple, and no Transition",
        ),
        (
            NoReward(),
            r"no text raises: train 0, turn 0, a: '\d': TypeError: "
            "act returns Transition, and no Transition with a",
        ),
        (
            RaisesOnGood(),
            r"no text raises: train 0, turn 0, a: '\d': IndexError: .* \(test_check_faults.py, line \d+\)",
        ),
        (
            Unnamed(),
            r"the first state is pure: train 0: its repr is '.*0x.*' and then '.*0x.*a frozen dataclass",
        ),
    ],
    ids=lambda value: "" if isinstance(value, str) else type(value).__name__,
)
def test_what_cannot_be_called_is_a_line(task, says):
    found = check(task, instances=1, episodes=2)
    assert any(re.search(says, str(problem)) for problem in found), list(map(str, found))


def test_an_experiment_names_what_its_task_lacks(tmp_path):
    (tmp_path / "lacking.gin").write_text(
        "import test_check_faults\n"
        'include "parts/tiny.gin"\nexperiment.Experiment.task = @test_check_faults.NoAct()\n'
    )
    with pytest.raises(ConfigError, match="Experiment.task: NoAct has no act"):
        gin_config.load(str(tmp_path / "lacking.gin"), [])


def test_the_bound_is_the_users():
    task = paying(lambda step: Reward.of(100.0 * step.solved))
    assert {problem.rule for problem in check(task, instances=1)} == {"rewards are bounded"}
    assert check(task, instances=3, bound=100.0) == []
