"""Which instances a step plays: shares, draws and lessons by hand, and runs that go on to the same ones."""

import dataclasses
import json
import math
import re
import types
from pathlib import Path

import numpy as np
import pytest
from fakes import AnsweringEngine, CharTokenizer
from shared_hosts import Party
from shared_rollout import SAMPLING
from shared_trainer import Paid, experiment
from test_credit import episode, spoke
from test_refill import some
from test_sokoban import write_levels

from atgrpo_jax.common.errors import ConfigError, RunError
from atgrpo_jax.common.hosts import ALONE
from atgrpo_jax.common.types import Sample, seed_of
from atgrpo_jax.credit.groups import CreditConfig, credit
from atgrpo_jax.replaying.teams import Teams
from atgrpo_jax.rollout import odds
from atgrpo_jax.rollout.curriculum import CurriculumConfig, Lesson, Pool, learned, picked, size_of
from atgrpo_jax.rollout.player import Player
from atgrpo_jax.rollout.rollout import RolloutConfig, engine_propose
from atgrpo_jax.rollout.rollouts import Rollouts
from atgrpo_jax.rollout.team import Team
from atgrpo_jax.run.checkpoint import Checkpoints
from atgrpo_jax.run.folder import RunFolder
from atgrpo_jax.run.gin_config import load, render
from atgrpo_jax.run.loop import one_step
from atgrpo_jax.run.recorded import credited_of, episode_of
from atgrpo_jax.run.saved import claim
from atgrpo_jax.run.stages import Stages
from atgrpo_jax.tasks.code.code import Code
from atgrpo_jax.tasks.games.plan_path import PlanPath
from atgrpo_jax.tasks.games.sokoban import Sokoban
from atgrpo_jax.tasks.games.sudoku import Sudoku
from atgrpo_jax.tasks.math.math import Math
from atgrpo_jax.tasks.protocol import FromFiles
from atgrpo_jax.tasks.search.search import Search

PAGE = (Path(__file__).parents[1] / "docs" / "curriculum.md").read_text()


# The numbers, by hand


def test_shares():
    np.testing.assert_allclose(odds.shares(np.array([1, 0.5, 0, 0.5]), 0.2), [0.45, 0.25, 0.05, 0.25])
    np.testing.assert_array_equal(odds.shares(np.array([1.0, 0.0]), 1.0), [0.5, 0.5])
    np.testing.assert_array_equal(odds.shares(np.zeros(4), 0.1), np.full(4, 0.25))
    np.testing.assert_array_equal(odds.learnable(np.array([0, 0.25, 0.5, 1])), [0, 0.75, 1, 0])
    assert odds.effective(np.full(5, 0.2)) == pytest.approx(5)
    assert odds.effective(np.array([0.5, 0.25, 0.25])) == pytest.approx(8 / 3)


def order_by_hand(share_I, seed):
    """By the definition: each in turn is who comes first of those that are left."""
    uniform_I = np.random.default_rng(seed).random(len(share_I))
    left, order = list(range(len(share_I))), []
    while left:
        order.append(min(left, key=lambda i: -math.log(1 - uniform_I[i]) / share_I[i]))
        left.remove(order[-1])
    return order


def test_an_order_is_drawn_without_replacement():
    share_I = odds.shares(np.random.default_rng(0).random(40), 0.1)
    order = odds.order(share_I, 7).tolist()
    assert order == order_by_hand(share_I, 7) and sorted(order) == list(range(40))
    assert order != odds.order(share_I, 8).tolist()
    np.testing.assert_array_equal(odds.order(share_I / 3, 7), order)  # only ratios count
    fewer = [i for i in order if i < 30]  # a larger pool does not mix the instances of a smaller one
    assert odds.order(share_I[:30], 7).tolist() == fewer
    for i in range(40):  # with more of a share nobody comes later
        more_I = share_I.copy()
        more_I[i] *= 2
        assert odds.order(more_I, 7).tolist().index(i) <= order.index(i)


def test_instances_come_by_their_shares():
    """These seeds give these numbers in every run. Four standard deviations of 4,000 draws are 0.032."""
    share_I = np.array([0.5, 0.3, 0.15, 0.05])
    orders = np.array([odds.order(share_I, seed)[:2] for seed in range(4000)])
    first_I = np.bincount(orders[:, 0], minlength=4) / 4000
    np.testing.assert_allclose(first_I, share_I, atol=0.032)
    after_0 = orders[orders[:, 0] == 0, 1]
    np.testing.assert_allclose(np.bincount(after_0) / len(after_0), [0, 0.6, 0.3, 0.1], atol=0.045)


def lessons_of(config, before, episodes, baseline="group", updates=lambda group: not group.by_partner):
    credited = credit(episodes, alpha=1.0, rule=CreditConfig(baseline))[0]
    return learned(config, before, episodes, credited, updates)


def undrawn(made):
    """The episode, of which the engine drew nothing where nobody has a reward."""

    def fails(group):
        if any(one.reward for one in group.candidates):
            return group
        lost = [dataclasses.replace(one, sample=Sample((), (), "error", 0)) for one in group.candidates]
        return dataclasses.replace(group, candidates=tuple(lost), chosen=None)

    return dataclasses.replace(made, groups=tuple(map(fails, made.groups)))


def test_lessons_move_with_what_was_played():
    half, kept = spoke("a", 1, 2, None), spoke("b", 1, 1)
    config = CurriculumConfig(9, decay=0.75)
    before = {3: Lesson(1.0, 0.0), 5: Lesson(0.25, 0.125)}
    found = lessons_of(
        config,
        before,
        [
            episode(half, kept, kept, kept, instance=3, end="solved"),
            episode(kept, spoke("b", 4, None), instance=4),
            episode(spoke("a", 1, 9, partner=True), half, instance=6, end="turn_limit"),
            undrawn(episode(spoke("a", None, None), instance=7, end="engine_error")),
        ],
    )
    assert found == {
        3: Lesson(0.75 * 1 + 0.25 * 1, 0.75 * 0 + 0.25 * 0.25),  # one of four groups
        5: before[5],
        4: Lesson(0.75 * 0.5, 0.75),  # begins at 1/2 and 1
        6: Lesson(0.75 * 0.5, 1.0),  # what a partner says is not counted
    }  # 7: nothing is known of it
    assert lessons_of(None, before, []) == {}


def test_lessons_of_whole_episodes():
    """Two of three that were played were solved; that the engine failed the fourth says nothing."""
    played = [
        episode(spoke("a", 5), instance=2, number=0, end="solved"),
        episode(spoke("a", 5), instance=2, number=1, end="solved"),
        episode(spoke("a", 1), instance=2, number=2),
        undrawn(episode(spoke("a", None), instance=2, number=3, end="engine_error")),
        *(episode(spoke("a", 3), instance=8, number=n) for n in range(3)),
    ]
    found = lessons_of(CurriculumConfig(9, decay=0.0), {}, played, "instance")
    assert found == {2: Lesson(2 / 3, 1.0), 8: Lesson(0.0, 0.0)}


@pytest.mark.parametrize("by", ["signal", "success"])
def test_an_instance_that_cannot_be_played_loses_its_value(by):
    """Of a pool of 8 the first two end after a's group, in which no candidate counts; of the third the engine
    draws nothing. The others are solved by one of two, and always have a signal."""
    config = CurriculumConfig(8, by, decay=0.5)

    def step(lessons):
        one = spoke("a", 1, 2)
        none = {"end": "engine_error"}
        played = [
            episode(spoke("a", None, None), instance=0, **none),
            episode(one, spoke("b", None, None), instance=1, **none),
            undrawn(episode(spoke("a", None, None), instance=2, **none)),
            *(episode(one, instance=n, number=m, end="solved" if m else "ended")
              for n in range(3, 8) for m in (0, 1)),
        ]  # fmt: skip
        return lessons_of(config, lessons, played)

    first = step({})
    assert (first[0], first[1]) == (Lesson(0.25, 0.5), Lesson(0.25, 0.75)) and 2 not in first
    for _ in range(9):
        first = step(first)
    pool = Pool.of(config, first, 8)
    assert pool.value_I[0] < 0.01 and pool.value_I[1] == pytest.approx(0.5 if by == "signal" else 0, abs=0.01)
    assert pool.value_I[2:].tolist() == [1] * 6


def test_what_the_engine_failed_later_leaves_what_was_seen_before():
    """The success says nothing then; a group that could have taught and did not counts."""
    made = undrawn(episode(spoke("a", 3, 3), spoke("b", None), instance=4, end="engine_error"))
    assert lessons_of(CurriculumConfig(9), {4: Lesson(0.75, 1.0)}, [made]) == {4: Lesson(0.75, 0.5)}


def test_groups_of_policies_that_stand_still_teach_nothing():
    played = [episode(spoke("a", 1, 1), spoke("b", 1, 2), spoke("b", 2, 3), instance=4)]
    config = CurriculumConfig(9, decay=0.0)

    def by(role):
        return lessons_of(config, {}, played, updates=lambda group: group.origin.key.role == role)

    assert [by(role)[4].signal for role in "abc"] == [0, 1, 0]


LESSONS = {0: Lesson(1.0, 0.0), 1: Lesson(0.0, 0.25), 2: Lesson(0.75, 0.75)}


def test_a_pool_by_hand():
    pool = Pool.of(CurriculumConfig(5, floor=0.5), {**LESSONS, 77: Lesson(1.0, 1.0)}, 5)
    np.testing.assert_array_equal(pool.value_I, [0, 0.25, 0.75, 1, 1])  # what was not played counts 1
    np.testing.assert_allclose(pool.share_I, 0.1 + 0.5 * pool.value_I / 3)
    by_success = Pool.of(CurriculumConfig(5, "success"), LESSONS, 5)
    np.testing.assert_array_equal(by_success.value_I, [0, 0, 0.75, 1, 1])
    squares = 0.1**2 + (0.1 + 0.125 / 3) ** 2 + 0.225**2 + 2 * (0.1 + 0.5 / 3) ** 2
    assert pool.metrics([0, 2, 4]) == pytest.approx({
        "curriculum/effective": 1 / squares / 5,
        "curriculum/largest": 0.1 + 0.5 / 3,
        "curriculum/tried": 0.6,
        "curriculum/easy": 0.2,  # instance 0
        "curriculum/hard": 0.2,  # instance 1
        "curriculum/repeats": 2 / 3,
        "curriculum/success": (1 + 0.75 + 0.5) / 3,
        "curriculum/pool_success": (1 + 0 + 0.75 + 0.5 + 0.5) / 5,
    })  # fmt: skip


def test_more_groups_with_signal_are_expected_than_without_a_curriculum():
    """The sum of share * value is at least the mean value (Cauchy and Schwarz), and that with floor 1."""
    value_I = np.random.default_rng(3).random(50)
    gains = [odds.shares(value_I, floor) @ value_I - value_I.mean() for floor in (1.0, 0.5, 0.1)]
    assert gains[0] == pytest.approx(0) and gains[0] < gains[1] < gains[2]
    assert gains[1] / gains[2] == pytest.approx(0.5 / 0.9)


def test_rounds_are_the_beginning_of_one_order():
    found = picked(CurriculumConfig(12), LESSONS, 12, 5, instances=3, rounds=4)
    order = odds.order(Pool.of(CurriculumConfig(12), LESSONS, 12).share_I, 5).tolist()
    assert found.rounds == [order[0:3], order[3:6], order[6:9], order[9:12]]
    assert picked(CurriculumConfig(12), LESSONS, 12, 5, 3, 2).rounds == found.rounds[:2]
    assert found.metrics(2) == found.pool.metrics(order[:6])
    assert all(type(index) is int for own in found.rounds for index in own)


# Settings


@pytest.mark.parametrize(
    ("fields", "says"),
    [({"pool": -1}, "negative"), ({"floor": 0.0}, "lost"), ({"floor": 1.5}, "must be in"),
     ({"decay": 1.0}, "must be in"), ({"by": "luck"}, "signal")],
)  # fmt: skip
def test_refuses(fields, says):
    with pytest.raises(ValueError, match=f"CurriculumConfig.{next(iter(fields))}.*{says}"):
        CurriculumConfig(**fields)


def test_refuses_a_pool_that_a_step_may_use_up():
    with pytest.raises(ValueError, match="RolloutConfig.curriculum.*pool of 9 .* 12 instances"):
        RolloutConfig(instances=4, least_signal=1, most_rounds=3, curriculum=CurriculumConfig(9))
    RolloutConfig(instances=4, most_rounds=3, curriculum=CurriculumConfig(4))  # one round


def test_refuses_signal_that_is_of_the_whole_step():
    rule = CreditConfig("role", "mean")
    with pytest.raises(ValueError, match='Experiment.credit.*no curriculum by "signal"'):
        experiment(rollout=RolloutConfig(instances=2, curriculum=CurriculumConfig(4)), credit=rule)
    by_success = CurriculumConfig(4, "success")
    experiment(rollout=RolloutConfig(instances=2, curriculum=by_success), credit=rule)


def test_size_of_a_pool():
    class Rows(PlanPath):
        def file_rows(self, split):
            return [split] * 6

    assert [size_of(CurriculumConfig(pool), Rows(), 4) for pool in (0, 5, 6)] == [6, 5, 6]
    assert size_of(CurriculumConfig(7), PlanPath(), 4) == 7
    for task, pool, needed, says in (
        (PlanPath(), 0, 4, "PlanPath makes problems without end; say how many"),
        (Rows(), 7, 4, "the files have 6 problems for train, and CurriculumConfig.pool asks for 7"),
        (Rows(), 0, 8, "the files have 6 problems for train, and a step may play 8"),
    ):
        with pytest.raises(ConfigError, match=f"CurriculumConfig.pool: {says}"):
            size_of(CurriculumConfig(pool), task, needed)


def test_a_pool_that_cannot_be_had_is_found_before_the_folder_is_taken(tmp_path):
    wrong = load("smoke.gin", ["rollout.RolloutConfig.curriculum = @curriculum.CurriculumConfig()"])
    folder = RunFolder(tmp_path / "run")
    with pytest.raises(ConfigError, match="makes problems without end"), claim(folder, wrong):
        raise AssertionError("it was taken")
    assert not folder.path.exists()


def tasks_with_files(folder):
    """Each task that reads files, with two problems for training."""
    sums = [{"question": f"{n} + 1?", "answer": str(n + 1)} for n in (1, 2)]
    programs = [{"question": q, "test_input": ["1"], "test_output": ["1"]} for q in "ab"]
    cells = [{"size": 4, "puzzle": puzzle} for puzzle in ("1234341221434300", "2143432112343400")]
    found = {"supporting": ["d"], "documents": [{"id": "d", "title": "t", "text": "word"}]}
    questions = [{"question": f"{q}?", "answer": "word"} | found for q in "ab"]
    rooms = [["#####", "#@$.#", "#####"], ["#####", "#.$@#", "#####"]]
    yield Sokoban(levels={"train": write_levels(folder / "levels.jsonl", rooms)}, least_moves=1)
    for task, rows in ((Math, sums), (Code, programs), (Sudoku, cells), (Search, questions)):
        path = folder / f"{task.__name__}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        yield task(files={"train": str(path)})


def test_the_first_instances_are_the_rows_of_a_file(tmp_path):
    for task in tasks_with_files(tmp_path):
        assert isinstance(task, FromFiles)
        count = len(task.file_rows("train"))
        first, again = ({task.instance("train", place + n) for n in range(count)} for place in (0, count))
        assert len(first) == count > 0 and first == again
    assert not list(Code().file_rows("train"))


# Runs


def settings(**changes):
    """Six instances a step at most, of twelve. Two groups of each fourth instance have a signal."""
    own = dict(instances=2, candidates=3, max_tokens=4, least_signal=3, most_rounds=3)
    curriculum = CurriculumConfig(12, floor=0.2, decay=0.25)
    return RolloutConfig(**own | {"curriculum": curriculum} | changes)


def seen(episodes, credited):
    """(instance, whether its episode was solved, which of its groups had a signal) of each episode."""
    groups = {}
    for item in credited:
        key = item.group.origin.key
        groups.setdefault((key.instance, key.episode), []).append(bool(item.mask_K.any()))
    return [(e.instance, e.solved, groups[e.instance, e.episode]) for e in episodes]


def by_hand(x, step, lessons, episodes):
    """The instances of a step, as many as it played, and the lessons after it: by the formulas."""
    config = x.rollout.curriculum
    value_I = []
    for index in range(config.pool):
        success, signal = lessons.get(index, (0.5, 1.0))
        value_I.append(signal if config.by == "signal" else 4 * success * (1 - success))
    share_I = [config.floor / config.pool + (1 - config.floor) * v / sum(value_I) for v in value_I]
    order = order_by_hand(share_I, seed_of("instances", x.seed, step))
    after = {index: pytest.approx(own) for index, own in lessons.items()}
    instances = list(dict.fromkeys(index for index, _, _ in episodes))
    for index in instances:
        solved = [own for number, own, _ in episodes if number == index]
        groups = [one for number, _, own in episodes if number == index for one in own]
        found = sum(solved) / len(solved), sum(groups) / len(groups)
        pairs = zip(lessons.get(index, (0.5, 1.0)), found, strict=True)
        after[index] = pytest.approx([config.decay * b + (1 - config.decay) * f for b, f in pairs])
    return order[: len(instances)], after


def check(x, step, before, after, episodes):
    instances = list(dict.fromkeys(index for index, _, _ in episodes))
    assert (instances, after) == by_hand(x, step, before, episodes)


def trained(x, path, until):
    """Goes on to a step. Returns the lessons after each step, the bytes of its episodes, and the learner."""
    with Stages(x, RunFolder(path)) as stages:
        team = stages.begin()
        lessons = {stages.done: team.lessons}
        for step in range(stages.done + 1, until + 1):
            team, _ = one_step(stages, team, step)
            lessons[step] = team.lessons
        return lessons, {s: stages.folder.episodes_of(s).read_bytes() for s in lessons if s}, stages.learner


def test_a_run_that_goes_on_plays_the_same_instances(tmp_path):
    """It ends after step 3, which is not saved, so step 3 is made again from the lessons of step 2.

    Each role has an adapter, and a step several rounds. A replay learns what the run did."""
    x = experiment(
        some, rollout=settings(), seed=3, team=Team("lora"), max_logprob_gap=9.0,
        steps=4, checkpoint_every=2, keep_checkpoints=9,
    )  # fmt: skip
    first, episodes, _ = trained(x, tmp_path, 3)
    again, others, learner = trained(x, tmp_path, 4)
    assert first[0] == {} and (again[2], again[3], others[3]) == (first[2], first[3], episodes[3])
    lessons = first | again
    folder = RunFolder(tmp_path)
    records = folder.read_metrics()
    sampling = {role: own.sampling for role, own in x.by_role.items()}
    for step in range(1, 5):
        kept = list(folder.read_episodes(step))
        credited = [item for one in kept for item in credited_of(one, sampling)]
        played = seen([episode_of(one, sampling) for one in kept], credited)
        check(x, step, lessons[step - 1], lessons[step], played)
        assert records[step]["curriculum/tried"] == pytest.approx(len(lessons[step - 1]) / 12)
    assert records[4]["curriculum/repeats"] > 0 and max(r.get("rollout/rounds", 0) for r in records) > 1
    checkpoints = Checkpoints(folder.checkpoints, x.identity(), read_only=True)
    saved = types.SimpleNamespace(
        experiment=x, learner=learner, folder=folder, at=lambda step: saved,
        steps=lambda: [0, 2], team=lambda step: learner.restore(checkpoints, step),
    )  # fmt: skip
    teams = Teams(saved)
    assert teams.after(1).lessons == lessons[1] and teams.after(3).lessons == lessons[3]


def played_without_updates(path, steps, **changes):
    """Plays and credits steps with one team. Returns the experiment; lessons, metrics and what was seen."""
    x = experiment(some, rollout=settings(**changes), credit=CreditConfig("instance", "mean"))
    found = []
    with Stages(x, RunFolder(path)) as stages:
        team = stages.begin()
        for step in range(1, steps + 1):
            episodes, metrics = stages.rollouts.play(step, team.lessons)
            team, credited, _ = stages.credit(team, episodes)
            found.append((team.lessons, metrics, seen(episodes, credited)))
    about = json.loads((RunFolder(path).checkpoints / "0" / "saved.json").read_text())["about"]
    assert "lessons" not in about  # nothing is known yet
    return x, found


WHOLE = {"mode": "trajectories", "select": "first", "least_signal": 0}


def test_whole_episodes_are_chosen_by_success(tmp_path):
    curriculum = CurriculumConfig(6, "success", decay=0.25)
    x, found = played_without_updates(tmp_path, 4, **WHOLE, curriculum=curriculum)
    before = {}
    for step, (lessons, _, episodes) in enumerate(found, 1):
        assert len(episodes) == 6  # three of each instance
        check(x, step, before, lessons, episodes)
        before = lessons


def test_without_a_curriculum_nothing_is_told_of_it(tmp_path):
    x, found = played_without_updates(tmp_path, 2, **WHOLE, curriculum=None)
    assert "curriculum" not in repr(x) and "curriculum" in repr(settings())
    assert [[index for index, _, _ in episodes[::3]] for _, _, episodes in found] == [[0, 1], [2, 3]]
    for lessons, metrics, _ in found:
        assert lessons == {} and not [name for name in metrics if "curriculum" in name]


# Hosts


def played(hosts=ALONE, before=None):
    """The lessons after each of three steps, with hosts that play together."""
    engine = AnsweringEngine(some)
    propose = engine_propose(engine, SAMPLING, 3, seed=5)
    config = CurriculumConfig(20, decay=0.25)
    rollouts = Rollouts(
        Player(Paid(), Team(), CharTokenizer(), propose, SAMPLING, seed=5),
        engine,
        lambda step, lessons: picked(config, lessons, 20, step, instances=5, rounds=1),
        episodes=1,
        hosts=hosts,
    )
    found = [before or {}]
    for step in (1, 2, 3):
        episodes, _ = rollouts.play(step, found[-1])
        found.append(lessons_of(config, found[-1], episodes))
    return found


def test_hosts_learn_the_same_from_what_each_of_them_played():
    alone = played()
    party = Party(2)
    assert party(played) == [alone, alone]
    party.close()
    assert len(alone[-1]) > 5 and {lesson.signal == 1 for lesson in alone[-1].values()} == {True, False}


def test_hosts_that_know_different_things_do_not_play_together():
    even = dict.fromkeys(range(0, 20, 2), Lesson(1.0, 0.0))
    party = Party(2)
    for one in party(lambda hosts: played(hosts, even if hosts.index else {})):
        assert isinstance(one, RunError)
        assert "host 1 has other numbers than host 0 before 'train rollout of step 1'" in str(one)
    party.close()


# The page


def test_the_settings_on_the_page_are_those_of_a_run(tmp_path):
    (block,) = re.findall(r"^```\n(include.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    (tmp_path / "page.gin").write_text(block)
    found = load(str(tmp_path / "page.gin"))
    assert found.rollout.curriculum == CurriculumConfig(pool=500, by="signal", floor=0.1, decay=0.5)
    (tmp_path / "again.gin").write_text(render(found))
    assert load(str(tmp_path / "again.gin")) == found
    fields = re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE)
    assert fields == [field.name for field in dataclasses.fields(CurriculumConfig)]
