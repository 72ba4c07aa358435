"""Draws on the devices: two jitted programs whose shapes do not depend on which samples are in.

All arrays have a leading axis of shards, which a mesh splits. A shard has slots and pages of its
own. A slot draws one sample at a time. What a slot does not see leaves no trace in it, so a slot's
bits depend on nothing but itself. The host (lanes.py) says what goes where.

D shards, s their slots, R = D s, J adapters, T pattern states (after D: prompt tokens computed at
once), V vocabulary, Z stop ids, B = D T, P and X pages of prompt and answer, n of a bank, W siblings
that read together, w model width, H head size, M key heads, N query heads (after D: prompt pages)
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from atgrpo_jax.arrays.mesh import group_sharding, page_sharding, platform_of
from atgrpo_jax.engines.local.lane_arrays import Cache, Drawn, Sizes, Slots, Work, empty
from atgrpo_jax.engines.local.paged_attention import (
    PageBlock,
    Pages,
    Passes,
    Readers,
    answer_owners,
    decode_attention,
    prefill_attention,
)
from atgrpo_jax.engines.local.paged_kernel import fused_decode_attention
from atgrpo_jax.engines.local.sampling import pick, uniforms
from atgrpo_jax.models.attention import narrower
from atgrpo_jax.models.transformer import Transformer, apply, exact_products, logits


def prefill(model: Transformer, sizes: Sizes, cache: Cache, params: Any, adapters: Any, work: Work) -> Cache:
    """Computes prompt pages, and the hidden states at their last tokens."""
    D = sizes.shards
    T = sizes.together

    def block(b, cache):
        at = functools.partial(jax.lax.dynamic_index_in_dim, index=b, axis=1, keepdims=False)
        tokens_DT, positions_DT, scale_DTJ, pages = jax.tree.map(
            at, (work.tokens, work.positions, work.scale, work.pages)
        )

        def attend(q, k, v, prompts, window):
            attention = functools.partial(prefill_attention, window=narrower(window, sizes.limit))
            over = jax.vmap(attention, in_axes=(0, 0, 0, 0, 0, None))
            of_rows = [x.reshape(D, T, *x.shape[2:]) for x in (q, k, v)]

            def visit(r, carry):
                out_DTNH, prompts = carry
                mine = jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, r, 1, keepdims=False), pages)
                take = jax.vmap(lambda x, rows: x.at[rows].get(mode="clip"))
                q_DF, k_DF, v_DF = (take(x, mine.rows) for x in of_rows)
                out, prompts = over(q_DF, k_DF, v_DF, prompts, mine, work.passes[b, r])
                put = jax.vmap(lambda old, rows, new: old.at[rows].set(new, mode="drop"))
                return put(out_DTNH, mine.rows, out), prompts

            carry = jnp.zeros_like(of_rows[0]), prompts
            out_DTNH, prompts = jax.lax.fori_loop(0, work.rounds[b], visit, carry)
            return out_DTNH.reshape(q.shape), prompts

        # Adapters differ from row to row. Without them, rows of many tokens are computed alike.
        shape = (-1, 1) if sizes.adapters else (-1, sizes.page)
        inputs = tokens_DT.reshape(shape), positions_DT.reshape(shape), attend, cache.prompts
        scale_BJ = scale_DTJ.reshape(D * T, -1)
        hidden, prompts = apply(model, params, adapters, *inputs, scale_BJ=scale_BJ, limit=sizes.limit)

        def put_last(old_Nw, hidden_Tw, pages, last):
            return old_Nw.at[pages].set(hidden_Tw.at[last].get(mode="clip"), mode="drop")

        last_DNw = jax.vmap(put_last)(cache.last_DNw, hidden.reshape(D, T, -1), pages.page, pages.last)
        return cache._replace(prompts=prompts, last_DNw=last_DNw)

    return jax.lax.fori_loop(0, work.blocks, block, cache)


def decode(
    model: Transformer,
    sizes: Sizes,
    mesh: Mesh | None,
    cache: Cache,
    params: Any,
    adapters: Any,
    slots: Slots,
    readers: Readers,
    passes: Passes,
    stop_ids: jax.Array,
    pattern_TV: jax.Array,
    ended: jax.Array,
) -> tuple[Cache, Drawn]:
    """Draws tokens for the live slots until the chunk is full or ``ended`` samples have ended.

    patterns.py makes ``pattern_TV``.
    """
    D = sizes.shards
    s = sizes.slots
    R = sizes.shards * sizes.slots
    flat = jax.tree.map(lambda x: x.reshape(R, *x.shape[2:]), slots)
    owners_of = functools.partial(answer_owners, pages=sizes.answer_pages, page=sizes.answer_page)
    owners = jax.vmap(owners_of)(slots.answer)
    begun = jax.vmap(lambda last, at: last.at[at].get(mode="clip"))(cache.last_DNw, slots.prompt_page)
    hidden_Rw = jnp.where((slots.prompt_page >= 0)[..., None], begun, cache.hidden_Dsw).reshape(R, -1)

    def step(carry):
        i, hidden_Rw, live_R, count_R, stopped_R, pattern_state_R, out, answers = carry
        held_RZ = jnp.where((count_R < flat.least)[:, None], stop_ids, -1)
        rules = flat.rules._replace(never=jnp.concatenate([flat.rules.never, held_RZ], axis=-1))
        allowed_RV = pattern_TV[pattern_state_R] >= 0 if sizes.pattern_states else None
        drawn = pick(logits(params, hidden_Rw), uniforms(flat.key, count_R), rules, allowed_RV)
        if sizes.pattern_states:
            pattern_state_R = pattern_TV[pattern_state_R, drawn.tokens]
        out = jax.tree.map(
            lambda all_, new: jax.lax.dynamic_update_index_in_dim(all_, new, i, 1), out, tuple(drawn)
        )
        count_Ds = count_R.reshape(D, s)
        page_Ds = _page_of(count_Ds, slots.answer, sizes)
        page_Ds = jnp.where(live_R.reshape(D, s), page_Ds, sizes.answer_pages)
        offset_Ds = count_Ds % sizes.answer_page

        def attend(q_R1NH, k_R1MH, v_R1MH, layer, window):
            window = narrower(window, sizes.limit)
            prompts, banks = layer
            q, k, v = (x.reshape(D, s, *x.shape[2:]) for x in (q_R1NH, k_R1MH, v_R1MH))
            banks = _written(banks, page_Ds, offset_Ds, k, v)
            if sizes.fused and window is None:  # the kernel knows no windows
                out = _by_kernel(mesh, q, count_Ds, prompts, banks[0], readers, slots.answer)
            else:
                out = _by_loops(window, q, count_Ds, prompts, banks, readers, owners, slots.answer, passes)
            return out.reshape(q_R1NH.shape), (prompts, banks)

        inputs = drawn.tokens[:, None], (flat.prompt + count_R)[:, None], attend
        caches = list(zip(cache.prompts, answers, strict=True))
        hidden_R1w, caches = apply(
            model, params, adapters, *inputs, caches, scale_BJ=flat.scale, limit=sizes.limit
        )
        stop_R = live_R & jnp.isin(drawn.tokens, stop_ids)
        count_R += live_R
        live_R &= ~stop_R & (count_R < flat.limit)
        answers = [banks for _, banks in caches]
        return i + 1, hidden_R1w[:, 0], live_R, count_R, stopped_R | stop_R, pattern_state_R, out, answers

    asked = jnp.sum(flat.live)

    def more(carry):
        i, _, live_R, *_ = carry
        left = jnp.sum(live_R)
        return (i < sizes.chunk) & (left > 0) & (asked - left < ended)

    out = tuple(jnp.zeros((R, sizes.chunk), dtype) for dtype in (jnp.int32, jnp.float32, jnp.float32))
    stopped_R = jnp.zeros(R, bool)
    carry = jnp.int32(0), hidden_Rw, flat.live, flat.have, stopped_R, flat.pattern_state, out, cache.answers
    i, hidden_Rw, live_R, count_R, stopped_R, _, out, answers = jax.lax.while_loop(more, step, carry)
    cache = cache._replace(answers=answers, hidden_Dsw=hidden_Rw.reshape(D, s, -1))
    drawn = jax.tree.map(lambda x: x.reshape(D, s, *x.shape[1:]), (*out, count_R, live_R, stopped_R))
    return cache, Drawn._make([*drawn, i])


def _page_of(count_Ds: jax.Array, table_DsX: jax.Array, sizes: Sizes) -> jax.Array:
    """Returns the answer page of each slot's token number ``count``."""
    column_Ds1 = jnp.minimum(count_Ds // sizes.answer_page, sizes.longest_answer - 1)[..., None]
    return jnp.take_along_axis(table_DsX, column_Ds1, axis=-1)[..., 0]


def _written(banks: list[Pages], page_Ds, offset_Ds, k_DsMH, v_DsMH) -> list[Pages]:
    """Returns the banks with a key and a value of each slot. Page numbers count over all banks."""
    size = banks[0].keys.shape[1]
    put = jax.vmap(Pages.put_offsets)
    written = []
    for b, bank in enumerate(banks):
        page_in_bank_Ds = jnp.where(page_Ds // size == b, page_Ds % size, size)
        written.append(put(bank, page_in_bank_Ds, offset_Ds, k_DsMH, v_DsMH))
    return written


def _by_loops(window: int | None, *inputs: Any) -> jax.Array:
    """Runs XLA's loops on each shard. All inputs but the last have an axis of shards."""
    attention = functools.partial(decode_attention, window=window)
    return jax.vmap(attention, in_axes=(*[0] * (len(inputs) - 1), None))(*inputs)


def _by_kernel(mesh: Mesh | None, q_DsNH: jax.Array, count_Ds: jax.Array, *inputs: Any) -> jax.Array:
    """Runs the kernel on each device's shards and heads; XLA would not split it by itself."""
    attention = functools.partial(fused_decode_attention, interpret=platform_of(mesh) == "cpu")
    if mesh is None:
        return attention(q_DsNH, count_Ds, *inputs)
    prompts, *rest = inputs
    by_head = page_sharding(mesh, prompts.keys.shape[2]).spec
    by_shard = group_sharding(mesh).spec
    specs = by_head, by_shard, by_head, by_head, by_shard, by_shard
    sharded = jax.shard_map(attention, mesh=mesh, in_specs=specs, out_specs=by_head, check_vma=False)
    return sharded(q_DsNH, count_Ds, prompts, *rest)


class Programs(NamedTuple):
    empty: Any
    prefill: Any
    decode: Any


@functools.lru_cache
def programs(model: Transformer, sizes: Sizes, mesh: Mesh | None) -> Programs:
    """Returns the jitted programs of a lane."""
    model = model.clone(mesh=mesh)
    sharding = None if mesh is None else _shardings(model, sizes, mesh)
    by_shard = None if mesh is None else group_sharding(mesh)
    by_page = PageBlock(*[by_shard] * len(PageBlock._fields))
    work = Work(by_shard, by_shard, by_shard, by_page, None, None, None)
    prefilled = (None, None, None, work), sharding
    # Slots and readers, then what all shards share.
    decoded = (None, None, None, by_shard, by_shard, None, None, None, None), (sharding, None)

    def compiled(program, in_shardings, out_shardings):
        def traced(*inputs):
            with exact_products(model.compute):
                return program(*inputs)

        traced.__name__ = program.func.__name__  # the name in profiles
        # The host's arrays go to the devices with the call: one by one they would take longer than it.
        return jax.jit(traced, donate_argnums=0, in_shardings=in_shardings, out_shardings=out_shardings)

    return Programs(
        jax.jit(functools.partial(empty, model, sizes), out_shardings=sharding),
        compiled(functools.partial(prefill, model, sizes), *prefilled),
        compiled(functools.partial(decode, model, sizes, mesh), *decoded),
    )


def _shardings(model: Transformer, sizes: Sizes, mesh: Mesh) -> Cache:
    pages = page_sharding(mesh, model.architecture.kv_heads)
    rest = group_sharding(mesh)
    shapes = jax.eval_shape(functools.partial(empty, model, sizes))
    return jax.tree.map(lambda x: pages if x.ndim == 5 else rest, shapes)
