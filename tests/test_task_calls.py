"""What a task's code may do to a run, beside what tests/test_rollout_faults.py tries of its answers."""

import dataclasses
import random

import pytest
from fakes import CharTokenizer, Longest, Sum

from atgrpo_jax.common.errors import ConfigError, RunError, Stopped
from atgrpo_jax.common.stopping import Stopping
from atgrpo_jax.common.types import Sampling
from atgrpo_jax.rollout.evaluation import available
from atgrpo_jax.rollout.player import Player
from atgrpo_jax.rollout.rollout import play_all
from atgrpo_jax.rollout.team import Team
from atgrpo_jax.run.folder import RunFolder
from atgrpo_jax.run.gin_config import load
from atgrpo_jax.run.stages import Stages
from atgrpo_jax.tasks.calls import calling
from atgrpo_jax.tasks.splits import SPLITS
from atgrpo_jax.update.warm_start import demonstrations


@dataclasses.dataclass(frozen=True)
class Without(Longest):
    """Raises ``error`` for instances of ``split``."""

    split: str = "test"
    error: object = IndexError(0)

    def instance(self, split, index):
        if split == self.split:
            raise self.error
        return index


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("error", [IndexError(0), KeyError("x"), ValueError("no\nfile"), ZeroDivisionError()])
def test_a_split_without_a_first_instance_is_one_line_before_anything_starts(tmp_path, split, error):
    x = dataclasses.replace(load("smoke.gin"), task=Without(split=split, error=error))
    says = rf"^Without has no instance to use for {split}: {type(error).__name__}: ?[^\n]*$"
    with pytest.raises(ConfigError, match=says):
        Stages(x, RunFolder(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_errors_for_people_pass_as_they_are(tmp_path):
    x = dataclasses.replace(load("smoke.gin"), task=Without(error=RunError("the file is cut")))
    with pytest.raises(RunError, match="^the file is cut$"):
        Stages(x, RunFolder(tmp_path))


def test_a_task_may_end_nothing_at_the_start_in_a_warm_start_or_in_counting_instances(tmp_path):
    task = Without(error=SystemExit(0))
    x = dataclasses.replace(load("smoke.gin"), task=task)
    says = r"Without.instance raised SystemExit\(0\); a task must not end the run"
    with pytest.raises(RunError, match=says):
        Stages(x, RunFolder(tmp_path))
    with pytest.raises(RunError, match=says):
        available(task, "test", 5)

    class Demonstrates(Sum):
        def demonstration(self, state, role, rng: random.Random):
            raise SystemExit(0)

    propose = demonstrations(Demonstrates(), CharTokenizer(), 2, 0)
    player = Player(Demonstrates(), Team(), CharTokenizer(), propose, Sampling(), 0)
    says = (
        r"^step 1, train instance 0, episode 0, turn 0, role a: Demonstrates.demonstration raised SystemExit"
    )
    with pytest.raises(RunError, match=says):
        play_all(player, 1, "train", range(2))


def test_ordinary_exceptions_and_stops_pass():
    for error in (ValueError("x"), RecursionError(), Stopped(15)):
        with pytest.raises(type(error)) as raised, calling(Sum(), "act", "here"):
            raise error
        assert raised.value is error
    says = "here: Sum.act raised KeyboardInterrupt"
    with Stopping(), pytest.raises(RunError, match=says), calling(Sum(), "act", "here"):
        raise KeyboardInterrupt
