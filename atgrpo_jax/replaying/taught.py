"""Shows what a step taught: how likely each answer was before and after, and what each token weighed."""

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from atgrpo_jax.common.errors import RunError
from atgrpo_jax.common.types import Batch, GroupKey
from atgrpo_jax.credit.groups import Credited
from atgrpo_jax.replaying.teams import Teams
from atgrpo_jax.run.saved import SavedRun
from atgrpo_jax.run.team_state import TeamState
from atgrpo_jax.update.batch import pack
from atgrpo_jax.update.learner import Learner, PolicyState, UpdateInputs

MOST = 1 << 24  # larger whole numbers are no float32


class Taught(NamedTuple):
    """What a step did to one candidate; float32, a value for each token."""

    after: np.ndarray  # logprobs by the team after the step, at the temperature of the draw
    weight: np.ndarray  # ``Learner.effective_weights``, summed over the step's updates


Place = tuple[GroupKey, int]  # a group, and the number of a candidate in it


def taught(saved: SavedRun, teams: Teams, step: int) -> dict[Place, Taught]:
    """Makes a step's update again. Returns what it did to each candidate that a policy drew."""
    saved = saved.at(step)
    teams.after(step - 1)
    weights: dict[str, list[np.ndarray]] = {}

    def watch(policy: str, learner: Learner, state: PolicyState, inputs: UpdateInputs) -> None:
        weights.setdefault(policy, []).append(learner.effective_weights(state.params, inputs))

    team, credited = teams.learn(watch)
    drawn = [item for item in credited if item.group.origin.policy]
    by_policy: dict[str, list[Credited]] = defaultdict(list)
    for item in drawn:
        by_policy[item.group.origin.policy].append(item)
    found: dict[Place, Taught] = {}
    for policy, items in by_policy.items():
        numbered, places = _numbered(items)
        batches = saved.learner.batches(numbered, step) if policy in weights else ()  # not if it is frozen
        weighed = _gathered(places, zip(batches, weights.get(policy, ()), strict=True))
        after = logprobs(saved, team, items)
        found |= {place: Taught(after[place], weighed[place]) for place in places}
    return found


def logprobs(saved: SavedRun, team: TeamState, items: Sequence[Credited]) -> dict[Place, np.ndarray]:
    """Returns the logprobs of all tokens of all candidates, by their policy as it is in ``team``."""
    whole = []
    for item in items:
        said = np.array([bool(c.sample.tokens) for c in item.group.candidates])
        whole.append(dataclasses.replace(item, mask_K=said))
    numbered, places = _numbered(whole)
    policy = items[0].group.origin.policy
    batch = pack(numbered, saved.experiment.batch, "token", 1)
    return _gathered(places, [(batch, saved.learner.logprobs(team, policy, batch))])


def _numbered(items: Sequence[Credited]) -> tuple[list[Credited], dict[Place, slice]]:
    """Returns the groups with numbers of tokens, from 1, in place of logprobs, and each candidate's numbers.

    A batch of them says with its ``old_logprobs`` where each token came to lie. 0 is padding.
    """
    numbered = []
    places = {}
    last = 0
    for item in items:
        candidates = []
        for k, candidate in enumerate(item.group.candidates):
            count = len(candidate.sample.tokens)
            numbers = tuple(map(float, range(last + 1, last + count + 1)))
            sample = dataclasses.replace(candidate.sample, logprobs=numbers)
            candidates.append(dataclasses.replace(candidate, sample=sample))
            places[item.group.origin.key, k] = slice(last, last + count)
            last += count
        group = dataclasses.replace(item.group, candidates=tuple(candidates))
        numbered.append(dataclasses.replace(item, group=group))
    if last >= MOST:
        raise RunError(f"a step with {last} tokens of one policy is too large to be shown")
    return numbered, places


def _gathered(
    places: Mapping[Place, slice], values: Iterable[tuple[Batch, np.ndarray]]
) -> dict[Place, np.ndarray]:
    """Returns each candidate's own values, summed over batches. ``values`` are [A, B, T]."""
    total = max((place.stop for place in places.values()), default=0)
    sums = np.zeros(total + 1, np.float64)
    for batch, values_ABT in values:
        np.add.at(sums, batch.trained.old_logprobs.astype(np.int64), values_ABT)
    return {place: sums[1:][own].astype(np.float32) for place, own in places.items()}
