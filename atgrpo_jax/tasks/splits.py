"""Which problems are for training, validation and test: no two splits share one."""

from typing import Any

from atgrpo_jax.common.types import hash_bytes

SPLITS = ("train", "validation", "test")
# Of 16 equal parts of all possible instances, those numbered below belong to each split.
SPLIT_PARTS = {"train": range(0, 12), "validation": range(12, 14), "test": range(14, 16)}


def in_split(instance: Any, split: str) -> bool:
    """An instance itself decides its split, so no two splits can share one. Raises ValueError for a split
    that there is not."""
    if split not in SPLIT_PARTS:
        raise ValueError(f"split {split!r}: expected one of {', '.join(SPLIT_PARTS)}")
    return hash_bytes(repr(instance))[0] % 16 in SPLIT_PARTS[split]
