"""Computes how likely instances are to be played, and draws them; from plain arrays to plain arrays.

Axis letter: I instances of the pool.
"""

import math

import numpy as np


def learnable(success_I: np.ndarray) -> np.ndarray:
    """Returns 4 p (1 - p) of rates of success p: 1 for one half, 0 for always and for never.

    p (1 - p) is the variance of an outcome, and so the size of what can be learned from comparing outcomes
    ("sampling for learnability", arXiv 2408.15099).
    """
    return 4 * success_I * (1 - success_I)


def shares(value_I: np.ndarray, floor: float) -> np.ndarray:
    """Returns floor / I + (1 - floor) * value / (sum of values); without any value, all are equal.

    The shares sum to 1, and none is below floor / I. To draw in proportion to a score, mixed with draws that
    do not know it, is prioritized level replay (arXiv 2010.03940). It mixes in those that were not played for
    long.
    """
    count = len(value_I)
    total = math.fsum(value_I)
    if total == 0:
        return np.full(count, 1 / count)
    return floor / count + (1 - floor) * (value_I / total)


def order(share_I: np.ndarray, seed: int) -> np.ndarray:
    """Returns the numbers of all instances, in an order drawn by their shares, which must be positive.

    The first one is i with probability share[i]. So is each later one among those that are left, with
    their shares divided by the sum of these: draws without replacement. Sorting E / share, with
    independent standard exponential E, gives this order (Efraimidis and Spirakis, Information Processing
    Letters 97, 2006). The E of an instance depends on the seed and its number alone.
    """
    exponential_I = -np.log1p(-np.random.default_rng(seed).random(len(share_I)))
    return np.argsort(exponential_I / share_I, kind="stable")


def effective(share_I: np.ndarray) -> float:
    """Returns 1 / (sum of squares), the effective number of instances: I if all shares are equal.

    It is that of weighted samples (Kish, Survey Sampling, 1965).
    """
    return 1 / math.fsum(share_I**2)
