"""Held-out success of a team: the same rollout, one candidate a node, nothing selected."""

import dataclasses
import math
from collections.abc import Callable

from atgrpo_jax.checks import check_types, require
from atgrpo_jax.engines.base import Engine
from atgrpo_jax.rollout import Player, engine_propose, play_all
from atgrpo_jax.tasks.base import Task
from atgrpo_jax.team import Team
from atgrpo_jax.tokens import Tokenizer
from atgrpo_jax.types import Sampling


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    temperature: float = 1.0  # 0 is greedy
    instances: int = 200  # of the test split, before and after training
    every: int = 20  # steps between evaluations on the validation split; 0 for none
    validation_instances: int = 100

    def __post_init__(self):
        check_types(self)
        require(self, "temperature", self.temperature >= 0, "must not be negative")
        require(self, "every", self.every >= 0, "must not be negative")
        for name in ("instances", "validation_instances"):
            require(self, name, getattr(self, name) >= 1, "must be at least 1")


@dataclasses.dataclass(frozen=True)
class Score:
    """Success over ``instances`` episodes, with the 95 % Wilson interval."""

    instances: int
    solved: int
    mean_turns: float

    @property
    def success(self) -> float:
        return self.solved / self.instances

    @property
    def interval(self) -> tuple[float, float]:
        return wilson(self.solved, self.instances)

    def __str__(self) -> str:
        low, high = self.interval
        return (
            f"{self.success:.1%} of {self.instances} (95 % interval {low:.1%} to {high:.1%}), "
            f"{self.mean_turns:.2f} turns"
        )

    def record(self) -> dict[str, float]:
        low, high = self.interval
        return {"success": self.success, "low": low, "high": high, "turns": self.mean_turns}


def evaluate(
    task: Task,
    team: Team,
    tokenizer: Tokenizer,
    engine: Engine,
    sampling: Sampling,
    *,
    seed: int,
    step: int,
    split: str,
    instances: int,
    on_episode: Callable[[], None] = lambda: None,
) -> Score:
    """Plays ``instances`` episodes of ``split``, every role drawing one candidate."""
    propose = engine_propose(engine, sampling, 1, seed)
    player = Player(task, team, tokenizer, propose, sampling, seed, select="first")
    episodes = play_all(player, step, split, range(instances), on_episode=on_episode)
    return Score(
        instances,
        sum(episode.solved for episode in episodes),
        sum(episode.turns for episode in episodes) / instances,
    )


def wilson(successes: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson score interval of a proportion; z is the normal quantile of the confidence."""
    p = successes / n
    centre = p + z * z / (2 * n)
    spread = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)
