"""Held-out success of a team: the same rollout, one candidate a node, nothing selected."""

import bisect
import dataclasses
import math
from collections.abc import Callable

import numpy as np
from scipy import special

from atgrpo_jax.common.checks import check_types, require
from atgrpo_jax.common.errors import ConfigError
from atgrpo_jax.common.types import Sampling
from atgrpo_jax.engines.protocol import Engine
from atgrpo_jax.rollout.rollout import Player, engine_propose, play_all
from atgrpo_jax.rollout.team import Team
from atgrpo_jax.sandbox.protocol import Runner
from atgrpo_jax.tasks.calls import calling, kind
from atgrpo_jax.tasks.protocol import Task, ToolTask
from atgrpo_jax.tokens.tokens import Tokenizer

TAIL = 0.025  # left out at each end of an interval of 95 %
Z = 1.959964  # normal quantile of it
# Made-up instances of each kind, one gained in full and one lost in full, in the interval of a difference:
# with these it covers 95 % in simulations, also of few and of one-sided instances (tests/test_evaluation.py).
MADE_UP = 1.5


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

    def sampling(self, rollout: Sampling, temperature: float | None = None) -> Sampling:
        """How an evaluation draws: by what the rollout demands of a legal answer (length, bans, stop strings,
        pattern), and without what it does to explore (top-k, top-p, min-p), at a temperature of its own."""
        own = self.temperature if temperature is None else temperature
        return dataclasses.replace(rollout, temperature=own, top_k=0, top_p=1.0, min_p=0.0)


def drawn_by(sampling: Sampling) -> str:
    """For people: the temperature, and whatever else is not as it always is."""
    greedy = sampling.temperature == 0
    rules = [f"drawn {'greedily' if greedy else f'at temperature {sampling.temperature:g}'}"]
    for field in dataclasses.fields(sampling):
        value = getattr(sampling, field.name)
        if field.name not in ("temperature", "max_tokens") and value != field.default:
            rules.append(f"{field.name} {value!r}")
    return ", ".join((*rules, f"at most {sampling.max_tokens} tokens"))


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
        """95 %: Wilson's for one episode an instance, else Clopper and Pearson's of the effective number of
        draws (after Korn and Graubard 1998). Never of width 0."""
        instances, episodes = self.solved_IK.shape
        if episodes == 1:
            return wilson(int(self.solved_IK.sum()), instances)
        draws = effective_draws(self.solved_IK)
        return clopper_pearson(self.success * draws, draws)

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
    """Paired by instance, with Student's interval of the instances' gains and of ``MADE_UP`` ones of each
    kind (Agresti and Min 2005 add half a one), so it is never of width 0.

    Raises ValueError if the two were not played on as many.
    """
    if len(score.solved_IK) != len(other.solved_IK):
        raise ValueError(f"{len(score.solved_IK)} instances cannot be paired with {len(other.solved_IK)}")
    gain_I = score.solved_IK.mean(1) - other.solved_IK.mean(1)
    count = len(gain_I) + 2 * MADE_UP
    centre = gain_I.sum() / count
    variance = (np.sum(gain_I**2) + 2 * MADE_UP - count * centre**2) / (count - 1)
    spread = special.stdtrit(count - 1, 1 - TAIL) * math.sqrt(variance / count)
    return Difference(
        float(gain_I.mean()),
        max(-1.0, float(centre - spread)),
        min(1.0, float(centre + spread)),
        int((gain_I > 0).sum()),
        int((gain_I < 0).sum()),
    )


def available(task: Task | ToolTask, split: str, most: int) -> int:
    """How many instances a split has, at most ``most``. Raises ConfigError if it has none."""

    def ends_before(count: int) -> bool:
        try:
            with calling(task, "instance", f"{split} instance {count - 1}"):
                task.instance(split, count - 1)
        except IndexError:
            return True
        return False

    found = bisect.bisect_left(range(1, most + 1), True, key=ends_before)
    if not found:
        raise ConfigError(f"{kind(task)} has no instance of split {split!r}")
    return found


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


def effective_draws(solved_IK: np.ndarray) -> float:
    """How many independent draws K episodes of each of I instances are worth: from I, where episodes of an
    instance all end alike, to I K, where they have no more in common than any others.

    It is I p (1 - p) / (variance of the instances' means). Two made-up instances, one always solved and one
    never, stand for what few instances, or a p near 0 or 1, cannot tell of it.
    """
    instances, episodes = solved_IK.shape
    means_I = np.append(solved_IK.mean(1), [0.0, 1.0])
    p = means_I.mean()
    return float(np.clip(instances * p * (1 - p) / means_I.var(ddof=1), instances, instances * episodes))


def clopper_pearson(successes: float, n: float) -> tuple[float, float]:
    """95 % interval of a proportion (Clopper and Pearson 1934), by the beta distribution, for any counts."""
    low = special.betaincinv(successes, n - successes + 1, TAIL) if successes > 0 else 0.0
    high = special.betaincinv(successes + 1, n - successes, 1 - TAIL) if successes < n else 1.0
    return float(low), float(high)
