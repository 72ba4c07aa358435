"""Plays recorded episodes again from a node on, as they were or with one thing changed."""

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from atgrpo_jax.common import coroutines
from atgrpo_jax.common.errors import ConfigError, RunError
from atgrpo_jax.common.types import Candidate, Episode, Group, GroupKey, Origin, Outcome, Sample, Sampling
from atgrpo_jax.credit.groups import Credited
from atgrpo_jax.engines import gate
from atgrpo_jax.engines.protocol import Engine
from atgrpo_jax.partners.opening import opened
from atgrpo_jax.replaying.taught import logprobs
from atgrpo_jax.replaying.teams import Teams
from atgrpo_jax.rollout.evaluation import evaluating
from atgrpo_jax.rollout.player import Player
from atgrpo_jax.rollout.rollout import engine_propose
from atgrpo_jax.run.folder import RunFolder
from atgrpo_jax.run.nodes import Node, speaker
from atgrpo_jax.run.playing import training
from atgrpo_jax.run.recorded import episode_of, key_of
from atgrpo_jax.run.saved import SavedRun
from atgrpo_jax.run.team_state import TeamState
from atgrpo_jax.tasks.calls import place


@dataclasses.dataclass(frozen=True)
class Change:
    """What is to be another way than it was.

    ``temperature`` is that of all groups under the node. The other two need a node that is one group:
    ``executes`` is the number of the candidate that the episode goes on from, ``says`` is a text that it
    goes on from.
    """

    temperature: float | None = None
    executes: int | None = None
    says: str | None = None

    @property
    def of_one_group(self) -> bool:
        return self.executes is not None or self.says is not None


SAME = Change()


@dataclasses.dataclass(frozen=True)
class Replayed:
    """A recorded episode, and how it came this time."""

    record: Mapping[str, Any]
    recorded: Episode
    episode: Episode


class Again:
    """Plays episodes of a run again. Use it with ``with``."""

    def __init__(self, saved: SavedRun):
        self._saved = saved  # with the settings of the node's step
        self._teams = Teams(saved, lambda: self._engine.release())
        self._closing = contextlib.ExitStack()

    def __enter__(self) -> "Again":
        experiment = self._saved.experiment
        with contextlib.ExitStack() as opening:
            answers = self._saved.folder.partners
            partners = opened(experiment.team.partners, answers, "evaluated", experiment.seed)
            self._partners = opening.enter_context(partners)
            self._runner = opening.enter_context(experiment.running())
            self._engine: Engine = self._saved.learner.engine()
            opening.callback(lambda: self._engine.close())
            self._closing = opening.pop_all()
        return self

    def __exit__(self, *exc) -> None:
        self._closing.close()

    def play(self, node: Node, change: Change = SAME) -> Replayed:
        """Plays the episode of ``node`` again, with the weights that it was played with.

        What lies before the node is taken from the record, and the task scores it again. From there on
        everything is drawn anew, at the same addresses.

        Raises RunError if the run keeps no such node, or if the task shows another prompt than recorded.
        Raises ConfigError for a change that does not fit the node.
        """
        self._set_to(node.step)
        experiment = self._saved.experiment
        record, under = fitting(self._saved.folder, node, change)
        changed = {key_of(record, group) for group in under if group["policy"]}
        player = self._player(node.split)
        recorded = episode_of(record, _by_role(player.sampling))
        team = self._weights_of(node, recorded)
        gate.push(self._engine, self._saved.learner.weights(team), team.version)

        groups = {group.origin.key: group for group in recorded.groups}
        begins = min((group["turn"], group["stage"]) for group in under)

        async def propose(state, key, prompt_ids, policy, spoken):
            group = groups.get(key)
            if (key.turn, key.stage) < begins:
                return _recorded(group, key, prompt_ids, team.version)
            if key not in changed:
                return await player.propose(state, key, prompt_ids, policy, spoken)
            assert group is not None
            _recorded(group, key, prompt_ids, team.version)  # the node itself must be as it was, too
            sampling = _sampling(group.origin, change)
            drawing = engine_propose(self._engine, sampling, len(group.candidates), experiment.seed)
            samples = await drawing(state, key, prompt_ids, policy, spoken)
            return samples if change.says is None else [*samples, self._said(team, group.origin, change)]

        async def further(state, key, prompt_ids, policy, spoken):
            if (key.turn, key.stage) < begins or key in changed:
                return []  # ``propose`` has given as many as are recorded
            assert player.further is not None
            return await player.further(state, key, prompt_ids, policy, spoken)

        forced = {}
        for key in changed if change.of_one_group else ():
            forced[key] = _forced(groups[key], change)
        again = dataclasses.replace(player, propose=propose, forced=forced)
        if player.further is not None:
            again = dataclasses.replace(again, further=further)
        played = coroutines.run(again.play(node.step, node.split, node.instance, recorded.episode))
        if change.temperature is not None:
            played = _at(played, changed, change)
        return Replayed(record, recorded, played)

    def _weights_of(self, node: Node, recorded: Episode) -> TeamState:
        """Returns the team that played a recorded episode."""
        if node.split != "train":
            return self._teams.after(node.step)
        return self._teams.that_drew(node.step, max(group.origin.version for group in recorded.groups))

    def _set_to(self, step: int) -> None:
        """Takes the settings of a step. The engine is another one if they are."""
        saved = self._saved.at(step)
        if saved is not self._saved:
            self._engine.close()
            self._engine = saved.learner.engine()
            self._saved = saved

    def _player(self, split: str) -> Player:
        experiment = self._saved.experiment
        if split == "train":
            return training(experiment, self._engine, self._runner, self._partners)
        return evaluating(
            experiment.task,
            experiment.team,
            experiment.tokenizer,
            self._engine,
            experiment.evaluated(),
            experiment.seed,
            self._runner,
            self._partners,
        )

    def _said(self, team: TeamState, origin: Origin, change: Change) -> Sample:
        """Returns a text of a person's as a sample, with the logprobs that the policy gives it."""
        assert change.says is not None
        tokens = self._saved.experiment.tokenizer.answer_ids(change.says)
        asked = dataclasses.replace(origin, sampling=_sampling(origin, change))
        sample = Sample(tokens, (0.0,) * len(tokens), "stop", team.version)
        group = Group((Candidate(asked, sample, change.says, Outcome.OK, None),), None)
        item = Credited(group, np.zeros(1, np.float32), np.ones(1, bool))
        found = logprobs(self._saved, team, [item])[origin.key, 0]
        return dataclasses.replace(sample, logprobs=tuple(map(float, found)))


def fitting(
    folder: RunFolder, node: Node, change: Change
) -> tuple[Mapping[str, Any], list[Mapping[str, Any]]]:
    """Returns what is written down of a node's episode, and its groups under the node.

    Nothing but the record is read. Raises RunError if there is no such node, and ConfigError for a change
    that does not fit it.
    """
    record = _recorded_at(folder, node)
    under = [group for group in record["groups"] if node.holds(group)]
    if change != SAME and not any(group["policy"] for group in under):
        raise ConfigError(f"{node}: a partner speaks there, and its answers are as they are recorded")
    if change.of_one_group and len(under) != 1:
        raise ConfigError(f"{node} holds {len(under)} groups; name one, down to its speaker")
    if change.executes is not None:
        _check_candidate(folder, node, under[0]["candidates"], change.executes)
    return record, under


def _check_candidate(
    folder: RunFolder, node: Node, candidates: Sequence[Mapping[str, Any]], number: int
) -> None:
    if not 0 <= number < len(candidates):
        why = f"the group has 0 to {len(candidates) - 1}"
        if node.split != "train":
            why = f"evaluations draw one candidate; {_newest_trained(folder)}"
        raise ConfigError(f"there is no candidate {number}: {why}")
    if candidates[number]["finish"] in ("error", "too_long"):
        why = "the engine failed" if candidates[number]["finish"] == "error" else "the prompt was too long"
        raise ConfigError(f"candidate {number} was never drawn: {why}; name another one")


def _newest_trained(folder: RunFolder) -> str:
    """Returns in words which group of the newest step of training could be taken."""
    steps = [step for step, split in folder.kept_episodes() if split == "train"]
    for episode in folder.read_episodes(steps[-1]) if steps else ():
        for group in filter(lambda group: group["policy"], episode["groups"]):
            here = episode["instance"], episode["episode"], group["turn"], group["stage"], speaker(group)
            return f"take a node of a train step, e.g. --node={Node(steps[-1], 'train', *here)}"
    return "take a node of a train step; this run keeps none yet"


def _recorded_at(folder: RunFolder, node: Node) -> Mapping[str, Any]:
    """Returns what is written down of a node's episode. Raises RunError if there is no such node."""
    number = node.episode or 0
    try:
        episodes = folder.read_episodes(node.step, node.split)
        found = [e for e in episodes if (e["instance"], e["episode"]) == (node.instance, number)]
    except FileNotFoundError as error:
        path = folder.episodes_of(node.step, node.split)
        raise RunError(f"{path} is not there; that step's episodes are not kept") from error
    for episode in found:
        own = [group for group in episode["groups"] if node.holds(group)]
        if own and (node.k is None or node.k < len(own[0]["candidates"])):
            return episode
    raise RunError(f"{folder.path} keeps nothing at {node}")


def _recorded(group: Group | None, key: GroupKey, prompt_ids: tuple[int, ...], version: int) -> list[Sample]:
    """Returns the samples of a recorded group. Raises RunError if it is not what would be drawn here."""
    if group is None or group.origin.prompt_ids != prompt_ids:
        raise RunError(
            f"{place(key)}: the task shows another prompt than recorded; the task, its data, its prompts "
            "or the tokenizer have changed since"
        )
    nothing_drawn = group.origin.version < 0  # by a partner, or by an engine that failed
    if not nothing_drawn and group.origin.version != version:
        raise RunError(
            f"{place(key)}: drawn by version {group.origin.version} of the weights, and the run's version "
            f"there is {version}: the file of episodes is of another run"
        )
    return [candidate.sample for candidate in group.candidates]


def _sampling(origin: Origin, change: Change) -> Sampling:
    if change.temperature is None:
        return origin.sampling
    return dataclasses.replace(origin.sampling, temperature=change.temperature)


def _forced(group: Group, change: Change) -> int:
    """Returns the number of the candidate that is executed; a text of a person's comes last."""
    if change.says is not None:
        return len(group.candidates)
    assert change.executes is not None
    return change.executes


def _at(episode: Episode, changed: set[GroupKey], change: Change) -> Episode:
    """Returns the episode; the origins of changed groups say at which temperature they were drawn."""

    def of(group: Group) -> Group:
        if group.origin.key not in changed:
            return group
        origin = dataclasses.replace(group.origin, sampling=_sampling(group.origin, change))
        candidates = tuple(dataclasses.replace(c, origin=origin) for c in group.candidates)
        return dataclasses.replace(group, candidates=candidates)

    return dataclasses.replace(episode, groups=tuple(map(of, episode.groups)))


def _by_role(sampling: Sampling | Mapping[str, Sampling]) -> Mapping[str, Sampling]:
    assert isinstance(sampling, Mapping)
    return sampling
