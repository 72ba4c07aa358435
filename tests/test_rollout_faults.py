"""What tasks and engines do wrong in a rollout is named with its place."""

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
from fakes import ScriptedEngine, Sum
from shared_rollout import SAMPLING, Echo, Shouts, play, player

from atgrpo_jax.common.errors import RunError, Stopped
from atgrpo_jax.common.finite import NotFinite
from atgrpo_jax.common.stopping import ONE_STOP_S, Stopping
from atgrpo_jax.common.types import Outcome, Reward
from atgrpo_jax.rollout.rollout import engine_propose, play_all
from atgrpo_jax.tasks.protocol import Transition
from atgrpo_jax.tasks.workflow import Workflow


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
        (None, r"Transition.reward = None \(NoneType\), expected a common.types.Reward"),
        (1.0, r"Transition.reward = 1.0 \(float\), expected a common.types.Reward"),
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
