import numpy as np
import pytest
from fakes import CharTokenizer, ScriptedEngine, Sum

from atgrpo_jax.evaluation import EvaluationConfig, Score, available, difference, evaluate, wilson
from atgrpo_jax.team import Team
from atgrpo_jax.types import Sampling


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    # Published values of the 95 % Wilson interval.
    [(0, 10, 0.0, 0.2775), (5, 10, 0.2366, 0.7634), (81, 263, 0.2553, 0.3662), (10, 10, 0.7225, 1)],
)
def test_wilson(successes, n, low, high):
    assert wilson(successes, n) == pytest.approx((low, high), abs=2e-4)


def test_evaluation_draws_one_candidate_and_counts_success_only():
    script = {(0, "a"): ["4", "6"], (0, "b"): ["6", "0"]}
    engine, done = ScriptedEngine(script), []
    score = evaluate(
        Sum(), Team(), CharTokenizer(), engine, Sampling(0.0, 4), seed=1, step=9, split="test",
        instances=5, on_episode=lambda: done.append(1),
    )  # fmt: skip
    assert score.solved_IK.tolist() == [[True]] * 5 and score.mean_turns == 1.0
    assert all(len(r.addresses) == 1 for r in engine.requests)
    assert {r.addresses[0].group.split for r in engine.requests} == {"test"}
    assert len(done) == 5


def test_every_episode_of_an_instance_has_addresses_of_its_own():
    engine = ScriptedEngine({(0, "a"): ["4"], (0, "b"): ["6"]})
    score = evaluate(
        Sum(), Team(), CharTokenizer(), engine, Sampling(0.0, 4), seed=1, step=9, split="test",
        instances=2, episodes=3,
    )  # fmt: skip
    assert score.solved_IK.shape == (2, 3)
    assert len({r.addresses[0] for r in engine.requests}) == 2 * 3 * 2


def test_scores_are_by_instance():
    """Instance 0 is solved in all three episodes, instance 1 in none, instance 2 in the second alone."""

    class ByAddress(ScriptedEngine):
        async def sample(self, request):
            key = request.addresses[0].group
            solved = key.instance == 0 or (key.instance, key.episode) == (2, 1)
            return [self._sample("10" if solved else "11")]

    score = evaluate(
        Sum(), Team(), CharTokenizer(), ByAddress({}), Sampling(0.0, 4), seed=1, step=9, split="test",
        instances=3, episodes=3,
    )  # fmt: skip
    assert score.solved_IK.astype(int).tolist() == [[1, 1, 1], [0, 0, 0], [0, 1, 0]]
    assert score.success == 4 / 9


def test_a_split_that_ends_is_played_once():
    problems = [f'{{"question": "What is {i} + 1?", "answer": {i + 1}}}' for i in range(7)]

    class Few:
        def instance(self, split, index):
            return problems[index] if split == "test" else index

    few = Few()
    assert [available(few, "test", most) for most in (1, 6, 7, 8, 200)] == [1, 6, 7, 7, 7]
    assert available(few, "train", 200) == 200


def score(*rows):
    return Score(np.array(rows, bool), 2.5)


def test_score_for_people():
    half = score(*[[True]] * 100, *[[False]] * 100)
    assert str(half) == "50.0% of 200 (95 % interval 43.1% to 56.9%), 2.50 turns"
    several = score(*[[True, False]] * 50, *[[False, False]] * 50)
    says = "25.0% of 100 x 2 episodes, pass@2 50.0% (95 % interval 20.1% to 29.9%), 2.50 turns"
    assert str(several) == says  # 0.25 +- 1.96 * 0.2513 / 10
    assert several.record()["pass@2"] == 0.5


def test_pass_at_k_by_hand():
    one = score([True, False, False, False])
    assert [one.pass_at(k) for k in (1, 2, 3, 4)] == pytest.approx([1 / 4, 1 / 2, 3 / 4, 1])
    two = score([True, True, False, False], [False] * 4)
    assert two.pass_at(2) == pytest.approx((1 - 1 / 6) / 2)
    assert two.pass_at(1) == two.success
    for k in (0, 5):
        with pytest.raises(ValueError, match="needs at least"):
            one.pass_at(k)


def test_a_paired_difference_by_hand():
    found = difference(score([True], [True], [True], [False]), score([True], [False], [False], [True]))
    # Gains 0, 1, 1, -1: mean 0.25, standard deviation 0.9574.
    assert (found.mean, found.better, found.worse) == (0.25, 2, 1)
    assert (found.low, found.high) == pytest.approx((0.25 - 0.9383, 0.25 + 0.9383), abs=1e-4)
    assert str(found).startswith(
        "+25.0% (95 % interval -68.8% to +118.8%); better on 2 instances, worse on 1"
    )
    with pytest.raises(ValueError, match="1 instances cannot be paired with 2"):
        difference(score([True]), score([True], [False]))


@pytest.mark.parametrize("wrong", [{"instances": 0}, {"every": -1}, {"temperature": -0.1}])
def test_config_refuses(wrong):
    with pytest.raises(ValueError, match=f"EvaluationConfig.{next(iter(wrong))}"):
        EvaluationConfig(**wrong)
