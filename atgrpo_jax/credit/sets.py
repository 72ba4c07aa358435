"""Says what candidates earned, and puts side by side what is compared."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from atgrpo_jax.common.errors import RunError
from atgrpo_jax.common.types import Candidate, Episode, Group, GroupKey, of_role
from atgrpo_jax.credit.advantages import apart

Alpha = float | Mapping[str, float]
# Of an episode: for each of its groups, what each candidate earned. None is not trained, and compared
# with nothing.
Rewards = Sequence[Sequence[float | None]]


class GroupError(RunError):
    """Says that members of one group cannot share a baseline."""


def mixed(episode: Episode, alpha: Alpha) -> Rewards:
    """Returns alpha * team + local of every candidate (arXiv 2510.11062, eq. 4).

    Raises GroupError that names the candidate if that is not finite. Those of partners are left out.
    """
    return [
        [None if group.by_partner else _mixed(candidate, alpha) for candidate in group.candidates]
        for group in episode.groups
    ]


def whole(episode: Episode, value: float | None) -> Rewards:
    """Returns one value of the whole episode for each executed candidate. Its siblings get none."""
    return [
        [value if k == group.chosen else None for k in range(len(group.candidates))]
        for group in episode.groups
    ]


def return_of(episode: Episode, alpha: Alpha) -> float | None:
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
        earned = _mixed(executed, alpha)
        assert earned is not None
        weight = of_role(alpha, group.origin.key.role)
        total += weight * executed.reward.team if group.by_partner else earned
    return total


def outcome_of(episode: Episode) -> float | None:
    """Returns 1 for an episode that was solved, and else 0; None if the engine failed."""
    return None if episode.end == "engine_error" else float(episode.solved)


class Compared(NamedTuple):
    """The sets of a step: a row holds the rewards that are compared with each other."""

    names: Sequence[str]  # of the G sets; what ``CreditConfig.set_of`` returned
    rewards_GK: np.ndarray  # float64; what is masked may be anything
    mask_GK: np.ndarray  # bool; true where there is a reward
    memory: Mapping[str, float]  # what ``CreditConfig.remembered`` returned in the step before


class Placed(NamedTuple):
    """A group, and where its candidates are in ``Compared``."""

    group: Group
    row: int  # -1 if a partner spoke
    columns: Sequence[int | None]  # of each candidate; None if it has no reward


def compare(
    earned: Iterable[tuple[Episode, Rewards]],
    set_of: Callable[[GroupKey], str | None],
    once: bool,
    memory: Mapping[str, float],
) -> tuple[list[Placed], Compared]:
    """Returns all groups in order, with their places among the sets of a step.

    Args:
      earned: the episodes, and what their candidates earned.
      set_of: the name of the set that a group's candidates are in; None if they are one by themselves.
      once: whether each episode counts once in its set. Then all that it earned must be one number.
    """
    placed = []
    names: list[str] = []
    rows: list[list[float | None]] = []
    numbers: dict[str, int] = {}  # of the rows of several groups
    for episode, rewards in earned:
        counted: dict[int, int] = {}  # the column of this episode in each of its rows
        for group, rewards_K in zip(episode.groups, rewards, strict=True):
            if group.by_partner:
                placed.append(Placed(group, -1, [None] * len(group.candidates)))
                continue
            name = set_of(group.origin.key)
            number = len(rows) if name is None else numbers.setdefault(name, len(rows))
            if number == len(rows):
                rows.append([])
                names.append(name or group.origin.key.path())
            row = rows[number]
            if once:
                column = counted.setdefault(number, len(row))
                if column == len(row):
                    row.append(None)
                _count_once(row, column, group, rewards_K)
                columns = [column] * len(rewards_K)
            else:
                columns = list(range(len(row), len(row) + len(rewards_K)))
                row.extend(rewards_K)
            present = zip(columns, rewards_K, strict=True)
            placed.append(Placed(group, number, [None if r is None else c for c, r in present]))
    return placed, Compared(names, *_table(rows), memory)


def earning(compared: Compared) -> Iterator[tuple[str, np.ndarray]]:
    """Yields the name and the rewards of each set that has any."""
    for name, rewards_K, mask_K in zip(compared.names, compared.rewards_GK, compared.mask_GK, strict=True):
        if mask_K.any():
            yield name, rewards_K[mask_K]


def check_success(compared: Compared) -> None:
    """Raises GroupError if a reward is neither 0 nor 1."""
    for name, rewards_N in earning(compared):
        for reward in rewards_N:
            if all(apart(min(reward, one), max(reward, one)) for one in (0.0, 1.0)):
                raise GroupError(
                    f'{name}: a reward is {reward}, and CreditConfig.normalise = "rate" is for rewards that '
                    'are all 0 or 1; CreditConfig.reward = "outcome" gives such'
                )


def _count_once(
    row: list[float | None], column: int, group: Group, rewards_K: Sequence[float | None]
) -> None:
    """Puts into a column the one number that an episode earned. Raises GroupError if there are two."""
    for k, reward in enumerate(rewards_K):
        if reward is not None and row[column] not in (None, reward):
            raise GroupError(
                f"{group.origin.key.path()}: candidate {k} earned {reward}, and another one of its episode "
                f'{row[column]}; baseline "instance" compares whole episodes, so it needs one number for each'
            )
        row[column] = row[column] if reward is None else reward


def _mixed(candidate: Candidate, alpha: Alpha) -> float | None:
    if candidate.reward is None:
        return None
    mixed = candidate.reward.mixed(of_role(alpha, candidate.origin.key.role))
    if not math.isfinite(mixed):
        raise GroupError(
            f"{candidate.origin.key.path()}: {candidate.reward} mixed is {mixed}; must be finite"
        )
    return mixed


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
