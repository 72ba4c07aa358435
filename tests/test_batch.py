import jax
import numpy as np
import pytest
from fakes import candidate, credited

from atgrpo_jax.common.types import Group
from atgrpo_jax.credit.groups import Credited
from atgrpo_jax.models.attention import prefix_mask
from atgrpo_jax.update.batch import (
    BatchConfig,
    filled,
    map_filled,
    minibatches,
    pack,
    tile_pairs,
    token_weights,
    widened,
)

ITEM = Credited(
    Group(
        (
            candidate((11, 12), (-0.1, -0.2)),
            candidate((13,), (-0.3,)),  # not trained, so left out
            candidate((14, 15, 16), (-0.4, -0.5, -0.6)),
        ),
        0,
    ),
    np.array([1.0, 9.0, -2.0], np.float32),
    np.array([True, False, True]),
)  # its prompt is 5 6 7


def test_the_layout_of_one_group_drawn():
    batch = pack([ITEM], BatchConfig(row_tokens=10, rows=1), "candidate", 16)
    read = {name: value[0, 0].tolist() for name, value in batch._asdict().items() if name != "trained"}
    trained = {name: value[0, 0] for name, value in batch.trained._asdict().items()}
    #                            prompt | branch 1 | branch 3      | padding
    assert read["tokens"] == [5, 6, 7, 11, 12, 14, 15, 16, 0, 0]
    assert read["positions"] == [0, 1, 2, 3, 4, 3, 4, 5, 0, 0]
    assert read["segments"] == [1, 1, 1, 1, 1, 1, 1, 1, 0, 0]
    assert read["branches"] == [0, 0, 0, 1, 1, 3, 3, 3, 0, 0]
    assert read["pairs"] == [0]  # one tile
    assert trained["sources"].tolist() == [2, 3, 2, 5, 6, 0, 0, 0, 0, 0]
    assert trained["targets"].tolist() == [11, 12, 14, 15, 16, 0, 0, 0, 0, 0]
    assert trained["advantages"].tolist() == [1, 1, -2, -2, -2, 0, 0, 0, 0, 0]
    np.testing.assert_allclose(trained["old_logprobs"], [-0.1, -0.2, -0.4, -0.5, -0.6, 0, 0, 0, 0, 0])
    a, b = 1 / (2 * 2), 1 / (2 * 3)
    np.testing.assert_allclose(trained["weights"], [a, a, b, b, b, 0, 0, 0, 0, 0], rtol=1e-6)


@pytest.mark.parametrize("tile", [2, 4, 8])
@pytest.mark.parametrize("seed", range(4))
def test_tiles_meet_where_some_token_sees_another(tile, seed):
    rng = np.random.default_rng(seed)
    items = [credited(rng, int(p), rng.integers(1, 9, 3).tolist()) for p in rng.integers(1, 20, 4)]
    batch = pack(items, BatchConfig(row_tokens=64, rows=4), "token", 1)
    for segments, branches in zip(batch.segments[0], batch.branches[0], strict=True):
        tiles = 64 // tile
        sees = np.asarray(prefix_mask(segments, branches)) & (segments > 0)[:, None]
        met = sees.reshape(tiles, tile, tiles, tile).any((1, 3))
        assert tile_pairs(segments, branches, tile).tolist() == np.flatnonzero(met).tolist()


def test_several_groups_share_a_row_first_fit_longest_first():
    rng = np.random.default_rng(0)
    items = [credited(rng, p, [2, 2]) for p in (2, 6, 3)]  # 6, 10 and 7 tokens
    batch = pack(items, BatchConfig(row_tokens=13, rows=2), "token", 16)
    assert batch.tokens.shape == (1, 2, 13)
    assert batch.segments[0].tolist() == [
        [1] * 10 + [0] * 3,
        [1] * 7 + [2] * 6,
    ]
    # Sources stay inside the segment they belong to.
    assert batch.trained.sources[0, 1].tolist() == [2, 3, 2, 5] + [8, 9, 8, 11] + [0] * 5


def test_shapes_come_from_few_buckets():
    rng = np.random.default_rng(0)
    config = BatchConfig(row_tokens=16, rows=2)

    def shape(n, prompt):
        return pack([credited(rng, prompt, [4]) for _ in range(n)], config, "token", 1).tokens.shape

    assert shape(1, 10) == (1, 2, 16)
    assert shape(3, 10) == (2, 2, 16)
    assert shape(5, 10) == (4, 2, 16)  # 3 micro-batches, rounded up
    assert shape(1, 13) == (1, 2, 32)  # 17 tokens
    assert shape(1, 40) == (1, 2, 64)


def test_filled_counts_what_holds_anything():
    rng = np.random.default_rng(0)
    items = [credited(rng, 10, [4]) for _ in range(5)]
    batch = pack(items, BatchConfig(row_tokens=16, rows=2), "token", 1)
    assert (batch.tokens.shape[0], filled(batch)) == (4, 3)
    assert filled(pack([], BatchConfig(), "token", 1)) == 0


def test_empty_micro_batches_at_the_end_are_padding_and_are_not_run():
    rng = np.random.default_rng(0)
    config = BatchConfig(row_tokens=16, rows=2)
    batch = pack([credited(rng, 10, [4]) for _ in range(5)], config, "token", 1)
    wide = widened(batch, 7)
    whole, empty = pack([], config, "token", 1), 4
    for own, more, nothing in zip(*map(jax.tree.leaves, (batch, wide, whole)), strict=True):
        np.testing.assert_array_equal(more[:empty], own)
        for a in range(empty, 7):
            np.testing.assert_array_equal(more[a], nothing[0])
    found = np.asarray(jax.jit(lambda given: map_filled(lambda micro: micro.tokens + 1, given))(wide))
    np.testing.assert_array_equal(found[:3], batch.tokens[:3] + 1)
    assert not found[3:].any()


def test_a_sampled_pad_id_stays_in_the_loss():
    item = Credited(Group((candidate((0, 0), (-0.1, -0.2)),), 0), np.ones(1, np.float32), np.ones(1, bool))
    batch = pack([item], BatchConfig(row_tokens=8, rows=1), "token", 1)
    assert (batch.trained.weights[0, 0] > 0).tolist() == [True] * 2 + [False] * 6


def test_minibatches_hold_every_group_once_an_epoch_in_a_seeded_order():
    rng = np.random.default_rng(0)
    items = [credited(rng, 3 + i, [2]) for i in range(7)]
    dead = [credited(rng, 30, [2], trained=[False])]

    def prompts(seed, epochs=1, count=3, among=items):
        found = []
        for batch in minibatches(
            among + dead, BatchConfig(row_tokens=16, rows=4), count=count, epochs=epochs,
            seed=seed, aggregate="token", constant=1,
        ):  # fmt: skip
            lengths = []
            for row, segments in zip(batch.branches[0], batch.segments[0], strict=True):
                lengths += [int(((segments == s) & (row == 0)).sum()) for s in range(1, segments.max() + 1)]
            found.append(sorted(lengths))
        return found

    first = prompts(0)
    assert [len(batch) for batch in first] == [3, 2, 2]
    assert sorted(n for part in first for n in part) == [3, 4, 5, 6, 7, 8, 9]
    assert prompts(0) == first
    assert prompts(1) != first
    twice = prompts(0, epochs=2)
    assert twice[:3] == first
    assert twice[3:] != first and sorted(n for part in twice[3:] for n in part) == [3, 4, 5, 6, 7, 8, 9]
    assert len(prompts(0, count=20)) == 7
    assert prompts(0, among=[]) == []


@pytest.mark.parametrize("wrong", [{"row_tokens": 0}, {"rows": 0}, {"row_tokens": 100}])
def test_config_refuses(wrong):
    with pytest.raises(ValueError, match="must be"):
        BatchConfig(**wrong)


LENGTHS_GK = np.array([[2, 4], [8, 1]])


def test_token_weights_by_hand():
    both = np.ones((2, 2), bool)
    np.testing.assert_allclose(
        token_weights(LENGTHS_GK, both, "candidate", 16),
        [[1 / (2 * 2 * 2), 1 / (2 * 2 * 4)], [1 / (2 * 2 * 8), 1 / (2 * 2 * 1)]],
    )
    np.testing.assert_allclose(token_weights(LENGTHS_GK, both, "token", 16), np.full((2, 2), 1 / 15))
    np.testing.assert_allclose(
        token_weights(LENGTHS_GK, both, "constant", 16), np.full((2, 2), 1 / (2 * 2 * 16))
    )


def test_candidates_and_groups_that_are_not_trained_stay_out_of_every_divisor():
    mask = np.array([[True, False], [False, False]])
    np.testing.assert_allclose(token_weights(LENGTHS_GK, mask, "candidate", 16), [[1 / 2, 0], [0, 0]])
    np.testing.assert_allclose(token_weights(LENGTHS_GK, mask, "token", 16), [[1 / 2, 0], [0, 0]])
    np.testing.assert_allclose(token_weights(LENGTHS_GK, mask, "constant", 16), [[1 / 16, 0], [0, 0]])


@pytest.mark.parametrize("aggregate", ["candidate", "token"])
def test_weights_of_all_tokens_add_up_to_one(aggregate):
    mask = np.array([[True, True], [True, False]])
    weights_GK = token_weights(LENGTHS_GK, mask, aggregate, 16)
    np.testing.assert_allclose((weights_GK * LENGTHS_GK).sum(), 1.0, rtol=1e-6)


def test_an_unknown_aggregate_is_refused():
    with pytest.raises(ValueError, match="expected candidate, token or constant"):
        token_weights(LENGTHS_GK, np.ones((2, 2), bool), "median", 16)


def test_rows_double_only_for_a_group_that_does_not_fit():
    config = BatchConfig(row_tokens=64, rows=1)
    assert [config.row(longest) for longest in (0, 63, 64, 65, 128, 129)] == [64, 64, 64, 128, 128, 256]
