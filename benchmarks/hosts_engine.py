"""The real player and in-process engine, on a device that only takes time: for hosts_check.py."""

import dataclasses
import time

import numpy as np

from atgrpo_jax.common.types import Outcome, Reward, Sampling
from atgrpo_jax.engines.local import engine
from atgrpo_jax.engines.local.lane_arrays import Drawn
from atgrpo_jax.engines.local.lanes import ENDED, Lane
from atgrpo_jax.engines.local.settings import Settings
from atgrpo_jax.engines.protocol import Usage
from atgrpo_jax.models.config import Architecture
from atgrpo_jax.models.families.table import transformer
from atgrpo_jax.models.transformer import PolicyWeights
from atgrpo_jax.planning.events import Asked
from atgrpo_jax.rollout.player import Player
from atgrpo_jax.rollout.rollout import engine_propose
from atgrpo_jax.rollout.team import Team
from atgrpo_jax.tasks.protocol import Transition
from atgrpo_jax.tasks.workflow import Workflow
from atgrpo_jax.tokens.tokens import TinyTokenizer

LETTER = 97  # the token that is drawn


class Clock:
    """Counts the chunks of all lanes, and knows when the last one was over."""

    chunks = 0
    live = 0  # samples, summed over chunks
    ended_s = 0.0


class SleepingLane(Lane):
    """Draws as many tokens as the step asks for, and sleeps as long as a device would take."""

    case = None
    asked: Asked | None = None
    clock: Clock

    def draw(self, params, adapters):
        slots = self._slots
        lengths = np.zeros(slots.live.shape, int)
        for d, shard in enumerate(self._shards):
            shard.items.clear()
            for slot, branch in shard.branches.items():
                key = branch.ticket.request.addresses[0].group
                draw = key.turn * 2 + ("scout", "mover").index(key.role)
                lengths[d, slot] = self.asked.tokens_IEGK[key.instance, 0, draw, branch.k]
        left = np.where(slots.live, lengths - slots.have, 0)
        live = np.sort(left[slots.live])
        steps = min(self._sizes.chunk, int(live[max(len(live) // ENDED, 1) - 1]))
        new = np.minimum(left, steps)
        done = slots.live & (new == left)
        shape = *slots.live.shape, self._sizes.chunk
        logprobs = np.full(shape, -1.0, np.float32)
        time.sleep(steps * (self.case.step_s + len(live) * self.case.sample_s))
        self.clock.chunks += 1
        self.clock.live += len(live)
        self.clock.ended_s = time.perf_counter()
        drawn = Drawn(
            np.full(shape, LETTER, np.int32),
            logprobs,
            logprobs,
            slots.have + new,
            slots.live & ~done,
            done,
            np.int32(steps),
        )
        return drawn, Usage(slot_steps=steps * slots.live.size)


@dataclasses.dataclass(frozen=True)
class Lasting:
    """A task whose episodes last as many draws as they are told to."""

    draws: tuple[int, ...]  # by instance
    workflow: Workflow = Workflow(("scout", "mover"), turns=3)

    def instance(self, split, index):
        return index

    def initial(self, instance):
        return instance, 0

    def prompt(self, state, role):
        return [{"role": "user", "content": f"{role} {state}"}]

    def act(self, state, role, text):
        instance, spoken = state
        over = spoken + 1 == self.draws[instance]
        reward = Reward.of(0.0, length=float(len(text)))
        return Transition((instance, spoken + 1), reward, Outcome.OK, over, over)

    def demonstration(self, state, role, rng):
        return ""


def player_of(case, asked: Asked, hosts) -> tuple[Player, Clock, object]:
    """Returns a player with an engine of its own, what counts its chunks, and what ends it."""
    clock = Clock()
    SleepingLane.case = case
    SleepingLane.asked = asked
    SleepingLane.clock = clock
    engine.Lane = SleepingLane
    tokenizer = TinyTokenizer()
    model = transformer(
        Architecture(layers=1, width=8, mlp_width=8, heads=1, kv_heads=1), tokenizer.vocab_size
    )
    slots = case.slots // hosts.count
    samples = asked.tokens_IEGK.shape[-1]
    most = int(asked.tokens_IEGK.max())
    settings = Settings(slots=slots, chunk=case.chunk, joined_mb=0.0)
    drawing = engine.LocalEngine(model, tokenizer.stop_ids, settings, default_shape=(most, samples))
    drawing.push_weights("shared", PolicyWeights({"none": np.zeros(1)}), 0)
    sampling = Sampling(max_tokens=most)
    task = Lasting(tuple(asked.draws_IE[:, 0].tolist()))
    propose = engine_propose(drawing, sampling, samples, 0)
    player = Player(task, Team("shared"), tokenizer, propose, sampling, 0)

    def close() -> None:
        engine.Lane = Lane
        drawing.close()

    return player, clock, close
