"""Who speaks when: workflows of a few lines, by hand."""

import asyncio
import dataclasses

import pytest
from fakes import CharTokenizer, ScriptedEngine, Sum

from atgrpo_jax.common.errors import RunError
from atgrpo_jax.common.types import Outcome, Reward, Sampling
from atgrpo_jax.rollout.player import Player
from atgrpo_jax.rollout.rollout import engine_propose
from atgrpo_jax.rollout.team import Team
from atgrpo_jax.tasks.course import Course
from atgrpo_jax.tasks.protocol import Transition
from atgrpo_jax.tasks.workflow import Workflow


@dataclasses.dataclass(frozen=True)
class Told(Sum):
    """States are what was said. "stop" ends the episode, and "right" solves it."""

    def act(self, state, role, text):
        done = text in ("stop", "right")
        after = (*state, f"{role}: {text}")
        return Transition(after, Reward.of(0.0), Outcome.OK, done, text == "right")


@dataclasses.dataclass(frozen=True)
class Choosing(Told):
    """After "!a b", a and b speak."""

    def speaks(self, state, role):
        return role == self.workflow.speakers[0] if not state else role in state[-1].partition("!")[2].split()


def played(task, *said, most_turns=None):
    """Plays an episode with these texts, and returns the stages that spoke, and how it ended."""
    texts = iter(said)
    course = Course(task, (), most_turns)
    stages = []
    while speakers := course.next():
        stages.append(f"{course.turn}.{course.stage} {' '.join(speakers)}")
        for role in speakers:
            course.take(task.act(course.state, role, next(texts)))
    assert next(texts, None) is None
    return stages, course.end, course.turns


def test_one_after_the_other():
    task = Told(Workflow(("a", "b"), turns=2))
    assert played(task, *"1234") == (["0.0 a", "0.1 b", "1.0 a", "1.1 b"], "turn_limit", 2)
    assert played(task, "stop") == (["0.0 a"], "ended", 1)
    assert played(task, "1", "2", "right") == (["0.0 a", "0.1 b", "1.0 a"], "solved", 2)


def test_an_episode_may_have_fewer_turns_than_the_workflow_and_never_more():
    task = Told(Workflow(("a", "b"), turns=2))
    assert played(task, *"12", most_turns=1) == (["0.0 a", "0.1 b"], "turn_limit", 1)
    assert played(task, *"1234", most_turns=3) == played(task, *"1234")


def test_all_at_once():
    task = Told(Workflow((("a", "b"),), turns=2))
    assert played(task, *"1234") == (["0.0 a b", "1.0 a b"], "turn_limit", 2)
    assert played(task, "stop", "2", "3", "right") == (["0.0 a b", "1.0 a b"], "solved", 2)


def test_workers_then_an_aggregator():
    task = Told(Workflow(("worker", "aggregator"), turns=1, seats={"worker": 3}))
    stages = ["0.0 worker0 worker1 worker2", "0.1 aggregator"]
    assert played(task, "right", "2", "3", "4") == (stages, "turn_limit", 1)
    assert task.workflow.roles == ("worker", "aggregator")
    assert task.workflow.speakers == ("worker0", "worker1", "worker2", "aggregator")
    assert task.workflow.seat("worker2") == ("worker", 2)
    assert task.workflow.seat("aggregator") == ("aggregator", None)


def test_seats_may_speak_one_by_one_and_somebody_twice_in_a_turn():
    workflow = Workflow(("planner", ("worker1", "critic"), "worker0", "planner"), seats={"worker": 2})
    assert workflow.stages == (("planner",), ("worker1", "critic"), ("worker0",), ("planner",))
    assert workflow.speakers == ("planner", "worker1", "critic", "worker0")
    assert workflow.last == "planner" and not workflow.once_each
    assert workflow.turn_roles == ("planner", "worker", "critic", "worker", "planner")
    assert Workflow(("a", ("b", "c"))).once_each


def test_names_that_end_in_numbers_are_roles_unless_they_are_seats():
    workflow = Workflow(("worker01", "reasoner1", "worker"), seats={"worker": 2})
    assert workflow.roles == ("worker01", "reasoner1", "worker")


@dataclasses.dataclass(frozen=True)
class Debate(Told):
    """The judge speaks after the last round alone."""

    def speaks(self, state, role):
        return role != "judge" or len(state) == 2 * self.workflow.turns


def test_a_debate_of_n_rounds():
    task = Debate(Workflow(("debater", "judge"), turns=2, seats={"debater": 2}))
    stages = ["0.0 debater0 debater1", "1.0 debater0 debater1", "1.1 judge"]
    assert played(task, *"1234", "right") == (stages, "solved", 2)


def test_a_router_and_its_specialists():
    task = Choosing(Workflow(("router", ("adder", "writer")), turns=3))
    assert played(task, "!writer", "right") == (["0.0 router", "0.1 writer"], "solved", 1)
    # Nobody is asked: the turn is over, and then nobody speaks at all.
    assert played(task, "!painter") == (["0.0 router"], "ended", 1)
    stages = ["0.0 router", "0.1 adder", "1.0 router"]
    assert played(task, "!adder", "!router", "!painter") == (stages, "ended", 2)


def test_a_planner_hands_out_as_many_subtasks_as_it_likes():
    task = Choosing(Workflow(("planner", "worker"), turns=1, seats={"worker": 3}))
    stages = ["0.0 planner", "0.1 worker0 worker2"]
    assert played(task, "!worker0 worker2", "1", "2") == (stages, "turn_limit", 1)
    assert played(task, "none") == (["0.0 planner"], "turn_limit", 1)


def test_a_group_chat_whose_next_speaker_is_named():
    task = Choosing(Workflow((("a", "b", "c"),), turns=9))
    assert played(task, "!c", "!b", "right") == (["0.0 a", "1.0 c", "2.0 b"], "solved", 3)


def test_the_last_one_who_speaks_in_a_stage_may_end_it():
    task = Choosing(Workflow(("a", ("b", "c")), turns=2))
    assert played(task, "!b", "stop")[1:] == ("ended", 1)


def test_an_episode_in_which_nobody_speaks_is_over_at_once():
    silent = dataclasses.make_dataclass(
        "Silent", [], bases=(Told,), frozen=True, namespace={"speaks": lambda *_: False}
    )
    assert played(silent()) == ([], "ended", 0)


def test_who_speaks_is_yes_or_no():
    vague = dataclasses.make_dataclass(
        "Vague", [], bases=(Told,), frozen=True, namespace={"speaks": lambda *_: None}
    )
    with pytest.raises(RunError, match="Vague.speaks gave None for a; expected True or False"):
        Course(vague(), ()).next()


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"order": ()}, "a turn needs at least one role"),
        ({"order": ("a", ())}, "a stage needs at least one role"),
        ({"order": (("a", "a"),)}, "somebody is named twice in one stage"),
        ({"order": (("w", "w1"),), "seats": {"w": 2}}, "somebody is named twice in one stage"),
        ({"order": ("w2",), "seats": {"w": 2}}, "there is no w2: w has 2 seats, from 0"),
        ({"order": ("a",), "seats": {"w": 2}}, "order does not name w"),
        ({"order": ("w",), "seats": {"w": 1}}, "w needs at least 2; leave out a role with one seat"),
        ({"order": ("a",), "turns": 0}, "an episode needs at least one turn"),
        ({"order": ("a", 3)}, "expected tuple"),
    ],
)
def test_a_workflow_refuses(wrong, says):
    with pytest.raises(ValueError, match=says):
        Workflow(**wrong)


def episode_of(task, script):
    engine = ScriptedEngine(script)
    propose = engine_propose(engine, Sampling(max_tokens=20), 2, 5)
    player = Player(task, Team("full"), CharTokenizer(), propose, Sampling(max_tokens=20), seed=5)
    return asyncio.run(player.play(1, "train", 0)), engine


def test_seats_are_groups_of_their_own_and_one_policy():
    task = Told(Workflow(("w", "judge"), turns=1, seats={"w": 2}))
    episode, engine = episode_of(task, {(0, "w"): ["1", "2"], (0, "judge"): ["3", "right"]})
    keys = [group.origin.key for group in episode.groups]
    assert [key.path() for key in keys] == [f"1/train/0/0/0/{place}" for place in ("0/w0", "0/w1", "1/judge")]
    assert [(key.role, key.seat, key.stage) for key in keys] == [("w", 0, 0), ("w", 1, 0), ("judge", None, 1)]
    assert [group.origin.policy for group in episode.groups] == ["w", "w", "judge"]
    # Both seats saw the start, and each was told which one it is.
    prompts = [CharTokenizer().decode(request.prompt_ids) for request in engine.requests]
    assert prompts[:2] == ["w0 []", "w1 []"] and prompts[2].startswith("judge ['w0: ")


def test_who_speaks_twice_in_a_turn_has_two_groups():
    task = Told(Workflow(("a", "b", "a"), turns=1))
    episode, _ = episode_of(task, {(0, "a"): ["1", "2"], (0, "b"): ["3", "4"]})
    assert [group.origin.key.path() for group in episode.groups] == [
        "1/train/0/0/0/0/a", "1/train/0/0/0/1/b", "1/train/0/0/0/2/a",
    ]  # fmt: skip
