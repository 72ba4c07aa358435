"""Turns episodes into credited groups: audits, baselines, and counts of what gives no signal."""

import collections
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from atgrpo_jax.common.checks import check_types
from atgrpo_jax.common.errors import RunError
from atgrpo_jax.common.types import Address, Candidate, Episode, Group, Origin, of_role, receipts
from atgrpo_jax.credit.advantages import Normalise, group_relative

Baseline = Literal["group", "instance"]
Alpha = float | Mapping[str, float]


class GroupError(RunError):
    """Says that members of one group cannot share a baseline."""


@dataclasses.dataclass(frozen=True)
class CreditConfig:
    """Says how a candidate's advantage is computed; see ``credit``."""

    baseline: Baseline = "group"  # who a candidate is compared with; see ``credit``
    normalise: Normalise = "std"  # what the difference is divided by

    def __post_init__(self):
        check_types(self)


@dataclasses.dataclass(frozen=True)
class Credited:
    """A group that is ready to train. ``mask_K`` is false where a candidate gives no gradient."""

    group: Group
    advantages_K: np.ndarray
    mask_K: np.ndarray


def audit(group: Group, version: int, seed: int) -> None:
    """Raises GroupError unless all members have the same ``Origin`` and were drawn as it says.

    The origin is their prompt, state, policy, weight version and sampling settings. What was drawn
    is what the engine says: ``version`` must have drawn candidate k, at address k of a run with
    this ``seed``, from the origin's prompt and settings. The error names the first member that
    differs. A sample that failed may have any version and receipt. What a partner answered is not
    looked at: no weights of ours drew it.
    """
    if group.by_partner:
        return
    first = group.candidates[0].origin
    addresses = [Address(seed, first.key, k) for k in range(len(group.candidates))]
    expected_receipts = receipts(first.policy, first.prompt_ids, first.sampling, addresses)
    for k, candidate in enumerate(group.candidates):
        for field in dataclasses.fields(Origin):
            value = getattr(candidate.origin, field.name)
            expected = getattr(first, field.name)
            if value != expected:
                raise GroupError(
                    f"group {first.key.path()}: candidate {k} differs in {field.name} "
                    f"({value!r}, candidate 0 has {expected!r})"
                )
        if candidate.sample.finish == "error":
            continue
        if candidate.sample.version != version:
            raise GroupError(
                f"group {first.key.path()}: candidate {k} was drawn by version "
                f"{candidate.sample.version} of policy {first.policy}, the learner holds {version}"
            )
        if not candidate.sample.receipt:
            raise GroupError(
                f"group {first.key.path()}: the engine gave no receipt for candidate {k}; it must fill in "
                "Sample.receipt with what common.types.receipts returns (docs/your-engine.md)"
            )
        if candidate.sample.receipt != expected_receipts[k]:
            raise GroupError(
                f"group {first.key.path()}: the engine drew candidate {k} for another request: its prompt, "
                "policy, sampling settings or address are not those that the rollout recorded"
            )


def credit(
    episodes: Sequence[Episode], *, alpha: Alpha, baseline: Baseline, normalise: Normalise
) -> tuple[list[Credited], dict[str, float]]:
    """Returns all groups with the advantages of their candidates, and metrics.

    baseline "group" is AT-GRPO: it compares a candidate's mixed reward with those of its siblings
    (same instance, turn and role). "instance" is trajectory-level GRPO: it compares an episode's
    return with those of the other episodes of the instance, and gives the advantage to every
    sample of the episode. A return is the sum of the mixed rewards of the executed candidates.

    ``alpha`` is that of all roles, or a mapping from each role.

    Groups without signal are included; their mask is false. So are the groups of partners, which
    count in no baseline and in no metric. Only the team part of what partners did counts in the
    return of an episode.

    Raises GroupError that names the candidate if a mixed reward is not finite.
    """
    groups = [group for episode in episodes for group in episode.groups]
    if baseline == "group":
        drawn = [group for group in groups if not group.by_partner]
        rewards_GK, mask_GK = _table([_rewards(group, alpha) for group in drawn])
        advantages_GK, signal_G = group_relative(rewards_GK, mask_GK, normalise)
        trained = [
            Credited(g, a[: len(g.candidates)], (m & s)[: len(g.candidates)])
            for g, a, m, s in zip(drawn, advantages_GK, mask_GK, signal_G, strict=True)
        ]
        others = iter(trained)
        credited = [_untrained(group) if group.by_partner else next(others) for group in groups]
    else:
        credited, mask_GK, signal_G = _by_instance(episodes, alpha, normalise)
    members_G = mask_GK.sum(1)
    drawn_candidates = (c for g in groups if not g.by_partner for c in g.candidates)
    outcomes = collections.Counter(c.outcome.value for c in drawn_candidates)
    total = max(len(signal_G), 1)
    metrics = {
        "groups/total": float(len(signal_G)),
        "groups/signal": float(signal_G.sum()) / total,
        "groups/zero_variance": float(((members_G >= 2) & ~signal_G).sum()) / total,
        "groups/too_small": float((members_G < 2).sum()) / total,
    }
    candidates = max(sum(outcomes.values()), 1)
    metrics |= {f"outcome/{name}": n / candidates for name, n in sorted(outcomes.items())}
    return credited, metrics


def with_signal(episodes: Sequence[Episode], *, alpha: Alpha, baseline: Baseline) -> int:
    """Returns how many groups have members that were paid differently: those that teach something.

    With baseline "instance" the members are the episodes of an instance.
    """
    if baseline == "group":
        groups = (group for episode in episodes for group in episode.groups if not group.by_partner)
        rewards_GK, mask_GK = _table([_rewards(group, alpha) for group in groups])
    else:
        rewards_GK, mask_GK = _table(list(_returns(episodes, alpha).values()))
    return int(group_relative(rewards_GK, mask_GK, "mean")[1].sum())


def _returns(episodes: Sequence[Episode], alpha: Alpha) -> dict[tuple[str, int], list[float | None]]:
    found = collections.defaultdict(list)
    for episode in episodes:
        found[episode.split, episode.instance].append(_return(episode, alpha))
    return found


def _by_instance(episodes: Sequence[Episode], alpha: Alpha, normalise: Normalise):
    sets: dict[tuple, list[Episode]] = collections.defaultdict(list)
    for episode in episodes:
        sets[episode.split, episode.instance].append(episode)
    returns = []
    for members in sets.values():
        returns.append([_return(episode, alpha) for episode in members])
    rewards_GK, mask_GK = _table(returns)
    advantages_GK, signal_G = group_relative(rewards_GK, mask_GK, normalise)
    credited = []
    for members, advantages_K, mask_K, signal in zip(
        sets.values(), advantages_GK, mask_GK, signal_G, strict=True
    ):
        for episode, advantage, present in zip(members, advantages_K, mask_K, strict=False):
            for group in episode.groups:
                if group.by_partner:
                    credited.append(_untrained(group))
                    continue
                advantages = np.full(len(group.candidates), advantage, np.float32)
                trained = [present and signal and c.reward is not None for c in group.candidates]
                credited.append(Credited(group, advantages, np.array(trained)))
    return credited, mask_GK, signal_G


def _untrained(group: Group) -> Credited:
    count = len(group.candidates)
    return Credited(group, np.zeros(count, np.float32), np.zeros(count, bool))


def _rewards(group: Group, alpha: Alpha) -> list[float | None]:
    return [_reward(candidate, alpha) for candidate in group.candidates]


def _reward(candidate: Candidate, alpha: Alpha) -> float | None:
    if candidate.reward is None:
        return None
    mixed = candidate.reward.mixed(of_role(alpha, candidate.origin.key.role))
    if not math.isfinite(mixed):
        raise GroupError(
            f"{candidate.origin.key.path()}: {candidate.reward} mixed is {mixed}; must be finite"
        )
    return mixed


def _return(episode: Episode, alpha: Alpha) -> float | None:
    """Returns the sum of the executed candidates' mixed rewards; None if the engine failed.

    Of what a partner did only the team part counts: nobody is trained to earn the rest.
    """
    if episode.end == "engine_error":
        return None
    total = 0.0
    for group in episode.groups:
        executed = None if group.chosen is None else group.candidates[group.chosen]
        if executed is None or executed.reward is None:
            continue
        mixed = _reward(executed, alpha)
        assert mixed is not None
        weight = of_role(alpha, group.origin.key.role)
        total += weight * executed.reward.team if group.by_partner else mixed
    return total


def _table(rows: Sequence[Sequence[float | None]]) -> tuple[np.ndarray, np.ndarray]:
    """Returns rewards_GK and mask_GK from rows of several lengths; None is a missing reward."""
    size = max(map(len, rows), default=1)
    mask_GK = np.zeros((len(rows), size), bool)
    rewards_GK = np.zeros((len(rows), size), np.float64)
    for g, row in enumerate(rows):
        for k, reward in enumerate(row):
            if reward is not None:
                rewards_GK[g, k] = reward
                mask_GK[g, k] = True
    return rewards_GK, mask_GK
