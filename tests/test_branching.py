"""The others of a group's candidates, drawn where the first ones differ: the correction, and the rollout."""

import dataclasses
import importlib.util
import itertools
import re
import types
from pathlib import Path

import jax
import numpy as np
import pytest
from fakes import KEY, ORIGIN, CharTokenizer, ScriptedEngine, Sum, group, with_receipts
from shared_rollout import SAMPLING, play
from shared_trainer import experiment, honest

from atgrpo_jax.common.errors import ConfigError, PromptTooLong
from atgrpo_jax.common.types import Reward, Sample
from atgrpo_jax.credit.advantages import group_relative
from atgrpo_jax.credit.branching import corrected, goes_on, share_that_goes_on
from atgrpo_jax.credit.groups import CreditConfig, Credited
from atgrpo_jax.credit.selection import choose
from atgrpo_jax.partners.partners import Partner
from atgrpo_jax.replaying.again import Again, Change
from atgrpo_jax.replaying.differing import findings
from atgrpo_jax.rollout import wire
from atgrpo_jax.rollout.player import Player
from atgrpo_jax.rollout.rollout import RolloutConfig, engine_propose
from atgrpo_jax.rollout.team import Team
from atgrpo_jax.run.folder import RunFolder
from atgrpo_jax.run.gin_config import load
from atgrpo_jax.run.loop import one_step
from atgrpo_jax.run.nodes import Node
from atgrpo_jax.run.stages import Stages
from atgrpo_jax.tasks.workflow import Workflow

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "branching.md").read_text()


def benchmark():
    spec = importlib.util.spec_from_file_location("branching", ROOT / "benchmarks" / "branching.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


EXACT = benchmark()


# The correction


@pytest.mark.parametrize(
    ("rewards", "first", "share"),
    [
        ((1, 0, 0, 0), 2, 1 / 2),  # three of six pairs hold the 1
        ((1, 1, 0, 0), 2, 2 / 3),
        ((1, 0, 0, 0), 3, 3 / 4),
        ((0, 0, 0, 0), 2, 0),
        ((0, 1, 2, 3), 2, 1),
        ((0, 1, None, None), 2, 1 / 3),  # the pair of the two that have a reward, and that of the others
        ((1, 0, 0, None), 3, 3 / 4),  # 0, 0 and the one without a reward stops
        ((0.1 + 0.2, 0.3, 1, 1), 2, 2 / 3),  # rounding is no difference
        ((None,) * 3, 2, 1),
        ((0, None, None, None), 2, 1 / 2),
    ],
)
def test_the_share_of_starts_that_go_on(rewards, first, share):
    assert share_that_goes_on(rewards, first) == pytest.approx(share, abs=1e-15)
    starts = [goes_on(start) for start in itertools.combinations(rewards, first)]
    assert share_that_goes_on(rewards, first) == pytest.approx(np.mean(starts), abs=1e-15)


def test_groups_that_went_on_count_more_and_those_that_stopped_not_at_all():
    """Role a draws 2 of 4 first, role b all at once. A lone 1 of four counts twice, one of two pairs 3/2."""
    b = dataclasses.replace(ORIGIN, key=dataclasses.replace(KEY, role="b"))
    advantages = np.array([3.0, -1.0, -1.0, -1.0], np.float32)
    given = [
        Credited(made, advantages[: len(made.candidates)], np.full(len(made.candidates), mask))
        for made, mask in (
            (group(1.0, 0.0, 0.0, 0.0), True),
            (group(1.0, 0.0, 0.0, 1.0), True),
            (group(1.0, 1.0), True),  # a rule of one's own may give it an advantage
            (group(1.0, 0.0, 0.0, 0.0, origin=b), True),
            (group(1.0, 1.0, origin=b), False),
        )
    ]
    found, metrics = corrected(given, {"a": 2, "b": 0}, 1.0)
    assert [item.advantages_K.tolist() for item in found] == [
        [6, -2, -2, -2], [4.5, -1.5, -1.5, -1.5], [0, 0], [3, -1, -1, -1], [3, -1],
    ]  # fmt: skip
    assert [item.mask_K.all() for item in found] == [True, True, False, True, False]
    assert all(item.advantages_K.dtype == np.float32 for item in found)
    assert metrics == {"groups/second_draw": 2 / 3}
    assert corrected(given, {"a": 0, "b": 0}, 1.0)[1] == {}


@pytest.mark.parametrize(("K", "K1"), [(3, 2), (5, 3), (6, 2)])
@pytest.mark.parametrize("p", [0.07, 0.5, 0.8])
def test_the_corrected_gradient_is_exact_and_the_others_are_off_by_what_is_said(K, K1, p):
    """Over all 2^K outcomes. To the mean of the others it is p (1 - p), in deviations that of K at once."""
    near = {"rel": 0, "abs": 1e-12}
    right = p * (1 - p)
    assert EXACT.gradient("once", K, K1, p) == pytest.approx(right, **near)
    assert EXACT.gradient("differ", K, K1, p) == pytest.approx(right, **near)
    once = EXACT.gradient("once", K, K1, p, EXACT.std)
    assert EXACT.gradient("differ", K, K1, p, EXACT.std) == pytest.approx(once, **near)
    q, K2 = 1 - p, K - K1
    missed = q**K1 * K2 * p * (K - q - K2 * p) + p**K1 * K2 * q * (K - p - K2 * q)
    missed /= K * (K - 1)
    assert EXACT.missed(K, K1, p) == pytest.approx(missed, **near) and missed > 1e-3
    plain = [EXACT.gradient(rule, K, K1, p, corrects=False) for rule in ("differ", "equal")]
    assert plain == [pytest.approx(right - missed, **near), pytest.approx(right + missed, **near)]
    plain = EXACT.gradient("differ", K, K1, p, EXACT.std, corrects=False)
    assert plain == pytest.approx(once - EXACT.missed(K, K1, p, EXACT.std), **near)
    # "equal" is exact only without all that its second part drew.
    assert EXACT.gradient("equal", K, K1, p) == pytest.approx(right, **near)


def test_it_is_exact_for_any_rewards_and_with_excluded_candidates():
    """Four answers with logits, K = 4 of which 2 first; one answer has no reward. All 256 outcomes, by the
    package's own advantages, which are float32."""
    chances, paid = np.array([0.4, 0.3, 0.2, 0.1]), (0.0, 1.0, 3.0, None)
    for normalise in ("mean", "std"):
        at_once, in_two = np.zeros(4), np.zeros(4)
        for outcome in itertools.product(range(4), repeat=4):
            rewards = [paid[answer] for answer in outcome]
            mask = np.array([[reward is not None for reward in rewards]])
            values = np.array([[reward or 0.0 for reward in rewards]])
            advantages = group_relative(values, mask, normalise, True)[0][0].astype(float)
            scores = np.eye(4)[list(outcome)] - chances
            gradient = advantages @ scores / max(mask.sum(), 1) * np.prod(chances[list(outcome)])
            at_once += gradient
            if goes_on(rewards[:2]):
                in_two += gradient / share_that_goes_on(rewards, 2)
        np.testing.assert_allclose(in_two, at_once, atol=1e-8)
        assert np.abs(at_once).max() > 0.05


@pytest.mark.parametrize("first", [2, 3])
def test_the_share_that_goes_on_is_that_of_the_choices_that_do(first):
    """Of all 4^5 groups of rewards 0, 1 and 3 and of what has none."""
    for rewards in itertools.product((0.0, 1.0, 3.0, None), repeat=5):
        goes = [goes_on(chosen) for chosen in itertools.combinations(rewards, first)]
        assert share_that_goes_on(rewards, first) == pytest.approx(np.mean(goes), abs=1e-12)


def test_answers_a_useful_group_by_hand():
    """p = 1/2, 2 of 4: two answers differ in one of two groups, four in seven of eight."""
    cost = [EXACT.answers_a_useful_group(rule, 4, 2, 0.5) for rule in ("once", "differ", "equal")]
    assert cost == pytest.approx([32 / 7, 6, 24 / 7])
    # On dead prompts 4, 2 and 4 answers are drawn.
    cost = [EXACT.answers_a_useful_group(rule, 4, 2, 0.5, 0.5) for rule in ("once", "differ", "equal")]
    assert cost == pytest.approx([64 / 7, 2.5 / 0.25, 3.5 / (7 / 16)])


def test_what_a_run_would_have_drawn_by_hand():
    """Of 1 0 0 0, 0 0 0 0 and 0 0 1 1, with 2 first, the first one goes on, with the factor 2.

    Squares of advantages are 4 in both groups with signal; the one that is left counts four times.
    """
    groups = []
    for rewards in ((1, 0, 0, 0), (0, 0, 0, 0), (0, 0, 1, 1)):
        pairs = zip(rewards, EXACT.std(rewards), strict=True)
        groups.append(
            {"candidates": [{"mixed": paid, "advantage": own, "tokens": [1]} for paid, own in pairs]}
        )
    *_, at_once, three, two = EXACT.of_run(groups).splitlines()
    assert at_once == "| 4 | 66.7% | 1.00 | 6.0 | 1.00 | 1.00 |"
    assert two == "| 2 | 33.3% | 0.67 | 8.0 | 1.33 | 2.00 |"
    assert three.startswith("| 3 | 66.7% | 0.92 | 5.5 |")


# The rollout


class ByAddress(ScriptedEngine):
    """Candidate k is text k of the script, whatever else is asked for."""

    async def sample(self, request):
        self.requests.append(request)
        key = request.addresses[0].group
        texts = [self.script[key.turn, key.role][address.k] for address in request.addresses]
        return with_receipts(request, [self._sample(text) for text in texts])


def branching(script, order, first=2):
    """A player that draws ``first`` of three candidates first, and its engine."""
    engine = ByAddress(script)
    propose = engine_propose(engine, SAMPLING, first, 5)
    further = engine_propose(engine, SAMPLING, 3, 5, after=first) if first < 3 else None
    task = Sum(Workflow(order, 1))
    return Player(task, Team(), CharTokenizer(), propose, SAMPLING, seed=5, further=further), engine


def numbers(engine):
    return [[address.k for address in request.addresses] for request in engine.requests]


def test_a_group_goes_on_if_its_first_rewards_differ():
    script = {(0, "a"): ["1", "4", "2"], (0, "b"): ["1", "1", "5"]}
    made, engine = branching(script, ("a", "b"))
    episode = play(made)
    assert numbers(engine) == [[0, 1], [2], [0, 1]]
    at_once = play(branching(script, ("a", "b"), first=3)[0])
    assert episode.groups[0] == at_once.groups[0]  # tokens, receipts, rewards, and who is executed
    assert episode.groups[1].candidates == at_once.groups[1].candidates[:2]
    assert wire.decode(wire.encode([episode])) == [episode]  # as hosts send it


def test_what_has_no_reward_is_no_difference_and_a_later_draw_may_fail():
    script = {(0, "a"): ["1", None, "2"], (0, "b"): ["1", "7", None], (0, "c"): [None, None, "1"]}
    made, engine = branching(script, (("a", "b", "c"),))
    episode = play(made)
    a, b, c = episode.groups
    assert numbers(engine) == [[0, 1]] * 3 + [[2], [2]]
    assert [one.reward is None for one in b.candidates] == [False, False, True]
    assert len({one.origin for one in b.candidates}) == 1  # it passes the audit
    assert (len(a.candidates), len(c.candidates), c.chosen) == (2, 3, 2)
    assert episode.end == "turn_limit"


def test_first_candidates_without_any_reward_do_not_end_an_episode_that_drawing_at_once_goes_on():
    """a's first two are cut, and that is excluded; its third is executed. Nothing helps if all three are."""
    for third, chosen, groups, end in (("4", 2, 2, "turn_limit"), ("4...", None, 1, "engine_error")):
        script = {(0, "a"): ["1...", "2...", third], (0, "b"): ["3", "3", "3"]}
        for first in (2, 3):
            made, _ = branching(script, ("a", "b"), first)
            made = dataclasses.replace(made, exclude=("truncated", "engine_error"))
            episode = play(made)
            a = episode.groups[0]
            assert (len(a.candidates), a.chosen, len(episode.groups), episode.end) == (3, chosen, groups, end)


def test_a_prompt_that_is_too_long_and_a_partner_have_no_other_candidates():
    class Full(ByAddress):
        async def sample(self, request):
            if request.addresses[0].group.role == "b":
                self.requests.append(request)
                raise PromptTooLong("a long prompt")
            return await super().sample(request)

    made, _ = branching({}, ("a", "b"))
    engine = Full({(0, "a"): ["1", "1", "1"]})
    propose, further = (engine_propose(engine, SAMPLING, k, 5, after=k % 3 and k - 1) for k in (2, 3))
    made = dataclasses.replace(made, propose=propose, further=further)
    assert len(play(made).groups[1].candidates) == 1 and len(engine.requests) == 2

    async def refused(*_):
        return Sample((), (), "error", -1), ""

    made, engine = branching({(0, "b"): ["1", "1"]}, ("a", "b"))
    team = Team(partners={"a": Partner("http://127.0.0.1:1/v1", "m")})
    made = dataclasses.replace(made, team=team, partners=types.SimpleNamespace(ask=refused))
    assert play(made).end == "engine_error" and not engine.requests


def test_a_random_candidate_is_as_good_as_one_that_was_drawn_alone():
    """Of a = 1, 0 the others are drawn, too, and all are 1: of all three, 1 would come in two of three."""
    chosen = [choose([Reward.of(r) for r in (1.0, 0.0, 1.0)], "random", 1.0, seed, 2) for seed in range(100)]
    assert set(chosen) == {0, 1}
    assert {choose([None, None, Reward.of(0.0)], "random", 1.0, seed, 2) for seed in range(9)} == {2}
    assert choose([Reward.of(0.0), None, Reward.of(1.0)], "mixed", 1.0, 0, 2) == 2
    script = {(0, "a"): ["1", "4", "2"]}
    made, _ = branching(script, ("a",))
    made = dataclasses.replace(made, select="random")
    groups = [play(made, index).groups[0] for index in range(30)]
    assert {len(group.candidates) for group in groups} == {3} and {g.chosen for g in groups} == {0, 1}


@pytest.mark.parametrize(("b", "team", "later"), [("23", [1, 0], []), ("213", [1, 0, 0], [[2]])])
def test_who_speaks_at_the_same_time_is_scored_where_the_others_have_got_to(b, team, later):
    """After a's 8, b's 2 solves and earns 3, as its 3 does. Its prompt shows no 8, where 2 would earn 2."""
    script = {(0, "a"): ["8", "8", "0"], (0, "b"): [*b.ljust(3, "0")]}
    made, engine = branching(script, (("a", "b"),))
    group = play(made).groups[1]
    assert [one.reward.team for one in group.candidates] == team
    assert len({one.origin.state_digest for one in group.candidates}) == 1
    assert numbers(engine) == [[0, 1], [0, 1], *later]


# Runs

# They earn 3, 6, 3, 3 and 3, 3, 6, 6; of even and odd instances.
TEXTS = {0: ("30", "51", "12", "12"), 1: ("30", "12", "51", "51")}


def some(engine, request):
    texts = TEXTS[request.addresses[0].group.instance % 2]
    return honest(texts=lambda step: texts)(engine, request)


ROLLOUT = RolloutConfig(instances=2, candidates=4, max_tokens=4, first_candidates=2)


def two_draws(rollout=ROLLOUT, **changes):
    """Adapters, of which b's draws all at once."""
    team = Team("lora", roles={"b": {"first_candidates": 0}})
    settings = {"rollout": rollout, "team": team, "checkpoint_every": 1, "max_logprob_gap": 9.0}
    return experiment(some, **settings | changes)


def trained(path, x, *until):
    """Trains to each of these steps, and is started again for each. Returns parameters and the record."""
    for steps in until:
        with Stages(x, RunFolder(path)) as stages:
            team = stages.begin()
            for step in range(stages.done + 1, steps + 1):
                team, record = one_step(stages, team, step)
            params = jax.device_get(team.policies)
    return params, record


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Two steps with the page's settings, but for the sizes."""
    path = tmp_path_factory.mktemp("run")
    (gin,) = re.findall(r"^```\n(include \"smoke.gin\".*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    (path / "branching.gin").write_text(gin)
    rollout = dataclasses.replace(load(str(path / "branching.gin")).rollout, instances=2, max_tokens=4)
    assert rollout == ROLLOUT
    x = two_draws(rollout, steps=2)
    return x, path, *trained(path, x, 2)


def test_a_run_trains_what_went_on_with_its_factor(run):
    _, path, _, record = run
    groups = [g for e in RunFolder(path).read_episodes(1) for g in e["groups"]]
    assert [(g["role"], len(g["candidates"])) for g in groups] == [("a", 4), ("b", 4), ("a", 2), ("b", 4)]
    assert (record["groups/second_draw"], record["groups/signal"]) == (0.5, 0.75)
    assert record["policy/a/updates"] == record["policy/b/updates"] == 1
    # 3, 6, 3 and 3 are earned: half of all pairs differ, so a's advantages are twice those of b.
    assert [[c["advantage"] for c in g["candidates"]] for g in groups] == [
        [-1.5, 4.5, -1.5, -1.5], [-0.75, 2.25, -0.75, -0.75], [0, 0], [-1.5, -1.5, 1.5, 1.5],
    ]  # fmt: skip
    assert [g["candidates"][0]["trained"] for g in groups] == [True, True, False, True]
    # Two texts of two digits and a stop id, two without it; then two with. All that for one useful group.
    assert record["role/a/tokens_per_signal"] == 10 + 6


def test_a_run_that_goes_on_ends_with_the_same_bytes(run, tmp_path):
    x, path, params, _ = run
    again, _ = trained(tmp_path, x, 1, 2)
    jax.tree.map(np.testing.assert_array_equal, params, again)
    for step in (1, 2):
        folders = RunFolder(path), RunFolder(tmp_path)
        assert len({folder.episodes_of(step).read_bytes() for folder in folders}) == 1


def test_nodes_are_drawn_again(run):
    """Whole episodes, in which a group goes on or stops, and a node: it draws as many as are recorded."""
    x, path, _, _ = run
    with Stages(x, RunFolder(path)) as stages:
        learner, checkpoints = stages.learner, stages._checkpoints
    saved = types.SimpleNamespace(
        experiment=x, learner=learner, folder=RunFolder(path), at=lambda step: saved,
        steps=lambda: [0, 1], team=lambda step: learner.restore(checkpoints, step),
    )  # fmt: skip
    with Again(saved) as again:
        for name in ("2/train/2", "2/train/3", "2/train/3/0/0/0/a"):
            node = Node.parse(name)
            played = again.play(node)
            found = findings(node, played.recorded, played.episode, x.tokenizer)
            assert all(one.same for one in found), (name, found)
            assert [len(g.candidates) for g in played.episode.groups] == [2 if "/3" in name else 4, 4]
        other = again.play(Node.parse("2/train/2/0/0/0/a"), Change(executes=1))
        first = other.episode.groups[0]
        assert (len(first.candidates), first.chosen) == (4, 1)


# Settings, and the page


@pytest.mark.parametrize(
    ("bindings", "says"),
    [
        (["first_candidates = 1"], "first_candidates = 1: must be 0, or at least 2 and below candidates = 4"),
        (["first_candidates = 4"], "first_candidates = 4: must be 0, or at least 2 and below candidates = 4"),
        (
            ["first_candidates = 2", 'mode = "trajectories"'],
            'RolloutConfig.first_candidates = 2: mode "trajectories" plays whole episodes, which have no sib',
        ),
    ],
)
def test_what_cannot_be_is_one_line(bindings, says):
    with pytest.raises(ConfigError, match=re.escape(says)):
        load("smoke.gin", [f"rollout.RolloutConfig.{one}" for one in bindings])


def test_it_needs_groups_that_are_compared_with_themselves_and_room_for_a_second_draw():
    for credit in (CreditConfig("role"), CreditConfig("running", "mean")):
        with pytest.raises(ValueError, match="CreditConfig.baseline = .* first_candidates needs a rule that"):
            two_draws(credit=credit)
    with pytest.raises(ValueError, match="CreditConfig.counterfactual = 0.5: first_candidates looks at what"):
        two_draws(credit=CreditConfig(counterfactual=0.5))
    with pytest.raises(ValueError, match=r"Team.roles\['a'\]: RolloutConfig.first_candidates = 2: must be 0"):
        two_draws(team=Team(roles={"a": {"candidates": 2}}))


def test_the_pages_tables_are_what_the_benchmark_prints():
    for table in (EXACT.of_bias(), EXACT.of_cost(), EXACT.of_break_even()):
        assert f"\n\n{table}\n\n" in PAGE
