"""Credits the candidates of a group with what comes of each, by playing on from every one of them.

docs/your-credit.md says what is played on, why, and what it costs.
"""

import asyncio
import copy
import dataclasses
from collections.abc import Sequence
from typing import Any

from atgrpo_jax.common.types import FAILURES, Candidate, Episode, Group, GroupKey, Sample, seed_of
from atgrpo_jax.credit.advantages import apart
from atgrpo_jax.rollout.contributions import team_reward
from atgrpo_jax.rollout.crossings import Crossing, EpisodeKey
from atgrpo_jax.rollout.player import Player, Propose
from atgrpo_jax.tasks.protocol import digest


class Counterfactual:
    """Replaces the team part of rewards: it becomes the team's reward from the candidate on to the end.

    A continuation has one draw a node, at the address of that node's first candidate, so siblings meet
    the same noise. Candidates that lead to the same state share one. A candidate whose continuation has
    no end, because an engine or a tool failed, has no reward.

    Args:
      propose: draws the first candidate of a group, and no other one.
      share: of the groups of updated policies that are played on; the others keep their rewards.
      seed: of the run; it decides which groups these are.
    """

    def __init__(self, propose: Propose, share: float, seed: int):
        self._propose = propose
        self._share = share
        self._seed = seed
        # Groups that were played on, those of them in which a sibling came to more than the executed
        # candidate, and tokens that were drawn for it.
        self.counts = {"groups": 0, "misled": 0, "tokens": 0}

    async def credited(
        self,
        player: Player,
        episode_key: EpisodeKey,
        episode: Episode,
        crossings: Sequence[Crossing | None],
    ) -> Episode:
        draws = _Draws(self._propose, episode)
        # Whatever training leaves out, the team as it is evaluated goes on from it.
        failures = tuple(outcome for outcome in player.exclude if outcome in FAILURES)
        alone = dataclasses.replace(
            player, propose=draws.propose, further=None, forced={}, exclude=failures, afterwards=None
        )
        updated = player.team.updated(episode_key.step, player.task.workflow.roles)

        async def credit(group: Group, crossing: Crossing | None) -> Group:
            chance = seed_of("counterfactual", self._seed, group.origin.key.path()) / 2**64
            if crossing is None or group.origin.policy not in updated or chance >= self._share:
                return group
            return await self._group(alone, episode_key, group, crossing)

        pairs = zip(episode.groups, crossings, strict=True)
        groups = await asyncio.gather(*(credit(*pair) for pair in pairs))
        self.counts["tokens"] += draws.tokens
        return dataclasses.replace(episode, groups=tuple(groups))

    async def _group(
        self, player: Player, episode_key: EpisodeKey, group: Group, crossing: Crossing
    ) -> Group:
        """Plays on from each candidate that has a reward. Returns the group with the new ones."""
        states: dict[int, str] = {}
        for k, (candidate, then) in enumerate(zip(group.candidates, crossing.transitions, strict=True)):
            if candidate.reward is not None and then is not None:
                states[k] = digest((then.state, then.done, then.solved))
        alike = {state: k for k, state in reversed(states.items())}  # the first one of each
        if len(alike) < 2:
            return group  # the same would come of all
        found = await asyncio.gather(*(_after(player, episode_key, crossing, k) for k in alike.values()))
        came = dict(zip(alike, found, strict=True))
        candidates = [
            _earning(candidate, came[states[k]]) if k in states else candidate
            for k, candidate in enumerate(group.candidates)
        ]
        alpha = player.team.alpha_of(group.origin.key.role)
        self.counts["groups"] += 1
        self.counts["misled"] += _misled(candidates, group.chosen, alpha)
        return dataclasses.replace(group, candidates=tuple(candidates))


class _Draws:
    """Draws what continuations of one episode say, each once. Whoever is asked the same as in the episode
    says what its first candidate said there."""

    def __init__(self, propose: Propose, episode: Episode):
        self._propose = propose
        self._said = {(g.origin.key, g.origin.prompt_ids): [g.candidates[0].sample] for g in episode.groups}
        self._drawn: dict[tuple[GroupKey, tuple[int, ...]], asyncio.Future[Sequence[Sample]]] = {}
        self.tokens = 0

    async def propose(
        self, state: Any, key: GroupKey, prompt_ids: tuple[int, ...], policy: str, spoken: bool
    ) -> Sequence[Sample]:
        at = key, prompt_ids
        if at in self._said:
            return self._said[at]
        if at not in self._drawn:
            self._drawn[at] = asyncio.ensure_future(self._draw(state, key, prompt_ids, policy, spoken))
        return await self._drawn[at]

    async def _draw(self, *asked: Any) -> Sequence[Sample]:
        drawn = await self._propose(*asked)
        self.tokens += sum(len(sample.tokens) for sample in drawn)
        return drawn


async def _after(player: Player, episode_key: EpisodeKey, crossing: Crossing, k: int) -> float | None:
    """Returns what the team earns after candidate k, to the end; None if there is none."""
    course = copy.copy(crossing.course)
    transition = crossing.transitions[k]
    assert transition is not None
    course.take(transition)
    groups, _ = await player.go_on(episode_key, course, [own[:1] for own in crossing.drawn])
    return None if course.end is None else team_reward(groups)


def _earning(candidate: Candidate, later: float | None) -> Candidate:
    """Returns a candidate that is also credited with what the team earned later."""
    assert candidate.reward is not None
    if later is None:
        return dataclasses.replace(candidate, reward=None)
    team = candidate.reward.team
    reward = dataclasses.replace(candidate.reward, team=team + later, at_once=team)
    return dataclasses.replace(candidate, reward=reward)


def _misled(candidates: Sequence[Candidate], chosen: int | None, alpha: float) -> bool:
    """Returns whether a sibling has more than the executed candidate, by the new rewards."""
    mixed = {k: c.reward.mixed(alpha) for k, c in enumerate(candidates) if c.reward is not None}
    return chosen in mixed and bool(apart(mixed[chosen], max(mixed.values())))
