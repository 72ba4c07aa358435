"""Computes group-relative advantages, from plain arrays to plain arrays; uses no config object."""

from typing import Literal

import numpy as np

EPSILON = 1e-6  # added to the standard deviation, as in the reference code
# Rewards count as equal if they differ by at most SAME_RELATIVE * (the larger size), or by at most
# SAME_ABSOLUTE, which matters where parts have cancelled out. The same sum in another order differs
# by some 1e-16 of what is summed.
SAME_RELATIVE = 1e-9
SAME_ABSOLUTE = 1e-12
Normalise = Literal["std", "mean"]


def group_relative(
    rewards_GK: np.ndarray, mask_GK: np.ndarray, normalise: Normalise = "std"
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the advantages of candidates within their groups (arXiv 2510.11062, eq. 1).

    The advantage is (r - mean) / (std + 1e-6), with the population standard deviation, or r - mean.

    Args:
      rewards_GK: float rewards; masked entries may hold anything.
      mask_GK: bool, true for candidates that count.
      normalise: "std" divides by the group's standard deviation, "mean" does not.

    Returns:
      advantages_GK, 0 where masked, and signal_G, which is false for a group that has fewer than
      two members or whose rewards are all equal (not ``apart``). The advantages of such a group are
      exactly 0, and it must not count in any divisor.
    """
    if rewards_GK.ndim != 2 or rewards_GK.shape != mask_GK.shape:
        raise ValueError(f"expected two [G, K] arrays, got {rewards_GK.shape}, {mask_GK.shape}")
    rewards = np.where(mask_GK, rewards_GK, 0.0).astype(np.float64)
    count = np.maximum(mask_GK.sum(1, keepdims=True), 1)
    low = np.where(mask_GK, rewards, np.inf).min(1, initial=np.inf)
    high = np.where(mask_GK, rewards, -np.inf).max(1, initial=-np.inf)
    signal_G = apart(low, high)
    centred = np.where(mask_GK, rewards - rewards.sum(1, keepdims=True) / count, 0.0)
    if normalise == "std":
        centred = centred / (np.sqrt((centred**2).sum(1, keepdims=True) / count) + EPSILON)
    return np.where(signal_G[:, None], centred, 0.0).astype(np.float32), signal_G


def apart(low: np.ndarray | float, high: np.ndarray | float) -> np.ndarray:
    """Returns whether two rewards, or the least and the largest of several, differ by more than
    rounding."""
    size = np.maximum(np.abs(low), np.abs(high))
    size = np.where(np.isfinite(size), size, 0.0)  # a group without members has inf and -inf
    return np.subtract(high, low) > np.maximum(SAME_RELATIVE * size, SAME_ABSOLUTE)
