"""How prompts are put into blocks of rows, and whose turn it is, by hand: no device draws."""

import random

import numpy as np
from shared_local import CONFIG, MODEL, request

from atgrpo_jax.engines.local.inputs import BLOCKS, missing_pages
from atgrpo_jax.engines.local.lanes import Lane
from atgrpo_jax.engines.local.settings import Company, lane_sizes
from atgrpo_jax.engines.local.shards import Item, Shard
from atgrpo_jax.engines.local.tickets import Ticket

# Blocks of 16 rows, in pages of 8 tokens. Attention takes two pages in a round.
SIZES = lane_sizes(CONFIG, Company(("shared",), MODEL, None, None), request([1]), None)._replace(
    prompt_pages=128
)


def planned(*lengths):
    """Returns the work for prompts of these lengths: number 2 of 5 tokens is 2, 102, 202, 302, 402."""
    shard = Shard(SIZES)
    for number, length in enumerate(lengths):
        ticket = Ticket(request([100 * i + number for i in range(length)]), None, 0.0)
        pages, _ = shard.prompts.take("shared", ticket.request.prompt_ids)
        shard.items += [Item(ticket, pages, i) for i in range(len(pages))]
    return list(missing_pages([shard], SIZES))


def test_short_prompts_share_a_block():
    """7 + 6 + 3 tokens in one, and 5 in the next: the longest first, and short ones where there is room."""
    (work,) = planned(7, 3, 6, 5)
    assert SIZES.together == 16 and work.blocks == 2
    assert (work.tokens[0, 0] % 100).tolist() == [0] * 7 + [2] * 6 + [1] * 3
    assert work.positions[0, 0].tolist() == [*range(7), *range(6), *range(3)]
    assert (work.tokens[0, 1] % 100).tolist() == [3] * 5 + [0] * 11  # the last rows are empty
    assert work.rounds[:2].tolist() == [2, 1] and not work.passes.any()
    assert work.pages.last[0, 0].ravel()[:3].tolist() == [6, 12, 15]
    assert work.pages.rows[0, 0, 1, 0].tolist() == [13, 14, 15, 16, 16, 16, 16, 16]


def test_a_page_is_in_a_later_block_than_the_one_before_it():
    """Prompts of 8 + 8 + 4 and of 8 tokens."""
    (work,) = planned(20, 8)
    assert work.blocks == 3
    assert work.positions[0, 2, :4].tolist() == [16, 17, 18, 19]
    assert work.passes[:3, 0].tolist() == [0, 1, 2]
    assert work.pages.number[0, :3, 0, 0].tolist() == [0, 1, 2]


def test_a_block_has_no_more_pages_than_rounds_take():
    """Nine prompts of one token: four rounds of two, and one more block."""
    (work,) = planned(*[1] * 9)
    assert work.blocks == 2 and work.rounds[:2].tolist() == [4, 1]


def test_every_page_is_computed_once_from_its_own_tokens():
    rng = random.Random(0)
    lengths = [rng.randint(1, 32) for _ in range(24)]
    found, pages = {}, []
    works = planned(*lengths)
    assert len(works) > 1 and all(work.blocks == BLOCKS for work in works[:-1])
    for work in works:
        for at in np.argwhere(work.pages.page[0] < SIZES.prompt_pages):
            b, r, f = at
            assert b < work.blocks and r < work.rounds[b]
            rows = work.pages.rows[0, b, r, f]
            rows = rows[rows < SIZES.together]
            assert rows[-1] == work.pages.last[0, b, r, f]
            tokens = work.tokens[0, b, rows]
            assert (work.positions[0, b, rows] == tokens // 100).all()
            found.setdefault(int(tokens[0] % 100), []).extend(tokens.tolist())
            pages.append(int(work.pages.page[0, b, r, f]))
    assert len(set(pages)) == len(pages) == sum(-(-length // SIZES.page) for length in lengths)
    expected = {n: [100 * i + n for i in range(length)] for n, length in enumerate(lengths)}
    assert found == expected


def test_who_waits_is_computed_where_rows_are_empty_and_draws_when_it_is_his_turn():
    """Two slots. Prompts of 6 and 5 tokens enter; of those that wait, one of 7 has no room, one of 4 has."""
    lane = Lane(MODEL, SIZES._replace(slots=2), None, np.array([3]), np.zeros((0, 64), np.int32))
    lengths = (6, 5, 7, 4)
    tickets = [
        Ticket(request([number] * length, number, k=1), None, float(number))
        for number, length in enumerate(lengths)
    ]
    for ticket in tickets:
        ticket.enter(0, 1.0)
        lane.add(ticket)
    lane.admit()
    assert [bool(ticket.pages) for ticket in tickets] == [True, True, False, True]
    assert [len(ticket.waiting) for ticket in tickets] == [0, 0, 1, 1]
    lane.drop(tickets[0])
    lane.admit()
    assert [len(ticket.waiting) for ticket in tickets[1:]] == [0, 0, 1]
    lane.drop(tickets[1])
    lane.admit()
    assert not lane.asked and not any(ticket.waiting for ticket in tickets)
