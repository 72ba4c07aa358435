"""The sampling tree, step by step, with a scripted engine and a toy task (see fakes.Sum)."""

import asyncio
import contextlib
import dataclasses
import signal
import time
from decimal import Decimal
from fractions import Fraction

import jax.numpy as jnp
import numpy as np
import pytest
from fakes import CharTokenizer, ScriptedEngine, Sum

from atgrpo_jax.common.errors import PromptTooLong, RunError, Stopped
from atgrpo_jax.common.finite import NotFinite
from atgrpo_jax.common.stopping import ONE_STOP_S, Stopping
from atgrpo_jax.common.types import Outcome, Reward, Sampling
from atgrpo_jax.rollout.rollout import Player, RolloutConfig, engine_propose, play_all, train_indices
from atgrpo_jax.rollout.team import Team
from atgrpo_jax.sandbox.protocol import Program, ProgramResult
from atgrpo_jax.tasks.protocol import Transition
from atgrpo_jax.tasks.workflow import Workflow

SAMPLING = Sampling(1.0, 8)


class Shouts(Sum):
    """After "=" comes a program, which is run twice; its number is the sum of both outputs."""

    tools, packages, warm_up = ("a",), (), ""

    def programs(self, state, role, text, runs):
        return [Program(text[1:])] if text.startswith("=") and len(runs) < 2 else []

    def act(self, state, role, text, runs):
        if runs:
            text = str(sum(int(run.stdout or 0) for run in runs))
        return super().act(state, role, text)


@dataclasses.dataclass
class Echo:
    """Runs a program by giving it back."""

    wait: float = 0.0
    asked: list[str] = dataclasses.field(default_factory=list)

    async def run(self, program):
        self.asked.append(program.source)
        await asyncio.sleep(self.wait)
        return ProgramResult("crash") if program.source == "crash" else ProgramResult("ok", program.source)


def player(script, task=None, k=3, team=None, **settings):
    engine = ScriptedEngine(script)
    propose = engine_propose(engine, SAMPLING, k, seed=5)
    made = Player(task or Sum(), team or Team(), CharTokenizer(), propose, SAMPLING, seed=5, **settings)
    return made, engine


def play(made, index=0):
    return asyncio.run(made.play(1, "train", index))


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
    assert group.candidates[0].origin.key.path() == "1/train/0/0/0/a"


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
    task = Sum(Workflow(order=("a", "b"), turns=2, parallel=True))
    made, engine = player(script, task)
    episode = play(made)
    prompts = [CharTokenizer().decode(r.prompt_ids) for r in engine.requests]
    assert prompts == ["a []", "b []", "a [2, 2]", "b [2, 2]"]
    # Actions still apply one after the other.
    assert episode.groups[1].candidates[0].reward.local == 2.0


def test_a_parallel_turn_is_played_to_its_end():
    """What ``a`` has done may end the episode; the samples of ``b`` were drawn, and count all the same."""
    task = Sum(Workflow(order=("a", "b"), turns=2, parallel=True))
    episode = play(player({(0, "a"): ["10", "1", "0"], (0, "b"): ["0", "0", "0"]}, task)[0])
    assert (episode.end, episode.turns, len(episode.groups)) == ("solved", 1, 2)


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
    task = Sum(Workflow(("a", "b"), turns=2, parallel=parallel))
    return Player(task, Team(), CharTokenizer(), engine_propose(engine, SAMPLING, 2, 5), SAMPLING, seed=5)


@pytest.mark.parametrize(
    ("parallel", "turn", "role", "turns", "groups"),
    [
        (False, 0, "b", 1, 2),  # a has spoken
        (False, 1, "a", 2, 3),
        (False, 1, "b", 2, 4),
        (True, 1, "a", 2, 3),
        (True, 1, "b", 2, 4),
    ],
)
def test_a_prompt_too_long_by_what_roles_have_said_ends_the_episode(
    parallel, turn, role, turns, groups, capsys
):
    episode = play(without_room(parallel, (turn, role)))
    assert (episode.end, episode.turns, len(episode.groups)) == ("engine_error", turns, groups)
    for lost in episode.groups[-1].candidates:
        assert lost.reward is None and lost.sample.version == 3 and lost.outcome is Outcome.ENGINE_ERROR
    assert f"/{turn}/{role}; the episode ends there" in capsys.readouterr().err


@pytest.mark.parametrize(("parallel", "role"), [(False, "a"), (True, "a"), (True, "b")])
def test_a_prompt_too_long_that_nobodys_words_are_in_stops_the_run(parallel, role):
    with pytest.raises(PromptTooLong, match=f"tokens at 1/train/0/0/0/{role}"):
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


@dataclasses.dataclass(frozen=True)
class Pays(Sum):
    """``reward`` for everything."""

    reward: object = None

    def act(self, state, role, text):
        return Transition((*state, 1), self.reward, Outcome.OK, False, False)


NAN, INF = float("nan"), float("inf")
WHERE = "^step 1, train instance 7, episode 0, turn 0, role a: Pays.act gave "


@pytest.mark.parametrize(
    ("reward", "says"),
    [
        (Reward(NAN, 0.0, {}), r"Reward.team = nan \(float\); expected a finite number below 1e\+30 in size"),
        (Reward(0.0, INF, {}), r"Reward.local = inf"),
        (Reward(0.0, 0.0, {"x": -INF, "y": INF}), r"Reward.parts\['x'\] = -inf"),
        (Reward(1e29, 9.5e29, {}), r"Reward.mixed with alpha = 1, = 1.05e\+30"),
        (Reward(1e308, -1e308, {}), r"Reward.team = 1e\+308"),
        (Reward.of(10**400), r"Reward.team = 10+\.\.\. \(int\)"),
        (Reward.of(10**5000), r"Reward.team = what cannot be shown, ValueError \(int\)"),
        (Reward.of(0.0, x=10**400, y=0.5), r"Reward.parts\['x'\] = 10+\.\.\. \(int\)"),
        (Reward.of(0.0, x=None), r"Reward.parts\['x'\] = None \(NoneType\)"),
        (Reward.of(0.0, y=0.5, x="1"), r"Reward.parts\['x'\] = '1' \(str\)"),
        (Reward.of(0.0, x=Decimal(1)), r"Reward.parts\['x'\] = Decimal\('1'\) \(Decimal\)"),
        (Reward.of(0.0, x=1j), r"Reward.parts\['x'\] = 1j \(complex\)"),
        (Reward.of(np.float32(NAN)), r"Reward.team = np.float32\(nan\) \(float32\)"),
        (Reward.of(np.float16("inf")), r"Reward.team = np.float16\(inf\)"),
        (Reward.of(np.ones(2)), r"Reward.team = array"),
        (Reward.of(jnp.ones(())), r"Reward.team = Array\(1"),
        (Reward(0.0, 0.0, None), r"Reward.parts = None \(NoneType\), expected a mapping"),
        (None, r"Step.reward = None \(NoneType\), expected a common.types.Reward"),
        (1.0, r"Step.reward = 1.0 \(float\), expected a common.types.Reward"),
    ],
)  # fmt: skip
def test_a_reward_that_is_no_finite_number_is_named_with_its_place(reward, says):
    with pytest.raises(RunError, match=WHERE + says) as raised:
        play(player({(0, "a"): ["1", "2"]}, Pays(reward=reward))[0], index=7)
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 300


def test_a_task_that_changes_the_state_it_was_given_is_named():
    """Candidates are siblings only if all are scored from one state."""

    class Grows(Sum):
        def initial(self, instance):
            return []

        def act(self, state, role, text):
            state.append(text)
            return Transition(state, Reward.of(0.0, length=1.0), Outcome.OK, False, False)

    with pytest.raises(RunError, match="role a: act or programs of Grows changed the state"):
        play(player({(0, "a"): ["1", "2"]}, Grows())[0])


def test_a_step_that_is_none_is_named():
    class Nothing(Sum):
        def act(self, state, role, text):
            return state, 1.0

    with pytest.raises(RunError, match=r"role a: Nothing.act gave \(\(\), 1.0\) \(tuple\), expected a"):
        play(player({(0, "a"): ["1"]}, Nothing())[0])


def test_rewards_are_plain_numbers_afterwards():
    """Those that JSON does not know are; Python's own stay as they are."""
    reward = Reward.of(True, x=np.float32(0.5), y=np.int64(3), z=Fraction(1, 4))
    task = Pays(Workflow(("a",), turns=1), reward)
    found = play(player({(0, "a"): ["1"]}, task)[0]).groups[0].candidates[0].reward
    assert found == Reward(1.0, 3.75, {"x": 0.5, "y": 3.0, "z": 0.25})
    assert {type(v) for v in (found.team, found.local, *found.parts.values())} == {float}
    own = Reward.of(1, x=2, y=0.5)
    task = Pays(Workflow(("a",), turns=1), own)
    assert play(player({(0, "a"): ["1"]}, task)[0]).groups[0].candidates[0].reward is own


@pytest.mark.parametrize("tokens", ["logprobs", "drawn_logprobs"])
@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_a_logprob_that_is_not_finite_is_named_with_its_place(tokens, value):
    class Odd(ScriptedEngine):
        async def sample(self, request):
            first, *others = await super().sample(request)
            return [first, *(dataclasses.replace(s, **{tokens: (-1.0, value)}) for s in others)]

    propose = engine_propose(Odd({(0, "a"): ["1", "2", "3"]}), SAMPLING, 3, seed=5)
    made = dataclasses.replace(player({})[0], propose=propose)
    says = r"^step 1, train instance 0, .* role a, candidate 1 of policy shared: the logprob of token 1 is "
    with pytest.raises(NotFinite, match=says + str(value)):
        play(made)


class Leaves(Shouts):
    """Raises ``error`` in ``method`` for role b."""

    def __init__(self, method, error):
        super().__init__()
        object.__setattr__(self, "method", method)
        object.__setattr__(self, "error", error)

    tools = ("a", "b")

    def _leave(self, method, role="b"):
        if (method, role) == (self.method, "b"):
            raise self.error

    def instance(self, split, index):
        self._leave("instance")
        return super().instance(split, index)

    def initial(self, instance):
        self._leave("initial")
        return super().initial(instance)

    def prompt(self, state, role):
        self._leave("prompt", role)
        return super().prompt(state, role)

    def programs(self, state, role, text, runs):
        self._leave("programs", role)
        return super().programs(state, role, text, runs)

    def act(self, state, role, text, runs):
        self._leave("act", role)
        return super().act(state, role, text, runs)


@pytest.mark.parametrize("method", ["instance", "initial", "prompt", "programs", "act"])
@pytest.mark.parametrize(
    "error",
    [SystemExit(0), SystemExit(), KeyboardInterrupt(), asyncio.CancelledError(), GeneratorExit()],
    ids=repr,
)
@pytest.mark.parametrize("stopping", [False, True])
def test_a_task_that_would_end_the_run_is_named_instead(method, error, stopping):
    role = "" if method in ("instance", "initial") else ", episode 0, turn 0, role b"
    says = rf"^step 1, train instance 3{role}: Leaves.{method} raised {type(error).__name__}\(.*must not end"
    made = player({(0, "a"): ["1"], (0, "b"): ["1"]}, Leaves(method, error), runner=Echo())[0]
    with Stopping() if stopping else contextlib.nullcontext(), pytest.raises(RunError, match=says):
        play_all(made, 1, "train", [3])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_real_signal_while_a_task_computes_still_stops(number):
    class Interrupted(Sum):
        def act(self, state, role, text):
            signal.raise_signal(number)
            return super().act(state, role, text)

    made = player({(0, "a"): ["1"], (0, "b"): ["1"]}, Interrupted())[0]
    with Stopping() as stopping, pytest.raises(Stopped), stopping.interruptible():
        play_all(made, 1, "train", range(1))


def test_a_second_signal_while_a_task_computes_is_no_fault_of_the_tasks():
    class Interrupted(Sum):
        def act(self, state, role, text):
            signal.raise_signal(signal.SIGINT)
            time.sleep(ONE_STOP_S + 0.1)
            signal.raise_signal(signal.SIGINT)
            time.sleep(60)

    with pytest.raises(KeyboardInterrupt), Stopping():
        play(player({(0, "a"): ["1"]}, Interrupted())[0])
    with pytest.raises(KeyboardInterrupt):  # without handlers of ours, as in an evaluation
        play(player({(0, "a"): ["1"]}, Interrupted())[0])


def test_a_training_split_that_ends_is_named():
    class Few(Sum):
        def instance(self, split, index):
            return [3, 4][index]

    with pytest.raises(RunError, match=r"step 9, train instance 2: Few.instance raised IndexError.*for ever"):
        play_all(player({(t, r): ["1"] for t in range(2) for r in "ab"}, Few())[0], 9, "train", range(3))
