"""Credited groups -> one prefix-shared, packed Batch. The one-token shift happens here and only here."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np

from atgrpo_jax.checks import check_types, require
from atgrpo_jax.groups import Credited
from atgrpo_jax.types import Batch

Aggregate = Literal["candidate", "token", "constant"]

_DTYPES = Batch(*[np.int32] * 5, *[np.float32] * 3)


@dataclasses.dataclass(frozen=True)
class BatchConfig:
    """Shapes. A longer group doubles ``row_tokens`` as often as needed, for its whole batch."""

    row_tokens: int = 256  # T
    rows: int = 16  # B, of one micro-batch

    def __post_init__(self):
        check_types(self)
        for name in ("row_tokens", "rows"):
            require(self, name, getattr(self, name) >= 1, "must be at least 1")


def pack(items: Sequence[Credited], config: BatchConfig, aggregate: Aggregate, constant: int) -> Batch:
    """Each group becomes one segment: its prompt once, then the branches that are trained.

    Segments go first-fit, longest first, into rows of T tokens; rows into micro-batches of B. The number
    of micro-batches is rounded up to a power of two, so that shapes are few; ``filled`` counts those
    that hold anything.

    Args:
      items: groups of one policy; those whose mask is all false are left out.
      aggregate, constant: see ``token_weights``.
    """
    items = [item for item in items if item.mask_K.any()]
    size = max((len(item.mask_K) for item in items), default=1)
    lengths_GK = np.zeros((len(items), size), np.int64)
    mask_GK = np.zeros((len(items), size), bool)
    for g, item in enumerate(items):
        mask_GK[g, : len(item.mask_K)] = item.mask_K
        lengths_GK[g, : len(item.mask_K)] = [len(c.sample.tokens) for c in item.group.candidates]
    weights_GK = token_weights(lengths_GK, mask_GK, aggregate, constant)
    segments = [_segment(item, weights_K) for item, weights_K in zip(items, weights_GK, strict=True)]

    row_tokens = config.row_tokens
    while segments and row_tokens < max(len(s.tokens) for s in segments):
        row_tokens *= 2
    rows = _first_fit(segments, row_tokens)
    micro = max(-(-len(rows) // config.rows), 1)
    micro = 1 << (micro - 1).bit_length()
    batch = Batch(*(np.zeros((micro * config.rows, row_tokens), dtype) for dtype in _DTYPES))
    for r, row in enumerate(rows):
        start = 0
        for number, segment in enumerate(row, start=1):
            end = start + len(segment.tokens)
            for array, values in zip(batch, segment, strict=True):
                array[r, start:end] = values
            batch.segments[r, start:end] = number
            batch.sources[r, start:end] += start
            start = end
    return Batch(*(a.reshape(micro, config.rows, row_tokens) for a in batch))


def minibatches(
    items: Sequence[Credited],
    config: BatchConfig,
    *,
    count: int,
    epochs: int,
    seed: int,
    aggregate: Aggregate,
    constant: int,
) -> Iterator[Batch]:
    """``epochs`` passes over the groups that give a gradient, each in a new random order, cut into
    ``count`` batches (fewer if there are fewer groups)."""
    items = [item for item in items if item.mask_K.any()]
    for epoch in range(epochs):
        order = np.random.default_rng([seed, epoch]).permutation(len(items))
        for part in np.array_split(order, max(min(count, len(items)), 1)):
            if len(part):
                yield pack([items[i] for i in part], config, aggregate, constant)


def token_weights(
    lengths_GK: np.ndarray, mask_GK: np.ndarray, aggregate: Aggregate, constant: int
) -> np.ndarray:
    """The weight of each token of candidate (g, k); 0 where masked.

    candidate   1 / (groups * candidates of the group * tokens): the paper's mean over groups of the
                mean over candidates of the mean over tokens
    token       1 / (all tokens): long answers weigh more (the reference code)
    constant    1 / (groups * candidates of the group * constant): Dr.GRPO (2503.20783), with the
                divisor that every answer shares

    Args:
      lengths_GK: int token counts.
      mask_GK: bool, true for the candidates that are trained. A group without any is no group.
      constant: tokens, the divisor of "constant".
    """
    groups = max(int(mask_GK.any(1).sum()), 1)
    members_G1 = np.maximum(mask_GK.sum(1, keepdims=True), 1)
    lengths_GK = np.maximum(lengths_GK, 1)
    if aggregate == "candidate":
        weights_GK = 1.0 / (groups * members_G1 * lengths_GK)
    elif aggregate == "token":
        total = max(int((lengths_GK * mask_GK).sum()), 1)
        weights_GK = np.full(lengths_GK.shape, 1.0 / total)
    elif aggregate == "constant":
        weights_GK = np.broadcast_to(1.0 / (groups * members_G1 * constant), lengths_GK.shape)
    else:
        raise ValueError(f"aggregate {aggregate!r}: expected candidate, token or constant")
    return np.where(mask_GK, weights_GK, 0.0).astype(np.float32)


def filled(batch: Batch) -> int:
    """How many of the leading micro-batches hold anything."""
    return int(np.any(batch.segments, axis=(1, 2)).sum())


def _segment(item: Credited, weights_K: np.ndarray) -> Batch:
    """One group as arrays [T]; segment numbers and row offsets are filled in later."""
    prompt = item.group.origin.prompt_ids
    P = len(prompt)
    tokens = [np.asarray(prompt)]
    positions, sources = [np.arange(P)], [np.zeros(P)]
    branches, old_logprobs = [np.zeros(P)], [np.zeros(P)]
    advantages, weights = [np.zeros(P)], [np.zeros(P)]
    start = P
    for k in np.flatnonzero(item.mask_K):
        sample = item.group.candidates[k].sample
        n = len(sample.tokens)
        tokens.append(np.asarray(sample.tokens))
        positions.append(P + np.arange(n))
        branches.append(np.full(n, k + 1))
        # The prompt's last token predicts a branch's first; every other token predicts the next.
        sources.append(np.concatenate([[P - 1], start + np.arange(n - 1)]))
        old_logprobs.append(np.asarray(sample.logprobs))
        advantages.append(np.full(n, item.advantages_K[k]))
        weights.append(np.full(n, weights_K[k]))
        start += n
    parts: tuple[list[np.ndarray], ...] = (
        tokens, positions, [np.zeros(start)], branches, sources, old_logprobs, advantages, weights,
    )  # fmt: skip
    return Batch(*(np.concatenate(p).astype(d) for p, d in zip(parts, _DTYPES, strict=True)))


def _first_fit(segments: list[Batch], row_tokens: int) -> list[list[Batch]]:
    rows: list[list[Batch]] = []
    free: list[int] = []
    for segment in sorted(segments, key=lambda s: -len(s.tokens)):
        size = len(segment.tokens)
        r = next((r for r, room in enumerate(free) if room >= size), None)
        if r is None:
            rows.append([segment])
            free.append(row_tokens - size)
        else:
            rows[r].append(segment)
            free[r] -= size
    return rows
