"""A task without demonstrations: it trains and is planned and checked without a warm start, and only so."""

import dataclasses
import random
import re

import pytest
from fakes import Sum
from shared_trainer import Paid, experiment, fixed

from atgrpo_jax.common.errors import ConfigError
from atgrpo_jax.planning.workload import workload_of
from atgrpo_jax.rollout.rollout import RolloutConfig
from atgrpo_jax.run.folder import RunFolder
from atgrpo_jax.run.gin_config import load
from atgrpo_jax.run.loop import train
from atgrpo_jax.tasks.protocol import Demonstrating, Task, missing
from atgrpo_jax.tasks.workflow import Workflow
from atgrpo_jax.tools.check_task import check, check_experiment
from atgrpo_jax.tools.one_call import guess
from atgrpo_jax.update.warm_start import WarmStartConfig


def without_demonstration(cls):
    """The same task without that method."""
    members = {}
    for base in reversed(cls.__mro__[:-1]):
        members |= {name: value for name, value in vars(base).items() if not name.startswith("__")}
        members["__annotations__"] = members.get("__annotations__", {}) | base.__annotations__
    del members["demonstration"]
    members["act"] = _without_super(cls)
    return dataclasses.dataclass(frozen=True)(type("Bare", (), members))


def _without_super(cls):
    return lambda self, state, role, text: cls.act(self, state, role, text)


BareSum = without_demonstration(Sum)
BarePaid = without_demonstration(Paid)


def test_it_is_a_task_that_lacks_nothing():
    assert isinstance(BareSum(), Task) and missing(BareSum()) == []
    assert not isinstance(BareSum(), Demonstrating) and isinstance(Sum(), Demonstrating)


def test_with_a_warm_start_it_is_one_line():
    says = (
        "Experiment.task: Bare has no demonstration, and a warm start needs it; write one, or "
        "experiment.Experiment.warm_start = None"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(says)}$"):
        dataclasses.replace(experiment(), task=BarePaid(), warm_start=WarmStartConfig())


def test_the_line_names_the_file_and_what_it_asks_for_helps(tmp_path, monkeypatch):
    (tmp_path / "bare_task.py").write_text(
        "import dataclasses\nfrom test_no_demonstration import BareSum\n\n\n"
        "@dataclasses.dataclass(frozen=True)\nclass Mine(BareSum):\n    pass\n"
    )
    (tmp_path / "bare.gin").write_text(
        'import bare_task\ninclude "parts/tiny.gin"\nexperiment.Experiment.task = @bare_task.Mine()\n'
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=r"^parts.tiny.gin, line \d+: Experiment.task: Mine has no dem"):
        load("bare.gin")
    assert load("bare.gin", ["experiment.Experiment.warm_start = None"]).warm_start is None


def test_it_trains_as_the_same_task_with_one(tmp_path):
    """Without a warm start, demonstrations are asked of nobody."""
    finals = []
    for name, task in (("bare", BarePaid()), ("full", Paid())):
        x = dataclasses.replace(experiment(fixed), task=task, steps=2, max_logprob_gap=1e9)
        folder = RunFolder(tmp_path / name)
        train(x, folder)
        records = folder.read_metrics()
        finals.append([{k: v for k, v in r.items() if not k.startswith("perf/")} for r in records])
    assert finals[0] == finals[1] and len(finals[0]) == 3


def test_its_workload_is_measured_on_empty_texts():
    x = dataclasses.replace(load("smoke.gin"), task=BareSum(), warm_start=None)
    found = workload_of(x)
    assert found.groups == x.rollout.instances * 2 * 2 and found.longest_prompt == len("<a []><")


def test_it_keeps_the_contract_and_the_checker_says_what_it_could_not_see():
    class Bounded(BareSum):
        def instance(self, split, index):
            return f"{split} {index}"

        def act(self, state, role, text):
            if not (text.isascii() and len(text) < 3):
                text = "x"
            step = super().act(state, role, text)
            return dataclasses.replace(step, reward=dataclasses.replace(step.reward, local=0.0, parts={}))

    assert check(Bounded(), instances=2, episodes=6) == []
    x = dataclasses.replace(
        load("smoke.gin"), task=Bounded(), warm_start=None, rollout=RolloutConfig(max_tokens=1)
    )
    said = []
    assert check_experiment(x, 2, said.append) == []
    assert said[1].startswith("it has no demonstration, so few good answers were tried")
    assert said[2].startswith("the longest prompt has") and "demonstration" not in said[2]


def test_its_faults_are_found_by_texts_at_random():
    class Breaks(BareSum):
        workflow: Workflow = Workflow(("a",), 1)

        def act(self, state, role, text):
            return {}[text] if text == guess(random.Random(0)) else super().act(state, role, text)

    found = [str(problem) for problem in check(Breaks(), instances=1, episodes=60)]
    assert any(line.startswith("no text raises: train 0, turn 0, a: ") for line in found), found
