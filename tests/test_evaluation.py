import pytest
from fakes import CharTokenizer, ScriptedEngine, Sum

from atgrpo_jax.evaluation import EvaluationConfig, Score, evaluate, wilson
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
    assert (score.instances, score.solved, score.mean_turns) == (5, 5, 1.0)
    assert all(len(r.addresses) == 1 for r in engine.requests)
    assert {r.addresses[0].group.split for r in engine.requests} == {"test"}
    assert len(done) == 5


def test_score_for_people():
    assert str(Score(200, 100, 2.5)) == "50.0% of 200 (95 % interval 43.1% to 56.9%), 2.50 turns"


@pytest.mark.parametrize("wrong", [{"instances": 0}, {"every": -1}, {"temperature": -0.1}])
def test_config_refuses(wrong):
    with pytest.raises(ValueError, match=f"EvaluationConfig.{next(iter(wrong))}"):
        EvaluationConfig(**wrong)
