"""What a role's words change: games in which it is known, the rule of the alarm, and runs that measure it."""

import dataclasses
import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from fakes import CharTokenizer, Sum, with_receipts
from shared_hosts import LENGTHS, Party, ended, process
from shared_trainer import Paid, experiment, honest

from atgrpo_jax.common.errors import ConfigError
from atgrpo_jax.common.hosts import ALONE
from atgrpo_jax.common.types import Outcome, Reward, Sample, Sampling, seed_of
from atgrpo_jax.partners.partners import Partner
from atgrpo_jax.rollout.contributions import SPARED, Compared, alarms, figures, table
from atgrpo_jax.rollout.evaluation import EvaluationConfig, evaluating
from atgrpo_jax.rollout.influence import Influence
from atgrpo_jax.rollout.intervals import wilson
from atgrpo_jax.rollout.rollout import engine_propose, play_all
from atgrpo_jax.rollout.team import Team
from atgrpo_jax.run.findings import findings
from atgrpo_jax.run.folder import RunFolder
from atgrpo_jax.run.loop import one_step, train
from atgrpo_jax.run.stages import Stages
from atgrpo_jax.tasks.protocol import Transition
from atgrpo_jax.tasks.workflow import Workflow

SAMPLING = Sampling(1.0, 8)
K = 4


@dataclasses.dataclass(frozen=True)
class Game(Sum):
    """Everybody says something once. ``rule`` says of all that was said, and of the instance, if that is
    right; the team is paid 1 then. ``shown`` is what a role is told beside its name."""

    workflow: Workflow = Workflow(order=("a", "b"), turns=1)
    rule: object = None
    shown: object = lambda state, role: ""

    def initial(self, instance):
        return (instance,)

    def prompt(self, state, role):
        return [{"role": "user", "content": f"{role}:{self.shown(state, role)}"}]

    def act(self, state, role, text):
        after = (*state, text)
        last = len(after) - 1 == len(self.workflow.speakers) * self.workflow.turns
        solved = last and bool(self.rule(after[0], *after[1:]))
        return Transition(after, Reward.of(float(solved)), Outcome.OK, last, solved)


class Engine:
    """Says what ``says`` returns for an address and the words of a prompt. Remembers what it was asked."""

    def __init__(self, says):
        self.says, self.asked = says, []

    async def sample(self, request):
        self.asked.append(request.addresses)
        told = CharTokenizer().decode(request.prompt_ids)
        texts = [self.says(address, told) for address in request.addresses]
        if any(text is None for text in texts):
            return [Sample((), (), "error", 0)] * len(texts)
        answers = [CharTokenizer().answer_ids(text) for text in texts]
        return with_receipts(request, [Sample(ids, (-1.0,) * len(ids), "stop", 0) for ids in answers])

    def version(self, policy):
        return 0


def bit(address, told=""):
    """A fair coin, thrown at the address."""
    return str(address.key_words()[0] & 1)


def measured(task, says, instances=40, seed=5, kinds=("sibling", "silent", "shuffled", "echo"), first=0):
    """All comparisons by role and kind, the episodes that were played first, and the engine."""
    engine = Engine(says)
    player = evaluating(task, Team(), CharTokenizer(), engine, SAMPLING, seed, None, None)
    episodes = play_all(player, 3, "test", range(instances), first=first)
    influence = Influence(player, engine_propose(engine, SAMPLING, K, seed), episodes)
    plan = [(role, instead) for role, instead in influence.plan if instead in kinds]
    found = {(role, instead): influence.measure(role, instead) for role, instead in plan}
    return found, episodes, engine


def said(episodes, role):
    return [next(g for g in e.groups if g.origin.key.role == role).candidates[0].text for e in episodes]


def share(one):
    return one.changed / one.count


# Games whose values are computed by hand


def test_xor_needs_both():
    """Another bit of either always changes the outcome; one of another instance if it is another bit."""
    found, episodes, _ = measured(Game(rule=lambda _, a, b: a != b), bit)
    for role in "ab":
        sibling = found[role, "sibling"]
        assert share(sibling) == 1.0 and sibling.reward_change == 1.0
        bits = said(episodes, role)
        moved = sum(own != other for own, other in zip(bits, bits[1:] + bits[:1], strict=True))
        assert 0 < moved < 40 and found[role, "shuffled"].changed == moved
        assert found[role, "shuffled"].alike == 40 - moved
        assert found[role, "silent"].count == 40
    wins = sum(e.solved for e in episodes)
    echo = found["b", "echo"]  # equal bits never win
    assert (echo.changed, echo.lost.mean) == (wins, wins / 40) and not echo.idle
    assert ("a", "echo") not in found  # nobody speaks before it


def test_a_role_that_earns_nothing_has_influence_0_and_rings():
    """Only a's bit counts. It is 1 in nine instances of ten, so that there is something to lose."""

    def says(address, told):
        return str(int(address.key_words()[0] % 10 > 0))

    found, episodes, _ = measured(Game(rule=lambda _, a, b: a == "1"), says, instances=60)
    assert share(found["a", "sibling"]) == 1.0
    for instead in ("sibling", "silent", "shuffled", "echo"):
        assert found["b", instead].changed == 0 and found["b", instead].lost.mean == 0.0
    assert [found["b", instead].idle for instead in ("silent", "shuffled", "echo")] == [True] * 3
    assert not found["a", "silent"].idle
    assert found["a", "silent"].lost.mean == np.mean([e.solved for e in episodes])


def test_groups_without_another_answer_are_counted_apart():
    """In even instances a has one answer, in odd ones its first candidate alone says 0."""

    def says(address, told):
        key = address.group
        return "0" if key.role == "b" or key.instance % 2 == 0 or address.k == 0 else "1"

    found, *_ = measured(Game(rule=lambda _, a, b: a == "0"), says, instances=20)
    sibling = found["a", "sibling"]
    assert (sibling.count, sibling.alike, sibling.changed) == (10, 10, 10)
    assert "in 10 of 20 it was sure" in str(sibling)
    sure = found["b", "sibling"]
    assert (sure.count, sure.alike) == (0, 20)
    assert str(sure) == "b: no groups to compare; 20 had the same words"
    numbers = figures(list(found.values()))
    assert numbers["role/b/sure"] == 1.0 and "role/b/influence" not in numbers
    assert (numbers["role/a/sure"], numbers["role/a/influence"]) == (0.5, 1.0)


def test_the_first_candidate_that_differs_is_executed():
    def says(address, told):
        return "3" if address.k == 3 else "0"

    asked = []

    def rule(_, a, b):
        asked.append(a)
        return True

    measured(Game(rule=rule), says, instances=2)
    assert asked.count("3") == 2 and set(asked) == {"0", "3", ""}


def test_a_copyist_rings_though_its_words_count():
    """a knows the digit, b is told what a said and repeats it. Who would say it without b? An echo."""

    def says(address, told):
        return told.partition(":")[2]

    def shown(state, role):
        return state[0] % 10 if role == "a" else state[1]

    game = Game(rule=lambda i, a, b: b == str(i % 10), shown=shown)
    found, episodes, _ = measured(game, says, instances=60)
    assert all(e.solved for e in episodes)
    assert found["b", "echo"].idle and found["b", "echo"].alike == 60
    assert found["b", "shuffled"].lost.mean == found["b", "silent"].lost.mean == 1.0
    assert [found["a", kind].idle for kind in ("silent", "shuffled")] == [False, False]


def test_an_echo_is_of_the_last_other_speaker_of_the_turn():
    """d repeats c, the last one of the stage before it; in no turn does b repeat what d said."""
    workflow = Workflow(order=("a", ("b", "c"), "d"), turns=2)
    heard = []

    def says(address, told):
        return f"{address.group.speaker}{address.group.turn}"

    def rule(_, *texts):
        heard.append(texts)
        return True

    found, *_ = measured(Game(workflow, rule), says, instances=2)
    assert [role for role, kind in found if kind == "echo"] == ["b", "c", "d"]
    assert heard.count(("a0", "b0", "c0", "c0", "a1", "b1", "c1", "c1")) == 2  # of d, in two instances
    assert heard.count(("a0", "a0", "c0", "d0", "a1", "a1", "c1", "d1")) == 2  # of b


def test_seats_are_given_the_words_of_their_own_seat():
    workflow = Workflow(order=("a", "b"), turns=1, seats={"b": 2})
    heard = []

    def says(address, told):
        return f"{address.group.speaker}.{address.group.instance}"

    def rule(i, *texts):
        heard.append((i, *texts))
        return True

    measured(Game(workflow, rule), says, instances=3)
    assert (0, "a.0", "b0.1", "b1.1") in heard and (2, "a.2", "b0.0", "b1.0") in heard


# What is drawn


def test_who_is_asked_the_same_is_not_asked_again():
    """b hears nothing of a, so nothing is drawn but siblings: each at its address, in one request."""
    found, _, engine = measured(Game(rule=lambda _, a, b: a != b), bit, instances=6)
    plays, again = engine.asked[:12], engine.asked[12:]
    assert {len(addresses) for addresses in plays} == {1} and {len(a) for a in again} == {K}
    assert len(again) == 12 and {tuple(a.k for a in addresses) for addresses in again} == {(0, 1, 2, 3)}
    assert found["a", "silent"].tokens == 0 and found["a", "sibling"].tokens == 6 * K * 2


def test_who_hears_something_else_draws_at_its_own_address():
    def says(address, told):
        return bit(address) + told[2:]

    game = Game(rule=lambda _, a, b: len(b) % 2 == 0, shown=lambda s, role: s[1] if role == "b" else "")
    found, _, engine = measured(game, says, instances=3)
    own = {(a.group.path(), a.k) for addresses in engine.asked[:6] for a in addresses}
    drawn = [addresses for addresses in engine.asked[6:] if len(addresses) == 1]
    assert drawn and {(a.group.path(), a.k) for addresses in drawn for a in addresses} <= own
    assert share(found["a", "silent"]) == 1.0  # b's answer is one letter shorter


def test_episodes_that_an_engine_ended_are_left_out():
    def says(address, told):
        return None if (address.group.instance, address.group.role) == (1, "b") else "1"

    found, *_ = measured(Game(rule=lambda _, a, b: True), says, instances=4)
    assert (found["a", "silent"].count, found["a", "silent"].failed) == (3, 0)

    def fails(address, told):
        return None if told == "b:" and address.group.instance == 1 else "1"

    game = Game(rule=lambda _, a, b: True, shown=lambda s, role: s[1] if role == "b" else "")
    found, *_ = measured(game, fails, instances=4)
    assert (found["a", "silent"].count, found["a", "silent"].failed) == (3, 1)


def test_a_role_that_speaks_in_some_instances_is_compared_in_those():
    """b speaks in even instances; the words for the last one are those of the first one."""
    heard = []

    class Sometimes(Game):
        def speaks(self, state, role):
            return role == "a" or state[0] % 2 == 0

    def says(address, told):
        return f"{address.group.role}{address.group.instance}"

    def rule(_, a, b):
        heard.append((a, b))
        return True

    found, *_ = measured(Sometimes(rule=rule), says, instances=5)
    assert found["a", "silent"].count == 5 and found["b", "silent"].count == 3
    given = [("a0", "b2"), ("a2", "b4"), ("a4", "b0")]
    assert all(pair in heard for pair in given)
    alone, *_ = measured(Sometimes(rule=rule), says, instances=2)
    assert (alone["b", "silent"].count, alone["b", "shuffled"].count) == (1, 0)  # there is no other one


def test_partners_take_part_and_are_asked_again_if_they_hear_something_else():
    """The partner a repeats the instance; the partner c repeats what b said."""

    class Answers:
        def __init__(self):
            self.asked, self.costs = [], {}

        async def ask(self, messages, key, spoken):
            self.asked.append(key)
            return Sample((), (), "stop", -1), messages[0]["content"].partition(":")[2]

    workflow = Workflow(order=("a", "b", "c"), turns=1)
    game = Game(workflow, lambda i, a, b, c: a == str(i) and b == c, lambda s, role: s[-1])
    partner = Partner("http://127.0.0.1:1/v1", "m")
    engine, answers = Engine(bit), Answers()
    team = Team(partners={"a": partner, "c": partner})
    player = evaluating(game, team, CharTokenizer(), engine, SAMPLING, 5, None, answers)
    episodes = play_all(player, 3, "test", range(4))
    assert all(e.solved for e in episodes) and len(answers.asked) == 8
    influence = Influence(player, engine_propose(engine, SAMPLING, K, 5), episodes)
    assert influence.plan == [("b", "sibling"), ("b", "silent"), ("b", "shuffled")]
    one = influence.measure("b", "silent")
    assert (one.count, one.changed) == (4, 0) and len(answers.asked) == 16  # c has no text to repeat, either


def test_episodes_with_other_numbers_are_played_again_by_these():
    """Those of an evaluation on the train split; what is said here does not depend on the number."""

    def found(first):
        game = Game(rule=lambda _, a, b: a == b, shown=lambda s, role: s[1] if role == "b" else "")
        found, episodes, _ = measured(
            game, lambda address, told: str((address.group.instance + address.k) % 2), 4, first=first
        )
        assert {episode.episode for episode in episodes} == {first}
        return [(*key, one.count, one.changed, one.alike) for key, one in found.items()]

    assert found(0) == found(7) and found(0)[0][:4] == ("a", "sibling", 4, 4)


def test_several_hosts_find_what_one_finds():
    game = Game(rule=lambda _, a, b: len(b) % 2 == 0, shown=lambda s, role: s[1] if role == "b" else "")

    def says(address, told):
        return bit(address) + told[2:]

    def found(hosts=ALONE):
        engine = Engine(says)
        player = evaluating(game, Team(), CharTokenizer(), engine, SAMPLING, 5, None, None)
        episodes = play_all(player, 3, "test", range(7), hosts=hosts)
        influence = Influence(player, engine_propose(engine, SAMPLING, K, 5), episodes, hosts, at_once=4)
        return figures([influence.measure(role, instead) for role, instead in influence.plan])

    party = Party(2)
    assert party(found) == [found(), found()]
    party.close()


def test_partners_are_no_subjects_and_frozen_policies_are():
    partner = Partner("http://127.0.0.1:1/v1", "m")
    workflow = Workflow(order=("a", "b", "c"), turns=1)

    def plan(team):
        player = evaluating(Game(workflow), team, CharTokenizer(), None, SAMPLING, 5, None, None)
        return Influence(player, None, [None, None]).plan

    kinds = ["sibling", "silent", "shuffled"]
    found = plan(Team("full", partners={"a": partner}, frozen=("b",)))
    assert found == [*(("b", kind) for kind in kinds), *(("c", kind) for kind in [*kinds, "echo"])]


def test_one_instance_is_too_few():
    with pytest.raises(ConfigError, match="at least 2 instances"):
        measured(Game(rule=lambda *_: True), bit, instances=1)


# The alarm


def compared(solved, other, instead="silent", team=None):
    solved, other = np.array(solved, bool), np.array(other, bool)
    rewards = solved.astype(float) if team is None else np.array(team, float)
    return Compared("a", instead, solved, other, rewards, other.astype(float), 0)


def test_figures_by_hand():
    """Four episodes: one is lost without a, one is won."""
    one = compared([1, 1, 0, 0], [1, 0, 1, 0])
    assert (one.changed, one.lost.mean, one.lost.better, one.lost.worse) == (2, 0.0, 1, 1)
    assert one.changed_interval == wilson(2, 4) and one.reward_change == 0.5
    # Sizes 0, 1, 1, 0: standard deviation sqrt(1/3), Student's quantile 3.182 at 3 degrees.
    assert one.reward_interval == pytest.approx((0.0, 0.5 + 3.18245 * (1 / 3) ** 0.5 / 2), abs=1e-5)
    rewarded = compared([0, 0], [0, 0], team=[0.0, 0.3])
    assert (rewarded.changed, rewarded.lost.mean) == (1, 0.0)


def test_a_role_that_never_spoke_has_no_figures():
    """A share of nothing is absent. One whose siblings were all the same has been sure."""
    nothing = [compared([], [], kind) for kind in ("sibling", "silent", "shuffled")]
    assert figures(nothing) == {}
    assert figures([dataclasses.replace(nothing[0], alike=3)]) == {"role/a/sure": 1.0}
    idle = figures([nothing[0], compared([1] * 100, [1] * 100)])
    assert "role/a/sure" not in idle and list(findings([idle])) == ["idle/a"]


def test_a_team_that_solves_nothing_has_no_idle_role():
    assert not compared([0] * 500, [0] * 500).idle
    assert compared([1] * 100, [1] * 100).idle and not compared([1] * 20, [1] * 20).idle
    assert not compared([1] * 100, [1] * 100, "sibling").idle


def test_the_alarm_rings_in_at_most_a_fortieth_if_the_role_is_worth_the_threshold():
    """The team solves p of the instances, and (1 - SPARED) p without the role, which also changes others
    for better and for worse. That is the least that the rule must not call idle."""
    rng = np.random.default_rng(0)
    for p, noise, count in [(0.9, 0.0, 100), (0.9, 0.05, 200), (0.6, 0.02, 400), (0.95, 0.01, 1000)]:
        rings = 0
        for _ in range(1000):
            chance = rng.random(count)
            solved = chance < p
            lost = SPARED * p
            other = np.where(chance < lost + noise, False, solved)
            other = np.where((chance >= p) & (chance < p + noise), True, other)
            rings += compared(solved, other).idle
        assert rings <= 35, (p, noise, count)  # 25 and two standard deviations


def test_harm_is_known_by_the_whole_interval_and_an_idler_does_none():
    """One of 10 is lost, 5 are won: that may be chance. Of 20 won, none lost, it may not."""
    assert not compared([1] + [0] * 5 + [1] * 4, [0] + [1] * 9).harmful
    assert compared([0] * 20 + [1] * 20, [1] * 40).harmful
    assert not compared([0] * 20 + [1] * 20, [1] * 40, "sibling").harmful and not compared([], []).harmful
    rng = np.random.default_rng(0)
    for p, noise, count in [(0.9, 0.05, 200), (0.5, 0.2, 60), (0.5, 1.0, 100), (0.1, 0.5, 100)]:
        rings = 0
        for _ in range(1000):  # what the words shake is solved again with the same chance
            solved, other = rng.random((2, count)) < p
            other = np.where(rng.random(count) < noise, other, solved)
            rings += compared(solved, other).harmful
        assert rings <= 35, (p, noise, count)  # 25 and two standard deviations


def test_one_line_a_role_and_harm_comes_first():
    """b is idle in two ways: it loses less of an empty text. c does harm, and is idle in one way."""
    idle, worth = compared([1] * 100, [1] * 100), compared([1] * 100, [1] * 99 + [0], "echo")
    harm, none = compared([0] * 20 + [1] * 80, [1] * 100, "shuffled"), compared([1] * 100, [0] * 100)
    assert idle.idle and worth.idle and harm.idle and harm.harmful and not none.idle
    found = [dataclasses.replace(one, role="b") for one in (worth, idle)]
    found += [dataclasses.replace(one, role="c") for one in (harm, none)]
    record = figures(found) | {f"role/{role}/sure": 0.0 for role in "bc"}
    rung = alarms(record, "abc")
    assert list(rung) == ["harm/c", "idle/b"] and "with an empty text in its place" in rung["idle/b"]
    assert rung["harm/c"].startswith(
        "the team does better without c: with what it said elsewhere in its place the team would gain 20.0% ("
    )
    assert str(found[2]).endswith(": the team does better without its words")
    assert findings([{"step": 0}, record, {"step": 2}]) == rung  # the newest measurement
    lost = figures([none]) | {"role/a/sure": 0.0}
    assert findings([record, lost]) == {}


def test_no_false_alarm_in_ten_seeds_of_honest_games_and_no_planted_idler_or_saboteur_is_missed():
    """Both know a part: each is right in 97 of 100. The idler's words are not looked at. The saboteur
    spoils all by what it says in 30 of 100 instances; what it says elsewhere spoils as many."""

    def says(address, told):
        right = seed_of("right", *address.key_words()) % 100 < 97
        return str(address.group.instance % 10 if right else 11)

    def both(i, a, b):
        return int(a or 0) + int(b or 0) == 2 * (i % 10)

    def first(i, a, b):
        return a == str(i % 10)

    def spoils(i, a, b):
        return a == str(i % 10) and b != "spoil"

    def saboteur(address, told):
        spoiling = address.group.role == "b" and seed_of("spoils", *address.key_words()) % 100 < 30
        return "spoil" if spoiling else says(address, told)

    idle = {"honest": 0, "a": 0, "b": 0}
    harm = {"honest": 0, "idler": 0, "a": 0, "silent": 0, "shuffled": 0}
    for seed in range(10):
        kinds = "silent", "shuffled"  # an echo of a is b's digit here
        found, *_ = measured(Game(rule=both), says, 60, seed, kinds)
        idle["honest"] += sum(one.idle for one in found.values())
        harm["honest"] += sum(one.harmful for one in found.values())
        found, *_ = measured(Game(rule=first), says, 60, seed, (*kinds, "echo"))
        for (role, _), one in found.items():
            idle[role] += one.idle
            harm["idler"] += one.harmful
        found, *_ = measured(Game(rule=spoils), saboteur, 60, seed, kinds) if seed < 5 else ({},)
        for (role, instead), one in found.items():
            harm[role if role == "a" else instead] += one.harmful
    assert idle == {"honest": 0, "a": 0, "b": 10 * 3}
    assert harm == {"honest": 0, "idler": 0, "a": 0, "silent": 5, "shuffled": 0}


def test_sentences_and_the_table_say_it_plainly():
    idle, useful = compared([1] * 60, [1] * 60), compared([1] * 60, [0] * 60, "shuffled")
    assert str(idle) == (
        "a: with an empty text in its place the outcome changed in 0 of 60 episodes (95 % interval 0.0% to "
        "6.0%), and the team would lose 0.0% (95 % interval -5.5% to 5.5%): it may be idle"
    )
    assert str(useful).endswith("it is not shown to be idle")
    record = figures([idle, useful])
    assert record["role/a/idle_silent"] == 1.0 and record["role/a/idle_shuffled"] == 0.0
    assert alarms(record, ["a", "b"]) == {
        "idle/a": "a may be idle: with an empty text in its place the team would lose 0.0% (95 % interval "
        "-5.5% to 5.5%)"
    }
    # One of 60 is solved only without a. With the made-up ones the middle is 1/63, and the spread 6.4 %:
    # Student's 1.999 x sqrt((1 + 3 - 1/63) / 62 / 63).
    harmful = str(compared([0] + [1] * 59, [1] * 60))
    assert "and the team would gain 1.7% (95 % interval -4.8% to 8.0%): it may be idle" in harmful
    head, first, _ = table([idle, useful])
    assert head.split()[:4] == ["role", "instead", "played", "alike"]
    assert first.split()[:4] == ["a", "silent", "60", "0"]


# Runs


class Heard(Paid):
    """Like every real task it takes any text."""

    def act(self, state, role, text):
        return super().act(state, role, text or "00")


def settings(**changes):
    given = {"instances": 3, "validation_instances": 3, "every": 1} | changes
    plain = experiment(honest(), evaluation=EvaluationConfig(**given), steps=3, checkpoint_every=2)
    return dataclasses.replace(plain, task=Heard())


def left(path):
    """What a run has left: metrics but for seconds, files of episodes, and the bytes of its weights."""
    folder = RunFolder(path)
    metrics = [{k: v for k, v in r.items() if not k.startswith("perf/")} for r in folder.read_metrics()]
    episodes = {file.name: file.read_bytes() for file in sorted((path / "episodes").iterdir())}
    return metrics, episodes


def weights(x, path):
    with Stages(x, RunFolder(path)) as stages:
        return jax.tree.leaves(jax.device_get(stages.begin().policies["shared"].params))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run that measures in its second step and its last one, and one that does not."""
    path = tmp_path_factory.mktemp("runs")
    on, off = settings(influence_every=2), settings()
    return {"on": train(on, RunFolder(path / "on")), "off": train(off, RunFolder(path / "off"))}, path


@pytest.mark.thorough
def test_a_run_measures_when_it_is_asked_and_changes_nothing_else(runs):
    summaries, path = runs
    (on, episodes), (off, plain) = left(path / "on"), left(path / "off")
    measured_at = [record["step"] for record in on if "role/a/sure" in record]
    assert measured_at == [2, 3] and {"role/b/lost_echo", "role/a/influence"} <= on[2].keys()
    assert [{k: v for k, v in record.items() if k in off[i]} for i, record in enumerate(on)] == off
    assert episodes == plain
    pairs = zip(
        weights(settings(influence_every=2), path / "on"), weights(settings(), path / "off"), strict=True
    )
    assert all(np.array_equal(one, other) for one, other in pairs)
    assert summaries["on"]["findings"] == summaries["off"]["findings"] == {}


@pytest.mark.thorough
def test_a_run_that_is_killed_and_resumed_leaves_the_same(runs, tmp_path):
    """It dies after its third step, whose checkpoint is not due, and goes on from the second one."""
    x = settings(influence_every=2)
    with Stages(x, RunFolder(tmp_path)) as stages:
        team = stages.begin()
        for step in (1, 2):
            team, _ = one_step(stages, team, step)
        stages.checkpoint = lambda *_: None
        one_step(stages, team, 3)
    train(x, RunFolder(tmp_path))
    assert left(tmp_path) == left(runs[1] / "on")


@pytest.mark.slow
def test_the_command_plays_the_episodes_that_the_run_played_last(tmp_path):
    """The scores are those of the run's last step; lines and a record are left for each role."""
    given = (
        "experiment.Experiment.steps = 1", "warm_start.WarmStartConfig.steps = 2",
        "evaluation.EvaluationConfig.instances = 6", "evaluation.EvaluationConfig.every = 1",
        "evaluation.EvaluationConfig.influence_every = 1", "rollout.RolloutConfig.instances = 2",
    )  # fmt: skip
    words = [f"--gin_param={one}" for one in given]
    arguments = ["--gin_file=smoke.gin", f"--gin_file={LENGTHS}", *words, f"--run_dir={tmp_path}/run"]
    assert ended([process(tmp_path / "train.txt", *arguments)]) == [0]
    command = [sys.executable, "-m", "atgrpo_jax.influence", f"--run_dir={tmp_path}/run"]
    path = f"{LENGTHS.parent}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path})
    assert done.returncode == 0, done.stderr
    rows = [line.split()[:3] for line in done.stdout.splitlines()]
    assert ["mover", "echo", "6"] in rows and ["scout", "silent", "6"] in rows
    assert "scout: with an empty text in its place the outcome changed in " in done.stdout
    assert done.stdout.endswith("\n\nno alarm rings\n")
    (record,) = map(json.loads, (tmp_path / "run" / "influence.jsonl").read_text().splitlines())
    last = RunFolder(tmp_path / "run").read_metrics()[-1]
    assert (record["success"], record["step"], record["split"]) == (last["test/success"], 1, "test")
    assert {"role/mover/lost_echo", "role/scout/idle_silent"} <= record.keys() & last.keys()


def test_the_switch_is_in_the_identity_only_if_it_is_on():
    plain = EvaluationConfig()
    assert repr(plain) == (
        "EvaluationConfig(temperature=1.0, instances=200, every=20, validation_instances=100)"
    )
    assert "influence_every=40" in repr(EvaluationConfig(influence_every=40))
    for wrong in ({"influence_every": 30}, {"influence_every": -20}, {"influence_every": 5, "every": 0}):
        with pytest.raises(ValueError, match="multiple of every"):
            EvaluationConfig(**wrong)


def test_a_run_with_one_instance_to_validate_is_refused_at_its_start(tmp_path):
    x = settings(influence_every=1, validation_instances=1)
    with pytest.raises(ConfigError, match="at least 2 instances"), Stages(x, RunFolder(tmp_path)):
        pass
