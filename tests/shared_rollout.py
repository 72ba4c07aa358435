"""What the tests of the rollout share: a player with a scripted engine, and a toy task with programs."""

import asyncio
import dataclasses

from fakes import CharTokenizer, ScriptedEngine, Sum

from atgrpo_jax.common.types import Sampling
from atgrpo_jax.rollout.player import Player
from atgrpo_jax.rollout.rollout import engine_propose
from atgrpo_jax.rollout.team import Team
from atgrpo_jax.sandbox.protocol import Program, ProgramResult

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
