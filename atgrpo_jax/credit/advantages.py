"""Computes advantages of rewards that are compared, from plain arrays to plain arrays; uses no config.

Everything is computed in float64 and returned in float32. A row of a [G, K] array is a set: rewards that
are compared with each other, such as those of a group.
"""

import math
from typing import Literal

import numpy as np

EPSILON = 1e-6  # added to the standard deviation, as in the reference code
# Rewards count as equal if they differ by at most SAME_RELATIVE * (the larger size), or by at most
# SAME_ABSOLUTE, which matters where parts have cancelled out. The same sum in another order differs
# by some 1e-16 of what is summed.
SAME_RELATIVE = 1e-9
SAME_ABSOLUTE = 1e-12
Normalise = Literal["std", "mean", "rate"]


def group_relative(
    rewards_GK: np.ndarray, mask_GK: np.ndarray, normalise: Normalise = "std", leave_one_out: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the advantages of candidates within their sets.

    The advantage is d / (std + 1e-6), with d = r - mean and the population standard deviation (arXiv
    2510.11062, eq. 1); or d alone (Dr. GRPO, 2503.20783); or d / mean (MaxRL, 2602.02710), which needs
    rewards that are 0 or 1, so that the mean is the rate of success. With ``leave_one_out`` the mean in d
    is that of the other n - 1 members (RLOO, 2402.14740), which makes d larger by n / (n - 1). What it is
    divided by stays that of all n.

    Args:
      rewards_GK: float rewards; masked entries may hold anything.
      mask_GK: bool, true for candidates that count.
      normalise: "std", "mean" (d alone) or "rate" (d / mean).

    Returns:
      advantages_GK, 0 where masked, and signal_G, which is false for a set that has fewer than
      two members or whose rewards are all equal (not ``apart``). The advantages of such a set are
      exactly 0, and it must not count in any divisor.
    """
    if rewards_GK.ndim != 2 or rewards_GK.shape != mask_GK.shape:
        raise ValueError(f"expected two [G, K] arrays, got {rewards_GK.shape}, {mask_GK.shape}")
    rewards = np.where(mask_GK, rewards_GK, 0.0).astype(np.float64)
    count = np.maximum(mask_GK.sum(1, keepdims=True), 1)
    low = np.where(mask_GK, rewards, np.inf).min(1, initial=np.inf)
    high = np.where(mask_GK, rewards, -np.inf).max(1, initial=-np.inf)
    signal_G = apart(low, high)
    mean = rewards.sum(1, keepdims=True) / count
    centred = np.where(mask_GK, rewards - mean, 0.0)
    if normalise == "std":
        centred = centred / (np.sqrt((centred**2).sum(1, keepdims=True) / count) + EPSILON)
    if normalise == "rate":
        centred = centred / np.where(signal_G[:, None], mean, 1.0)  # with signal, somebody has succeeded
    if leave_one_out:
        centred = centred * (count / np.maximum(count - 1, 1))
    return np.where(signal_G[:, None], centred, 0.0).astype(np.float32), signal_G


def above(
    rewards_GK: np.ndarray, mask_GK: np.ndarray, baselines_G: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns r - b, where b is a number that was known before the set was drawn.

    The masks are those of ``group_relative``. A reward that is not ``apart`` from b has the advantage 0.
    A set has a signal, also one with a single member, if one of its rewards is apart from b.
    """
    baselines = np.broadcast_to(np.asarray(baselines_G, np.float64)[:, None], rewards_GK.shape)
    rewards = np.where(mask_GK, rewards_GK, baselines)
    differs = apart(np.minimum(rewards, baselines), np.maximum(rewards, baselines))
    return np.where(differs, rewards - baselines, 0.0).astype(np.float32), np.any(differs, axis=1)


def running_mean(before: float | None, rewards_N: np.ndarray, decay: float) -> float:
    """Returns decay * before + (1 - decay) * mean: an exponential moving average, a step further.

    Without ``before`` it is the mean. The sum is exact, so the order of the rewards does not matter.
    """
    mean = math.fsum(rewards_N) / len(rewards_N)
    return mean if before is None else decay * before + (1 - decay) * mean


def apart(low: np.ndarray | float, high: np.ndarray | float) -> np.ndarray:
    """Returns whether two rewards, or the least and the largest of several, differ by more than
    rounding."""
    size = np.maximum(np.abs(low), np.abs(high))
    size = np.where(np.isfinite(size), size, 0.0)  # a group without members has inf and -inf
    return np.subtract(high, low) > np.maximum(SAME_RELATIVE * size, SAME_ABSOLUTE)
