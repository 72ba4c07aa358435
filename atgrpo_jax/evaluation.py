"""Held-out success of a team: the same rollout, one candidate a node, nothing selected."""

import bisect
import dataclasses
import math
from collections.abc import Callable

import numpy as np

from atgrpo_jax.checks import check_types, require
from atgrpo_jax.engines.base import Engine
from atgrpo_jax.rollout import Player, engine_propose, play_all
from atgrpo_jax.sandbox.base import Runner
from atgrpo_jax.tasks.base import Task, ToolTask
from atgrpo_jax.team import Team
from atgrpo_jax.tokens import Tokenizer
from atgrpo_jax.types import Sampling

Z = 1.959964  # normal quantile of 95 %


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    temperature: float = 1.0  # 0 is greedy
    instances: int = 200  # of the test split, before and after training; all, if it has fewer
    every: int = 20  # steps between evaluations on the validation split; 0 for none
    validation_instances: int = 100

    def __post_init__(self):
        check_types(self)
        require(self, "temperature", self.temperature >= 0, "must not be negative")
        require(self, "every", self.every >= 0, "must not be negative")
        for name in ("instances", "validation_instances"):
            require(self, name, getattr(self, name) >= 1, "must be at least 1")


@dataclasses.dataclass(frozen=True, eq=False)
class Score:
    """``solved_IK`` of K episodes an instance, and the turns they took."""

    solved_IK: np.ndarray
    mean_turns: float

    @property
    def success(self) -> float:
        """avg@K: the share of solved episodes."""
        return float(self.solved_IK.mean())

    @property
    def interval(self) -> tuple[float, float]:
        """95 %: Wilson's for one episode an instance, else normal over the instances' means."""
        instances, episodes = self.solved_IK.shape
        if episodes == 1:
            return wilson(int(self.solved_IK.sum()), instances)
        low, high = _normal(self.solved_IK.mean(1))
        return max(0.0, low), min(1.0, high)

    def pass_at(self, k: int) -> float:
        """pass@k: the chance that one of k episodes solves an instance, without bias (2107.03374, eq. 1)."""
        K = self.solved_IK.shape[1]
        if not 1 <= k <= K:
            raise ValueError(f"pass@{k} needs at least {k} episodes an instance, there are {K}")
        failed_I = K - self.solved_IK.sum(1)
        return float(np.mean([1 - math.comb(int(f), k) / math.comb(K, k) for f in failed_I]))

    def __str__(self) -> str:
        (instances, episodes), (low, high) = self.solved_IK.shape, self.interval
        several = (
            f" x {episodes} episodes, pass@{episodes} {self.pass_at(episodes):.1%}" if episodes > 1 else ""
        )
        return (
            f"{self.success:.1%} of {instances}{several} (95 % interval {low:.1%} to {high:.1%}), "
            f"{self.mean_turns:.2f} turns"
        )

    def record(self) -> dict[str, float]:
        low, high = self.interval
        record = {"success": self.success, "low": low, "high": high, "turns": self.mean_turns}
        episodes = self.solved_IK.shape[1]
        return record if episodes == 1 else record | {f"pass@{episodes}": self.pass_at(episodes)}


@dataclasses.dataclass(frozen=True)
class Difference:
    """Success of one team less that of another on the same instances, with its 95 % interval."""

    mean: float
    low: float
    high: float
    better: int  # instances
    worse: int

    def __str__(self) -> str:
        return (
            f"{self.mean:+.1%} (95 % interval {self.low:+.1%} to {self.high:+.1%}); "
            f"better on {self.better} instances, worse on {self.worse}"
        )


def difference(score: Score, other: Score) -> Difference:
    """Paired by instance. Raises ValueError if the two were not played on as many."""
    if len(score.solved_IK) != len(other.solved_IK):
        raise ValueError(f"{len(score.solved_IK)} instances cannot be paired with {len(other.solved_IK)}")
    gain_I = score.solved_IK.mean(1) - other.solved_IK.mean(1)
    return Difference(
        float(gain_I.mean()), *_normal(gain_I), int((gain_I > 0).sum()), int((gain_I < 0).sum())
    )


def available(task: Task | ToolTask, split: str, most: int) -> int:
    """How many instances a split has, at most ``most``. Raises ValueError if it has no problems at all."""

    def ends_before(count: int) -> bool:
        try:
            task.instance(split, count - 1)
        except IndexError:
            return True
        return False

    return bisect.bisect_left(range(1, most + 1), True, key=ends_before)


def evaluate(
    task: Task | ToolTask,
    team: Team,
    tokenizer: Tokenizer,
    engine: Engine,
    sampling: Sampling,
    *,
    seed: int,
    step: int,
    split: str,
    instances: int,
    episodes: int = 1,
    runner: Runner | None = None,
    on_episode: Callable[[], None] = lambda: None,
) -> Score:
    """Plays ``instances`` of ``split``, each ``episodes`` times, every role drawing one candidate."""
    propose = engine_propose(engine, sampling, 1, seed)
    player = Player(task, team, tokenizer, propose, sampling, seed, runner=runner, select="first")
    played = play_all(player, step, split, range(instances), episodes, on_episode)
    solved_IK = np.array([episode.solved for episode in played]).reshape(instances, episodes)
    return Score(solved_IK, sum(episode.turns for episode in played) / len(played))


def wilson(successes: int, n: int, z: float = Z) -> tuple[float, float]:
    """Wilson score interval of a proportion; z is the normal quantile of the confidence."""
    p = successes / n
    centre = p + z * z / (2 * n)
    spread = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def _normal(values_I: np.ndarray) -> tuple[float, float]:
    """95 % interval of a mean."""
    spread = Z * values_I.std(ddof=1) / math.sqrt(len(values_I)) if len(values_I) > 1 else math.inf
    return float(values_I.mean() - spread), float(values_I.mean() + spread)
