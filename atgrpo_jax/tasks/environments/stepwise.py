"""Defines the task of games that are played step by step: one action a turn, seen by the player as text.

The state is the list of actions. The game itself, which other people wrote, is replayed or copied
(``rules.Replays``).
"""

import dataclasses
import functools
import random
from typing import Literal

from atgrpo_jax.common.checks import check_types, require
from atgrpo_jax.common.types import Board, Message, Outcome, Reward
from atgrpo_jax.tasks import prompts
from atgrpo_jax.tasks.environments.draws import Draws
from atgrpo_jax.tasks.environments.rules import BadAction, Replays, Rules, Scene
from atgrpo_jax.tasks.protocol import Transition
from atgrpo_jax.tasks.workflow import Workflow

ADVISER, PLAYER = "adviser", "player"
SHOWN = 4000  # characters of what the game shows
SAID = 300  # characters of an advice, and of a text that was no action


@dataclasses.dataclass(frozen=True)
class Start:
    seed: int


@dataclasses.dataclass(frozen=True)
class State:
    seed: int
    actions: tuple[str, ...] = ()
    advice: str = ""  # of this turn
    refused: str = ""  # what the player said last, if it was no action


@dataclasses.dataclass(frozen=True)
class StepWise:
    """A task and its config in one. The ``player`` acts; an ``adviser`` may speak before it. Rewards:

    player   local = progress * (change of its value) - invalid / turns * [no action]
             team, one player = 1 if solved; two players = invalid if solved
    adviser  local = advice / turns * (change of the player's value, if it does as it is told; 1 more if
             that solves the game) - invalid / turns * [no action]

    A value is from 0 to 1 (``rules.Scene``), and its change is since the player acted before, so the sum
    over an episode depends only on where it ends. An adviser is paid for its own words, because the
    player's action comes later; the player sees the words, and not what they would lead to.

    With two players each has a seat, and the next move is of the one that the game names. What one wins
    the other one loses, so nothing of it is the team's. Solved means there that the game ended by its
    rules. Nobody then has less than nothing, and nobody has more in a game that did not end.

    No role earns more in a failed episode than in a solved one if ``progress + invalid`` and
    ``3 * advice + invalid`` are at most 1: ``__post_init__`` refuses other weights.
    """

    game: Rules  # what is played; see rules.py
    workflow: Workflow = Workflow(order=(PLAYER,), turns=10)
    prompts: str = "stepwise/short"  # a folder of templates; see tasks/prompts.py
    # What makes two instances different: what the game shows at its start, or only its seed. "seed" is for
    # games that all start alike and differ by later chance; then splits are told apart by seeds alone.
    apart: Literal["start", "seed"] = "start"
    seed: int = 0  # other seeds make other problems
    progress: float = 0.3
    advice: float = 0.1
    invalid: float = 0.1
    demonstration_error: float = 0.3  # probability that a demonstrated action is a random one
    prompts_digest: str = dataclasses.field(init=False, default="")  # of the templates' content

    def __post_init__(self):
        check_types(self)
        kinds = [kind_of(speaker) for speaker in self.workflow.speakers]
        seats = self.game.seats
        players = [PLAYER] * seats
        wanted = f"this game has {seats} seats: expected {' '.join(players)}"
        advised = seats == 1 and kinds == [ADVISER, PLAYER] and len(self.workflow.stages) == 2
        good = kinds == players or advised
        require(self, "workflow", good, wanted + (f", or {ADVISER} {PLAYER}" if seats == 1 else ""))
        require(self, "demonstration_error", 0 <= self.demonstration_error <= 1, "must be in [0, 1]")
        for name in ("progress", "advice", "invalid"):
            require(self, name, getattr(self, name) >= 0, "must not be negative")
        rule = "must be at most 1, so that failing pays less than solving"
        require(self, "progress", self.progress + self.invalid <= 1, f"progress + invalid {rule}")
        require(self, "advice", 3 * self.advice + self.invalid <= 1, f"3 * advice + invalid {rule}")
        try:
            self._replays  # noqa: B018 - the game is tried here, once
        except ValueError as error:
            require(self, "game", False, str(error))
        prompts.settle(self, sorted(set(kinds)))

    @functools.cached_property
    def _replays(self) -> Replays:
        return Replays(self.game)

    @functools.cached_property
    def _draws(self) -> Draws:
        return Draws(Start, self._content, repr(self.game), self.seed)

    def _content(self, start: Start) -> str | int:
        return start.seed if self.apart == "seed" else self._replays.scene(start.seed, ()).text

    def instance(self, split: str, index: int) -> Start:
        """Returns an instance. Raises IndexError past the last one of a held-out split, and ValueError
        for an unknown split or one that has no instance."""
        return self._draws.at(split, index)

    def initial(self, instance: Start) -> State:
        return State(instance.seed)

    def speaks(self, state: State, role: str) -> bool:
        scene = self._scene(state)
        return not scene.done and (kind_of(role) == ADVISER or scene.seat == self._seat(role))

    def prompt(self, state: State, role: str) -> list[Message]:
        values = {
            "view": prompts.shortened(self._scene(state).text, SHOWN),
            "advice": state.advice,
            "refused": state.refused,
        }
        return prompts.render(self.prompts, kind_of(role), values)

    def act(self, state: State, role: str, text: str) -> Transition:
        now = self._scene(state)
        after = self._after(state, text)
        if kind_of(role) == ADVISER:
            return self._advised(state, now, after, text)
        if after is None:
            same = dataclasses.replace(state, advice="", refused=prompts.shortened(text, SAID))
            reward = Reward.of(0.0, invalid=-self.invalid / self.workflow.turns)
            return Transition(same, reward, Outcome.INVALID, False, False)
        actions, then = after
        seat = self._seat(role)
        change = then.values[seat] - self._value_before(state, seat)
        whole = 1.0 if self.game.seats == 1 else self.invalid
        reward = Reward.of(whole * then.solved, progress=self.progress * change)
        return Transition(State(state.seed, actions), reward, Outcome.OK, then.done, then.solved)

    def drawn(self, state: State) -> Board:
        scene = self._scene(state)
        return scene.board or scene.text

    def demonstration(self, state: State, role: str, rng: random.Random) -> str:
        """Returns the best action, if the game knows it, or else a random one."""
        best = self._replays.best(state.seed, state.actions)
        if best is None or rng.random() < self.demonstration_error:
            return rng.choice(list(self._replays.choices(state.seed, state.actions)))
        return best

    def _scene(self, state: State) -> Scene:
        return self._replays.scene(state.seed, state.actions)

    def _after(self, state: State, text: str) -> tuple[tuple[str, ...], Scene] | None:
        """Returns the actions and the scene after what somebody said; None if it was no action."""
        action = self.game.read(text)
        if action is None:
            return None
        actions = (*state.actions, action)
        try:
            return actions, self._replays.scene(state.seed, actions)
        except BadAction:
            return None

    def _advised(
        self, state: State, now: Scene, after: tuple[tuple[str, ...], Scene] | None, text: str
    ) -> Transition:
        turns = self.workflow.turns
        heard = dataclasses.replace(state, advice=prompts.shortened(text.strip(), SAID), refused="")
        if after is None:
            return Transition(
                heard, Reward.of(0.0, invalid=-self.invalid / turns), Outcome.INVALID, False, False
            )
        worth = after[1].values[0] - now.values[0] + after[1].solved
        return Transition(heard, Reward.of(0.0, advice=self.advice / turns * worth), Outcome.OK, False, False)

    def _seat(self, role: str) -> int:
        players = [speaker for speaker in self.workflow.speakers if kind_of(speaker) == PLAYER]
        return players.index(role)

    def _value_before(self, state: State, seat: int) -> float:
        """Returns the value of a seat when it had acted last; at the start, if it has not acted yet."""
        for count in range(len(state.actions), 0, -1):
            if self._replays.scene(state.seed, state.actions[: count - 1]).seat == seat:
                return self._replays.scene(state.seed, state.actions[:count]).values[seat]
        return self._replays.scene(state.seed, ()).values[seat]


def kind_of(role: str) -> str:
    return role.rstrip("0123456789")
