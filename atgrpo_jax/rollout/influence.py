"""Plays episodes once more, in which one role says something else, to see what its words change.

Whoever is asked the same as before gives the same answer, and everything else is drawn at its own
address. So two episodes differ by what the role said, and by what came of it.
"""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from atgrpo_jax.common.errors import ConfigError
from atgrpo_jax.common.hosts import ALONE, Hosts
from atgrpo_jax.common.types import Episode, Group, GroupKey, Sample, seed_of
from atgrpo_jax.rollout.contributions import Compared, Instead, team_reward
from atgrpo_jax.rollout.player import Player, Propose
from atgrpo_jax.rollout.rollout import play_all
from atgrpo_jax.tasks.workflow import Workflow


@dataclasses.dataclass(frozen=True)
class Influence:
    """Measures what the words of each role change in episodes of one step and split.

    Args:
      player: has played ``episodes``, with groups of one candidate.
      siblings: draws all candidates of a group, of which the first one was executed.
      episodes: one of each instance.
      at_once: as in ``play_all``.
    """

    player: Player
    siblings: Propose
    episodes: Sequence[Episode]
    hosts: Hosts = ALONE
    at_once: int | None = None

    def __post_init__(self):
        check_enough(len(self.episodes))

    @property
    def plan(self) -> list[tuple[str, Instead]]:
        """Returns what is compared. Partners are left out: their servers answer a message once."""
        workflow = self.player.task.workflow
        drawn = self.player.team.drawn(workflow.roles)
        kinds: list[tuple[str, Instead]] = []
        for role in drawn:
            kinds += [(role, "sibling"), (role, "silent"), (role, "shuffled")]
            if _hears(workflow, role, set(drawn)):
                kinds.append((role, "echo"))
        return kinds

    def episodes_of(self, role: str) -> list[Episode]:
        """Returns the episodes in which a role spoke and no engine failed."""
        whole = [episode for episode in self.episodes if episode.end != "engine_error"]
        return [episode for episode in whole if _of(episode.groups, role)]

    def measure(self, role: str, instead: Instead, on_episode: Callable[[], None] = lambda: None) -> Compared:
        """Plays the episodes with other words of a role; calls ``on_episode`` after each."""
        began = time.monotonic()
        spoken = self.episodes_of(role)
        if instead in ("shuffled", "echo") and len(spoken) < 2:
            spoken = []  # there is no other episode to take words from
        telling = _Telling(self, role, instead, {episode.instance: episode for episode in spoken})
        again: list[Episode] = []
        if spoken:
            player = dataclasses.replace(self.player, propose=telling.propose, forced=telling.forced)
            step = spoken[0].groups[0].origin.key.step
            indices = [episode.instance for episode in spoken]
            again = play_all(
                player,
                step,
                spoken[0].split,
                indices,
                1,
                on_episode,
                self.hosts,
                self.at_once,
                first=spoken[0].episode,
            )
        pairs = [
            (own, other) for own, other in zip(spoken, again, strict=True) if other.end != "engine_error"
        ]
        alike = [_texts(own, role) == _texts(other, role) for own, other in pairs]
        kept = [pair for pair, same in zip(pairs, alike, strict=True) if instead != "sibling" or not same]
        return Compared(
            role,
            instead,
            np.array([own.solved for own, _ in kept], bool),
            np.array([other.solved for _, other in kept], bool),
            np.array([team_reward(own.groups) for own, _ in kept]),
            np.array([team_reward(other.groups) for _, other in kept]),
            sum(alike),
            len(spoken) - len(pairs),
            telling.tokens,
            time.monotonic() - began,
        )


def check_enough(instances: int) -> None:
    """Raises ConfigError if there are too few instances to take words from another one."""
    if instances < 2:
        raise ConfigError("influence needs at least 2 instances: what a role said in one is tried in another")


class _Telling:
    """Answers in the place of an engine: what was said before, other words of one role, or new draws."""

    def __init__(self, influence: Influence, role: str, instead: Instead, episodes: Mapping[int, Episode]):
        self._player = influence.player
        self._siblings = influence.siblings
        self._role = role
        self._instead = instead
        self._episodes = episodes
        self._known = {group.origin.key: group for e in episodes.values() for group in e.groups}
        self._nodes = {_node(episode, role) for episode in episodes.values()} if instead == "sibling" else ()
        self._said: dict[int, dict[GroupKey, Sample]] = {}  # of each instance, this time
        self.forced: dict[GroupKey, int] = {}  # the siblings that are executed
        self.tokens = 0

    async def propose(
        self, state: Any, key: GroupKey, prompt_ids: tuple[int, ...], policy: str, spoken: bool
    ) -> Sequence[Sample]:
        if key in self._nodes:
            drawn = await self._siblings(state, key, prompt_ids, policy, spoken)
            return self._branched(key, drawn)
        known = self._known.get(key)
        if key.role == self._role and self._instead != "sibling":
            samples: Sequence[Sample] = [self._other(key)]
        elif known is not None and known.origin.prompt_ids == prompt_ids:
            samples = [known.candidates[0].sample]
        else:
            samples = await self._player.propose(state, key, prompt_ids, policy, spoken)
            self._count(samples)
        self._said.setdefault(key.instance, {})[key] = samples[0]
        return samples

    def _branched(self, key: GroupKey, drawn: Sequence[Sample]) -> Sequence[Sample]:
        """Returns the group of a node. Executed is the first candidate that says something else."""
        own = self._known[key].candidates[0]
        self._count(drawn)
        for k, sample in enumerate(drawn):
            if k and sample.drawn and self._player.tokenizer.decode(sample.tokens) != own.text:
                self.forced[key] = k
                break
        return [own.sample, *drawn[1:]]

    def _other(self, key: GroupKey) -> Sample:
        """Returns what is said in the role's place."""
        elsewhere = _elsewhere(self._episodes, key)
        if self._instead == "silent":
            tokens = self._player.tokenizer.answer_ids("")
            return Sample(tokens, (0.0,) * len(tokens), "stop", elsewhere.version)
        stages = self._player.task.workflow.stages
        said = self._said.get(key.instance, {})
        before = [k for k in said if k.turn == key.turn and k.stage < key.stage and k.role != self._role]
        if self._instead == "echo" and before:
            return said[max(before, key=lambda k: (k.stage, stages[k.stage].index(k.speaker)))]
        return elsewhere

    def _count(self, drawn: Sequence[Sample]) -> None:
        self.tokens += sum(len(sample.tokens) for sample in drawn)


def _elsewhere(episodes: Mapping[int, Episode], key: GroupKey) -> Sample:
    """Returns what ``key.role`` said in the episode after that of ``key``, at the place most like it.

    The last episode is followed by the first one.
    """
    instances = list(episodes)
    following = instances[(instances.index(key.instance) + 1) % len(instances)]

    def likeness(group: Group) -> tuple[bool, bool, int]:
        there = group.origin.key
        return there.speaker == key.speaker, there.stage == key.stage, -abs(there.turn - key.turn)

    return max(_of(episodes[following].groups, key.role), key=likeness).candidates[0].sample


def _node(episode: Episode, role: str) -> GroupKey:
    """Returns one of the groups of a role, chosen at random, always the same one."""
    keys = [group.origin.key for group in _of(episode.groups, role)]
    return keys[seed_of("influence", keys[0].path()) % len(keys)]


def _of(groups: Sequence[Group], role: str) -> list[Group]:
    return [group for group in groups if group.origin.key.role == role]


def _texts(episode: Episode, role: str) -> list[str]:
    """Returns what a role has said, as it was executed."""
    executed = [
        group.candidates[group.chosen] for group in _of(episode.groups, role) if group.chosen is not None
    ]
    return [candidate.text for candidate in executed]


def _hears(workflow: Workflow, role: str, drawn: set[str]) -> bool:
    """Returns whether another role with a policy speaks before this one in a turn."""
    before: set[str] = set()
    for stage in workflow.stages:
        here = {workflow.seat(speaker)[0] for speaker in stage}
        if role in here and (before & drawn) - {role}:
            return True
        before |= here
    return False
