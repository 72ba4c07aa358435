"""Split sight: who sees what, what a message may hold, what is paid, and what a map is worth."""

import dataclasses
import itertools
import random

import pytest

from atgrpo_jax.common.types import Outcome
from atgrpo_jax.run.gin_config import load
from atgrpo_jax.tasks.games.listener import chance, ends, most_useful
from atgrpo_jax.tasks.games.plan_path import Instance, distances
from atgrpo_jax.tasks.games.split_sight import SplitSight, State
from atgrpo_jax.tasks.splits import SPLITS, in_split
from atgrpo_jax.tasks.workflow import Workflow
from atgrpo_jax.tools.contract import check

TASK = SplitSight(size=3, progress=0.3, hit=0.1, invalid=0.1, told=0.5)
ALONE = Workflow(("mover",), turns=1)
TWICE = Workflow(("seer", "mover"), turns=2)
# S . #      the goal is 4 moves away: 10 20 21 22. The farthest cell is 01, with 5.
# . # .
# . . G
GRID = Instance(("..#", ".#.", "..."), start=(0, 0), goal=(2, 2))
START = State(GRID, (0, 0))
# . . . .    from S to G it is 5 moves over 00. The left half has a wall at 11, the right one at 12
# S # # G    and 22.
# . . # .
# . . . .
WIDE = Instance(("....", ".##.", "..#.", "...."), start=(1, 0), goal=(1, 3))
HALVES = SplitSight(split="halves")
NOTHING = frozenset()


def shown(task, state, role):
    (message,) = task.prompt(state, role)
    return message["content"]


def told(task, text, state=START):
    """The seer's local reward, and what the mover hears."""
    step = task.act(state, "seer", text)
    assert step.reward.team == 0 and not step.done and step.state.position == state.position
    return round(step.reward.local, 9), step.state.message


def moved(text, task=TASK, state=START):
    step = task.act(state, "mover", text)
    assert step.done == step.solved and step.state.message is None
    return step.reward.team, round(step.reward.local, 9), step.state.position, step.outcome


# Who sees what


def test_the_seer_sees_all_walls_and_not_the_mover_who_sees_no_wall():
    assert shown(TASK, START, "seer") == "seer\nblocked 02 11\ngoal 22\nname cells in brackets"
    assert shown(TASK, State(GRID, (1, 0), "11 02"), "mover") == (
        "mover\nhears 11 02\nat 10\ngoal 22\nlist cells in brackets"
    )
    assert shown(TASK, START, "mover") == "mover\nat 00\ngoal 22\nlist cells in brackets"


def test_each_sees_half():
    state = State(WIDE, (1, 0))
    assert shown(HALVES, state, "seer") == "seer\nblocked 11\nat 10\ngoal 13\nname cells in brackets"
    state = dataclasses.replace(state, message="11")
    assert shown(HALVES, state, "mover") == (
        "mover\nhears 11\nblocked 12 22\nat 10\ngoal 13\nlist cells in brackets"
    )


def test_with_no_split_both_see_everything():
    task = SplitSight(size=3, split="none")
    assert shown(task, START, "seer") == "seer\nblocked 02 11\nat 00\ngoal 22\nname cells in brackets"
    assert shown(task, START, "mover") == "mover\nblocked 02 11\nat 00\ngoal 22\nlist cells in brackets"


@pytest.mark.parametrize("prompts", ["split_sight/short", "split_sight/full"])
def test_what_a_role_does_not_see_changes_neither_its_prompt_nor_its_demonstration(prompts):
    task = SplitSight(prompts=prompts)
    halves = dataclasses.replace(task, split="halves")
    for index in range(20):
        one = task.instance("train", index)
        other = dataclasses.replace(one, rows=("." * 4,) * 4)
        states = [State(instance, one.start, "12 21") for instance in (one, other)]
        assert len({shown(task, state, "mover") for state in states}) == 1
        assert len({task.demonstration(state, "mover", random.Random(index)) for state in states}) == 1
        states = [State(one, cell) for cell in distances(one)]
        assert len({shown(task, state, "seer") for state in states}) == 1
        assert len({task.demonstration(state, "seer", random.Random(index)) for state in states}) == 1
        # Only the half that a role sees is shown to it.
        right = tuple("##" + row[2:] for row in one.rows)
        left = tuple(row[:2] + "##" for row in one.rows)
        for rows, role in ((right, "mover"), (left, "seer")):
            state = State(dataclasses.replace(one, rows=rows), one.start)
            assert shown(halves, state, role) == shown(halves, State(one, one.start), role)


# The message


@pytest.mark.parametrize(
    ("text", "heard"),
    [
        ("[01 12 21]", "01 12 21"),
        ("[01 12 21 20 10]", "01 12 21"),
        ("so: [ 01, 12; 21 / 20]", "01 12 21"),
        ("[011221201000]", "01 12 21"),
        ("[(0, 1), (1, 2)]", "0 1 1"),
        ("[wall at 01, then 12]", "wall at 01"),
        ("[abcdefghijklmnopqrstuvwxyz01]", "abcdefghijkl mnopqrstuvwx yz"),
        ("[01] or [12]", "12"),
        ("[\u0661\u4e00 -- 5]", "5"),
        ("[]", ""),
    ],
)
def test_a_message_has_at_most_so_many_words(text, heard):
    step = TASK.act(START, "seer", text)
    assert step.state == State(GRID, (0, 0), heard) and step.outcome is Outcome.OK
    assert len(heard.split()) <= TASK.words == 3


def test_a_seer_without_a_message_is_not_heard():
    for text in ("01 12", "", "[01"):
        step = TASK.act(START, "seer", text)
        assert (step.outcome, step.reward.local, step.state.message) == (Outcome.INVALID, -0.1, "")


def test_a_message_is_heard_for_one_turn():
    task = dataclasses.replace(TASK, workflow=TWICE)
    state = task.act(START, "seer", "[11]").state
    assert task.act(state, "mover", "[10]").state == State(GRID, (1, 0))
    assert task.act(state, "mover", "no list").state == START


# What a map is worth


def test_where_walkers_end():
    # On a map without walls, half of them go to 10 and half to 01; half of those go on to 11.
    assert ends(GRID, NOTHING, [(0, 0)]) == {(1, 1): 0.5, (0, 2): 0.25, (2, 2): 0.25}
    assert ends(GRID, frozenset({(1, 1)}), [(0, 0)]) == {(0, 2): 0.5, (2, 2): 0.5}
    assert chance(GRID, frozenset({(1, 1), (0, 2)}), [(0, 0)]) == 1
    # Half of them set out next to the goal.
    assert chance(GRID, NOTHING, [(0, 0), (2, 1)]) == 0.625
    # On a map without a way they stay; and nobody believes that the goal is blocked.
    assert ends(GRID, frozenset({(0, 1), (1, 0)}), [(0, 0)]) == {(0, 0): 1}
    assert chance(GRID, frozenset({(2, 2)}), [(0, 0)]) == 0.25


def test_the_most_useful_wall_comes_first():
    assert most_useful(GRID, NOTHING, ((0, 0),), 3) == ((1, 1), (0, 2))
    assert most_useful(GRID, NOTHING, ((0, 0),), 1) == ((1, 1),)
    assert most_useful(GRID, frozenset({(1, 1)}), ((0, 0),), 3) == ((0, 2),)
    assert most_useful(GRID, NOTHING, ((2, 1),), 3) == ()


def test_more_of_the_best_words_never_tell_less():
    for index in range(40):
        instance = HALVES.instance("train", index)
        starts = tuple(cell for cell in distances(instance) if cell != instance.goal)
        named = most_useful(instance, NOTHING, starts, 16)
        worth = [chance(instance, frozenset(named[:count]), starts) for count in range(len(named) + 1)]
        assert worth[-1] == pytest.approx(1) and worth[0] <= worth[-1]
        assert not any(instance.free(cell) for cell in named)


# Rewards


def test_the_seer_is_paid_for_what_a_walker_makes_of_it():
    # Episodes of this grid may begin at 10, 00 and 01, from where a blind walker arrives in 1/2, 1/4
    # and 0 of cases; who knows of 11, in 1, 1/2 and 0; who knows of both walls, always.
    assert told(TASK, "[]") == (0.125, "")
    assert told(TASK, "[11]") == (0.25, "11")
    assert told(TASK, "[11 02]") == (0.5, "11 02")
    assert told(TASK, "[wall 11 02]") == (0.5, "wall 11 02")
    # By itself, 02 saves nobody: who keeps away from it runs into 11. There are no cells 33 and 9.
    assert told(TASK, "[02]") == (0.125, "02")
    assert told(TASK, "[11 33 9]") == (0.25, "11 33 9")
    # A lie that closes the only way.
    assert told(TASK, "[10]") == (0.0, "10")
    # It does not matter where the mover is: the seer cannot know.
    assert told(TASK, "[11]", State(GRID, (1, 0))) == told(TASK, "[11]")
    assert told(dataclasses.replace(TASK, workflow=TWICE), "[11]") == (0.125, "11")


def test_a_seer_of_half_is_paid_for_what_the_mover_cannot_see_from_where_it_is():
    # The mover knows of 12 and 22. Over 11 and over 00 it would be as near.
    start = State(WIDE, (1, 0))
    assert told(HALVES, "[]", start) == (0.25, "")
    assert told(HALVES, "[12 22]", start) == (0.25, "12 22")
    assert told(HALVES, "[11]", start) == (0.5, "11")


def test_the_mover_is_paid_for_the_way():
    arrives = (1, 0.24, (2, 2), Outcome.OK)
    assert moved("[10 20 21 22]") == moved("[00 10 20 21 22]") == moved("[DDRR]") == arrives
    assert moved("[10 20]") == (0, 0.12, (2, 0), Outcome.OK)
    assert moved("[01]") == (0, -0.06, (0, 1), Outcome.OK)
    # The first wall ends the walk, and so do the rim, a cell that is not next to it, and no move.
    assert moved("[10 11 20 21 22]") == (0, round(0.06 - 0.1, 9), (1, 0), Outcome.OK)
    for text in ("[00 00 10]", "[U D D R R]", "[12]", "[x 10]"):
        assert moved(text) == (0, -0.1, (0, 0), Outcome.OK)
    for text in ("", "[]", "10 20"):
        assert moved(text) == (0, -0.1, (0, 0), Outcome.INVALID)
    # Of a list, as many items count as there are cells.
    assert moved(f"[{'10 00 ' * 4}10 20 21 22]")[2] == (1, 0)


def test_progress_telescopes_and_costs_are_shared_among_turns():
    task = dataclasses.replace(TASK, workflow=TWICE)
    assert moved("[10 20 21]", task)[:2] == (0, 0.18)
    assert moved("[22]", task, State(GRID, (2, 1)))[:2] == (1, 0.06)
    assert moved("[10 20 21 22]", task)[:2] == (1, 0.24)
    assert moved("[11]", task) == (0, -0.05, (0, 0), Outcome.OK)
    assert moved("", task)[:2] == (0, -0.05)


# What the mover hears, in studies


def heard(task, index, said="[00 01]"):
    state = task.initial(task.instance("test", index))
    after = task.act(state, "seer", said).state
    assert f"hears {after.message}\n" in shown(task, after, "mover")
    return after.message


def test_what_the_mover_hears_instead():
    assert told(dataclasses.replace(TASK, heard="nothing"), "[11 02]") == (0.125, "")
    assert told(dataclasses.replace(TASK, heard="oracle"), "[01]") == (0.5, "11 02")
    assert told(dataclasses.replace(TASK, heard="oracle", words=1), "[01]") == (0.25, "11")


def test_the_message_of_another_instance_looks_like_one_and_tells_nothing():
    means = {}
    messages = {}
    for name in ("nothing", "other", "oracle"):
        task = SplitSight(heard=name)
        messages[name] = [heard(task, index) for index in range(100)]
        assert messages[name] == [heard(SplitSight(heard=name), index, "[]") for index in range(100)]
        paid = []
        for index in range(100):
            step = task.act(task.initial(task.instance("test", index)), "seer", "[]")
            paid.append(step.reward.local)
        means[name] = sum(paid) / 100
    lengths = [sum(len(message.split()) for message in messages[name]) for name in ("other", "oracle")]
    assert abs(lengths[0] - lengths[1]) < 0.1 * lengths[1]
    assert sum(one != other for one, other in zip(messages["other"], messages["oracle"], strict=True)) > 90
    assert means["oracle"] > 0.45 and means["other"] < 0.9 * means["nothing"]


# Demonstrations and instances


def test_demonstrations_without_errors():
    def solved(**fields):
        task = SplitSight(demonstration_error=0.0, **fields)
        done = 0
        for index in range(100):
            rng = random.Random(index)
            state = task.initial(task.instance("train", index))
            for role in task.workflow.speakers:
                step = task.act(state, role, task.demonstration(state, role, rng))
                assert step.outcome is Outcome.OK
                state = step.state
            done += step.solved
        return done

    assert solved(split="none", workflow=ALONE) == solved(words=16) == solved(split="halves", words=16) == 100
    assert 25 < solved(workflow=ALONE) < 55
    assert solved(workflow=ALONE) + 20 < solved(words=1) < solved(words=3) < 100
    assert solved(split="halves", workflow=ALONE) < 80


def test_demonstrations_are_imperfect_on_purpose():
    always = dataclasses.replace(TASK, demonstration_error=1.0)
    texts = {always.demonstration(START, "seer", random.Random(seed)) for seed in range(50)}
    assert len(texts) > 20 and "[ 11 02]" not in texts
    never = dataclasses.replace(TASK, demonstration_error=0.0)
    assert never.demonstration(START, "seer", random.Random(0)) == "[ 11 02]"
    walks = {always.demonstration(State(GRID, (0, 0), ""), "mover", random.Random(s)) for s in range(50)}
    assert len(walks) > 5 and all(walk.startswith("[ 00 ") and len(walk) == 17 for walk in walks)


def test_a_mover_who_is_told_that_there_is_no_way_trusts_its_eyes():
    state = State(GRID, (0, 0), "01 10")
    task = dataclasses.replace(TASK, demonstration_error=0.0)
    assert task.demonstration(state, "mover", random.Random(0)).endswith(" 22]")


def test_instances_are_far_enough_and_no_two_splits_share_one():
    small = SplitSight(size=3)
    drawn = {split: {small.instance(split, index) for index in range(200)} for split in SPLITS}
    for split, instances in drawn.items():
        assert all(in_split(instance, split) for instance in instances)
        assert min(distances(instance)[instance.start] for instance in instances) == 3
    assert not any(one & other for one, other in itertools.combinations(drawn.values(), 2))


# The contract


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"split": "halves", "workflow": TWICE, "prompts": "split_sight/full"},
        {"workflow": Workflow(("mover",), turns=2)},
        {"split": "none", "workflow": ALONE},
        {"heard": "other", "words": 1},
    ],
)
def test_it_keeps_the_contract(fields):
    assert check(SplitSight(**fields), instances=2, episodes=20) == []


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"size": 11}, r"SplitSight.size = 11: must be 2 to 10: names of cells have two digits"),
        ({"words": 0}, r"SplitSight.words = 0: must be at least 1"),
        ({"least_moves": 0}, r"SplitSight.least_moves = 0"),
        ({"size": 2, "least_moves": 4}, r"no solvable 2x2 grid with a way of at least 4 moves"),
        ({"split": "thirds"}, r"SplitSight.split"),
        ({"heard": "all"}, r"SplitSight.heard"),
        ({"told": 0.85}, r"SplitSight.told = 0.85: failing could pay 0.85 and solving only 0.8; lower told"),
        ({"hit": -0.1}, r"SplitSight.hit = -0.1: must not be negative"),
        ({"workflow": Workflow(("mover", "seer"))}, r'order must be \("seer", "mover"\) or \("mover",\)'),
        ({"workflow": Workflow((("seer", "mover"),))}, r"SplitSight.workflow"),
        ({"demonstration_error": 2.0}, r"SplitSight.demonstration_error"),
    ],
)
def test_refuses(wrong, says):
    with pytest.raises(ValueError, match=says):
        SplitSight(**wrong)


def test_floor_and_ceiling_differ_from_the_team_by_who_speaks_and_what_it_sees():
    team = load("split_sight.gin")
    floor = load("split_sight_floor.gin")
    ceiling = load("split_sight_ceiling.gin")
    blind = dataclasses.replace(team.task, workflow=ALONE)
    assert floor == dataclasses.replace(team, task=blind)
    assert ceiling == dataclasses.replace(team, task=dataclasses.replace(blind, split="none"))
