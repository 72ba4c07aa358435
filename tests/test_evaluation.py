import numpy as np
import pytest
from fakes import CharTokenizer, ScriptedEngine, Sum
from shared_rollout import Echo, Shouts, player

from atgrpo_jax.common.errors import ConfigError, PromptTooLong
from atgrpo_jax.common.types import Sampling
from atgrpo_jax.rollout.evaluation import (
    EvaluationConfig,
    Score,
    available,
    difference,
    drawn_by,
    evaluate,
    failed,
)
from atgrpo_jax.rollout.intervals import clopper_pearson, effective_draws, wilson
from atgrpo_jax.rollout.rollout import RolloutConfig, play_all
from atgrpo_jax.rollout.team import Team
from atgrpo_jax.tasks.workflow import Workflow


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


@pytest.mark.parametrize("episodes", [1, 2])
def test_an_evaluation_on_the_train_split_shares_no_address_with_training(episodes):
    script = {(0, "a"): ["4", "6"], (0, "b"): ["6", "0"]}
    made, engine = player(script, k=2)
    play_all(made, 3, "train", range(6), episodes)
    other = ScriptedEngine(script)
    played = evaluate(
        Sum(), Team(), CharTokenizer(), other, Sampling(1.0, 8), seed=5, step=3, split="train", instances=6,
        episodes=episodes,
    )  # fmt: skip
    trained, drawn = ({a for r in one.requests for a in r.addresses} for one in (engine, other))
    assert {a.seed for a in trained} == {a.seed for a in drawn} and not trained & drawn
    assert played.success == 1 and len(drawn) == 12 * episodes


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


class Failing(ScriptedEngine):
    """Instance 0 is solved, 1 is not; of 2 the sandbox crashes, of 3 the engine, of 4 there is no room."""

    async def sample(self, request):
        key = request.addresses[0].group
        if (key.instance, key.role) == (4, "b"):
            raise PromptTooLong("a long prompt")
        given = {"a": ("=5", "=4", "=crash", None, "=1")[key.instance], "b": "0"}
        return [self._sample(given[key.role])]


def test_what_an_engine_or_a_tool_failed_is_said():
    """A crash is not scored: as an empty output it would be executed, and b would speak."""
    task = Shouts(Workflow(("a", "b"), turns=1))
    given = task, Team(), CharTokenizer(), Failing({}), Sampling(0.0, 8)
    found = evaluate(*given, seed=1, step=9, split="test", instances=5, runner=Echo())
    assert [episode.end for episode in found.episodes] == ["solved", "turn_limit", *["engine_error"] * 3]
    assert [len(episode.groups) for episode in found.episodes] == [1, 2, 1, 1, 2]
    assert list(map(failed, found.episodes)) == [False, False, True, True, False]
    assert (found.success, found.failed, found.record()["failed"]) == (0.2, 2, 2.0)
    says = "1.00 turns; an engine, a tool or a partner failed 2 episodes, not solved here"
    assert str(found).endswith(says)
    sound = evaluate(*given, seed=1, step=9, split="test", instances=2, runner=Echo())
    assert str(sound).endswith("1.00 turns") and "failed" not in sound.record()


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
    assert str(several).startswith("25.0% of 100 x 2 episodes (95 % interval 19.")
    assert str(several).endswith("%), pass@2 50.0%, 2.50 turns")
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
    # Gains 0, 1, 1, -1, and 1.5 made-up ones of 1 and of -1: of 7 the mean is 1/7, the variance
    # (6 - 1/7) / 6; Student's quantile of 6 degrees of freedom is 2.4469.
    assert (found.mean, found.better, found.worse) == (0.25, 2, 1)
    spread = 2.4469 * ((6 - 1 / 7) / 6 / 7) ** 0.5
    assert (found.low, found.high) == pytest.approx((1 / 7 - spread, 1.0), abs=1e-4)
    assert str(found).startswith(
        "+25.0% (95 % interval -77.1% to +100.0%); better on 2 instances, worse on 1"
    )
    with pytest.raises(ValueError, match="1 instances cannot be paired with 2"):
        difference(score([True]), score([True], [False]))


@pytest.mark.parametrize("wrong", [{"instances": 0}, {"every": -1}, {"temperature": -0.1}])
def test_config_refuses(wrong):
    with pytest.raises(ValueError, match=f"EvaluationConfig.{next(iter(wrong))}"):
        EvaluationConfig(**wrong)


def test_the_interval_of_several_episodes_by_hand():
    """Between Clopper and Pearson's of as many instances and of as many episodes (published values)."""
    assert clopper_pearson(0, 10) == pytest.approx((0.0, 0.3085), abs=1e-4)
    assert clopper_pearson(5, 10) == pytest.approx((0.1871, 0.8129), abs=1e-4)
    assert clopper_pearson(10, 10) == pytest.approx((0.6915, 1.0), abs=1e-4)
    alike, mixed = score(*[[True] * 4] * 5, *[[False] * 4] * 5), score(*[[True, False] * 2] * 10)
    assert effective_draws(alike.solved_IK) == 10 and alike.interval == clopper_pearson(5, 10)
    # Means of 1/2, ten times, and a made-up 0 and 1: their variance is 1/2 / 11, so 10 / 4 * 22 draws, of 40.
    assert effective_draws(mixed.solved_IK) == 40
    few = score(*[[True, False] * 2] * 2)  # 2 / 4 * 3 * 2 draws
    assert effective_draws(few.solved_IK) == pytest.approx(3) and few.interval == clopper_pearson(1.5, 3)


@pytest.mark.parametrize("episodes", [1, 2, 4])
@pytest.mark.parametrize("instances", [1, 2, 20, 200])
def test_no_interval_is_of_width_0_or_without_its_mean(instances, episodes):
    nothing, all_, half = (np.zeros((instances, episodes), bool) for _ in range(3))
    all_[:], half[: (instances + 1) // 2] = True, True
    made = [Score(solved_IK, 1.0) for solved_IK in (nothing, all_, half)]
    for one in made:
        low, high = one.interval
        assert 0 <= low <= one.success <= high + 1e-12 <= 1 + 1e-12
        assert high - low > 1 / (2 * instances * episodes)
        for other in made:
            found = difference(one, other)
            assert -1 <= found.low <= found.mean <= found.high <= 1
            assert found.high - found.low > 1 / instances


def chances(rng, p, alike, shape):
    """The chance of each instance: p for all (alike = 0), a beta's, or 0 or 1."""
    if alike == 0:
        return np.full(shape, p)
    if alike == 1:
        return (rng.random(shape) < p).astype(float)
    if p == 0:
        return np.zeros(shape)
    both = 1 / alike - 1
    return rng.beta(p * both, (1 - p) * both, shape)


@pytest.mark.parametrize("episodes", [2, 8])
@pytest.mark.parametrize("instances", [2, 15, 100])
def test_intervals_of_several_episodes_cover_95_percent(instances, episodes):
    """Whatever the episodes of an instance have in common, near 0 and 1, too."""
    rng, trials, found = np.random.default_rng(instances), 800, []
    for alike in (0, 0.3, 1):
        for p in (0.004, 0.04, 0.4, 0.97):
            chance_SI = chances(rng, p, alike, (trials, instances))
            solved_SIK = rng.random((trials, instances, episodes)) < chance_SI[:, :, None]
            intervals = [Score(solved_IK, 1.0).interval for solved_IK in solved_SIK]
            found.append(np.mean([low <= p <= high for low, high in intervals]))
    # The standard error of each is 0.8 %.
    assert min(found) > 0.93 and np.mean(found) > 0.95


@pytest.mark.parametrize("episodes", [1, 4])
@pytest.mark.parametrize("instances", [2, 15, 100])
def test_intervals_of_differences_cover_95_percent(instances, episodes):
    """Of teams that have all, some or nothing in common."""
    rng, trials, found = np.random.default_rng(instances), 800, []
    for alike in (0, 0.3, 1):
        for p, more in ((0.004, 0.0), (0.02, 0.05), (0.4, 0.3), (0.05, 0.9)):
            first_SI = chances(rng, p, alike, (trials, instances))
            gained_SI = chances(rng, more / (1 - p), alike, (trials, instances))
            second_SI = first_SI + (1 - first_SI) * gained_SI  # never worse
            one, other = (
                rng.random((trials, instances, episodes)) < chance_SI[:, :, None]
                for chance_SI in (first_SI, second_SI)
            )
            covered = 0
            for a, b in zip(one, other, strict=True):
                gain = difference(Score(b, 1.0), Score(a, 1.0))
                covered += gain.low <= more <= gain.high
            found.append(covered / trials)
    assert min(found) > 0.93 and np.mean(found) > 0.95


def test_evaluations_draw_legal_answers_and_do_not_explore():
    rules = {"max_tokens": 9, "min_tokens": 2, "banned": (3,), "stop": ("!",)}
    rollout = RolloutConfig(temperature=0.7, top_k=5, top_p=0.9, min_p=0.1, **rules).sampling
    config = EvaluationConfig(temperature=0.5)
    assert config.sampling(rollout) == Sampling(temperature=0.5, **rules)
    assert config.sampling(rollout, 0.0) == Sampling(temperature=0.0, **rules)
    patterned = config.sampling(RolloutConfig(pattern="[a-z]+", max_tokens=9).sampling)
    assert patterned == Sampling(0.5, 9, pattern="[a-z]+")
    assert (
        drawn_by({"a": patterned, "b": patterned})
        == "drawn at temperature 0.5, pattern '[a-z]+', at most 9 tokens"
    )
    assert drawn_by({"a": Sampling(0.0, 9)}) == "drawn greedily, at most 9 tokens"
    says = "drawn at temperature 0.5, min_tokens 2, banned (3,), stop ('!',), at most 9 tokens"
    assert drawn_by({"a": config.sampling(rollout)}) == says
    different = {"a": Sampling(0.0, 9), "b": Sampling(0.0, 4)}
    assert drawn_by(different) == "a drawn greedily, at most 9 tokens; b drawn greedily, at most 4 tokens"


def test_a_split_without_instances_is_named():
    class Nothing:
        def instance(self, split, index):
            raise IndexError(index)

    with pytest.raises(ConfigError, match="Nothing has no instance of split 'test'"):
        available(Nothing(), "test", 5)
