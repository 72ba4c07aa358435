"""Computes 95 % intervals of shares.

Axis letters: I instances, K episodes of an instance.
"""

import math

import numpy as np
from scipy import special

TAIL = 0.025  # probability beyond each end of a 95 % interval
Z = 1.959964  # the normal quantile of 1 - TAIL


def wilson(successes: int, n: int, z: float = Z) -> tuple[float, float]:
    """Returns Wilson's score interval of a proportion; z is the normal quantile of its level."""
    p = successes / n
    centre = p + z * z / (2 * n)
    spread = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def effective_draws(solved_IK: np.ndarray) -> float:
    """Returns how many independent draws K episodes of each of I instances are worth.

    It is I p (1 - p) / (variance of the instances' means), clipped. It is I if all episodes of an
    instance end alike, and I K if they are no more alike than episodes of different instances.
    Two made-up instances, one always solved and one never, enter p and the variance, because few
    instances or a p near 0 or 1 would make these unreliable.
    """
    instances, episodes = solved_IK.shape
    means_I = np.append(solved_IK.mean(1), [0.0, 1.0])
    p = means_I.mean()
    return float(np.clip(instances * p * (1 - p) / means_I.var(ddof=1), instances, instances * episodes))


def clopper_pearson(successes: float, n: float) -> tuple[float, float]:
    """Returns the 95 % interval of a proportion (Clopper and Pearson 1934).

    It uses the beta distribution, so counts need not be integers.
    """
    low = special.betaincinv(successes, n - successes + 1, TAIL) if successes > 0 else 0.0
    high = special.betaincinv(successes + 1, n - successes, 1 - TAIL) if successes < n else 1.0
    return float(low), float(high)
