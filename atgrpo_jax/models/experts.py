"""Computes a mixture of experts, on one device or on a mesh that deals the experts to devices.

No token is dropped, whatever the others choose, and nothing is made for pairs of a token and an
expert that did not choose each other. Tokens are sorted by expert. A loop goes through blocks of
tokens of one expert, as many as there are. (``jax.lax.ragged_dot`` multiplies all tokens with all
experts on CPUs and some TPUs. It also needs room for all tokens to choose the experts of one device.)

On a mesh, a device has rows of its own and the experts of its place along ``expert``. Devices along
``expert`` gather their tokens, each computes its own experts for all of them, and the sums go back
to the tokens' devices. The loops of devices differ in length, so all exchange is outside of them.

Axis letters beyond the package's: E experts, in private code those of a device, C experts that a
token is given to, F width of one expert, S = B T, X = S C, Z tokens of a block.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from atgrpo_jax.arrays.mesh import ROWS

LEAST, MOST = 16, 256  # tokens of a block


class Stacks(NamedTuple):
    """Holds the matrices of all experts, or what else there is for each of the three."""

    gate_EDF: Any
    up_EDF: Any
    down_EFD: Any


_SPLIT = Stacks(P("expert", "fsdp", "tensor"), P("expert", "fsdp", "tensor"), P("expert", "tensor", "fsdp"))
_FSDP = Stacks(1, 1, 2)  # the axis that fsdp splits


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def by_experts(
    mesh: Mesh | None,
    activation: Callable[[jax.Array], jax.Array],
    h_BTD: jax.Array,
    share_BTC: jax.Array,
    chosen_BTC: jax.Array,
    stacks: Stacks,
) -> jax.Array:
    """Returns for each token the sum of its experts' outputs, weighted by ``share``."""
    return _forward(mesh, activation, h_BTD, share_BTC, chosen_BTC, stacks)[0]


def _forward(mesh, activation, h_BTD, share_BTC, chosen_BTC, stacks):
    kept = h_BTD, share_BTC, chosen_BTC, stacks
    outputs = functools.partial(_outputs, activation, _block_size(mesh, chosen_BTC, stacks))
    if mesh is None:
        return outputs(0, *kept).astype(h_BTD.dtype), kept

    def shard(*own):
        return _sent_back(outputs(*_gathered(*own)).astype(h_BTD.dtype))

    specs = P(ROWS), P(ROWS), P(ROWS), _SPLIT
    sharded = jax.shard_map(shard, mesh=mesh, in_specs=specs, out_specs=P(ROWS), check_vma=False)
    return sharded(*kept), kept


def _backward(mesh, activation, kept, d_out_BTD):
    h_BTD, share_BTC, chosen_BTC, stacks = kept
    gradients = functools.partial(_gradients, activation, _block_size(mesh, chosen_BTC, stacks))
    if mesh is None:
        d_h, d_share, d_stacks = gradients(d_out_BTD, 0, *kept)
    else:

        def shard(d_out_BTD, *own):
            d_h, d_share, d_stacks = gradients(_gather(d_out_BTD, "expert"), *_gathered(*own))
            return _sent_back(d_h), _sent_back(d_share), jax.tree.map(_summed, d_stacks, _FSDP)

        specs = P(ROWS), P(ROWS), P(ROWS), P(ROWS), _SPLIT
        out_specs = P(ROWS), P(ROWS), _SPLIT
        sharded = jax.shard_map(shard, mesh=mesh, in_specs=specs, out_specs=out_specs, check_vma=False)
        d_h, d_share, d_stacks = sharded(d_out_BTD, *kept)
    d_stacks = jax.tree.map(lambda d, own: d.astype(own.dtype), d_stacks, stacks)
    return d_h.astype(h_BTD.dtype), d_share.astype(share_BTC.dtype), None, d_stacks


by_experts.defvjp(_forward, _backward)


def _gathered(h_BTD, share_BTC, chosen_BTC, stacks: Stacks) -> tuple[Any, ...]:
    """Returns the number of a device's first expert, all tokens along ``expert``, and whole experts."""
    first = jax.lax.axis_index("expert") * len(stacks.gate_EDF)
    tokens = (_gather(x, "expert") for x in (h_BTD, share_BTC, chosen_BTC))
    return first, *tokens, jax.tree.map(lambda x, axis: _gather(x, "fsdp", axis), stacks, _FSDP)


def _sent_back(parts_BT: jax.Array) -> jax.Array:
    """Returns the sums, over all experts and widths, for a device's own rows."""
    return _scatter(_sum(parts_BT, "tensor"), "expert")


def _summed(d_stack: jax.Array, axis: int) -> jax.Array:
    """Returns a device's part of a gradient, over all rows."""
    return _scatter(_sum(d_stack, "data"), "fsdp", axis)


# A CPU would copy what a single device exchanges with itself.


def _gather(x: jax.Array, name: str, axis: int = 0) -> jax.Array:
    return x if jax.lax.axis_size(name) == 1 else jax.lax.all_gather(x, name, axis=axis, tiled=True)


def _sum(x: jax.Array, name: str) -> jax.Array:
    return x if jax.lax.axis_size(name) == 1 else jax.lax.psum(x, name)


def _scatter(x: jax.Array, name: str, axis: int = 0) -> jax.Array:
    one = jax.lax.axis_size(name) == 1
    return x if one else jax.lax.psum_scatter(x, name, scatter_dimension=axis, tiled=True)


class _Blocks:
    """Sorts tokens by expert and cuts them into blocks, each of one expert of this device."""

    def __init__(self, size: int, first: Any, experts: int, chosen_BTC: jax.Array):
        self._C = chosen_BTC.shape[-1]
        chosen_X = chosen_BTC.reshape(-1) - first
        own_X = jnp.where((chosen_X >= 0) & (chosen_X < experts), chosen_X, experts)
        self._order_X = jnp.argsort(own_X, stable=True)
        counts_E = jnp.bincount(own_X, length=experts + 1)[:experts].astype(jnp.int32)
        self._size = size
        self._ends_E = jnp.cumsum(counts_E)
        self._starts_E = self._ends_E - counts_E
        blocks_E = -(-counts_E // self._size)
        self._last_E = jnp.cumsum(blocks_E)
        self._first_E = self._last_E - blocks_E
        self.count = self._last_E[-1]

    def __call__(self, number: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Returns the expert of a block, its places in X, and their tokens in S.

        A block that is not full has places beyond the last one, which ``_at`` reads as 0.
        """
        expert = jnp.sum(self._last_E <= number)
        start = self._starts_E[expert] + (number - self._first_E[expert]) * self._size
        sorted_Z = start + jnp.arange(self._size)
        beyond = len(self._order_X)
        place_Z = self._order_X.at[sorted_Z].get(mode="fill", fill_value=beyond)
        place_Z = jnp.where(sorted_Z < self._ends_E[expert], place_Z, beyond)
        return expert, place_Z, place_Z // self._C


def _block_size(mesh: Mesh | None, chosen_BTC: jax.Array, stacks: Stacks) -> int:
    """Returns how many tokens a block has: about a quarter of those of an expert, in the mean."""
    alike = 1 if mesh is None else mesh.shape["data"] * mesh.shape["fsdp"]  # devices with equal experts
    mean = chosen_BTC.size // alike // len(stacks.gate_EDF)
    return min(max(mean // 4, LEAST), MOST)


def _at(array: jax.Array, places_Z: jax.Array) -> jax.Array:
    return array.at[places_Z].get(mode="fill", fill_value=0)


def _product(x: jax.Array, y: jax.Array, summed: tuple[int, int] = (1, 0)) -> jax.Array:
    """Returns the float32 product of two matrices over the axes that are ``summed``."""
    axes = (summed[:1], summed[1:]), ((), ())
    return jax.lax.dot_general(x, y, axes, preferred_element_type=jnp.float32)


def _outputs(activation, size, first, h_BTD, share_BTC, chosen_BTC, stacks: Stacks) -> jax.Array:
    """Returns what this device's experts add to each token [B, T, D], in float32."""
    h_SD = h_BTD.reshape(-1, h_BTD.shape[-1])
    share_X = share_BTC.reshape(-1)
    blocks = _Blocks(size, first, len(stacks.gate_EDF), chosen_BTC)

    def add(number, out_SD):
        expert, place_Z, token_Z = blocks(number)
        gate_DF, up_DF, down_FD = (stack[expert] for stack in stacks)
        h_ZD = _at(h_SD, token_Z)
        inner_ZF = activation(h_ZD @ gate_DF) * (h_ZD @ up_DF)
        out_ZD = _at(share_X, place_Z)[:, None] * _product(inner_ZF, down_FD)
        return out_SD.at[token_Z].add(out_ZD, mode="drop")

    return jax.lax.fori_loop(0, blocks.count, add, jnp.zeros(h_SD.shape, jnp.float32)).reshape(h_BTD.shape)


def _gradients(activation, size, d_out_BTD, first, h_BTD, share_BTC, chosen_BTC, stacks: Stacks):
    """Returns the gradients of tokens, shares and experts, in float32. Products are made again."""
    h_SD, d_out_SD = (x.reshape(-1, x.shape[-1]) for x in (h_BTD, d_out_BTD))
    share_X = share_BTC.reshape(-1)
    blocks = _Blocks(size, first, len(stacks.gate_EDF), chosen_BTC)

    def add(number, carry):
        d_h_SD, d_share_X, d_stacks = carry
        expert, place_Z, token_Z = blocks(number)
        gate_DF, up_DF, down_FD = (stack[expert] for stack in stacks)
        h_ZD = _at(h_SD, token_Z)
        share_Z1 = _at(share_X, place_Z)[:, None]
        d_out_ZD = _at(d_out_SD, token_Z)
        inner_ZF, pull = jax.vjp(lambda gate, up: activation(gate) * up, h_ZD @ gate_DF, h_ZD @ up_DF)
        d_full_ZF = _product(d_out_ZD, down_FD, (1, 1))  # as if each share were 1
        d_share_Z = jnp.sum(d_full_ZF * inner_ZF, axis=-1)
        d_gate_ZF, d_up_ZF = pull((share_Z1 * d_full_ZF).astype(inner_ZF.dtype))
        d_down_FD = _product(inner_ZF, (share_Z1 * d_out_ZD).astype(inner_ZF.dtype), (0, 0))
        d_own = _product(h_ZD, d_gate_ZF, (0, 0)), _product(h_ZD, d_up_ZF, (0, 0)), d_down_FD
        d_h_ZD = _product(d_gate_ZF, gate_DF, (1, 1)) + _product(d_up_ZF, up_DF, (1, 1))
        return (
            d_h_SD.at[token_Z].add(d_h_ZD, mode="drop"),
            d_share_X.at[place_Z].set(d_share_Z, mode="drop"),
            Stacks(*(all_.at[expert].add(own) for all_, own in zip(d_stacks, d_own, strict=True))),
        )

    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), (h_SD, share_X, stacks))
    d_h_SD, d_share_X, d_stacks = jax.lax.fori_loop(0, blocks.count, add, zeros)
    return d_h_SD.reshape(h_BTD.shape), d_share_X.reshape(share_BTC.shape), d_stacks
