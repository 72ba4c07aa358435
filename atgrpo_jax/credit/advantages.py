"""Group-relative advantages. Plain arrays in, plain arrays out; no config object."""

from typing import Literal

import numpy as np

EPSILON = 1e-6  # added to the standard deviation, as in the reference code
# Rewards that are nearer to one another are equal: a share of the largest one in size, or this itself where
# sums of parts have cancelled out. Sums in another order differ by some 1e-16 of what is summed.
SAME_RELATIVE, SAME_ABSOLUTE = 1e-9, 1e-12
Normalise = Literal["std", "mean"]


def group_relative(
    rewards_GK: np.ndarray, mask_GK: np.ndarray, normalise: Normalise = "std"
) -> tuple[np.ndarray, np.ndarray]:
    """Advantages of candidates within their groups (arXiv 2510.11062, eq. 1).

    A = (r - mean) / (std + 1e-6) with the population standard deviation, or r - mean.

    Args:
      rewards_GK: float rewards; masked entries may hold anything.
      mask_GK: bool, true for candidates that count.
      normalise: "std" divides by the group's standard deviation, "mean" does not.

    Returns:
      advantages_GK (0 where masked) and signal_G: false for groups with fewer than two members or equal
      rewards (``apart``). Their advantages are exactly 0, and they must stay out of every divisor.
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
    """Whether two rewards, or the least and the largest of several, differ by more than rounding."""
    size = np.maximum(np.abs(low), np.abs(high))
    size = np.where(np.isfinite(size), size, 0.0)  # of no members: inf and -inf
    return np.subtract(high, low) > np.maximum(SAME_RELATIVE * size, SAME_ABSOLUTE)
