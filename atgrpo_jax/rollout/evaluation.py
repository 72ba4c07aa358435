"""Measures success on held-out instances: the same rollout, with groups of one candidate.

Axis letters: I instances, K episodes of an instance.
"""

import bisect
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from scipy import special

from atgrpo_jax.common.checks import check_types, require
from atgrpo_jax.common.errors import ConfigError
from atgrpo_jax.common.hosts import ALONE, Hosts
from atgrpo_jax.common.literals import told
from atgrpo_jax.common.progress import counted
from atgrpo_jax.common.types import FAILURES, Episode, Sampling
from atgrpo_jax.engines.protocol import Engine
from atgrpo_jax.partners.answers import Cost, Partners, costs_since
from atgrpo_jax.rollout.intervals import TAIL, clopper_pearson, effective_draws, wilson
from atgrpo_jax.rollout.player import Player
from atgrpo_jax.rollout.rollout import engine_propose, play_all
from atgrpo_jax.rollout.team import Team
from atgrpo_jax.sandbox.protocol import Runner
from atgrpo_jax.tasks.calls import calling, kind
from atgrpo_jax.tasks.protocol import Task, ToolTask
from atgrpo_jax.tokens.tokens import Tokenizer

# The interval of a difference counts this many made-up instances with a gain of +1 and as many with
# -1. With them it covers 95 % in simulations, even if instances are few or nearly all gain or lose
# (tests/test_evaluation.py).
MADE_UP = 1.5
# The number of the first episode of an evaluation on the train split. It is above those of training, so that
# no address is one of training, whatever the step.
APART = 1_000_000


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    temperature: float = 1.0  # 0 is greedy
    instances: int = 200  # of the test split, before and after training; all if it has fewer
    every: int = 20  # steps between evaluations on the validation split, from step 0 on; 0 for none
    validation_instances: int = 100  # of the validation split, each time; all if it has fewer
    # Steps between measurements of what each role's words change, on the validation split; 0 for none.
    influence_every: int = 0

    def __post_init__(self):
        check_types(self)
        require(self, "temperature", self.temperature >= 0, "must not be negative")
        require(self, "every", self.every >= 0, "must not be negative")
        for name in ("instances", "validation_instances"):
            require(self, name, getattr(self, name) >= 1, "must be at least 1")
        measured = self.influence_every
        fits = measured == 0 or (measured > 0 and self.every > 0 and measured % self.every == 0)
        require(self, "influence_every", fits, f"must be 0 or a multiple of every = {self.every}")

    def __repr__(self) -> str:
        """Tells ``influence_every`` only if it is set: runs from before it are known by this text."""
        return told(self, {"influence_every": 0})

    def validates(self, step: int, steps: int) -> bool:
        """Returns whether step ``step`` of ``steps`` is followed by an evaluation on the validation split."""
        return bool(self.every) and (step % self.every == 0 or step == steps)

    def sampling(self, rollout: Sampling, temperature: float | None = None) -> Sampling:
        """Returns the sampling settings of an evaluation.

        They keep the rollout's rules for a legal answer (lengths, banned tokens, stop strings,
        pattern) and drop top-k, top-p and min-p, which shape exploration. The temperature is the
        argument, or else this config's.
        """
        own = self.temperature if temperature is None else temperature
        return dataclasses.replace(rollout, temperature=own, top_k=0, top_p=1.0, min_p=0.0)


def drawn_by(sampling: Mapping[str, Sampling]) -> str:
    """Describes roles' sampling settings in words: temperature, token limit, what is not default."""
    told = {role: _told(own) for role, own in sampling.items()}
    if len(set(told.values())) == 1:
        return next(iter(told.values()))
    return "; ".join(f"{role} {words}" for role, words in told.items())


def _told(sampling: Sampling) -> str:
    greedy = sampling.temperature == 0
    rules = [f"drawn {'greedily' if greedy else f'at temperature {sampling.temperature:g}'}"]
    for field in dataclasses.fields(sampling):
        value = getattr(sampling, field.name)
        if field.name not in ("temperature", "max_tokens") and value != field.default:
            rules.append(f"{field.name} {value!r}")
    return ", ".join((*rules, f"at most {counted(sampling.max_tokens, 'token')}"))


@dataclasses.dataclass(frozen=True, eq=False)
class Score:
    """Holds how a team did on I instances, with K episodes of each."""

    solved_IK: np.ndarray  # bool
    mean_turns: float  # turns of an episode
    episodes: Sequence[Episode] = ()
    spent: Mapping[str, Cost] = dataclasses.field(default_factory=dict)  # on each role's partner

    @property
    def failed(self) -> int:
        """Returns how many episodes an engine, a tool or a partner failed. They count as not solved."""
        return sum(map(failed, self.episodes))

    @property
    def success(self) -> float:
        """Returns avg@K, the share of solved episodes."""
        return float(self.solved_IK.mean())

    @property
    def interval(self) -> tuple[float, float]:
        """Returns the 95 % interval of ``success``; its width is never 0.

        With one episode for each instance it is Wilson's, else Clopper and Pearson's of the
        effective number of draws (after Korn and Graubard 1998).
        """
        instances, episodes = self.solved_IK.shape
        if episodes == 1:
            return wilson(int(self.solved_IK.sum()), instances)
        draws = effective_draws(self.solved_IK)
        return clopper_pearson(self.success * draws, draws)

    def pass_at(self, k: int) -> float:
        """Returns pass@k, the chance that at least one of k episodes solves an instance.

        The estimate is unbiased (arXiv 2107.03374, eq. 1). Raises ValueError if k is not in 1 to K.
        """
        K = self.solved_IK.shape[1]
        if not 1 <= k <= K:
            raise ValueError(f"pass@{k} needs at least {k} episodes an instance, there are {K}")
        failed_I = K - self.solved_IK.sum(1)
        return float(np.mean([1 - math.comb(int(f), k) / math.comb(K, k) for f in failed_I]))

    def __str__(self) -> str:
        instances, episodes = self.solved_IK.shape
        low, high = self.interval
        several = f" x {episodes} episodes" if episodes > 1 else ""
        at_least_one = f"pass@{episodes} {self.pass_at(episodes):.1%}, " if episodes > 1 else ""
        what = "an engine, a tool or a partner"
        lost = f"; {what} failed {counted(self.failed, 'episode')}, not solved here" if self.failed else ""
        return (
            f"{self.success:.1%} of {instances}{several} (95 % interval {low:.1%} to {high:.1%}), "
            f"{at_least_one}{self.mean_turns:.2f} turns{lost}"
        )

    def record(self) -> dict[str, float]:
        low, high = self.interval
        record = {"success": self.success, "low": low, "high": high, "turns": self.mean_turns}
        if self.failed:
            record["failed"] = float(self.failed)
        if self.spent:
            total = sum(self.spent.values(), Cost())
            record |= {"partner_answers": float(total.answers), "partner_tokens": float(total.tokens)}
        episodes = self.solved_IK.shape[1]
        return record if episodes == 1 else record | {f"pass@{episodes}": self.pass_at(episodes)}


def failed(episode: Episode) -> bool:
    """Returns whether an engine, a tool or a partner failed an episode.

    A prompt that became too long is no such failure: the words of roles have made it so.
    """
    last = (one for group in episode.groups if group.chosen is None for one in group.candidates)
    return episode.end == "engine_error" and all(one.sample.finish != "too_long" for one in last)


@dataclasses.dataclass(frozen=True)
class Difference:
    """Holds the success of one team minus that of another on the same instances.

    ``low`` and ``high`` are its 95 % interval.
    """

    mean: float
    low: float
    high: float
    better: int  # number of instances on which the first team is better
    worse: int

    def __str__(self) -> str:
        return (
            f"{self.mean:+.1%} (95 % interval {self.low:+.1%} to {self.high:+.1%}); "
            f"better on {counted(self.better, 'instance')}, worse on {self.worse}"
        )


def difference(score: Score, other: Score) -> Difference:
    """Compares two scores, paired by instance.

    The interval is Student's for the gains of all instances and ``MADE_UP`` made-up ones of each
    kind (Agresti and Min 2005 add half of one). So its width is never 0.

    Raises ValueError if the scores have different numbers of instances.
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
    """Returns how many instances a split has, at most ``most``. Raises ConfigError if none."""

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
    sampling: Sampling | Mapping[str, Sampling],
    *,
    seed: int,
    step: int,
    split: str,
    instances: int,
    episodes: int = 1,
    runner: Runner | None = None,
    on_episode: Callable[[], None] = lambda: None,
    hosts: Hosts = ALONE,
    at_once: int | None = None,
    partners: Partners | None = None,
) -> Score:
    """Plays the first ``instances`` of ``split``, each ``episodes`` times, and scores the team.

    Several ``hosts`` play together; see ``play_all``.

    Every role draws one candidate, which is executed. ``partners`` answer for roles that have some. Episodes
    on the train split are numbered from ``APART``.
    """
    player = evaluating(task, team, tokenizer, engine, sampling, seed, runner, partners)
    costs_before = partners.costs if partners is not None else {}
    numbers = range(instances)
    first = APART if split == "train" else 0
    played = play_all(player, step, split, numbers, episodes, on_episode, hosts, at_once, first=first)
    solved_IK = np.array([episode.solved for episode in played]).reshape(instances, episodes)
    spent = dict(costs_since(partners, costs_before))
    return Score(solved_IK, sum(episode.turns for episode in played) / len(played), played, spent)


def evaluating(
    task: Task | ToolTask,
    team: Team,
    tokenizer: Tokenizer,
    engine: Engine,
    sampling: Sampling | Mapping[str, Sampling],
    seed: int,
    runner: Runner | None,
    partners: Partners | None,
) -> Player:
    """Returns what plays the episodes of an evaluation: groups of one candidate, which is executed.

    An episode ends where a tool or the engine failed, as nothing that a role did can be executed then.
    """
    return Player(
        task,
        team,
        tokenizer,
        engine_propose(engine, sampling, 1, seed),
        sampling,
        seed,
        runner=runner,
        select="first",
        exclude=FAILURES,
        partners=partners,
    )
