"""Packs credited groups into a Batch in which each prompt is there once.

The shift by one token, from a token to the one that it predicts, happens only here.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from atgrpo_jax.common.checks import check_types, require
from atgrpo_jax.common.rounding import power_of_two, round_up
from atgrpo_jax.common.types import TILE, Batch, Trained
from atgrpo_jax.credit.groups import Credited

Aggregate = Literal["candidate", "token", "constant"]


class Segment(NamedTuple):
    """A group on its way into a row: its tokens [S] and those of them that are trained [C].

    ``trained.sources`` are indices into the segment's own tokens.
    """

    tokens: np.ndarray
    positions: np.ndarray
    branches: np.ndarray
    trained: Trained


@dataclasses.dataclass(frozen=True)
class BatchConfig:
    """Sets the shape of batches.

    A group that is longer than a row doubles ``row_tokens``, as often as needed, for its whole
    batch. Above one tile of attention (``types.TILE``) ``row_tokens`` must be a multiple of it.
    """

    row_tokens: int = 256  # T, tokens in a row
    rows: int = 16  # B, rows in a micro-batch

    def __post_init__(self):
        check_types(self)
        for name in ("row_tokens", "rows"):
            require(self, name, getattr(self, name) >= 1, "must be at least 1")
        tiled = self.row_tokens == whole_tiles(self.row_tokens)
        require(self, "row_tokens", tiled, f"above {TILE} it must be a multiple of {TILE}")

    def row(self, longest: int) -> int:
        """Returns T for a batch whose longest group has ``longest`` tokens."""
        tokens = self.row_tokens
        while tokens < longest:
            tokens *= 2
        return whole_tiles(tokens)


def whole_tiles(tokens: int) -> int:
    """Returns the shortest valid row for ``tokens``: at most one tile, or a multiple of it."""
    return tokens if tokens <= TILE else round_up(tokens, TILE)


def pack(
    items: Sequence[Credited],
    config: BatchConfig,
    aggregate: Aggregate,
    constant: int,
    objectives: Mapping[str, int] = {},
) -> Batch:
    """Packs groups into micro-batches. Each group becomes one segment of a row.

    A segment is the prompt once, then the trained candidates as branches. Segments go first-fit,
    longest first, into rows of T tokens, and B rows make a micro-batch. The number of micro-batches
    is rounded up to a power of two, so that there are few shapes to compile. ``filled`` counts
    those that are not empty.

    Args:
      items: groups of one policy; groups whose mask is all false are left out.
      aggregate, constant: see ``token_weights``.
      objectives: from a role to the number of its tokens' objective; 0 for roles that are not named.
    """
    items = [item for item in items if item.mask_K.any()]
    size = max((len(item.mask_K) for item in items), default=1)
    lengths_GK = np.zeros((len(items), size), np.int64)
    mask_GK = np.zeros((len(items), size), bool)
    for g, item in enumerate(items):
        mask_GK[g, : len(item.mask_K)] = item.mask_K
        lengths_GK[g, : len(item.mask_K)] = [len(c.sample.tokens) for c in item.group.candidates]
    weights_GK = token_weights(lengths_GK, mask_GK, aggregate, constant)
    segments = []
    for item, weights_K in zip(items, weights_GK, strict=True):
        segments.append(_segment(item, weights_K, objectives.get(item.group.origin.key.role, 0)))

    row_tokens = config.row(max((len(s.tokens) for s in segments), default=0))
    rows = first_fit([len(s.tokens) for s in segments], row_tokens)
    micro = power_of_two(max(-(-len(rows) // config.rows), 1))
    batch = _padding(micro * config.rows, row_tokens)
    for r, row in enumerate(rows):
        _fill(batch, r, [segments[i] for i in row])
    return each(lambda x: x.reshape(micro, config.rows, -1), batch)


def each(function: Callable[[np.ndarray], Any], batch: Batch) -> Batch:
    """Returns the batch with ``function`` applied to every array."""
    return Batch._make([*map(function, batch[:-1]), Trained._make(map(function, batch.trained))])


def _padding(rows: int, row_tokens: int) -> Batch:
    """Returns an empty batch: arrays [rows, ...] that hold only padding."""
    tiles = max(row_tokens // TILE, 1)

    def ints():
        return np.zeros((rows, row_tokens), np.int32)

    def floats():
        return np.zeros((rows, row_tokens), np.float32)

    pairs = np.full((rows, tiles * (tiles + 1) // 2), -1, np.int32)
    trained = Trained(ints(), ints(), floats(), floats(), floats(), floats(), ints())
    return Batch(ints(), ints(), ints(), ints(), pairs, trained)


def _fill(batch: Batch, r: int, row: Sequence[Segment]) -> None:
    start = first = 0
    for number, segment in enumerate(row, start=1):
        end = start + len(segment.tokens)
        last = first + len(segment.trained.targets)
        batch.tokens[r, start:end] = segment.tokens
        batch.positions[r, start:end] = segment.positions
        batch.segments[r, start:end] = number
        batch.branches[r, start:end] = segment.branches
        for array, values in zip(batch.trained, segment.trained, strict=True):
            array[r, first:last] = values
        batch.trained.sources[r, first:last] += start
        start = end
        first = last
    pairs = tile_pairs(batch.segments[r], batch.branches[r])
    batch.pairs[r, : len(pairs)] = pairs


def tile_pairs(segments_T: np.ndarray, branches_T: np.ndarray, tile: int = TILE) -> np.ndarray:
    """Returns the pairs of tiles in which some token attends to another, sorted.

    A pair is the number query tile * tiles + key tile.
    """
    tiles = max(len(segments_T) // tile, 1)
    tile = len(segments_T) // tiles
    # Each prompt and each branch is one contiguous block of tokens, [start, end).
    change = (np.diff(segments_T) != 0) | (np.diff(branches_T) != 0)
    starts = np.concatenate([[0], np.flatnonzero(change) + 1])
    ends = np.concatenate([starts[1:], [len(segments_T)]])
    meet = np.zeros((tiles, tiles), bool)
    prompt = 0, 0
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        if segments_T[start] == 0:
            continue
        if branches_T[start] == 0:
            prompt = start, end
        queries = slice(start // tile, (end - 1) // tile + 1)
        for first, last in (prompt, (start, end)):
            meet[queries, first // tile : (last - 1) // tile + 1] = True
    return np.flatnonzero(np.tril(meet)).astype(np.int32)


def minibatches(
    items: Sequence[Credited],
    config: BatchConfig,
    *,
    count: int,
    epochs: int,
    seed: int,
    aggregate: Aggregate,
    constant: int,
    objectives: Mapping[str, int] = {},
) -> Iterator[Batch]:
    """Yields the minibatches of ``epochs`` passes over the groups that give a gradient.

    Each pass has a new random order and is cut into ``count`` batches, or fewer if there are fewer
    groups.
    """
    items = [item for item in items if item.mask_K.any()]
    for epoch in range(epochs):
        order = np.random.default_rng([seed, epoch]).permutation(len(items))
        for part in np.array_split(order, max(min(count, len(items)), 1)):
            if len(part):
                yield pack([items[i] for i in part], config, aggregate, constant, objectives)


def token_weights(
    lengths_GK: np.ndarray, mask_GK: np.ndarray, aggregate: Aggregate, constant: int
) -> np.ndarray:
    """Returns the weight of every token of candidate (g, k); it is 0 where the mask is false.

    candidate   1 / (groups * candidates of the group * tokens): the paper's mean over groups of the
                mean over candidates of the mean over tokens
    token       1 / (all tokens): long answers weigh more, as in the paper's reference code
    constant    1 / (groups * candidates of the group * constant): Dr.GRPO (2503.20783), where all
                answers share one divisor

    Args:
      lengths_GK: int token counts.
      mask_GK: bool, true for the candidates that are trained. A group without any does not count.
      constant: the divisor of "constant", in tokens.
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


def digest_of(batch: Batch) -> bytes:
    """Returns a digest of all arrays."""
    digest = hashlib.blake2b(digest_size=16)
    for array in jax.tree.leaves(batch):
        digest.update(f"{array.dtype}{array.shape}".encode() + np.ascontiguousarray(array).data)
    return digest.digest()


def filled(batch: Batch) -> Any:
    """Returns how many micro-batches are not empty. The empty ones are last."""
    return (batch.segments > 0).any(axis=(1, 2)).sum()


def map_filled(of_micro: Callable[[Batch], jax.Array], batch: Batch) -> jax.Array:
    """Returns [A, B, T] what a function gives of each micro-batch. Empty ones are not run, and get 0."""

    def micro(a) -> Batch:
        return jax.tree.map(lambda x: x[a], batch)

    one = jax.eval_shape(of_micro, micro(0))
    zeros_ABT = jnp.zeros((len(batch.tokens), *one.shape), one.dtype)
    return jax.lax.fori_loop(0, filled(batch), lambda a, x: x.at[a].set(of_micro(micro(a))), zeros_ABT)


def widened(batch: Batch, most: int) -> Batch:
    """Returns a batch of numpy arrays with empty micro-batches at its end, so that there are ``most``."""
    A, B, T = batch.tokens.shape
    empty = each(lambda x: x.reshape(most - A, B, x.shape[-1]), _padding((most - A) * B, T))
    return jax.tree.map(lambda own, more: np.concatenate([own, more]), batch, empty)


def answers(micro: Batch) -> jax.Array:
    """Returns the answer that each trained token belongs to: 1, 2, ... within a row; 0 is padding.

    An answer begins at the token that is predicted by the end of a prompt. int32 [B, T], in the
    order of ``micro.trained``, whose arrays are [B, T] here.
    """
    begins_BT = jnp.take_along_axis(micro.branches, micro.trained.sources, axis=1) == 0
    real_BT = micro.trained.weights > 0
    return jnp.where(real_BT, jnp.cumsum(begins_BT & real_BT, axis=1, dtype=jnp.int32), 0)


def _segment(item: Credited, weights_K: np.ndarray, objective: int) -> Segment:
    prompt = item.group.origin.prompt_ids
    temperature = item.group.origin.sampling.temperature
    P = start = len(prompt)
    read = [(prompt, np.arange(P), np.zeros(P))]
    trained = []
    for k in np.flatnonzero(item.mask_K):
        sample = item.group.candidates[k].sample
        n = len(sample.tokens)
        read.append((sample.tokens, P + np.arange(n), np.full(n, k + 1)))
        # The prompt's last token predicts a branch's first; every other token predicts the next.
        sources = np.concatenate([[P - 1], start + np.arange(n - 1)])
        constants = item.advantages_K[k], weights_K[k], temperature, objective
        trained.append((sources, sample.tokens, sample.logprobs, *(np.full(n, c) for c in constants)))
        start += n
    fields = Trained._make(map(np.concatenate, zip(*trained, strict=True)))
    return Segment._make([*map(np.concatenate, zip(*read, strict=True)), fields])


def first_fit(sizes: Sequence[int], row_tokens: int) -> list[list[int]]:
    """Returns rows of indices of ``sizes``, whose sums are at most ``row_tokens``; the largest go first."""
    rows: list[list[int]] = []
    free: list[int] = []
    for i in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        r = next((r for r, room in enumerate(free) if room >= sizes[i]), None)
        if r is None:
            rows.append([i])
            free.append(row_tokens - sizes[i])
        else:
            rows[r].append(i)
            free[r] -= sizes[i]
    return rows
