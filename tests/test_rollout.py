"""The sampling tree, step by step, with a scripted engine and a toy task (see fakes.Sum)."""

import asyncio
import dataclasses
import time

import pytest
from fakes import CharTokenizer, ScriptedEngine, Sum
from shared_rollout import SAMPLING, Echo, Shouts, play, player

from atgrpo_jax.common.errors import PromptTooLong, RunError
from atgrpo_jax.common.types import Outcome, Sampling
from atgrpo_jax.rollout.player import Player
from atgrpo_jax.rollout.rollout import RolloutConfig, engine_propose, play_all, train_indices
from atgrpo_jax.rollout.team import Team
from atgrpo_jax.tasks.workflow import Workflow


def test_the_best_is_executed_and_the_next_role_sees_its_state():
    made, engine = player({(0, "a"): ["1", "4", "2"], (0, "b"): ["1", "1", "0"], (1, "a"): ["5", "2", "x"]})
    episode = play(made)
    prompts = [CharTokenizer().decode(r.prompt_ids) for r in engine.requests]
    assert prompts[:2] == ["a []", "b [4]"]
    assert prompts[2] == "a [4, 1]"
    assert episode.groups[0].chosen == 1
    # 4 + 1 + 5 = 10: solved by a's second turn, so b does not speak again.
    assert (episode.solved, episode.end, episode.turns) == (True, "solved", 2)
    assert len(episode.groups) == 3
    assert episode.groups[2].candidates[0].reward.team == 1.0


def test_siblings_are_scored_from_one_state_and_do_not_disturb_each_other():
    made, _ = player({(0, "a"): ["3", "3", "9"]}, Sum(Workflow(order=("a",), turns=1)))
    group = play(made).groups[0]
    assert [c.reward.local for c in group.candidates] == [3.0, 3.0, 9.0]
    assert len({c.origin for c in group.candidates}) == 1
    assert group.candidates[0].origin.key.path() == "1/train/0/0/0/0/a"


def test_the_turn_limit_is_not_success():
    script = {(t, r): ["1", "1", "1"] for t in range(2) for r in "ab"}
    episode = play(player(script)[0])
    assert (episode.solved, episode.end, episode.turns) == (False, "turn_limit", 2)
    assert len(episode.groups) == 4


def test_an_end_without_success_is_told_apart():
    episode = play(player({(0, "a"): ["9", "9", "9"], (0, "b"): ["8", "8", "8"]})[0])
    assert (episode.solved, episode.end) == (False, "ended")


def test_a_parallel_workflow_shows_every_role_the_start_of_the_turn():
    script = {(t, r): ["2", "1", "0"] for t in range(2) for r in "ab"}
    task = Sum(Workflow(order=(("a", "b"),), turns=2))
    made, engine = player(script, task)
    episode = play(made)
    prompts = [CharTokenizer().decode(r.prompt_ids) for r in engine.requests]
    assert prompts == ["a []", "b []", "a [2, 2]", "b [2, 2]"]
    # Actions still apply one after the other.
    assert episode.groups[1].candidates[0].reward.local == 2.0


def test_a_parallel_turn_is_played_to_its_end():
    """What ``a`` has done may end the episode; the samples of ``b`` were drawn, and count all the same."""
    task = Sum(Workflow(order=(("a", "b"),), turns=2))
    episode = play(player({(0, "a"): ["10", "1", "0"], (0, "b"): ["0", "0", "0"]}, task)[0])
    assert (episode.end, episode.turns, len(episode.groups)) == ("solved", 1, 2)


def test_who_speaks_beside_a_role_without_any_candidate_is_scored_where_it_stands():
    """b's answers are all cut. c is scored after a's 4, as if b had said nothing; then nobody acts."""
    task = Sum(Workflow(order=(("a", "b", "c"),), turns=2))
    script = {(0, "a"): ["4", "1", "0"], (0, "b"): ["1...", "2...", "3..."], (0, "c"): ["6", "5", "0"]}
    made, engine = player(script, task, exclude=("truncated", "engine_error"))
    episode = play(made)
    assert (episode.end, episode.solved, episode.turns, len(engine.requests)) == ("engine_error", False, 1, 3)
    a, b, c = episode.groups
    assert [one.reward for one in b.candidates] == [None] * 3
    assert [(one.reward.team, one.reward.local) for one in c.candidates] == [(1, 6), (0, 5), (0, 0)]
    assert (a.chosen, b.chosen, c.chosen) == (0, None, None)


def test_programs_are_run_before_their_candidates_are_scored():
    made, _ = player({(0, "a"): ["3", "x", "=7"]}, Shouts(Workflow(order=("a",), turns=1)), runner=Echo())
    group = play(made).groups[0]
    assert [c.reward.local for c in group.candidates] == [3.0, -1.0, 14.0]
    assert [c.outcome for c in group.candidates] == [Outcome.OK, Outcome.INVALID, Outcome.OK]


def test_programs_of_all_candidates_run_side_by_side():
    runner = Echo(wait=0.2)
    made, _ = player({(0, "a"): ["=1", "=2", "=3"]}, Shouts(Workflow(order=("a",), turns=1)), runner=runner)
    began = time.monotonic()
    play(made)
    # Each has two, one after the other.
    assert time.monotonic() - began < 0.9 and runner.asked == ["1", "2", "3", "1", "2", "3"]


def test_a_sandbox_that_fails_is_not_the_candidates_fault():
    script = {(0, "a"): ["=1", "=crash", "=2"]}
    exclude = (Outcome.TOOL_CRASH.value, Outcome.ENGINE_ERROR.value)
    task = Shouts(Workflow(order=("a",), turns=1))
    group = play(player(script, task, runner=Echo(), exclude=exclude)[0]).groups[0]
    assert [c.outcome for c in group.candidates] == [Outcome.OK, Outcome.TOOL_CRASH, Outcome.OK]
    assert group.candidates[1].reward is None and group.chosen == 2


def test_roles_are_drawn_by_their_policies():
    script = {(t, r): ["1", "1", "1"] for t in range(2) for r in "ab"}
    made, engine = player(script, team=Team(sharing="full"))
    play(made)
    assert [r.policy for r in engine.requests] == ["a", "b", "a", "b"]


@pytest.mark.parametrize(("select", "chosen"), [("mixed", 2), ("first", 0), ("team", 1)])
def test_selection_is_an_option(select, chosen):
    task = Sum(Workflow(order=("a",), turns=1))
    script = {(0, "a"): ["1", "10", "30"]}
    assert play(player(script, task, select=select)[0]).groups[0].chosen == chosen


def test_outcomes_are_typed_and_scored():
    task = Sum(Workflow(order=("a",), turns=1))
    group = play(player({(0, "a"): ["word", "1...", "2"]}, task)[0]).groups[0]
    assert [c.outcome for c in group.candidates] == [
        Outcome.INVALID, Outcome.TRUNCATED, Outcome.OK,
    ]  # fmt: skip
    assert [c.reward.local for c in group.candidates] == [-1.0, 1.0, 2.0]


def test_an_excluded_outcome_is_neither_scored_nor_executed():
    task = Sum(Workflow(order=("a",), turns=1))
    script = {(0, "a"): ["1", "9...", None]}
    exclude = (Outcome.TRUNCATED.value, Outcome.ENGINE_ERROR.value)
    group = play(player(script, task, exclude=exclude)[0]).groups[0]
    assert [c.reward is None for c in group.candidates] == [False, True, True]
    assert group.candidates[2].outcome is Outcome.ENGINE_ERROR
    assert group.chosen == 0


def test_an_engine_that_fails_every_sibling_ends_the_episode_but_not_the_others():
    episode = play(player({(0, "a"): ["1", "1", "2"], (0, "b"): [None] * 3})[0])
    assert (episode.end, episode.solved, len(episode.groups)) == ("engine_error", False, 2)
    assert episode.groups[1].chosen is None


class Short(ScriptedEngine):
    """Has no room for the prompts of ``refused``: (turn, role)."""

    refused = ()

    async def sample(self, request):
        key = request.addresses[0].group
        if (key.turn, key.role) in self.refused:
            raise PromptTooLong(f"a prompt of {len(request.prompt_ids)} tokens at {key.path()}")
        return await super().sample(request)


def without_room(parallel, *refused):
    engine = Short({(turn, role): ["1", "1"] for turn in range(2) for role in "ab"}, version=3)
    engine.refused = refused
    task = Sum(Workflow((("a", "b"),) if parallel else ("a", "b"), turns=2))
    return Player(task, Team(), CharTokenizer(), engine_propose(engine, SAMPLING, 2, 5), SAMPLING, seed=5)


@pytest.mark.parametrize(
    ("parallel", "turn", "role", "turns", "groups"),
    [
        (False, 0, "b", 1, 2),  # a has spoken
        (False, 1, "a", 2, 3),
        (False, 1, "b", 2, 4),
        (True, 1, "a", 2, 4),
        (True, 1, "b", 2, 4),
    ],
)
def test_a_prompt_too_long_by_what_roles_have_said_ends_the_episode(
    parallel, turn, role, turns, groups, capsys
):
    episode = play(without_room(parallel, (turn, role)))
    assert (episode.end, episode.turns, len(episode.groups)) == ("engine_error", turns, groups)
    keys = [(group.origin.key.turn, group.origin.key.role) for group in episode.groups]
    for lost in episode.groups[keys.index((turn, role))].candidates:
        assert lost.reward is None and lost.sample.version == 3 and lost.outcome is Outcome.ENGINE_ERROR
        assert lost.sample.finish == "too_long" and not lost.sample.drawn
    stage = int(role == "b" and not parallel)
    assert f"/{turn}/{stage}/{role}; the episode ends there" in capsys.readouterr().err


@pytest.mark.parametrize(("parallel", "role"), [(False, "a"), (True, "a"), (True, "b")])
def test_a_prompt_too_long_that_nobodys_words_are_in_stops_the_run(parallel, role):
    with pytest.raises(PromptTooLong, match=f"tokens at 1/train/0/0/0/0/{role}"):
        play(without_room(parallel, (0, role)))


def test_every_sample_has_its_own_address():
    script = {(t, r): ["1", "1", "1"] for t in range(2) for r in "ab"}
    made, engine = player(script)
    play_all(made, 1, "train", range(4), episodes=2)
    addresses = [a for r in engine.requests for a in r.addresses]
    assert len(set(addresses)) == len(addresses) == 4 * 2 * 4 * 3
    assert {a.seed for a in addresses} == {5}


def test_results_come_in_order_and_progress_is_told():
    script = {(t, r): ["1", "1", "1"] for t in range(2) for r in "ab"}
    done = []
    episodes = play_all(player(script)[0], 1, "test", [7, 3], episodes=2, on_episode=lambda: done.append(1))
    assert [(e.instance, e.episode) for e in episodes] == [(7, 0), (7, 1), (3, 0), (3, 1)]
    assert len(done) == 4


def test_a_crash_in_one_instance_stops_the_rollout_with_its_error():
    @dataclasses.dataclass(frozen=True)
    class Broken(Sum):
        def prompt(self, state, role):
            raise RuntimeError("task bug")

    with pytest.raises(RuntimeError, match="task bug"):
        play_all(player({}, Broken())[0], 1, "train", range(3))


def test_the_tasks_own_time_is_told_apart_from_the_engines():
    class Slow(Sum):
        def act(self, state, role, text):
            time.sleep(0.02)
            return super().act(state, role, text)

    class Waiting(ScriptedEngine):
        async def sample(self, request):
            await asyncio.sleep(0.2)
            return await super().sample(request)

    made, engine = player({(0, "a"): ["1", "2", "3"], (0, "b"): ["7", "7", "7"]}, Slow())
    waiting = dataclasses.replace(made, propose=engine_propose(Waiting(engine.script), SAMPLING, 3, seed=5))
    play(waiting)
    assert 6 * 0.02 <= waiting.clock.seconds < 2 * 0.2


def test_equal_candidates_are_chosen_evenly_and_again_in_the_next_run():
    """A place that is never chosen is a bias nobody sees; another choice in a second run is another run."""

    def places(step, seed=5):
        script = {(0, "a"): ["1"] * 3}
        made, _ = player(script, Sum(Workflow(order=("a",), turns=1)))
        made = dataclasses.replace(made, seed=seed)
        return [e.groups[0].chosen for e in play_all(made, step, "train", range(60))]

    first = places(1)
    assert all(8 <= first.count(place) <= 32 for place in range(3))  # of 60: 20 +- 3.3 deviations
    assert places(1) == first
    assert places(2) != first and places(1, seed=6) != first


def test_every_step_has_fresh_instances():
    assert list(train_indices(1, 4)) == [0, 1, 2, 3]
    assert list(train_indices(3, 4)) == [8, 9, 10, 11]


def test_candidates_are_drawn_by_the_settings():
    settings = {"temperature": 0.7, "max_tokens": 9, "top_k": 5, "top_p": 0.9, "min_p": 0.1}
    settings |= {"min_tokens": 2, "banned": (3, 4)}
    assert RolloutConfig(instances=3, **settings).sampling == Sampling(**settings)


@pytest.mark.parametrize(
    "wrong",
    [
        {"candidates": 1},
        {"instances": 0},
        {"temperature": 0.0},
        {"max_tokens": 0},
        {"top_k": -1},
        {"top_p": 0.0},
        {"min_p": 1.5},
        {"min_tokens": 17},
        {"banned": (-1,)},
        {"mode": "forest"},
        {"select": "best"},
        {"exclude": ("tool_crash", "nonsense")},
        {"exclude": ()},
    ],
    ids=str,
)
def test_config_refuses(wrong):
    with pytest.raises(ValueError, match=f"RolloutConfig.{next(iter(wrong))}"):
        RolloutConfig(**wrong)


def test_a_training_split_that_ends_is_named():
    class Few(Sum):
        def instance(self, split, index):
            return [3, 4][index]

    with pytest.raises(RunError, match=r"step 9, train instance 2: Few.instance raised IndexError.*for ever"):
        play_all(player({(t, r): ["1"] for t in range(2) for r in "ab"}, Few())[0], 9, "train", range(3))
