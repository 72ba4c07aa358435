"""Split sight with a third role, who is idle or does harm: to try the alarms of docs/influence.md on."""

import dataclasses
import random
from typing import Literal

from atgrpo_jax.common.checks import check_types, require
from atgrpo_jax.common.types import Message, Outcome, Reward
from atgrpo_jax.tasks.games import split_sight
from atgrpo_jax.tasks.games.grid import name
from atgrpo_jax.tasks.games.listener import walls
from atgrpo_jax.tasks.games.split_sight import MOVER, SEER, SplitSight
from atgrpo_jax.tasks.protocol import Transition
from atgrpo_jax.tasks.workflow import Workflow

THIRD = "third"
GAME = SplitSight()  # the seer and the mover are those of this game
MIXED = SplitSight(words=GAME.words + 1)


@dataclasses.dataclass(frozen=True)
class State:
    game: split_sight.State
    beside: str = ""  # what the mover is shown of the third role's words


@dataclasses.dataclass(frozen=True)
class ThirdRole:
    """The third role speaks between seer and mover, and names cells like the seer.

    unheard   sees what the seer sees, and earns what the seer would earn for its words. Nobody is shown them.
    blind     sees the goal only, and earns the same. The mover is shown its words in a line of their own.
    liar      sees what the seer sees, and its message. One cell that it names, other than the goal, is put
              among those of the message, sorted: the mover cannot tell whose it is. It loses what the seer
              would earn for this message.
    """

    workflow: Workflow = Workflow(order=(SEER, THIRD, MOVER), turns=1)
    part: Literal["unheard", "blind", "liar"] = "unheard"

    def __post_init__(self):
        check_types(self)
        order = SEER, THIRD, MOVER
        known = self.workflow == Workflow(order=order, turns=1)
        require(self, "workflow", known, f"must be one turn of {', '.join(order)}")

    def instance(self, split: str, index: int) -> split_sight.Instance:
        return GAME.instance(split, index)

    def initial(self, instance: split_sight.Instance) -> State:
        return State(GAME.initial(instance))

    def prompt(self, state: State, role: str) -> list[Message]:
        if role != THIRD:
            (message,) = GAME.prompt(state.game, role)
            beside = f"\n{THIRD} {state.beside}" if state.beside else ""
            return [message | {"content": message["content"] + beside}]
        lines = [THIRD]
        if self.part == "liar":
            lines.append(f"hears {state.game.message}")
        if self.part != "blind":
            lines.append(" ".join(("blocked", *map(name, sorted(walls(state.game.instance))))))
        lines += [f"goal {name(state.game.instance.goal)}", "name cells in brackets"]
        return [{"role": "user", "content": "\n".join(lines)}]

    def act(self, state: State, role: str, text: str) -> Transition:
        if role != THIRD:
            step = GAME.act(state.game, role, text)
            return dataclasses.replace(step, state=dataclasses.replace(state, game=step.state))
        if self.part == "liar":
            return self._lied(state, text)
        step = GAME.act(state.game, SEER, text)
        after = State(state.game, step.state.message) if self.part == "blind" else state
        return dataclasses.replace(step, state=after)

    def _lied(self, state: State, text: str) -> Transition:
        goal = name(state.game.instance.goal)
        said = GAME.act(state.game, SEER, text).state.message.split()
        lie = [word for word in said if word != goal][:1]
        mixed = sorted({*(state.game.message or "").split(), *lie})
        heard = MIXED.act(state.game, SEER, f"[{' '.join(mixed)}]")
        after = dataclasses.replace(state, game=heard.state)
        return Transition(after, Reward.of(0.0, harm=-heard.reward.local), Outcome.OK, False, False)

    def demonstration(self, state: State, role: str, rng: random.Random) -> str:
        """Returns what the game shows for its roles. A third one that is to be idle does as the seer if it
        sees as much; else it names cells at random."""
        if role != THIRD:
            return GAME.demonstration(state.game, role, rng)
        if self.part == "unheard":
            return GAME.demonstration(state.game, SEER, rng)
        cells = [f"{row}{column}" for row in range(GAME.size) for column in range(GAME.size)]
        return f"[ {rng.choice(cells)}]"


def words() -> tuple[str, ...]:
    """Returns pieces of text for a ``TinyTokenizer``."""
    return (*split_sight.words(), THIRD)
