import functools
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fakes import PARITY

from atgrpo_jax.engines.local.paged_attention import (
    PageBlock,
    Pages,
    Passes,
    Readers,
    answer_owners,
    decode_attention,
    prefill_attention,
)
from atgrpo_jax.engines.local.paged_kernel import fused_decode_attention, supports
from atgrpo_jax.engines.local.prompt_pages import PromptPages
from atgrpo_jax.models.attention import masked_attention

N, M, H, PAGE = 4, 2, 8, 4
rng = np.random.default_rng(0)


def draw(*shape):
    return jnp.asarray(rng.standard_normal(shape), jnp.float32)


def by_plain_attention(q_NH, k_TMH, v_TMH):
    mask = np.ones((1, 1, len(k_TMH)), bool)
    return masked_attention(q_NH[None, None], k_TMH[None], v_TMH[None], mask)[0, 0]


@pytest.fixture(scope="module")
def prompts():
    """Of 10 and of 3 tokens, in pages 6, 2, 5 and 1 of a pool that is full of other things."""
    pages = Pages.of(draw(8, PAGE, M, H), draw(8, PAGE, M, H))
    keys, values = draw(2, 12, M, H), draw(2, 12, M, H)
    for prompt, places in ((0, (6, 2, 5)), (1, (1,))):
        for i, place in enumerate(places):
            own = (x[prompt : prompt + 1, i * PAGE : (i + 1) * PAGE] for x in (keys, values))
            pages = pages.put(jnp.array([place]), Pages.of(*own))
    return pages, keys, values


@pytest.mark.thorough
def test_decoding_sees_the_prompt_and_the_own_answer(prompts):
    """Five rows on two prompts, the fourth of them empty; answers of 1 to 7 tokens in two banks."""
    pool, keys, values = prompts
    q, own_k, own_v = draw(5, N, H), draw(5, 8, M, H), draw(5, 8, M, H)
    prompt_of, lengths, counts = [0, 1, 0, None, 1], [10, 3], np.array([6, 0, 3, 0, 4])
    table = np.array([[3, 5], [0, 6], [4, 6], [6, 6], [2, 1]], np.int32)  # 6 is none
    banks = [Pages.of(draw(3, PAGE, M, H), draw(3, PAGE, M, H)) for _ in range(2)]
    for place in range(7):
        for row in np.flatnonzero(counts >= place):
            if prompt_of[row] is not None:
                page = table[row, place // PAGE]
                at = jnp.array([page % 3]), jnp.array([place % PAGE])
                one = own_k[row, place][None], own_v[row, place][None]
                banks[page // 3] = banks[page // 3].put_offsets(*at, *one)
    readers = Readers(
        np.array([[0, 2], [1, 4], [5, 5], [5, 5]]),
        np.array([[6, 2, 5], [1, 0, 0], [0, 0, 0], [0, 0, 0]]),
        np.array([10, 3, 0, 0]),
    )
    owners = answer_owners(jnp.asarray(table), 6, PAGE)

    def attend(passes):
        return decode_attention(
            q,
            jnp.asarray(counts),
            pool,
            banks,
            jax.tree.map(jnp.asarray, readers),
            owners,
            jnp.asarray(table),
            passes,
        )

    ours = attend(Passes(jnp.array([3, 0]), 2, 2))
    for row, prompt in enumerate(prompt_of):
        if prompt is not None:
            seen = [
                np.concatenate([of_prompt[prompt, : lengths[prompt]], of_row[row, : counts[row] + 1]])
                for of_prompt, of_row in ((keys, own_k), (values, own_v))
            ]
            np.testing.assert_allclose(ours[row], by_plain_attention(q[row], *seen), **PARITY)
    one_bank = jax.tree.map(lambda *x: jnp.concatenate(x), *banks)
    inputs = q, jnp.asarray(counts), pool, one_bank, readers, jnp.asarray(table)
    kernels = fused_decode_attention(*jax.tree.map(lambda x: jnp.asarray(x)[None], inputs), interpret=True)[0]
    for row, prompt in enumerate(prompt_of):
        if prompt is not None:
            np.testing.assert_allclose(kernels[row], ours[row], **PARITY)
    assert (kernels[3] == 0).all()  # nobody
    # Pages beyond what anybody sees change nothing, not the last bit.
    assert (np.asarray(attend(Passes(jnp.array([3, 1]), 2, 2))) == np.asarray(ours)).all()


@pytest.mark.usefixtures("for_an_h100")
@pytest.mark.parametrize("heads", [6, 80])
def test_the_kernel_lowers_for_a_gpu(heads):
    """To Triton's intermediate language; whether a GPU runs it needs one."""

    def shape(*sizes, dtype=jnp.int32):
        return jax.ShapeDtypeStruct((1, *sizes), dtype)

    wide = functools.partial(shape, dtype=jnp.bfloat16)
    pages = Pages(wide(9, 2, 64, 32), wide(9, 2, 32, 64))
    readers = Readers(shape(4, 2), shape(4, 3), shape(4))
    traced = jax.jit(fused_decode_attention).trace(
        wide(5, heads, 64), shape(5), pages, pages, readers, shape(5, 2)
    )
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("custom_call @__gpu$xla") == 1
    assert supports(64, 32) and not supports(96, 32) and not supports(64, 8)


def test_prefill_sees_earlier_pages_and_the_own_tokens_so_far(prompts):
    pool, keys, values = prompts
    q = draw(2, PAGE, N, H)
    own = [np.stack([x[0, 8:12], x[1, 0:4]]) for x in (keys, values)]
    table = np.array([[6, 2, 5], [1, 0, 0]])
    page_block = PageBlock(None, np.array([2, 0]), table, None, np.array([5, 8]))
    out, stored = prefill_attention(q, *own, pool, jax.tree.map(jnp.asarray, page_block), 2)
    for f, first in ((0, 8), (1, 0)):
        for t in range(PAGE):
            seen = (x[f, : first + t + 1] for x in (keys, values))
            np.testing.assert_allclose(out[f, t], by_plain_attention(q[f, t], *seen), **PARITY)
    jax.tree.map(np.testing.assert_array_equal, stored, pool)  # page 5 as it was, 8 is nowhere


def test_prompts_share_what_they_begin_with():
    pages = PromptPages(6, 2)
    (one, known), (two, also) = pages.take("a", [1, 2, 3, 4, 5]), pages.take("a", [1, 2, 3, 4, 6])
    assert (known, also) == (0, 2) and one[:2] == two[:2] and one[2] != two[2]
    assert pages.take("a", [1, 2, 3, 4, 5]) == (one, 3)
    assert pages.take("b", [1, 2])[1] == 0  # another root shares nothing
    assert pages.take("a", [9, 9, 9]) is None  # one page is free, two are needed


def test_what_nobody_reads_is_kept_until_its_place_is_needed():
    pages = PromptPages(4, 2)
    old, _ = pages.take("a", [1, 2, 3])
    new, _ = pages.take("a", [5, 6, 7])
    pages.leave(old)
    pages.leave(new)
    assert pages.take("a", [1, 2, 8]) == ([old[0], old[1]], 1)  # the longest unread, deepest first
    assert pages.take("a", [5, 6, 7]) == (new, 2)


def test_readers_keep_their_pages_in_a_long_random_run():
    """Against a plain account of who reads what: no page of a reader is given to another text."""
    random.seed(0)
    pages, held = PromptPages(12, 2), []
    for _ in range(2000):
        prompt = tuple(random.choices(range(3), k=random.randint(1, 7)))
        taken = pages.take("a", prompt)
        if taken is not None:
            held.append((prompt, taken[0]))
            assert len(taken[0]) == -(-len(prompt) // 2)
        if held and (taken is None or random.random() < 0.5):
            pages.leave(held.pop(random.randrange(len(held)))[1])
        text_of = {}
        for prompt, own in held:
            for i, page in enumerate(own):
                assert text_of.setdefault(page, prompt[: 2 * i + 2]) == prompt[: 2 * i + 2]
    for _, own in held:
        pages.leave(own)
    assert len(pages.take("b", range(24))[0]) == 12  # nothing leaked
