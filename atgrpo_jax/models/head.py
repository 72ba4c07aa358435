"""Turns hidden states into logprobs, and into a loss over them, without [B, T, V] logits.

The projection visits the trained tokens in chunks, and stops after the last of them. ``token_loss``
makes a chunk's gradient while its logits are there, so logits are computed once and never kept.

On a mesh, every device has some rows and a part of the vocabulary. Devices exchange what a token
needs of all parts (the largest logit, sums of exponentials, its own logit), but not logits.

Axis letters: B rows, T tokens of a row, D model width, V vocabulary (in private code the part of a
device), X trained tokens of a chunk: of one row in BX, else of all rows.
"""

import functools
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from atgrpo_jax.arrays.mesh import ROWS
from atgrpo_jax.common.types import TILE, Trained

CHUNK_BYTES = 2**26  # of float32 logits on one device at a time; a tile a row may have more
VOCAB = "tensor"  # the axis of a mesh that splits the vocabulary


class TokenObjective(Protocol):
    """Computes what an update minimises, from a chunk of trained tokens."""

    def __call__(
        self,
        logprobs_BX: jax.Array,
        entropy_BX: jax.Array,
        reference_BX: jax.Array | None,
        trained: Trained,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Returns the loss of a chunk and metrics; each is a sum over the chunk's tokens.

        A chunk may hold a part of an answer only. Tokens of weight 0 must add nothing: what is
        there is arbitrary.

        Args:
          logprobs_BX: of the trained tokens, by the policy that is updated.
          entropy_BX: of the distributions that the tokens are drawn from.
          reference_BX: logprobs by the starting policy; None without a KL term.
          trained: the tokens' old logprobs, advantages and weights, [B, X].
        """
        ...


class Head(NamedTuple):
    """Says how to project; hashable."""

    mesh: Mesh
    tied: bool  # whether the table is the embedding [V, D]; else it is a head [D, V]
    trained: bool = True  # whether the table gets a gradient
    chunk_bytes: int = CHUNK_BYTES


def table(params: Any) -> jax.Array:
    """Returns the matrix that a model projects with: its head or, without one, its embedding."""
    return params["embedding"] if tied(params) else params["head"]


def tied(params: Any) -> bool:
    """Returns whether the table is the embedding."""
    return "head" not in params


def token_logprobs(
    head: Head, table: jax.Array, hidden_BTD: jax.Array, trained: Trained
) -> tuple[jax.Array, jax.Array]:
    """Returns the logprob of each trained token, and the entropy of softmax(logits / temperature).

    The temperature is the token's own.

    Both are [B, T] float32 in the order of ``trained``. Padding is zero after the last chunk that
    is visited, and arbitrary before its end. They cannot be differentiated.
    """

    def shard(table, hidden_BTD, trained):
        project = _Projection(head, table, hidden_BTD)

        size, count = project.chunks(trained)

        def visit(c, carry):
            part = _cut(trained, c * size, size)
            found = project(part)[1]
            new = found.logprobs.reshape(part.weights.shape), found.entropy.reshape(part.weights.shape)
            put = functools.partial(jax.lax.dynamic_update_slice_in_dim, start_index=c * size, axis=1)
            return tuple(put(all_, one) for all_, one in zip(carry, new, strict=True))

        zeros = jnp.zeros(trained.weights.shape, jnp.float32)
        return jax.lax.fori_loop(0, count, visit, (zeros, zeros))

    by_row = P(ROWS)
    specs = (_table_spec(head), by_row, by_row)
    sharded = jax.shard_map(shard, mesh=head.mesh, in_specs=specs, out_specs=by_row, check_vma=False)
    return sharded(table, hidden_BTD, trained)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def token_loss(
    head: Head,
    token_objective: TokenObjective,
    table: jax.Array,
    hidden_BTD: jax.Array,
    trained: Trained,
    reference_BT: jax.Array | None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns the ``token_objective`` of what ``token_logprobs`` returns, and its metrics.

    Adds the metric ``logprob_gap``, the largest |logprob - old logprob|. Only the loss can be
    differentiated, in ``table`` and ``hidden_BTD``.
    """
    return _loss(head, token_objective, table, hidden_BTD, trained, reference_BT)[0]


def _backward(head, token_objective, gradients, cotangents):
    d_table, d_hidden = (None if g is None else (g * cotangents[0]).astype(g.dtype) for g in gradients)
    return d_table, d_hidden, None, None


def _loss(head, token_objective, table, hidden_BTD, trained, reference_BT):
    """Returns ((loss, metrics), (gradient of the table, gradient of the hidden states))."""

    def shard(table, hidden_BTD, trained, reference_BT):
        project = _Projection(head, table, hidden_BTD)

        size, count = project.chunks(trained)

        def visit(c, carry):
            totals, gap, d_table, d_hidden_BTD = carry
            part, reference_BX = _cut((trained, reference_BT), c * size, size)
            h_XD, found = project(part)
            logprobs_BX = found.logprobs.reshape(part.weights.shape)
            entropy_BX = found.entropy.reshape(part.weights.shape)
            of_chunk = functools.partial(token_objective, reference_BX=reference_BX, trained=part)
            loss, pull, sums = jax.vjp(of_chunk, logprobs_BX, entropy_BX, has_aux=True)
            d_logprobs_BX, d_entropy_BX = pull(jnp.ones_like(loss))
            d_logits_XV = found.gradient(d_logprobs_BX.ravel(), d_entropy_BX.ravel()) / _temperatures(part)
            gap = jnp.maximum(gap, logprob_gap(logprobs_BX, part))
            d_table, d_hidden_BTD = project.add(d_logits_XV, h_XD, part, d_table, d_hidden_BTD)
            return jax.tree.map(jnp.add, totals, (loss, sums)), gap, d_table, d_hidden_BTD

        shapes = jax.eval_shape(
            token_objective, trained.weights, trained.weights, reference_BX=reference_BT, trained=trained
        )
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        # [D, V] in either case, which a CPU makes in half the time of [V, D].
        d_table = (
            jnp.zeros(table.T.shape if head.tied else table.shape, jnp.float32) if head.trained else None
        )
        carry = zeros, jnp.float32(0), d_table, jnp.zeros(hidden_BTD.shape, jnp.float32)
        totals, gap, d_table, d_hidden_BTD = jax.lax.fori_loop(0, count, visit, carry)
        loss, sums = jax.lax.psum(totals, ROWS)
        if head.trained:
            d_table = jax.lax.psum(d_table.T if head.tied else d_table, ROWS)
        d_hidden_BTD = jax.lax.psum(d_hidden_BTD, VOCAB).astype(hidden_BTD.dtype)
        return (loss, sums | {"logprob_gap": jax.lax.pmax(gap, ROWS)}), (d_table, d_hidden_BTD)

    by_row = P(ROWS)
    of_table = _table_spec(head)
    return jax.shard_map(
        shard,
        mesh=head.mesh,
        in_specs=(of_table, by_row, by_row, by_row),
        out_specs=(P(), (of_table, by_row)),
        check_vma=False,
    )(table, hidden_BTD, trained, reference_BT)


token_loss.defvjp(_loss, _backward)


def logprob_gap(logprobs_BX: jax.Array, trained: Trained) -> jax.Array:
    """Returns the largest |logprob - old logprob| of the trained tokens."""
    gap_BX = jnp.abs(logprobs_BX - trained.old_logprobs)
    return jnp.max(jnp.where(trained.weights > 0, gap_BX, 0.0))


def _table_spec(head: Head) -> P:
    return P(VOCAB) if head.tied else P(None, VOCAB)


def _cut(arrays: Any, start: jax.Array, size: int) -> Any:
    """Returns columns ``start`` to ``start + size`` of every array [B, T]."""
    cut = functools.partial(jax.lax.dynamic_slice_in_dim, start_index=start, slice_size=size, axis=1)
    return jax.tree.map(cut, arrays)


class _Distribution:
    """Holds the distributions of X tokens.

    Logits are those of this device's part of the vocabulary, sums are over all parts.
    """

    def __init__(self, logits_XV: jax.Array, targets_X: jax.Array):
        size = logits_XV.shape[1]
        own_X = targets_X - jax.lax.axis_index(VOCAB) * size
        self.chosen_XV = own_X[:, None] == jnp.arange(size)
        best_X = jax.lax.pmax(logits_XV.max(-1), VOCAB)
        exp_XV = jnp.exp(logits_XV - best_X[:, None])
        parts = (
            exp_XV.sum(-1),
            (exp_XV * logits_XV).sum(-1),
            jnp.where(self.chosen_XV, logits_XV, 0.0).sum(-1),
        )
        total_X, weighted_X, own_logit_X = jax.lax.psum(parts, VOCAB)
        self.log_total = best_X + jnp.log(total_X)
        self.logits = logits_XV
        self.logprobs = own_logit_X - self.log_total
        self.entropy = self.log_total - weighted_X / total_X

    def gradient(self, d_logprobs_X: jax.Array, d_entropy_X: jax.Array) -> jax.Array:
        """Returns the gradient of the logits [X, V]."""
        logp_XV = self.logits - self.log_total[:, None]
        d_entropy_X1 = d_entropy_X[:, None]
        d_logprobs_X1 = d_logprobs_X[:, None]
        spread_XV = d_logprobs_X1 + d_entropy_X1 * (logp_XV + self.entropy[:, None])
        return jnp.where(self.chosen_XV, d_logprobs_X1, 0.0) - jnp.exp(logp_XV) * spread_XV


class _Projection:
    """Projects one device's rows, chunk by chunk."""

    def __init__(self, head: Head, table: jax.Array, hidden_BTD: jax.Array):
        self.head = head
        self.hidden_BTD = hidden_BTD
        self.table = table.astype(hidden_BTD.dtype)
        self.rows_B1 = jnp.arange(len(hidden_BTD))[:, None]

    def __call__(self, part: Trained) -> tuple[jax.Array, _Distribution]:
        """Returns the hidden states [X, D] that predict a chunk's tokens, and the distributions."""
        h_XD = self.hidden_BTD[self.rows_B1, part.sources].reshape(-1, self.hidden_BTD.shape[-1])
        logits_XV = _matmul(h_XD, self.table.T if self.head.tied else self.table)
        return h_XD, _Distribution(logits_XV / _temperatures(part), part.targets.reshape(-1))

    def add(self, d_logits_XV, h_XD, part: Trained, d_table, d_hidden_BTD):
        """Returns the gradients of table and hidden states with a chunk's part added."""
        d_logits_XV = d_logits_XV.astype(h_XD.dtype)
        if self.head.trained:
            d_table += _matmul(h_XD.T, d_logits_XV)
        d_h_XD = _matmul(d_logits_XV, self.table if self.head.tied else self.table.T)
        d_h_BXD = d_h_XD.reshape(*part.sources.shape, -1)
        return d_table, d_hidden_BTD.at[self.rows_B1, part.sources].add(d_h_BXD)

    def chunks(self, trained: Trained) -> tuple[int, jax.Array]:
        """Returns a chunk's tokens of a row, and how many chunks there are up to the last trained token."""
        B, T = trained.weights.shape
        V = self.table.shape[0 if self.head.tied else 1]
        size = _chunk_size(B, T, V, self.head.chunk_bytes)
        used = jnp.max(jnp.where(trained.weights > 0, jnp.arange(1, T + 1), 0))
        return size, -(-used // size)


def _temperatures(part: Trained) -> jax.Array:
    """Returns [X, 1]; 1 for padding, which has none."""
    return jnp.where(part.temperatures > 0, part.temperatures, 1.0).reshape(-1, 1)


def _chunk_size(B: int, T: int, V: int, chunk_bytes: int) -> int:
    """Returns a chunk's tokens a row: equal parts of T, of as many tiles as the limit allows."""
    tiles = max(T // TILE, 1)
    most = max(chunk_bytes // (4 * B * V * min(T, TILE)), 1)
    return T // next(parts for parts in range(1, tiles + 1) if tiles % parts == 0 and tiles // parts <= most)


def _matmul(one: jax.Array, other: jax.Array) -> jax.Array:
    return jnp.matmul(one, other, preferred_element_type=jnp.float32)
