"""Chooses which of a group's candidates is executed."""

import random
from collections.abc import Sequence
from typing import Literal

from atgrpo_jax.common.types import Reward
from atgrpo_jax.credit.advantages import apart

Select = Literal["mixed", "team", "local", "random", "first"]


def choose(
    rewards_K: Sequence[Reward | None], by: Select, alpha: float, seed: int, first: int | None = None
) -> int | None:
    """Returns the index of the candidate to execute; None if all are excluded (reward None).

    "mixed" (the paper's), "team" and "local" take the candidate that is best by that reward. Ties
    are broken at random; two rewards tie unless they are ``advantages.apart``. "random" takes any
    candidate that is not excluded, "first" takes the first one. ``seed`` fixes the random choices.

    If only the ``first`` candidates were drawn whatever they earn, "random" takes one of these, as long as
    one is not excluded. One of all would be no random answer: where all of the first are of one kind, it is
    of this kind, and else of those that were drawn later, too. So common kinds would come too often.
    """
    present = [k for k, reward in enumerate(rewards_K) if reward is not None]
    if not present:
        return None
    if by == "first":
        return present[0]
    if by == "random":
        present = [k for k in present if first is None or k < first] or present
    if by != "random":
        scores = {k: _score(rewards_K[k], by, alpha) for k in present}
        best = max(scores.values())
        present = [k for k in present if not apart(scores[k], best)]
    return random.Random(seed).choice(present)


def _score(reward: Reward | None, by: Select, alpha: float) -> float:
    assert reward is not None
    return {"mixed": reward.mixed(alpha), "team": reward.team, "local": reward.local}[by]
