"""Turns episodes into credited groups: audits, rules of credit, and counts of what gives no signal.

docs/your-credit.md says which rule is which published one, and how to write one.
"""

import collections
import dataclasses
import math
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np

from atgrpo_jax.common.checks import check_types, require
from atgrpo_jax.common.errors import RunError
from atgrpo_jax.common.literals import told
from atgrpo_jax.common.types import Address, Episode, Group, GroupKey, Origin, receipts
from atgrpo_jax.credit.advantages import Normalise, above, group_relative, running_mean
from atgrpo_jax.credit.sets import (
    Alpha,
    Compared,
    GroupError,
    Placed,
    Rewards,
    check_success,
    compare,
    earning,
    mixed,
    outcome_of,
    return_of,
    whole,
)

Baseline = Literal["group", "instance", "instance_role", "role", "running"]
Earned = Literal["mixed", "return", "outcome"]
NO_MEMORY: Mapping[str, float] = types.MappingProxyType({})


@dataclasses.dataclass(frozen=True)
class CreditConfig:
    """Says how a candidate's advantage is computed. Credit of your own overrides a method.

    ``baseline`` says what a candidate's reward is compared with:

    - "group": with those of its siblings, which answered the same prompt.
    - "instance": whole episodes with the other episodes of their instance; each counts once.
    - "instance_role": with all that its role earned in the episodes of its instance.
    - "role": with all that its role earned in the step.
    - "running": with the role's running mean from before the step, an exponential moving average. In the
      first step in which the role earns anything it is the mean of that step.

    ``reward`` says which reward that is: "mixed" is the candidate's own, alpha * team + local. "return"
    is the sum of these over the executed candidates of its episode. "outcome" is 1 if its episode was
    solved, and else 0. The last two are those of a whole episode, and all that was executed in it gets
    them. With "instance", "mixed" is the return.
    """

    baseline: Baseline = "group"  # what a reward is compared with (docs/your-credit.md)
    # What the difference to the mean is divided by: "std", nothing ("mean"), or the mean, which is the
    # rate of success ("rate"; rewards must be 0 or 1).
    normalise: Normalise = "std"
    reward: Earned = "mixed"  # the candidate's own, or the return or the outcome of its episode
    leave_one_out: bool = False  # whether the mean is that of the others alone
    decay: float = 0.9  # of a "running" mean, a step: how much of it stays
    # The share of groups whose candidates are credited with what comes of each, by playing on from it.
    counterfactual: float = 0.0

    def __post_init__(self):
        check_types(self)
        own = self.reward == "mixed" or self.baseline != "group"
        rule = 'is of executed candidates, and siblings are not; use another baseline than "group"'
        require(self, "reward", own, rule)
        running = self.baseline == "running"
        rule = 'a running mean is one number from before; use "mean"'
        require(self, "normalise", not running or self.normalise == "mean", rule)
        rule = "a running mean holds no reward of its step, so nothing can be left out"
        require(self, "leave_one_out", not (running and self.leave_one_out), rule)
        require(self, "decay", 0 <= self.decay < 1, "must be in [0, 1)")
        require(self, "counterfactual", 0 <= self.counterfactual <= 1, "must be in [0, 1]")
        rule = 'what comes of siblings is compared with one another; needs the baseline "group"'
        require(self, "counterfactual", not self.counterfactual or self.baseline == "group", rule)

    def __repr__(self) -> str:
        """Tells the later fields only if they are set: runs from before them are known by this text."""
        later = {"reward": "mixed", "leave_one_out": False, "decay": 0.9, "counterfactual": 0.0}
        return told(self, later)

    def fits(self, tree: bool, refills: bool) -> bool:
        """Returns whether the rule is for mode "tree" or "trajectories", and for steps of several rounds.

        In a tree, an episode goes on from the best of K candidates. So what it led to is not what the
        policy's draws lead to, and no reward for it. In trajectories, no candidate has a sibling.
        Whether a step ``refills`` depends on which sets have a signal, so none may be of all its rounds.
        """
        if refills and self.baseline in ("role", "running"):
            return False
        if self.reward != "mixed" or self.baseline == "instance":
            return not tree
        return tree or self.baseline != "group"

    def rewards(self, episode: Episode, alpha: Alpha) -> Rewards:
        """Returns what each candidate of an episode earned. ``alpha`` is one for all, or that of each role.

        There is a list for each group, in order, with a number for each candidate, or None if that one is
        not trained. What is returned for partners does not count.
        """
        if self.reward == "outcome":
            return whole(episode, outcome_of(episode))
        if self.reward == "return" or self.baseline == "instance":
            return whole(episode, return_of(episode, alpha))
        return mixed(episode, alpha)

    def set_of(self, key: GroupKey) -> str | None:
        """Returns the name of the set in which a group's candidates are; None if they are one alone."""
        if self.baseline == "group":
            return None
        instance = f"{key.split}/{key.instance}"
        return {"instance": instance, "instance_role": f"{instance}/{key.role}"}.get(self.baseline, key.role)

    def advantages(self, compared: Compared) -> np.ndarray:
        """Returns advantages [G, K] of rewards [G, K]. A set whose advantages are all 0 has no signal.

        Raises GroupError if rewards other than 0 and 1 should be divided by their rate.
        """
        rewards_GK, mask_GK = compared.rewards_GK, compared.mask_GK
        if self.baseline == "running":
            means = {name: running_mean(None, own, 0.0) for name, own in earning(compared)}
            means |= compared.memory
            baselines_G = np.array([means.get(name, 0.0) for name in compared.names])
            return above(rewards_GK, mask_GK, baselines_G)[0]
        if self.normalise == "rate":
            check_success(compared)
        return group_relative(rewards_GK, mask_GK, self.normalise, self.leave_one_out)[0]

    def remembered(self, compared: Compared) -> Mapping[str, float]:
        """Returns numbers by name: ``Compared.memory`` of the next step. Checkpoints hold them."""
        if self.baseline != "running":
            return {}
        memory = dict(compared.memory)
        for name, own in earning(compared):
            memory[name] = running_mean(memory.get(name), own, self.decay)
        return memory


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
        if not candidate.sample.drawn:
            continue
        if candidate.sample.version != version:
            raise GroupError(
                f"group {first.key.path()}: candidate {k} was drawn by version "
                f"{candidate.sample.version} of policy {first.policy}, and the step is of version {version}"
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
    episodes: Sequence[Episode],
    *,
    alpha: Alpha,
    rule: CreditConfig = CreditConfig(),
    memory: Mapping[str, float] = NO_MEMORY,
) -> tuple[list[Credited], dict[str, float], dict[str, float]]:
    """Returns all groups with the advantages of their candidates, metrics, and the next step's memory.

    ``alpha`` is that of all roles, or a mapping from each role. ``memory`` is what the step before left.

    Groups without signal are included; their mask is false. So are the groups of partners, which
    count in no baseline and in no metric. The metrics ``groups/...`` count sets of rewards that are
    compared: with the baseline "group", these are the groups.

    Raises GroupError if a reward or an advantage is not finite, and RunError for a rule whose rewards or
    advantages have another shape than what they are for.
    """
    placed, compared = _compared(episodes, alpha, rule, memory)
    advantages_GK = _advantages(rule, compared)
    signal_G = (advantages_GK != 0).any(1)
    credited = []
    for group, row, columns in placed:
        trained_K = np.array([column is not None and signal_G[row] for column in columns], bool)
        advantages_K = [0.0 if column is None else advantages_GK[row, column] for column in columns]
        credited.append(Credited(group, np.array(advantages_K, np.float32), trained_K))
    after = _memory(rule, compared)
    members_G = compared.mask_GK.sum(1)
    drawn = (c for g in placed if not g.group.by_partner for c in g.group.candidates)
    outcomes = collections.Counter(c.outcome.value for c in drawn)
    total = max(len(signal_G), 1)
    metrics = {
        "groups/total": float(len(signal_G)),
        "groups/signal": float(signal_G.sum()) / total,
        "groups/zero_variance": float(((members_G >= 2) & ~signal_G).sum()) / total,
        "groups/too_small": float(((members_G < 2) & ~signal_G).sum()) / total,
    }
    candidates = max(sum(outcomes.values()), 1)
    metrics |= {f"outcome/{name}": n / candidates for name, n in sorted(outcomes.items())}
    return credited, metrics | {f"credit/{name}": value for name, value in after.items()}, after


def with_signal(
    episodes: Sequence[Episode], *, alpha: Alpha, rule: CreditConfig, updates: Callable[[Group], bool]
) -> int:
    """Returns how many sets hold rewards that differ, and groups of policies that are updated."""
    placed, compared = _compared(episodes, alpha, rule, NO_MEMORY)
    signal_G = group_relative(compared.rewards_GK, compared.mask_GK, "mean")[1]
    return len({row for group, row, _ in placed if updates(group) and signal_G[row]})


def remembered(
    episodes: Sequence[Episode], *, alpha: Alpha, rule: CreditConfig, memory: Mapping[str, float]
) -> dict[str, float]:
    """Returns the memory that ``credit`` returns, without advantages."""
    return _memory(rule, _compared(episodes, alpha, rule, memory)[1])


def _compared(
    episodes: Sequence[Episode], alpha: Alpha, rule: CreditConfig, memory: Mapping[str, float]
) -> tuple[list[Placed], Compared]:
    earned = ((episode, _rewards(rule, episode, alpha)) for episode in episodes)
    return compare(earned, rule.set_of, rule.baseline == "instance", memory)


def _rewards(rule: CreditConfig, episode: Episode, alpha: Alpha) -> Rewards:
    rewards = rule.rewards(episode, alpha)
    given, asked = [len(row) for row in rewards], [len(group.candidates) for group in episode.groups]
    if given != asked:
        raise RunError(
            f"{type(rule).__name__}.rewards returned lists of {given} rewards for groups of {asked} "
            "candidates; it must return a number or None for each (docs/your-credit.md)"
        )
    for group, row in zip(episode.groups, rewards, strict=True):
        for k, reward in enumerate(row):
            if not (group.by_partner or reward is None or math.isfinite(reward)):
                raise GroupError(
                    f"{group.origin.key.path()}: candidate {k} has the reward {reward}; must be finite"
                )
    return rewards


def _advantages(rule: CreditConfig, compared: Compared) -> np.ndarray:
    """Returns float32 advantages, 0 where masked."""
    advantages_GK = np.asarray(rule.advantages(compared))
    if advantages_GK.shape != compared.mask_GK.shape:
        raise RunError(
            f"{type(rule).__name__}.advantages returned the shape {advantages_GK.shape} for rewards of the "
            f"shape {compared.mask_GK.shape}; these must be the same (docs/your-credit.md)"
        )
    advantages_GK = np.where(compared.mask_GK, advantages_GK, 0.0).astype(np.float32)
    for name, advantages_K, rewards_K in zip(compared.names, advantages_GK, compared.rewards_GK, strict=True):
        if not np.isfinite(advantages_K).all():
            raise GroupError(
                f"{name}: the advantages {advantages_K.tolist()} of the rewards {rewards_K.tolist()} are not "
                "all finite"
            )
    return advantages_GK


def _memory(rule: CreditConfig, compared: Compared) -> dict[str, float]:
    return {name: float(value) for name, value in sorted(rule.remembered(compared).items())}
