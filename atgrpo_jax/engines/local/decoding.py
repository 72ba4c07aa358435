"""Draws on the devices: two jitted programs whose shapes do not depend on which samples are in.

All arrays have a leading axis of shards, which a mesh splits. A shard has rows (in the engine, a
row is a place in which one sample draws) and pages of its own. What a row does not see leaves no
trace in it, so a row's bits depend on nothing but itself. The host (lanes.py) says what goes where.

D shards, s their rows, R = D s, J adapters, T pattern states, V vocabulary, Z stop ids, F prompt
pages computed at once, p tokens of one, B = D F, P and X pages of prompt and answer, n of a bank,
W samples of a tile, w model width, H head size, M key heads, N query heads (after D: prompt pages)
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from atgrpo_jax.arrays.mesh import group_sharding, page_sharding, platform_of
from atgrpo_jax.engines.local.paged_attention import (
    Chunk,
    Pages,
    Tiles,
    Turns,
    answer_owners,
    decode_attention,
    prefill_attention,
)
from atgrpo_jax.engines.local.paged_kernel import fused_decode_attention
from atgrpo_jax.engines.local.sampling import Rules, pick, uniforms
from atgrpo_jax.models.transformer import Transformer, exact_products, logits, run


class Sizes(NamedTuple):
    """Holds the sizes of a lane's arrays."""

    shards: int  # D
    rows: int  # s, of a shard
    page: int  # p, tokens of a prompt page
    prompt_pages: int  # N, of a shard
    longest_prompt: int  # P, pages
    fill: int  # F, prompt pages of a shard that are computed at once
    tile: int  # W, most samples of one prompt that read it together
    blocks: int  # of tiles, in a shard
    place: int  # tokens of an answer page
    answer_pages: int  # of a shard
    longest_answer: int  # X, pages
    banks: int  # into which the answer pages are split
    bans: int  # most banned ids of a row
    adapters: int  # J
    states: int  # T, of the pattern that all samples match; 0 if there is none
    chunk: int  # most tokens of a row between two looks of the host
    fused: bool  # whether attention is one kernel

    @property
    def limit(self) -> int:
        """Returns a number that all positions are below."""
        return self.longest_prompt * self.page + self.longest_answer * self.place


class State(NamedTuple):
    """Holds what stays on the devices."""

    prompts: list[Pages]  # of each layer, [D, N, ...]
    answers: list[list[Pages]]  # of each layer and bank, [D, n, ...]
    last_DNw: Any  # hidden state at the last token of each prompt page
    hidden_Dsw: Any  # of each row's last token


class Work(NamedTuple):
    """Holds blocks of prompt pages, to be computed one after the other."""

    chunks: Chunk  # [D, blocks, F, ...]
    scale: Any  # [D, blocks, F, J] of each adapter; 0 where it is not the prompt's own
    turns: Any  # [blocks] most earlier pages that a prompt of the block has
    blocks: Any  # a number: how many hold anything


class Rows(NamedTuple):
    """Holds what the samples ask for. The first axes of all arrays are D and s."""

    live: Any  # whether a sample draws in it
    start: Any  # prompt page from whose last token it begins; -1 once it has begun
    have: Any  # tokens drawn so far
    prompt: Any  # tokens of the prompt
    limit: Any  # most tokens to draw
    least: Any  # tokens to draw before a stop id may come
    key: Any  # [2] words of its address
    scale: Any  # [J] of each adapter; 0 where it is not the row's own
    state: Any  # of the pattern
    rules: Rules
    answer: Any  # [X] its answer pages; a number beyond the last page means none

    @classmethod
    def empty(cls, z: Sizes) -> "Rows":
        def full(value, dtype, *sizes):
            return np.full((z.shards, z.rows, *sizes), value, dtype)

        one = functools.partial(full, 0, np.int32)
        return cls(
            live=full(False, bool),
            start=full(-1, np.int32),
            have=one(),
            prompt=one(),
            limit=one(),
            least=one(),
            key=full(0, np.uint32, 2),
            scale=full(0, np.float32, z.adapters),
            state=one(),
            rules=Rules(
                full(1, np.float32),
                one(),
                full(1, np.float32),
                full(0, np.float32),
                full(-1, np.int32, z.bans),
            ),
            answer=full(z.answer_pages, np.int32, z.longest_answer),
        )


class Drawn(NamedTuple):
    """Holds what a chunk drew. Arrays are [D, s, ...]."""

    tokens: Any  # [chunk]
    logprobs: Any  # [chunk]
    drawn_logprobs: Any  # [chunk]
    have: Any  # tokens drawn so far
    live: Any  # whether it goes on
    stopped: Any  # whether a stop id ended it
    steps: Any  # a number: of decoding steps


def empty(model: Transformer, z: Sizes) -> State:
    c, dtype = model.config, jnp.dtype(model.config.dtype)
    heads = c.kv_heads, c.head_size
    bank = z.shards, z.answer_pages // z.banks, *heads, z.place
    return State(
        [Pages.zeros((z.shards, z.prompt_pages, *heads, z.page), dtype) for _ in range(c.layers)],
        [[Pages.zeros(bank, dtype) for _ in range(z.banks)] for _ in range(c.layers)],
        jnp.zeros((z.shards, z.prompt_pages, c.width), dtype),
        jnp.zeros((z.shards, z.rows, c.width), dtype),
    )


def prefill(model: Transformer, z: Sizes, state: State, params: Any, adapters: Any, work: Work) -> State:
    """Computes prompt pages, and the hidden states at their last tokens."""
    D, F, p = z.shards, z.fill, z.page

    def block(b, state):
        at = functools.partial(jax.lax.dynamic_index_in_dim, index=b, axis=1, keepdims=False)
        chunk, scale_DFJ = jax.tree.map(at, (work.chunks, work.scale))

        def attend(q, k, v, prompts):
            q_DF, k_DF, v_DF = (x.reshape(D, F, *x.shape[1:]) for x in (q, k, v))
            over = jax.vmap(prefill_attention, in_axes=(0, 0, 0, 0, 0, None))
            out, prompts = over(q_DF, k_DF, v_DF, prompts, chunk, work.turns[b])
            return out.reshape(q.shape), prompts

        positions_DFp = chunk.number[..., None] * p + jnp.arange(p)
        inputs = chunk.tokens.reshape(D * F, p), positions_DFp.reshape(D * F, p), attend, state.prompts
        scale_BJ = scale_DFJ.reshape(D * F, -1)
        hidden, prompts = run(model, params, adapters, *inputs, scale_BJ=scale_BJ, limit=z.limit)
        last = jnp.take_along_axis(hidden.reshape(D, F, p, -1), chunk.last[..., None, None], axis=2)[:, :, 0]
        put = jax.vmap(lambda old, pages, new: old.at[pages].set(new, mode="drop"))
        return state._replace(prompts=prompts, last_DNw=put(state.last_DNw, chunk.page, last))

    return jax.lax.fori_loop(0, work.blocks, block, state)


def decode(
    model: Transformer,
    z: Sizes,
    mesh: Mesh | None,
    state: State,
    params: Any,
    adapters: Any,
    rows: Rows,
    tiles: Tiles,
    turns: Turns,
    stop_ids: jax.Array,
    pattern_TV: jax.Array,
    ended: jax.Array,
) -> tuple[State, Drawn]:
    """Draws tokens for the live rows until the chunk is full or ``ended`` samples have ended.

    patterns.py makes ``pattern_TV``.
    """
    D, s, R = z.shards, z.rows, z.shards * z.rows
    flat = jax.tree.map(lambda x: x.reshape(R, *x.shape[2:]), rows)
    owners = jax.vmap(functools.partial(answer_owners, pages=z.answer_pages, page=z.place))(rows.answer)
    start = jax.vmap(lambda last, at: last.at[at].get(mode="clip"))(state.last_DNw, rows.start)
    hidden_Rw = jnp.where((rows.start >= 0)[..., None], start, state.hidden_Dsw).reshape(R, -1)
    size = z.answer_pages // z.banks

    def step(carry):
        i, hidden_Rw, live_R, count_R, stopped_R, state_R, out, answers = carry
        held_RZ = jnp.where((count_R < flat.least)[:, None], stop_ids, -1)
        rules = flat.rules._replace(never=jnp.concatenate([flat.rules.never, held_RZ], axis=-1))
        allowed_RV = pattern_TV[state_R] >= 0 if z.states else None
        drawn = pick(logits(params, hidden_Rw), uniforms(flat.key, count_R), rules, allowed_RV)
        if z.states:
            state_R = pattern_TV[state_R, drawn.tokens]
        out = jax.tree.map(
            lambda all_, new: jax.lax.dynamic_update_index_in_dim(all_, new, i, 1), out, tuple(drawn)
        )
        count_Ds, live_Ds = count_R.reshape(D, s), live_R.reshape(D, s)
        column_Ds1 = jnp.minimum(count_Ds // z.place, z.longest_answer - 1)[..., None]
        page_Ds = jnp.take_along_axis(rows.answer, column_Ds1, axis=-1)[..., 0]
        page_Ds = jnp.where(live_Ds, page_Ds, z.answer_pages)

        def attend(q_R1NH, k_R1MH, v_R1MH, cache):
            prompts, banks = cache
            q, k, v = (x.reshape(D, s, *x.shape[2:]) for x in (q_R1NH, k_R1MH, v_R1MH))
            put = jax.vmap(Pages.put_places)
            banks = [
                put(bank, jnp.where(page_Ds // size == b, page_Ds % size, size), count_Ds % z.place, k, v)
                for b, bank in enumerate(banks)
            ]
            if z.fused:
                out = _fused(mesh, q, count_Ds, prompts, banks[0], tiles, rows.answer)
            else:
                over = jax.vmap(decode_attention, in_axes=(0, 0, 0, 0, 0, 0, 0, None))
                out = over(q, count_Ds, prompts, banks, tiles, owners, rows.answer, turns)
            return out.reshape(q_R1NH.shape), (prompts, banks)

        inputs = drawn.tokens[:, None], (flat.prompt + count_R)[:, None], attend
        caches = list(zip(state.prompts, answers, strict=True))
        hidden_R1w, caches = run(model, params, adapters, *inputs, caches, scale_BJ=flat.scale, limit=z.limit)
        stop_R = live_R & jnp.isin(drawn.tokens, stop_ids)
        count_R += live_R
        live_R &= ~stop_R & (count_R < flat.limit)
        answers = [banks for _, banks in caches]
        return i + 1, hidden_R1w[:, 0], live_R, count_R, stopped_R | stop_R, state_R, out, answers

    asked = jnp.sum(flat.live)

    def more(carry):
        i, _, live_R, *_ = carry
        left = jnp.sum(live_R)
        return (i < z.chunk) & (left > 0) & (asked - left < ended)

    out = tuple(jnp.zeros((R, z.chunk), dtype) for dtype in (jnp.int32, jnp.float32, jnp.float32))
    stopped_R = jnp.zeros(R, bool)
    carry = jnp.int32(0), hidden_Rw, flat.live, flat.have, stopped_R, flat.state, out, state.answers
    i, hidden_Rw, live_R, count_R, stopped_R, _, out, answers = jax.lax.while_loop(more, step, carry)
    state = state._replace(answers=answers, hidden_Dsw=hidden_Rw.reshape(D, s, -1))
    drawn = jax.tree.map(lambda x: x.reshape(D, s, *x.shape[1:]), (*out, count_R, live_R, stopped_R))
    return state, Drawn._make([*drawn, i])


def _fused(mesh: Mesh | None, q_DsNH: jax.Array, count_Ds: jax.Array, *inputs: Any) -> jax.Array:
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
def programs(model: Transformer, z: Sizes, mesh: Mesh | None) -> Programs:
    """Returns the jitted programs of a lane."""
    sharding = None if mesh is None else _shardings(model, z, mesh)
    both = None if sharding is None else (sharding, None)

    def compiled(program, out_shardings):
        def traced(*inputs):
            with exact_products(model.config):
                return program(*inputs)

        traced.__name__ = program.func.__name__  # the name in profiles
        return jax.jit(traced, donate_argnums=0, out_shardings=out_shardings)

    return Programs(
        jax.jit(functools.partial(empty, model, z), out_shardings=sharding),
        compiled(functools.partial(prefill, model, z), sharding),
        compiled(functools.partial(decode, model, z, mesh), both),
    )


def _shardings(model: Transformer, z: Sizes, mesh: Mesh) -> State:
    pages, rest = page_sharding(mesh, model.config.kv_heads), group_sharding(mesh)
    shapes = jax.eval_shape(functools.partial(empty, model, z))
    return jax.tree.map(lambda x: pages if x.ndim == 5 else rest, shapes)
