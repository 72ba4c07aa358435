"""Says after the first candidates of a group whether the others are drawn, and corrects for that.

The first K1 of K candidates are drawn. If two of their rewards differ, or if none of them has a reward, so
are the other K - K1; if not, the group stops, and gives no gradient. A group that went on had a lucky
start: its K candidates in another order may have stopped. So its advantages are divided by the share of its
possible starts that go on. The expected gradient is then exactly that of K candidates drawn at once
(docs/branching.md has the proof).
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from atgrpo_jax.common.types import Candidate, Group, of_role
from atgrpo_jax.credit.advantages import apart
from atgrpo_jax.credit.groups import Credited
from atgrpo_jax.credit.sets import Alpha

# What candidates earned; None for those that were excluded.
Earned = Sequence[float | None]


def earned(candidates: Sequence[Candidate], alpha: float) -> Earned:
    """Returns alpha * team + local of each candidate."""
    return [None if one.reward is None else one.reward.mixed(alpha) for one in candidates]


def goes_on(first: Earned) -> bool:
    """Returns whether two of the first candidates' rewards differ by more than rounding, or none is there.

    Without any reward nobody could be executed, though others are left to draw.
    """
    present = [reward for reward in first if reward is not None]
    return not present or bool(apart(min(present), max(present)))


def share_that_goes_on(rewards_K: Earned, first: int) -> float:
    """Returns which share of the choices of ``first`` among these K candidates ``goes_on``.

    Choices that stop are counted by their least reward: the others of such a choice are candidates
    further up that are not ``apart`` from it, or have no reward.
    """
    present = sorted(reward for reward in rewards_K if reward is not None)
    missing = len(rewards_K) - len(present)
    stops = 0
    for i, low in enumerate(present):
        alike = sum(not apart(low, high) for high in present[i + 1 :])
        stops += math.comb(alike + missing, first - 1)
    return 1 - stops / math.comb(len(rewards_K), first)


def weight(group: Group, first: int, alpha: float) -> float:
    """Returns the factor of a group's advantages: 0 if it stopped after ``first`` candidates."""
    if len(group.candidates) <= first:
        return 0.0
    return 1 / share_that_goes_on(earned(group.candidates, alpha), first)


def corrected(
    credited: Sequence[Credited], first: Mapping[str, int], alpha: Alpha
) -> tuple[list[Credited], dict[str, float]]:
    """Returns the groups with corrected advantages, and the share of them that went on, as a metric.

    Groups of roles that draw all candidates at once stay as they are, and count in no share.

    Args:
      first: how many candidates each role draws first; 0 for all at once. Partners are not named.
    """
    found = []
    went_on = []
    for item in credited:
        role = item.group.origin.key.role
        own = first.get(role, 0)
        if own:
            factor = weight(item.group, own, of_role(alpha, role))
            went_on.append(factor > 0)
            advantages_K = (item.advantages_K.astype(np.float64) * factor).astype(np.float32)
            item = dataclasses.replace(item, advantages_K=advantages_K, mask_K=item.mask_K & (factor > 0))
        found.append(item)
    return found, {"groups/second_draw": float(np.mean(went_on))} if went_on else {}
