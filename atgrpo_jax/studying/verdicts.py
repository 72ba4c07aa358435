"""Says what became of predictions: held, failed or undecided.

Axis letters: S seeds, I instances.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import special

from atgrpo_jax.common.errors import RunError
from atgrpo_jax.common.progress import counted
from atgrpo_jax.rollout.evaluation import Score, difference
from atgrpo_jax.rollout.intervals import TAIL
from atgrpo_jax.studying.asked import Prediction
from atgrpo_jax.studying.measured import Measured, common, table_SI

HELD, FAILED, UNDECIDED = "held", "failed", "undecided"


@dataclasses.dataclass(frozen=True)
class Interval:
    """Holds a mean and its 95 % interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.1%} ({self.low:.1%} to {self.high:.1%})"

    @property
    def as_difference(self) -> str:
        low, high = (f"{100 * end:+.1f}" for end in (self.low, self.high))
        return f"{100 * self.mean:+.1f} points ({low} to {high})"


@dataclasses.dataclass(frozen=True)
class Verdict:
    prediction: Prediction
    word: str  # held, failed or undecided
    why: str
    interval: Interval | None = None  # of the difference, for predictions of one


def crossed(ours_SI: np.ndarray, theirs_SI: np.ndarray) -> Interval:
    """Returns the mean of ``ours - theirs``, with an interval for other seeds and other instances.

    Rows are paired by seed and columns by instance. The interval of the seeds' mean differences is
    Student's; that of the instances' is ``evaluation.difference``. Each is right if the other kind
    does not vary. The reach of both together is the root of the sum of the squares of their reaches
    (Zou and Donner 2008). What varies with seed and instance together is in both, so this is rather
    too wide than too narrow. With one seed it is that of the instances alone.

    A bootstrap over seeds would be too narrow: it makes the variance of three seeds a third too
    small, and knows nothing of Student's tails.
    """
    gain_S = (ours_SI - theirs_SI).mean(1)
    mean = float(gain_S.mean())
    found = difference(Score(ours_SI.T, 0.0), Score(theirs_SI.T, 0.0))
    seeds = len(gain_S)
    reach = 0.0
    if seeds > 1:
        quantile = float(special.stdtrit(seeds - 1, 1 - TAIL))
        reach = quantile * float(np.std(gain_S, ddof=1)) / math.sqrt(seeds)
    low, high = mean - math.hypot(mean - found.low, reach), mean + math.hypot(found.high - mean, reach)
    return Interval(mean, max(-1.0, low), min(1.0, high))


def word(interval: Interval, by: float) -> str:
    """Returns whether a whole interval is above ``by``, below it, or neither."""
    if interval.low > by:
        return HELD
    return FAILED if interval.high < by else UNDECIDED


def success(runs: Sequence[Measured]) -> Interval:
    """Returns the mean of an arm over its seeds."""
    values_SI = table_SI(runs, _instances(runs))
    found = crossed(values_SI, np.zeros_like(values_SI))
    return Interval(found.mean, max(0.0, found.low), found.high)


def judge(prediction: Prediction, arms: Mapping[str, Sequence[Measured]], missing: set[str]) -> Verdict:
    """Returns the verdict on a prediction.

    Args:
      arms: the runs of each arm, by seed.
      missing: arms of which a run failed.
    """
    lacking = [name for name in prediction.arms if name in missing]
    if lacking:
        return Verdict(prediction, UNDECIDED, f"runs of {' and '.join(lacking)} are missing")
    if prediction.at_least is not None:
        return _bar(prediction, prediction.at_least, arms[prediction.arm])
    first, second = (arms[name] for name in prediction.better)
    seeds = sorted({run.seed for run in first} & {run.seed for run in second})
    if len(seeds) < 2:
        shared = counted(len(seeds), "seed")
        why = f"the arms have {shared} in common: this says nothing about other seeds"
        return Verdict(prediction, UNDECIDED, why)
    ours, theirs = ([run for run in arm if run.seed in seeds] for arm in (first, second))
    instances = _instances(ours, theirs)
    interval = crossed(table_SI(ours, instances), table_SI(theirs, instances))
    why = f"{interval.as_difference}, over seeds {_listed(seeds)} and {counted(len(instances), 'instance')}"
    return Verdict(prediction, word(interval, prediction.by), why, interval)


def _bar(prediction: Prediction, bar: float, runs: Sequence[Measured]) -> Verdict:
    worst = min(runs, key=lambda run: (run.score, run.seed))
    found = HELD if worst.score >= bar else FAILED
    return Verdict(prediction, found, f"the worst is seed {worst.seed} with {worst.score:.1%}")


def _instances(*arms: Sequence[Measured]) -> list[tuple[int, str]]:
    found = common(*arms)
    if not found:
        names = ", ".join(run.run.name for runs in arms for run in runs)
        raise RunError(f"{names} were not evaluated on the same instances, so they cannot be compared")
    return found


def _listed(seeds: Sequence[int]) -> str:
    return f"{', '.join(map(str, seeds[:-1]))} and {seeds[-1]}"
