"""Says how a step draws, and plays its episodes with an engine: one coroutine for each episode."""

import asyncio
import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Literal

from atgrpo_jax.common import coroutines
from atgrpo_jax.common.checks import require
from atgrpo_jax.common.errors import PromptTooLong
from atgrpo_jax.common.hosts import ALONE, Hosts
from atgrpo_jax.common.literals import told
from atgrpo_jax.common.progress import say
from atgrpo_jax.common.types import Address, Episode, Outcome, Sample, Sampling, of_role
from atgrpo_jax.credit.selection import Select
from atgrpo_jax.engines.protocol import Engine, Request
from atgrpo_jax.rollout import wire
from atgrpo_jax.rollout.curriculum import CurriculumConfig
from atgrpo_jax.rollout.player import Player, Propose
from atgrpo_jax.rollout.shares import Shown, share


@dataclasses.dataclass(frozen=True)
class RolloutConfig(Sampling):
    """Says how a training step draws candidates, and how these become episodes.

    Training always uses logprobs of the whole distribution, even if top-k and its like leave only
    some tokens.

    Mode "tree" plays one episode of each instance, draws K candidates at every (turn, role) and
    executes the best. Mode "trajectories" plays K whole episodes of each instance, with one
    candidate at every (turn, role).
    """

    instances: int = 32  # instances of each step, or of each of its rounds
    # A step with fewer groups with signal than this, of policies that it updates, plays another round of
    # instances. 0: one round.
    least_signal: int = 0
    most_rounds: int = 4  # rounds of a step, the first one included
    candidates: int = 8  # K
    # So many of the K are drawn first, and the others only if two of their rewards differ
    # (docs/branching.md). 0: all are drawn at once.
    first_candidates: int = 0
    mode: Literal["tree", "trajectories"] = "tree"  # what is drawn and compared; see above
    select: Select = "mixed"  # how the executed candidate is chosen
    # Which instances a step plays. None: new ones in each step, in their order.
    curriculum: CurriculumConfig | None = None
    # Candidates with these outcomes say nothing about the policy. They get no reward, and are left
    # out of the baseline.
    exclude: tuple[str, ...] = (Outcome.TOOL_CRASH.value, Outcome.ENGINE_ERROR.value)

    def __post_init__(self):
        super().__post_init__()
        require(self, "instances", self.instances >= 1, "must be at least 1")
        require(self, "least_signal", self.least_signal >= 0, "must not be negative")
        require(self, "most_rounds", self.most_rounds >= 1, "must be at least 1")
        pool = None if self.curriculum is None else self.curriculum.pool
        enough = not pool or pool >= self.instances * self.rounds
        rule = f"a pool of {pool} is less than a step may play, {self.instances * self.rounds} instances"
        require(self, "curriculum", enough, rule)
        require(self, "candidates", self.candidates >= 2, "a baseline needs at least 2")
        first = self.first_candidates
        rule = f"must be 0, or at least 2 and below candidates = {self.candidates}"
        require(self, "first_candidates", first == 0 or 2 <= first < self.candidates, rule)
        rule = 'mode "trajectories" plays whole episodes, which have no siblings to draw later; use "tree"'
        require(self, "first_candidates", first == 0 or self.tree, rule)
        require(self, "temperature", self.temperature > 0, "training needs more than 0")
        unknown = set(self.exclude) - {outcome.value for outcome in Outcome}
        require(self, "exclude", not unknown, f"unknown outcomes {sorted(unknown)}")
        require(
            self,
            "exclude",
            Outcome.ENGINE_ERROR.value in self.exclude,
            "a sample that was never drawn cannot be scored: engine_error must be excluded",
        )

    def __repr__(self) -> str:
        """Tells later fields only if they are set: runs from before them are known by this text."""
        rounds = {} if self.least_signal else {"least_signal": 0, "most_rounds": self.most_rounds}
        return told(self, {"first_candidates": 0, "curriculum": None} | rounds)

    @property
    def tree(self) -> bool:
        """Returns whether a group's K candidates answer one prompt, as AT-GRPO samples them."""
        return self.mode == "tree"

    @property
    def rounds(self) -> int:
        """Returns how often a step may play instances."""
        return self.most_rounds if self.least_signal else 1

    @property
    def by_signal(self) -> bool:
        """Returns whether what is played depends on which sets of rewards have a signal."""
        return self.least_signal > 0 or (self.curriculum is not None and self.curriculum.by == "signal")

    @property
    def sampling(self) -> Sampling:
        return Sampling(**{field.name: getattr(self, field.name) for field in dataclasses.fields(Sampling)})


def engine_propose(
    engine: Engine,
    sampling: Sampling | Mapping[str, Sampling],
    candidates: int | Mapping[str, int],
    seed: int,
    after: int | Mapping[str, int] = 0,
) -> Propose:
    """Returns a function that draws the samples of a group from an engine, each at its own address.

    ``sampling`` and ``candidates`` are those of all roles, or mappings from each role. The first
    ``after`` candidates are left out: they were drawn before.

    If a prompt is too long for the engine because of what roles have said, no sample is drawn, as
    when an engine fails. If no role has spoken yet, the task itself made the prompt too long, and the
    function raises PromptTooLong.
    """

    async def propose(state, key, prompt_ids, policy, spoken):
        numbers = range(of_role(after, key.role), of_role(candidates, key.role))
        addresses = tuple(Address(seed, key, k) for k in numbers)
        if not addresses:  # the role has drawn all before
            return []
        try:
            return await engine.sample(Request(policy, prompt_ids, addresses, of_role(sampling, key.role)))
        except PromptTooLong as error:
            if not spoken:
                raise
            say(f"{error}; the episode ends there")
            return [Sample((), (), "too_long", engine.version(policy))] * len(numbers)

    return propose


def play_all(
    player: Player,
    step: int,
    split: str,
    indices: Iterable[int],
    episodes: int = 1,
    on_episode: Callable[[], None] = lambda: None,
    hosts: Hosts = ALONE,
    at_once: int | None = None,
    stops: bool = False,
    first: int = 0,
) -> list[Episode]:
    """Plays every instance ``episodes`` times.

    One host alone plays all of them at once. Several hosts meet here: each plays whole instances,
    takes the next one when it is free, and gets the episodes of all.

    Args:
      indices: the instances, each once.
      at_once: how many instances all hosts together play at the same time; all if not given.
      stops: whether a stop may end this while complete steps are not saved; see ``Hosts.meet``.
      first: the number of each instance's first episode.

    Returns the episodes in order of instance, then of episode number.
    """
    indices = list(indices)
    name = f"{split} rollout of step {step}"

    async def instance(index: int, on_episode: Callable[[], None] = on_episode) -> list[Episode]:
        async def one(episode: int) -> Episode:
            played = await player.play(step, split, index, episode)
            on_episode()
            return played

        return await asyncio.gather(*(one(first + e) for e in range(episodes)))

    if hosts.count == 1:
        played: list[Episode] = []

        async def everything() -> None:
            for found in await asyncio.gather(*map(instance, indices)):
                played.extend(found)

        hosts.meet(name, lambda: coroutines.run(everything()), stops=stops)
        return played

    each = -(-min(at_once or len(indices), len(indices)) // hosts.count)

    def on_instance() -> None:
        for _ in range(episodes):
            on_episode()

    shown = Shown(on_instance, each * hosts.count)

    def shared() -> bytes:
        take = hosts.counter()
        taken = 0

        def number() -> int:
            nonlocal taken
            taken = take()
            return taken

        async def play(number: int) -> list[Episode]:
            found = await instance(indices[number], lambda: None)
            shown.played(min(taken, len(indices)))
            return found

        return wire.encode(coroutines.run(share(play, number, len(indices), each)))

    found = [episode for data in hosts.meet(name, shared, stops=stops) for episode in wire.decode(data)]
    shown.show(len(indices))
    place = {index: number for number, index in enumerate(indices)}
    return sorted(found, key=lambda episode: (place[episode.instance], episode.episode))


def train_indices(step: int, instances: int, rounds: int = 1, number: int = 0) -> range:
    """Returns the instances that step ``step`` (counted from 1) plays in one of its ``rounds``.

    Every step and round has new ones, and they depend on these numbers alone. So a run that goes on
    needs to know nothing of the rounds before, and those that no step played are left out.
    """
    first = ((step - 1) * rounds + number) * instances
    return range(first, first + instances)
