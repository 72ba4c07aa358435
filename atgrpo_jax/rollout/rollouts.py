"""Plays the training episodes of a step, and says what that took."""

import dataclasses
import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from atgrpo_jax.common.hosts import ALONE, Hosts
from atgrpo_jax.common.metric_names import of_role
from atgrpo_jax.common.types import Episode, hash_bytes
from atgrpo_jax.engines.protocol import Engine, Usage
from atgrpo_jax.partners.answers import Cost, costs_since
from atgrpo_jax.rollout.curriculum import NO_LESSONS, Lessons, Picked
from atgrpo_jax.rollout.player import Player
from atgrpo_jax.rollout.rollout import play_all


class Played(NamedTuple):
    """Holds the rollout of a step."""

    episodes: list[Episode]
    metrics: dict[str, float]


class Rollouts:
    """Plays training instances with a team, whose samples come from an engine.

    Args:
      player: plays one episode.
      engine: the one that ``player`` draws from; its usage goes into the metrics.
      pick: gives the instances of a step, in rounds, by its number and what instances taught before.
      episodes: episodes of each instance.
      enough: whether a step needs no other round after these episodes. It may look at which groups have
        signal, and at nothing else of their rewards: then the mean gradient of a group with signal is
        that of a step of fixed size. (What a group is worth is independent of how many there are.)
      hosts: those that play together.
      at_once: instances that all of them together play at the same time; all if None.
    """

    def __init__(
        self,
        player: Player,
        engine: Engine,
        pick: Callable[[int, Lessons], Picked],
        episodes: int,
        enough: Callable[[Sequence[Episode]], bool] = lambda episodes: True,
        hosts: Hosts = ALONE,
        at_once: int | None = None,
    ):
        self._player = player
        self._engine = engine
        self._pick = pick
        self._episodes = episodes
        self._enough = enough
        self._hosts = hosts
        self._at_once = at_once

    def play(self, step: int, lessons: Lessons = NO_LESSONS, stops: bool = True) -> Played:
        """Plays the instances of step ``step``, in one round or more.

        ``stops`` says whether a stop may end this while complete steps are not saved; see ``Hosts.meet``.
        """
        picked = self._pick(step, lessons)
        self._hosts.compare(f"instances of step {step}", lambda: hash_bytes(repr(picked.rounds)))
        began = time.monotonic()
        before = self._engine.usage
        waited_before_s = self._hosts.waited_s
        own_before_s = self._player.clock.seconds
        partners = self._player.partners
        costs_before = partners.costs if partners is not None else {}
        afterwards = self._player.afterwards
        counts_before = {} if afterwards is None else dict(afterwards.counts)
        episodes: list[Episode] = []
        rounds = 0
        while rounds == 0 or (rounds < len(picked.rounds) and not self._enough(episodes)):
            episodes += self._round(step, picked.rounds[rounds], stops)
            rounds += 1
        seconds = time.monotonic() - began
        own = {
            "used": dataclasses.asdict(self._engine.usage - before),
            "environment_s": self._player.clock.seconds - own_before_s,
            "waited_s": self._hosts.waited_s - waited_before_s,
        }
        if afterwards is not None:
            own["afterwards"] = {name: n - counts_before[name] for name, n in afterwards.counts.items()}
        told = self._hosts.meet(f"usage of step {step}", lambda: json.dumps(own).encode())
        found = [json.loads(data) for data in told]
        spent = dict(costs_since(partners, costs_before))
        metrics = _metrics(found, seconds) | _of_partners(spent) | picked.metrics(rounds)
        if afterwards is not None:
            metrics |= _of_continuations(found, episodes)
        if len(picked.rounds) > 1:
            metrics["rollout/rounds"] = float(rounds)
        return Played(episodes, metrics)

    def _round(self, step: int, indices: Sequence[int], stops: bool) -> list[Episode]:
        return play_all(
            self._player,
            step,
            "train",
            indices,
            self._episodes,
            hosts=self._hosts,
            at_once=self._at_once,
            stops=stops,
        )


def _metrics(found: Sequence[Mapping[str, Any]], seconds: float) -> dict[str, float]:
    """Returns the metrics of a rollout of so many seconds, from what each host says of its own.

    Tokens are those of all hosts. Seconds that hosts spend at the same time are means over them.
    """
    used = sum((Usage(**own["used"]) for own in found), Usage())
    metrics = {
        "perf/rollout_s": seconds,
        "perf/rollout_tokens_per_s": used.tokens / seconds,
        "perf/rollout_environment_s": _mean(found, "environment_s"),
        "perf/rollout_known_prompt": used.known_tokens / max(used.prompt_tokens, 1),
    }
    if len(found) > 1:
        metrics["perf/rollout_waited_s"] = _mean(found, "waited_s")  # for the slowest host
    return metrics | _on_our_devices(used, seconds, len(found))


def _of_partners(spent: Mapping[str, Cost]) -> dict[str, float]:
    """Returns what each role's partner answered, and what all of them took; nothing without partners."""
    if not spent:
        return {}
    metrics: dict[str, float] = {}
    for role, cost in spent.items():
        most = max(cost.answers, 1)
        values = {
            "answers": float(cost.answers),
            "prompt_tokens": float(cost.prompt_tokens),
            "answer_tokens": float(cost.answer_tokens),
            "truncated": cost.truncated / most,
            "empty": cost.empty / most,
            "refused": cost.refused / most,
        }
        metrics |= of_role(role, values)
    total = sum(spent.values(), Cost())
    return metrics | {"perf/partner_asked": float(total.asked), "perf/partner_s": total.seconds}


def _of_continuations(found: Sequence[Mapping[str, Any]], episodes: Sequence[Episode]) -> dict[str, float]:
    """Returns what was played to credit candidates with what comes of them, from what each host says."""
    groups, misled, tokens = (
        float(sum(own["afterwards"][name] for own in found)) for name in ("groups", "misled", "tokens")
    )
    own = [group for episode in episodes for group in episode.groups if not group.by_partner]
    drawn = sum(len(c.sample.tokens) for group in own for c in group.candidates)
    metrics = {
        "counterfactual/groups": groups,
        "counterfactual/tokens": tokens,
        "counterfactual/token_share": tokens / max(tokens + drawn, 1.0),
    }
    return metrics | ({"counterfactual/misled": misled / groups} if groups else {})


def _mean(found: Sequence[Mapping[str, Any]], name: str) -> float:
    return sum(own[name] for own in found) / len(found)


def _on_our_devices(used: Usage, seconds: float, hosts: int) -> dict[str, float]:
    """Returns the metrics of engines that draw in the hosts' processes; none for others."""
    if not used.slot_steps:
        return {}
    return {
        "perf/rollout_idle_s": seconds - used.seconds / hosts,  # the devices waited
        "perf/rollout_prefill_s": used.prefill_s / hosts,
        "perf/rollout_decode_s": used.decode_s / hosts,
        "perf/rollout_occupancy": used.tokens / used.slot_steps,
    }
