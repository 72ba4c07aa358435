"""Defines the arrays of a lane, and their sizes: what its programs keep, read and draw.

All arrays have a leading axis of shards, which a mesh splits. A shard has slots and pages of its
own. A slot draws one sample at a time.

Axis letters: D shards, s their slots, N prompt pages of a shard, n answer pages of a bank, F prompt
pages that attention visits at once, T prompt tokens computed at once, J adapters, X pages of an
answer, w model width
"""

import functools
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from atgrpo_jax.engines.local.paged_attention import PageBlock, Pages
from atgrpo_jax.engines.local.sampling import Rules
from atgrpo_jax.models.transformer import Transformer


class Sizes(NamedTuple):
    """Holds the sizes of a lane's arrays."""

    shards: int  # D
    slots: int  # s, of a shard
    page: int  # p, tokens of a prompt page
    prompt_pages: int  # N, of a shard
    longest_prompt: int  # P, pages
    fill: int  # F, prompt pages of a shard that attention visits at once
    siblings: int  # W, most samples of one prompt that read it together
    blocks: int  # of readers, in a shard
    answer_page: int  # tokens of an answer page
    answer_pages: int  # of a shard
    longest_answer: int  # X, pages
    banks: int  # into which the answer pages are split
    bans: int  # most banned ids of a slot
    adapters: int  # J
    pattern_states: int  # T, of the pattern that all samples match; 0 if there is none
    chunk: int  # most tokens of a slot between two looks of the host
    fused: bool  # whether attention is one kernel

    @property
    def together(self) -> int:
        """Returns T, how many prompt tokens of a shard are computed at once."""
        return self.fill * self.page

    @property
    def limit(self) -> int:
        """Returns a number that all positions are below."""
        return self.longest_prompt * self.page + self.longest_answer * self.answer_page


class Cache(NamedTuple):
    """Holds what stays on the devices."""

    prompts: list[Pages]  # of each layer, [D, N, ...]
    answers: list[list[Pages]]  # of each layer and bank, [D, n, ...]
    last_DNw: Any  # hidden state at the last token of each prompt page
    hidden_Dsw: Any  # of each slot's last token


class Work(NamedTuple):
    """Holds blocks of prompt tokens, to be computed one after the other.

    A block has the tokens of whole pages, one after the other. Attention takes them in rounds.
    """

    tokens: Any  # [D, blocks, T]
    positions: Any  # [D, blocks, T]
    scale: Any  # [D, blocks, T, J] of each adapter; 0 where it is not the prompt's own
    pages: PageBlock  # [D, blocks, rounds, F, ...]
    passes: Any  # [blocks, rounds] most earlier pages that a prompt of the round has
    rounds: Any  # [blocks] how many hold anything
    blocks: Any  # a number: how many hold anything


class Slots(NamedTuple):
    """Holds what the samples ask for. The first axes of all arrays are D and s."""

    live: Any  # whether a sample draws in it
    prompt_page: Any  # from whose last token it begins; -1 once it has begun
    have: Any  # tokens drawn so far
    prompt: Any  # tokens of the prompt
    limit: Any  # most tokens to draw
    least: Any  # tokens to draw before a stop id may come
    key: Any  # [2] words of its address
    scale: Any  # [J] of each adapter; 0 where it is not the slot's own
    pattern_state: Any
    rules: Rules
    answer: Any  # [X] its answer pages; a number beyond the last page means none

    @classmethod
    def empty(cls, sizes: Sizes) -> "Slots":
        def full(value, dtype, *shape):
            return np.full((sizes.shards, sizes.slots, *shape), value, dtype)

        one = functools.partial(full, 0, np.int32)
        return cls(
            live=full(False, bool),
            prompt_page=full(-1, np.int32),
            have=one(),
            prompt=one(),
            limit=one(),
            least=one(),
            key=full(0, np.uint32, 2),
            scale=full(0, np.float32, sizes.adapters),
            pattern_state=one(),
            rules=Rules(
                full(1, np.float32),
                one(),
                full(1, np.float32),
                full(0, np.float32),
                full(-1, np.int32, sizes.bans),
            ),
            answer=full(sizes.answer_pages, np.int32, sizes.longest_answer),
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


def empty(model: Transformer, sizes: Sizes) -> Cache:
    c = model.architecture
    dtype = jnp.dtype(model.compute.dtype)
    heads = c.kv_heads, c.head_size
    prompts = sizes.shards, sizes.prompt_pages, *heads, sizes.page
    bank = sizes.shards, sizes.answer_pages // sizes.banks, *heads, sizes.answer_page

    def banks() -> list[Pages]:
        return [Pages.zeros(bank, dtype) for _ in range(sizes.banks)]

    return Cache(
        [Pages.zeros(prompts, dtype) for _ in range(c.layers)],
        [banks() for _ in range(c.layers)],
        jnp.zeros((sizes.shards, sizes.prompt_pages, c.width), dtype),
        jnp.zeros((sizes.shards, sizes.slots, c.width), dtype),
    )
