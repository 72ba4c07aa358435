"""Candidates that are credited with what comes of each: games whose values are known, and runs."""

import asyncio
import dataclasses

import numpy as np
import pytest
from fakes import AnsweringEngine, CharTokenizer, Sum
from shared_hosts import Party
from shared_rollout import SAMPLING
from shared_trainer import Paid, experiment
from test_partner_runs import Saved

from atgrpo_jax.common.errors import ConfigError
from atgrpo_jax.common.hosts import ALONE
from atgrpo_jax.common.types import Address, Outcome, Reward, Sample, seed_of
from atgrpo_jax.credit.groups import CreditConfig, credit
from atgrpo_jax.partners.partners import Partner
from atgrpo_jax.replaying.again import Again
from atgrpo_jax.replaying.differing import findings, first_that_differs
from atgrpo_jax.rollout import wire
from atgrpo_jax.rollout.counterfactual import Counterfactual
from atgrpo_jax.rollout.curriculum import Picked
from atgrpo_jax.rollout.player import Player
from atgrpo_jax.rollout.rollout import RolloutConfig, engine_propose
from atgrpo_jax.rollout.rollouts import Rollouts
from atgrpo_jax.rollout.team import Team
from atgrpo_jax.run.folder import RunFolder
from atgrpo_jax.run.gin_config import load
from atgrpo_jax.run.loop import one_step
from atgrpo_jax.run.metrics import episode_metrics
from atgrpo_jax.run.nodes import Node
from atgrpo_jax.run.stages import Stages
from atgrpo_jax.tasks.protocol import Transition
from atgrpo_jax.tasks.workflow import Workflow

SEED, K = 5, 3
ONCE = Workflow(order=("a", "b"), turns=1)


@dataclasses.dataclass(frozen=True)
class Game(Sum):
    """``pays`` says of all that was said what the team earns by the last of it. Everybody sees all of it.

    A role likes long texts: that is its local reward. What says "crash" fails as a tool does.
    """

    workflow: Workflow = ONCE
    pays: object = None

    def prompt(self, state, role):
        return [{"role": "user", "content": f"{role}:{'|'.join(state)}"}]

    def act(self, state, role, text):
        after = (*state, text)
        reward = Reward.of(float(self.pays(after)), length=0.1 * len(text))
        outcome = Outcome.TOOL_CRASH if text == "crash" else Outcome.OK
        return Transition(after, reward, outcome, text == "end", False)


def engine(says):
    """``says`` an address and what a prompt shows; None is an engine that fails. "1+" is a 1 that was cut."""

    def answer(_, request):
        told = CharTokenizer().decode(request.prompt_ids)
        texts = [says(address, told) for address in request.addresses]
        drawn = [(0,) if text is None else CharTokenizer().answer_ids(text) for text in texts]
        ends = ["error" if text is None else "length" if text.endswith("+") else "stop" for text in texts]
        drawn = [ids[:-2] if end == "length" else ids for ids, end in zip(drawn, ends, strict=True)]
        return [Sample(ids, (-1.0,) * len(ids), end, 0) for ids, end in zip(drawn, ends, strict=True)]

    return AnsweringEngine(answer)


def player(game, drawing, share=1.0, team=None):
    def propose(k):
        return engine_propose(drawing, SAMPLING, k, SEED)

    exclude = ("tool_crash", "engine_error")
    team = team or Team(alpha=2.0)
    afterwards = Counterfactual(propose(1), share, SEED)
    made = Player(game, team, CharTokenizer(), propose(K), SAMPLING, SEED, exclude=exclude)
    return dataclasses.replace(made, afterwards=afterwards)


def played(game, says, index=0, **settings):
    drawing = engine(says)
    made = player(game, drawing, **settings)
    return asyncio.run(made.play(1, "train", index)), drawing, made.afterwards.counts


def teams(episode):
    return [[c.reward and c.reward.team for c in group.candidates] for group in episode.groups]


# After a's bait the team gets 1 at once and little later; after "y" and "z" it gets nothing at once.
BAIT = {"a:": ("bait", "y", "z"), "b:bait": ("0", "1", "2"), "b:y": ("5", "4", "3"), "b:z": ("3", "3", "3")}


def bait(said):
    return float(said[1]) if len(said) == 2 else said == ("bait",)


def by_table(table):
    return lambda address, told: table[told][address.k]


def test_where_immediate_rewards_mislead_each_candidate_gets_what_comes_of_it():
    """bait: 1 now and then 0, b's first candidate; y: 5; z: 3. The length of a text is paid a tenth.

    With alpha 2: 0.4 + 2 x 1, 0.1 + 2 x 5, 0.1 + 2 x 3. y's contribution is 4 more than what was executed.
    """
    episode, drawing, counts = played(Game(pays=bait), by_table(BAIT))
    a, b = episode.groups
    assert (a.candidates[a.chosen].text, b.candidates[b.chosen].text) == ("bait", "2")
    assert teams(episode) == [[1, 5, 3], [0, 1, 2]]  # nothing comes after b
    rule = CreditConfig(normalise="mean", counterfactual=1.0)
    credited, _, _ = credit([episode], alpha=2.0, rule=rule)
    assert credited[0].advantages_K == pytest.approx(np.array([2.4, 10.1, 6.1]) - 6.2)
    assert [c.reward.at_once for c in a.candidates] == [1, 0, 0]
    back = wire.decode(wire.encode([episode]))
    assert back == [episode] and [c.reward.at_once for c in back[0].groups[0].candidates] == [1, 0, 0]
    # Drawn were both groups, and what b says first to y and to z: one letter and the stop, at one address.
    asked = [request.addresses for request in drawing.requests]
    assert list(map(len, asked)) == [K, K, 1, 1]
    assert asked[2] == asked[3] == (Address(SEED, b.origin.key, 0),)
    assert counts == {"groups": 2, "misled": 1, "tokens": 4}


def test_without_it_the_bait_is_what_is_taught():
    drawing = engine(by_table(BAIT))
    plain = dataclasses.replace(player(Game(pays=bait), drawing), afterwards=None)
    episode = asyncio.run(plain.play(1, "train", 0))
    assert teams(episode) == [[1, 0, 0], [0, 1, 2]] and len(drawing.requests) == 2


WORKFLOWS = [Workflow(("a", "b"), turns=3), Workflow(("a", ("b", "c"), "d"), turns=2)]


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=["in turn", "at once"])
def test_every_reward_is_the_sum_of_all_that_the_team_earns_from_there_on(workflow):
    """Texts and pay are random numbers of the place and all that was said. Some texts end the episode."""

    def said_at(key, k, told):
        number = seed_of("says", key.path(), k, told) % 7
        return "end" if number == 6 else str(number % 4)

    def pays(said):
        return seed_of("pays", *said) % 5 - 2.0

    def later(said, speakers, seen, first):
        """What is earned after ``said``, with one draw a node: ``speakers`` are still to act."""
        total, done = 0.0, False
        for number, (turn, stage, speaker) in enumerate(speakers):
            if number == 0 or speakers[number - 1][:2] != (turn, stage):
                if done:  # only the last action of a stage ends an episode
                    break
                seen = said if number or not first else seen
            key = dataclasses.replace(base, turn=turn, stage=stage, role=speaker)
            text = said_at(key, 0, f"{speaker}:{'|'.join(seen)}")
            said = (*said, text)
            total += pays(said)
            done = text == "end"
        return total

    found = 0
    for index in range(4):
        episode, drawing, _ = played(
            Game(workflow, pays), lambda address, told: said_at(address.group, address.k, told), index
        )
        asked = [(request.addresses[0], request.prompt_ids) for request in drawing.requests]
        assert len(set(asked)) == len(asked)  # nothing is drawn twice
        base = episode.groups[0].origin.key
        order = [
            (turn, stage, name)
            for turn in range(workflow.turns)
            for stage, names in enumerate(workflow.stages)
            for name in names
        ]
        said, seen = (), ()
        for number, group in enumerate(episode.groups):
            turn, stage, _ = order[number]
            if number == 0 or order[number - 1][:2] != (turn, stage):
                seen = said
            last = number + 1 == len(order) or order[number + 1][:2] != (turn, stage)
            for candidate in group.candidates:
                over = last and candidate.text == "end"
                after = (*said, candidate.text)
                expected = pays(after)
                if not over:
                    expected += later(after, order[number + 1 :], seen, not last)
                distinct = len({c.text for c in group.candidates}) > 1
                assert candidate.reward.team == (expected if distinct else pays(after))
                found += expected != pays(after)
            said = (*said, group.candidates[group.chosen].text)
    assert found > 20


def test_candidates_that_lead_to_one_state_share_what_comes_of_it():
    """Of a's three texts two are one, and b's are all one: nothing is played on from there."""
    table = {"a:": ("y", "z", "y"), "b:y": ("5", "5", "5"), "b:z": ("3", "3", "3")}
    episode, drawing, counts = played(Game(pays=bait), by_table(table))
    assert teams(episode) == [[5, 3, 5], [5, 5, 5] if episode.groups[0].chosen != 1 else [3, 3, 3]]
    assert len(drawing.requests) == 3 and counts["groups"] == 1 and counts["tokens"] == 2


def test_what_has_no_end_has_no_reward():
    """After y the engine fails, and after z a tool; what was excluded is not played on from."""
    table = {"a:": ("bait", "y", "z"), "b:bait": ("0", "crash", "2"), "b:y": (None,), "b:z": ("crash",)}
    pays = {("bait", "0"): 4.0, ("bait", "2"): 1.0}
    game = Game(pays=lambda said: said == ("bait",) if len(said) == 1 else pays.get(said, 0.0))
    episode, drawing, _ = played(game, by_table(table))
    assert teams(episode) == [[5, None, None], [4, None, 1]]
    assert len(drawing.requests) == 4 and episode.end == "turn_limit"
    broken = by_table(table | {"b:bait": (None, None, None)})  # the episode itself has no end
    episode, *_ = played(game, broken)
    assert (episode.end, teams(episode)) == ("engine_error", [[None] * 3, [None] * 3])


def test_where_nobody_acts_nothing_is_played_on():
    """a fails in the second turn, so b, who speaks at the same time, keeps what it earns at once."""
    task = Game(Workflow((("a", "b"),), turns=2), lambda said: float(len(said) + len(said[-1])))
    first = {"a": ("x", "yy", "z"), "b": ("x", "yy", "z")}

    def says(address, told):
        key = address.group
        return None if (key.turn, key.role) == (1, "a") else first[key.role][address.k]

    episode, *_ = played(task, says)
    assert episode.end == "engine_error" and [group.chosen for group in episode.groups] == [1, 1, None, None]
    assert teams(episode) == [[None] * 3, [None] * 3, [None] * 3, [4, 5, 4]]


def test_a_continuation_goes_on_from_what_training_leaves_out():
    """b's first answers to y and z are cut. They are worth 5 and 4, though b is not trained on such."""
    table = BAIT | {"b:y": ("5+", "4", "3"), "b:z": ("4+", "3", "3"), "b:bait": ("2+", "1", "0")}
    drawing = engine(by_table(table))
    made = dataclasses.replace(
        player(Game(pays=bait), drawing), exclude=("truncated", "tool_crash", "engine_error")
    )
    assert teams(asyncio.run(made.play(1, "train", 0))) == [[3, 5, 4], [None, 1, 0]]


def test_a_roles_mean_reward_is_of_what_was_earned_at_once():
    """Two candidates of a differ in the first episode, which is played on, and none in the second."""
    alike = BAIT | {"a:": ("bait", "bait", "bait")}
    means = []
    for table in (BAIT, alike):
        episode, *_ = played(Game(pays=bait), by_table(table))
        means.append(episode_metrics([episode])["role/a/team"])
    assert means == [pytest.approx(1 / 3), 1]


def test_groups_are_taken_by_chance_and_frozen_policies_are_left_out():
    """A share of a half takes about a half of the groups of a, and always the same ones."""

    def taken(share, team=None):
        found = (played(Game(pays=bait), by_table(BAIT), i, share=share, team=team) for i in range(20))
        return [teams(episode)[0] == [1, 5, 3] for episode, *_ in found]

    half = taken(0.5)
    assert 5 < sum(half) < 15 and taken(0.5) == half
    assert all(more for more, less in zip(taken(0.8), half, strict=True) if less)
    assert not any(taken(1.0, Team("full", alpha=2.0, frozen=("a",))))


class Anywhere(CreditConfig):
    def fits(self, tree, refills):
        return True


def test_what_does_not_go_together_is_refused():
    with pytest.raises(ValueError, match=r"counterfactual = 1.5: must be in \[0, 1\]"):
        CreditConfig(counterfactual=1.5)
    with pytest.raises(ValueError, match='compared with one another; needs the baseline "group"'):
        CreditConfig("role", counterfactual=0.5)
    on = CreditConfig(counterfactual=1.0)
    trajectories = RolloutConfig(instances=2, candidates=3, max_tokens=4, mode="trajectories")
    with pytest.raises(ValueError, match="is not for RolloutConfig.mode = 'trajectories'"):
        experiment(credit=on, rollout=trajectories)
    rule = 'counterfactual needs RolloutConfig.mode = "tree", and no partners'
    with pytest.raises(ValueError, match=rule):
        experiment(credit=Anywhere(counterfactual=1.0), rollout=trajectories)
    with pytest.raises(ValueError, match=rule):
        experiment(credit=on, team=Team(partners={"b": Partner("http://127.0.0.1:1/v1", "m")}))
    asked = ['rollout.RolloutConfig.mode = "trajectories"']
    with pytest.raises(ConfigError, match="is not for RolloutConfig.mode = 'trajectories'"):
        load(["smoke.gin", "credit/counterfactual.gin"], asked)
    assert repr(CreditConfig()) == "CreditConfig(baseline='group', normalise='std')"
    assert "counterfactual=1.0" in repr(on)


def test_several_hosts_play_what_one_plays():
    """Tokens and groups are those of all of them. Of an episode 5 + 4 + 2 + 3 x 2 tokens are drawn, and 4."""

    def step(hosts=ALONE):
        drawing = engine(by_table(BAIT))
        playing = player(Game(pays=bait), drawing)
        rollouts = Rollouts(playing, drawing, lambda *_: Picked([range(5)]), 1, hosts=hosts, at_once=4)
        episodes, metrics = rollouts.play(1)
        return episodes, {name: value for name, value in metrics.items() if name.startswith("counterf")}

    alone = step()
    share = pytest.approx(4 / (5 + 2 + 2 + 3 * 2 + 4))
    assert alone[1] == {
        "counterfactual/groups": 10, "counterfactual/misled": 0.5, "counterfactual/tokens": 20,
        "counterfactual/token_share": share,
    }  # fmt: skip
    party = Party(2)
    assert party(step) == [alone, alone]
    party.close()


# Runs


def says(engine, request):
    """Digits that depend on the address and the prompt; logprobs are not looked at here."""
    told = CharTokenizer().decode(request.prompt_ids)
    texts = [f"{seed_of(a.group.path(), told, a.k) % 9}{seed_of(told, a.k) % 8}" for a in request.addresses]
    drawn = [CharTokenizer().answer_ids(text) for text in texts]
    version = engine.versions[request.policy]
    return [Sample(ids, (-1.0,) * len(ids), "stop", version) for ids in drawn]


def left(path):
    """What a run has left of step 1, without what depends on the machine."""
    folder = RunFolder(path)
    records = [{k: v for k, v in r.items() if not k.startswith("perf/")} for r in folder.read_metrics()]
    return records[1], folder.episodes_of(1).read_bytes()


def trained(path, steps):
    x = experiment(
        says, credit=CreditConfig(normalise="mean", counterfactual=1.0), steps=2, checkpoint_every=2,
        max_logprob_gap=10.0,
    )  # fmt: skip
    x = dataclasses.replace(x, task=Paid(Workflow(("a", "b"), turns=2)))
    with Stages(x, RunFolder(path)) as stages:
        team = stages.begin()
        for step in range(stages.done + 1, steps + 1):
            team, record = one_step(stages, team, step)
    return x, record


@pytest.mark.thorough
def test_a_run_goes_on_to_the_same_bytes_and_a_replay_plays_on_as_it_did(tmp_path):
    """It ends after step 1, which is not saved and so is made again."""
    trained(tmp_path, 1)
    ended = left(tmp_path)
    x, record = trained(tmp_path, 2)
    assert left(tmp_path) == ended
    assert record["counterfactual/groups"] > 0 and 0.2 < record["counterfactual/token_share"] < 0.8
    node = Node(2, "train", 3)
    with Again(Saved(x, tmp_path)) as again:
        found = again.play(node)
    assert first_that_differs(findings(node, found.recorded, found.episode, x.tokenizer)) is None
    paid = [c.reward.team for g in found.episode.groups for c in g.candidates]
    assert paid == [c.reward.team for g in found.recorded.groups for c in g.candidates] and max(paid) > 8
