"""Group-relative advantages. Plain arrays in, plain arrays out; no config object."""

from typing import Literal

import numpy as np

EPSILON = 1e-6  # added to the standard deviation, as in the reference code
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
      rewards. Their advantages are exactly 0, and they must stay out of every divisor.
    """
    if rewards_GK.ndim != 2 or rewards_GK.shape != mask_GK.shape:
        raise ValueError(f"expected two [G, K] arrays, got {rewards_GK.shape}, {mask_GK.shape}")
    rewards = np.where(mask_GK, rewards_GK, 0.0).astype(np.float64)
    count = np.maximum(mask_GK.sum(1, keepdims=True), 1)
    low = np.where(mask_GK, rewards, np.inf).min(1, initial=np.inf)
    high = np.where(mask_GK, rewards, -np.inf).max(1, initial=-np.inf)
    signal_G = high > low
    centred = np.where(mask_GK, rewards - rewards.sum(1, keepdims=True) / count, 0.0)
    if normalise == "std":
        centred = centred / (np.sqrt((centred**2).sum(1, keepdims=True) / count) + EPSILON)
    return np.where(signal_G[:, None], centred, 0.0).astype(np.float32), signal_G
