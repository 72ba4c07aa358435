"""Divides problems into training, validation and test; no two splits share a problem."""

from typing import Any

from atgrpo_jax.common.types import hash_bytes

SPLITS = ("train", "validation", "test")
# All possible instances are divided into 16 equal parts. These are the parts of each split.
SPLIT_PARTS = {"train": range(0, 12), "validation": range(12, 14), "test": range(14, 16)}


def in_split(instance: Any, split: str) -> bool:
    """Returns whether an instance belongs to a split. The split depends on the instance alone, so
    no two splits can share one. Raises ValueError for an unknown split."""
    if split not in SPLIT_PARTS:
        raise ValueError(f"split {split!r}: expected one of {', '.join(SPLIT_PARTS)}")
    return hash_bytes(repr(instance))[0] % 16 in SPLIT_PARTS[split]
