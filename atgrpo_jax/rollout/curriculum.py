"""Chooses the instances that a step plays, by what they have taught so far. See docs/curriculum.md.

Axis letter: I instances of the pool.
"""

import dataclasses
import types
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

from atgrpo_jax.common.checks import check_types, require
from atgrpo_jax.common.errors import ConfigError
from atgrpo_jax.common.types import Episode, Group
from atgrpo_jax.credit.advantages import running_mean
from atgrpo_jax.credit.groups import Credited
from atgrpo_jax.rollout import odds
from atgrpo_jax.tasks.calls import calling, kind
from atgrpo_jax.tasks.protocol import FromFiles, Play


class Lesson(NamedTuple):
    """What one instance was so far: exponential means over the steps that played it.

    They start as if it taught all that an instance can, so that each is tried (optimistic initial values:
    Sutton and Barto, Reinforcement Learning, 2018, section 2.6).
    """

    success: float = 0.5  # share of its episodes that were solved, of those that came to an end
    signal: float = 1.0  # share of its groups that had a signal


Lessons = Mapping[int, Lesson]  # by number, of the instances that were played
NO_LESSONS: Lessons = types.MappingProxyType({})


@dataclasses.dataclass(frozen=True)
class CurriculumConfig:
    """Says how often training plays which instances of a pool.

    Each instance has a value from 0 to 1, by what it taught so far. It is drawn in proportion to that,
    mixed with draws that are uniform. ``by`` says what its value is:

    - "signal": the share of its groups that had a signal. An instance that is always solved, or
      never, has few.
    - "success": 4 p (1 - p), where p is the share of its episodes that were solved. In mode "tree" these
      are episodes of the best of K; so this is for mode "trajectories".
    """

    # The first so many instances of the train split. 0: as many as the task's files have problems.
    pool: int = 0
    by: Literal["signal", "success"] = "signal"  # what an instance's value is; see above
    floor: float = 0.1  # share of draws that are uniform; so no instance is lost
    decay: float = 0.5  # how much of an instance's means stays when it is played again

    def __post_init__(self):
        check_types(self)
        require(self, "pool", self.pool >= 0, "must not be negative")
        require(self, "floor", 0 < self.floor <= 1, "must be in (0, 1]; with 0, instances would be lost")
        require(self, "decay", 0 <= self.decay < 1, "must be in [0, 1)")


@dataclasses.dataclass(frozen=True)
class Pool:
    """What is known of the instances of a pool before a step, and how likely each is to be drawn."""

    played_I: np.ndarray  # bool; in some step before
    success_I: np.ndarray
    value_I: np.ndarray
    share_I: np.ndarray

    @classmethod
    def of(cls, config: CurriculumConfig, lessons: Lessons, size: int) -> "Pool":
        own = [lessons.get(index, Lesson()) for index in range(size)]
        success_I = np.array([lesson.success for lesson in own])
        signal_I = np.array([lesson.signal for lesson in own])
        value_I = signal_I if config.by == "signal" else odds.learnable(success_I)
        played_I = np.array([index in lessons for index in range(size)])
        return cls(played_I, success_I, value_I, odds.shares(value_I, config.floor))

    def metrics(self, indices: Sequence[int]) -> dict[str, float]:
        """Returns what the shares are, and what was known of the instances that a step played."""
        poor_I = self.value_I < 0.5
        easy_I = self.success_I >= 0.5
        metrics = {
            "effective": odds.effective(self.share_I) / len(self.share_I),
            "largest": self.share_I.max(),
            "tried": self.played_I.mean(),
            "easy": (poor_I & easy_I).mean(),
            "hard": (poor_I & ~easy_I).mean(),
            "repeats": self.played_I[indices].mean(),
            "success": self.success_I[indices].mean(),
            "pool_success": self.success_I.mean(),
        }
        return {f"curriculum/{name}": float(value) for name, value in metrics.items()}


class Picked(NamedTuple):
    """The instances of a step: those of each round that it may play. No instance comes twice."""

    rounds: Sequence[Sequence[int]]
    pool: Pool | None = None  # that they were drawn from, if there is a curriculum

    def metrics(self, rounds: int) -> dict[str, float]:
        """Returns the metrics of a step that played so many rounds; none without a curriculum."""
        played = [index for own in self.rounds[:rounds] for index in own]
        return {} if self.pool is None else self.pool.metrics(played)


def size_of(config: CurriculumConfig, task: Play, needed: int) -> int:
    """Returns how many instances the pool has.

    Raises ConfigError if that is not known, or if files have too few problems for it, or for the
    ``needed`` instances of a step: then some would be in it twice.
    """
    rows = 0
    if isinstance(task, FromFiles):
        with calling(task, "file_rows", "curriculum"):
            rows = len(task.file_rows("train"))
    if not config.pool and not rows:
        raise ConfigError(
            f"CurriculumConfig.pool: {kind(task)} makes problems without end; say how many of them are played"
        )
    if rows and rows < max(config.pool, needed):
        what = "CurriculumConfig.pool asks for" if config.pool > rows else "a step may play"
        raise ConfigError(
            f"CurriculumConfig.pool: the files have {rows} problems for train, and {what} "
            f"{max(config.pool, needed)}; ask for fewer"
        )
    return config.pool or rows


def picked(
    config: CurriculumConfig, lessons: Lessons, size: int, seed: int, instances: int, rounds: int
) -> Picked:
    """Returns the instances of a step, in rounds of so many ``instances``.

    The seed gives all of the pool an order, and the rounds are its beginning. So they depend on nothing but
    the seed and the lessons, and not on how many rounds are played.
    """
    pool = Pool.of(config, lessons, size)
    first = odds.order(pool.share_I, seed)[: instances * rounds].tolist()
    return Picked([first[at : at + instances] for at in range(0, len(first), instances)], pool)


def learned(
    config: CurriculumConfig | None,
    lessons: Lessons,
    episodes: Sequence[Episode],
    credited: Sequence[Credited],
    updates: Callable[[Group], bool],
) -> Lessons:
    """Returns the lessons after a step with these episodes; none without a curriculum.

    Groups count of which ``updates`` says that the step updates the policy that drew them.

    The means of an instance that was played move a step, as the values of arms do in a self-evolving
    curriculum (arXiv 2505.14970). Its success is that of the episodes that came to an end; if none did, they
    count as not solved. An instance that cannot be played would else keep the value that it starts with, and
    be drawn more and more. Only what the engine did not draw says nothing.
    """
    if config is None:
        return {}
    played: dict[int, list[Episode]] = defaultdict(list)
    for episode in episodes:
        played[episode.instance].append(episode)
    signal: dict[int, list[float]] = defaultdict(list)
    for item in credited:
        if updates(item.group) and not _lost(item.group):
            signal[item.group.origin.key.instance].append(float(item.mask_K.any()))
    after = dict(lessons)
    for index, own in played.items():
        success, mean = after.get(index, Lesson())
        solved = [float(episode.solved) for episode in own if episode.end != "engine_error"]
        heard = not all(any(map(_lost, episode.groups)) for episode in own)
        if heard:
            success = running_mean(success, np.array(solved or [0.0]), config.decay)
        if heard or signal[index]:
            mean = running_mean(mean, np.array(signal[index] or [0.0]), config.decay)
            after[index] = Lesson(success, mean)
    return after


def _lost(group: Group) -> bool:
    """Returns whether the engine failed to draw a group, which is no fault of the instance."""
    return not group.by_partner and all(one.sample.finish == "error" for one in group.candidates)
