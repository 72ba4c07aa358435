"""The checker guards every call, goes on after what it finds, and outlives the task."""

import contextlib
import dataclasses
import itertools
import os
import re
import sys
import time

import pytest
from fakes import CharTokenizer
from test_check_faults import Good

from atgrpo_jax.common.errors import RunError
from atgrpo_jax.run.gin_config import load
from atgrpo_jax.tasks.workflow import Workflow
from atgrpo_jax.tools import check_task
from atgrpo_jax.tools.check_task import check, check_experiment, found_in_child
from atgrpo_jax.tools.children import watched
from atgrpo_jax.tools.one_call import Violation

COUNTER = itertools.count()


class NoRepr:
    def __repr__(self):
        raise ValueError("no text")


class UnshownState(Good):
    def initial(self, instance):
        return NoRepr()


class UnshownInstance(Good):
    def instance(self, split, index):
        return NoRepr()


class LazyPrompt(Good):
    """Its messages raise when they are read."""

    def prompt(self, state, role):
        return [{"role": "user", "content": None}]


class Exits(Good):
    def prompt(self, state, role):
        sys.exit(0)


class NoMessages(Good):
    def prompt(self, state, role):
        return []


class OddNote(Good):
    def act(self, state, role, text):
        return dataclasses.replace(super().act(state, role, text), note=5)


class Silent(Good):
    def speaks(self, state, role):
        return "yes"


class NewInstances(Good):
    def instance(self, split, index):
        return f"{split} {next(COUNTER)}"


class NewPrompts(Good):
    def prompt(self, state, role):
        return [{"role": "user", "content": f"number {next(COUNTER)}"}]


class NewAnswers(Good):
    def demonstration(self, state, role, rng):
        return str(next(COUNTER) % 10)


class Remembers(Good):
    def act(self, state, role, text):
        step = super().act(state, role, text)
        return dataclasses.replace(step, state=(*step.state, 1000 + next(COUNTER)))


class Changes(Good):
    def initial(self, instance):
        return []

    def act(self, state, role, text):
        state.append(7)
        return dataclasses.replace(super().act((), role, text), state=tuple(state))


class Empty(Good):
    """Fails in its second turn, where it looks for a number below 0."""

    def demonstration(self, state, role, rng):
        return str(rng.randrange(len(state) or 5) if len(state) < 2 else rng.randrange(0))


class Large(Good):
    def initial(self, instance):
        return "long " * 99

    def prompt(self, state, role):
        raise KeyError(role)


def test_the_state_in_which_a_call_failed_is_shown():
    def told(task, rule):
        found = check(task, instances=1, episodes=2)
        return next(problem.seen for problem in found if problem.rule == rule)

    seen = told(Empty(), "demonstrations are texts")
    assert re.fullmatch(r"train 0, turn 1, a: ValueError: empty range.*, in the state \(\d, \d\)", seen)
    rule = "prompts are lists of messages"
    assert re.search(r"KeyError: 'a' \(.*\), in the state '(long ){39}long \.\.\.$", told(Large(), rule))


@pytest.mark.parametrize(
    ("task", "says"),
    [
        (UnshownState(), r"instances and states have a repr: train 0: ValueError: no text \(.*, line \d+\)"),
        (UnshownInstance(), r"instances and states have a repr: train 0: ValueError: no text"),
        (
            Good(workflow=("a", "b")),
            r"a task has all methods: Good.workflow is \('a', 'b'\), and no tasks.workflow",
        ),
        (LazyPrompt(), r"prompts are lists of messages: train 0, turn 0, a: .*None.* is none, as \[{'role'"),
        (NoMessages(), r"prompts are lists of messages: train 0, turn 0, a: '\[\]' is none"),
        (Exits(), r"prompts are lists of messages: train 0, turn 0, a: SystemExit: 0"),
        (OddNote(), r"no text raises: train 0, turn 0, a: '\d': TypeError: the note is 5, and no text"),
        (Silent(), r"speaks says True or False: train 0, turn 0: RunError"),
        (
            NewInstances(),
            r"instances are pure: train 0 .*: its repr is \"'train \d+'\" and then \"'train \d+'",
        ),
        (NewPrompts(), r"prompts are pure: train 0, turn 0, a: its repr is .*number \d+.* and then .*number"),
        (
            NewAnswers(),
            r"demonstrations depend on their rng only: .*: its repr is \"'\d'\" and then \"'\d'\"",
        ),
        (
            Remembers(),
            r"siblings .*: '\d' leads elsewhere later: its repr is .*state=\(\d+.* and then .*state",
        ),
        (Changes(), r"states do not change: .*: its repr is '\[\]' and then '\[7, 7, 7"),
    ],
    ids=lambda value: "" if isinstance(value, str) else type(value).__name__,
)
def test_each_is_a_line_with_its_cause_and_place(task, says):
    found = [str(problem) for problem in check(task, instances=1, episodes=2)]
    assert any(re.search(says, line) for line in found), found
    assert all("\n" not in line for line in found)


class ThreeFaults(Good):
    """Two splits share instances, prompts of one role raise, and a text does."""

    workflow: Workflow = Workflow(("a", "b"), 1)

    def instance(self, split, index):
        return index

    def prompt(self, state, role):
        return super().prompt(state, role) if role == "a" else {}["numbers"]

    def act(self, state, role, text):
        return super().act(state, role, text) if text != "####" else 1 / 0


def experiment(task, **changes):
    return dataclasses.replace(load("smoke.gin"), task=task, tokenizer=CharTokenizer(), **changes)


def test_one_finding_hides_no_other():
    said = []
    found = check_experiment(experiment(ThreeFaults()), 2, said.append)
    assert {problem.rule for problem in found} == {
        "splits share no instance", "prompts are lists of messages", "no text raises",
    }  # fmt: skip
    assert said[-1].startswith("the longest prompt has")
    (first, *_) = (p.seen for p in found if p.rule == "prompts are lists of messages")
    where = r"train 0, turn 0, b: KeyError: 'numbers' \(test_check_goes_on.py, line \d+\), in the state "
    assert re.match(where, first)


def test_what_raises_while_instances_are_counted_is_a_line():
    class Ends(Good):
        def instance(self, split, index):
            raise SystemExit(3)

    found = check_experiment(experiment(Ends()), 1)
    assert {problem.rule for problem in found} == {"instances can be made"}


def test_a_tokenizer_that_refuses_a_prompt_is_a_line():
    class Refuses(CharTokenizer):
        def prompt_ids(self, messages):
            raise ValueError("no such role")

    found = check_experiment(dataclasses.replace(experiment(Good()), tokenizer=Refuses()), 1)
    rule = "prompts and demonstrations become tokens"
    assert str(found[0]).startswith(f"{rule}: train 0: ValueError: no such role")


# A task may end the process by something that is tried in no child: a text that is nearly an answer, or
# a state that comes late. The check itself is a child then.


class AbortsLate(Good):
    """Scores nearly-answers of later instances with a library that aborts."""

    def initial(self, instance):
        return (0,) if instance.endswith(" 4") else ()

    def act(self, state, role, text):
        if state[:1] == (0,) and len(text) == 3 and text.isdigit():
            os.abort()
        return super().act(state, role, text)


class AbortsInInstance(Good):
    def instance(self, split, index):
        return os._exit(5) if split == "test" else f"{split} {index}"


class HangsLate(AbortsLate):
    def act(self, state, role, text):
        while state[:1] == (0,) and len(text) == 3 and text.isdigit():
            time.sleep(1)
        return Good.act(self, state, role, text)


@pytest.mark.parametrize(
    ("task", "says"),
    [
        (AbortsLate(), r"train 4, turn 0, a: '(\d)\1\1' ends the process by SIGABRT"),
        (AbortsInInstance(), r"test: instance ends the process with code 5"),
        (HangsLate(), r"train 4, turn 0, a: '(\d)\1\1' does not end within 3 seconds"),
    ],
    ids=lambda value: "" if isinstance(value, str) else type(value).__name__,
)
def test_what_ends_the_check_is_named_after_what_it_found(task, says):
    task = dataclasses.replace(task, workflow=Workflow(("a",), 2))
    tried = experiment(task, rollout=dataclasses.replace(load("smoke.gin").rollout, max_tokens=1))
    found = list(found_in_child(tried, 6, print, silence=3.0))
    assert found[-1].rule == "no text ends or holds up the process"
    assert re.fullmatch(says, found[-1].seen), found


def test_problems_come_out_of_the_child_as_the_check_finds_them():
    tried = experiment(ThreeFaults())
    more = Violation("made up", "here")
    said = []
    found = list(found_in_child(tried, 2, said.append, more_found=lambda: [more]))
    assert (
        list(dict.fromkeys(found)) == [*check_experiment(tried, 2), more] and "the longest prompt" in said[-1]
    )


def test_a_slow_task_may_take_its_time_in_another_process(monkeypatch):
    """No call takes long, but all of them together may: a child would be killed for its silence."""
    monkeypatch.setattr(check_task, "check_experiment", lambda *args: [])
    asked = []

    def more_found():
        asked.append(os.getpid())
        return []

    assert list(found_in_child(experiment(Good()), 1, print, more_found=more_found)) == []
    assert asked == [os.getpid()]


def test_an_error_for_people_passes_as_it_is(monkeypatch):
    def fails(*args):
        raise RunError("the sandbox cannot be made")

    monkeypatch.setattr(check_task, "check_experiment", fails)
    with pytest.raises(RunError, match="^the sandbox cannot be made$"):
        list(found_in_child(experiment(Good()), 1, print))


def test_a_watched_child_is_not_left_behind():
    def work(send):
        send(os.getpid())
        time.sleep(60)

    seen = watched(work, 30.0)
    child, _ = next(seen)
    with contextlib.closing(seen):
        os.kill(child, 0)
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)
