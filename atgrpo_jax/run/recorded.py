"""Makes values of what is written down of episodes: the inverse of ``episodes.written``.

Only the receipts of samples are not written down.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from atgrpo_jax.common.types import (
    Candidate,
    Episode,
    Group,
    GroupKey,
    Origin,
    Outcome,
    Ran,
    Reward,
    Sample,
    Sampling,
)
from atgrpo_jax.credit.groups import Credited
from atgrpo_jax.rollout.wire import as_board


def episode_of(record: Mapping[str, Any], sampling: Mapping[str, Sampling]) -> Episode:
    """Returns an episode.

    Args:
      sampling: how each role drew; a role that is not named is a partner's.
    """
    groups = tuple(_group(record, group, sampling) for group in record["groups"])
    return Episode(
        record["split"],
        record["instance"],
        record["episode"],
        groups,
        record["solved"],
        record["turns"],
        record["end"],
        record["problem"],
        as_board(record["board"]),
    )


def credited_of(record: Mapping[str, Any], sampling: Mapping[str, Sampling]) -> list[Credited]:
    """Returns the groups of a training episode with their advantages, as the update was given them."""
    found = []
    for group, own in zip(episode_of(record, sampling).groups, record["groups"], strict=True):
        advantages_K = np.array([c["advantage"] for c in own["candidates"]], np.float32)
        found.append(Credited(group, advantages_K, np.array([c["trained"] for c in own["candidates"]])))
    return found


def key_of(record: Mapping[str, Any], group: Mapping[str, Any]) -> GroupKey:
    """Returns the place of a group of a recorded episode."""
    place = record["step"], record["split"], record["instance"], record["episode"]
    return GroupKey(*place, group["turn"], group["role"], group["seat"], group["stage"])


def _group(record: Mapping[str, Any], group: Mapping[str, Any], sampling: Mapping[str, Sampling]) -> Group:
    drawn = dataclasses.replace(
        sampling.get(group["role"], Sampling()), temperature=float(group["temperature"])
    )
    origin = Origin(
        key_of(record, group),
        tuple(group["prompt_ids"]),
        group["state"],
        group["policy"],
        group["version"],
        drawn,
    )
    members = tuple(_candidate(origin, one) for one in group["candidates"])
    return Group(members, group["executed"], as_board(group["board"]))


def _candidate(origin: Origin, one: Mapping[str, Any]) -> Candidate:
    reward = None if one["team"] is None else Reward(one["team"], one["local"], one["parts"])
    programs = tuple(Ran(**ran) for ran in one["programs"])
    return Candidate(
        origin,
        _sample(origin.version, one),
        one["text"],
        Outcome(one["outcome"]),
        reward,
        one["note"],
        programs,
        one["metrics"],
    )


def _sample(version: int, one: Mapping[str, Any]) -> Sample:
    drawn = _floats(one["drawn_logprobs"])
    logprobs = _floats(one["logprobs"])
    assert logprobs is not None
    return Sample(tuple(one["tokens"]), logprobs, one["finish"], version, drawn)


def _floats(values: Sequence[float] | None) -> tuple[float, ...] | None:
    return None if values is None else tuple(values)
