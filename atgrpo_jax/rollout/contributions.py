"""Says what a role's words were worth: figures of episodes that were played with other ones.

Axis letter: I instances.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from scipy import special

from atgrpo_jax.common.metric_names import of_role
from atgrpo_jax.common.types import Group
from atgrpo_jax.credit.advantages import apart
from atgrpo_jax.rollout.evaluation import Difference, Score, difference
from atgrpo_jax.rollout.intervals import TAIL, wilson

# What is said in a role's place:
#   sibling    once in an episode, another of the candidates that it draws there
#   silent     always, an empty text
#   shuffled   always, what it said in the episode of another instance
#   echo       always, what another role said last in this turn
Instead = Literal["sibling", "silent", "shuffled", "echo"]
IN_PLACE: Mapping[Instead, str] = {
    "silent": "an empty text",
    "shuffled": "what it said elsewhere",
    "echo": "what was said just before it",
}
# A role may be idle if the team keeps all but this share of its success without its words.
SPARED = 0.1
HEAD = "role", "instead", "played", "alike", "outcome changed", "success lost", "reward", "tokens", "seconds"


@dataclasses.dataclass(frozen=True, eq=False)
class Compared:
    """Holds how I episodes ended as they were played, and how they ended with other words of one role."""

    role: str
    instead: Instead
    solved_I: np.ndarray  # bool; with the role's own words
    solved_instead_I: np.ndarray
    team_I: np.ndarray  # team rewards of all executed candidates of an episode, summed
    team_instead_I: np.ndarray
    # Episodes in which the other words were the same ones. Of siblings, these are not among the I: the
    # role was sure, and nothing is known of what another answer would have changed.
    alike: int
    failed: int = 0  # episodes that are not among the I because an engine or a prompt's length ended one
    tokens: int = 0  # that were drawn for this, on this host
    seconds: float = 0.0

    @property
    def count(self) -> int:
        return len(self.solved_I)

    @property
    def changed(self) -> int:
        """Returns in how many episodes the other words changed the success or the team's reward."""
        low = np.minimum(self.team_I, self.team_instead_I)
        high = np.maximum(self.team_I, self.team_instead_I)
        return int(((self.solved_I != self.solved_instead_I) | apart(low, high)).sum())

    @property
    def changed_interval(self) -> tuple[float, float]:
        """Returns the 95 % interval of the share of changed episodes."""
        return wilson(self.changed, self.count)

    @property
    def reward_change(self) -> float:
        """Returns the mean of |team reward - team reward with the other words|."""
        return float(np.abs(self.team_I - self.team_instead_I).mean())

    @property
    def reward_interval(self) -> tuple[float, float]:
        """Returns Student's 95 % interval of ``reward_change``; it has no width if all are equal."""
        if self.count < 2:
            return 0.0, math.inf
        sizes_I = np.abs(self.team_I - self.team_instead_I)
        quantile = special.stdtrit(self.count - 1, 1 - TAIL)
        spread = quantile * sizes_I.std(ddof=1) / math.sqrt(self.count)
        return max(0.0, float(sizes_I.mean() - spread)), float(sizes_I.mean() + spread)

    @property
    def lost(self) -> Difference:
        """Returns the success with the role's own words minus that with the other ones."""
        return difference(Score(self.solved_I[:, None], 0.0), Score(self.solved_instead_I[:, None], 0.0))

    @property
    def idle(self) -> bool:
        """Returns whether the role may be idle, as far as this comparison tells.

        It may if the upper end of the 95 % interval of what is lost without its words is below
        ``SPARED`` x the lower end of that of the success with them. A team that solves nothing has
        nothing to lose, so there this is false, unless it does better without.
        """
        if self.instead == "sibling" or not self.count:
            return False
        low, _ = wilson(int(self.solved_I.sum()), self.count)
        return self.lost.high < SPARED * low

    @property
    def harmful(self) -> bool:
        """Returns whether the team does better with other words in the role's place: the whole 95 % interval
        of the success lost is below 0."""
        return self.instead != "sibling" and self.count > 0 and self.lost.high < 0

    def __str__(self) -> str:
        """Returns one plain sentence."""
        if not self.count:
            return f"{self.role}: no {_noun(self.instead)} to compare; {self.alike} had the same words"
        low, high = self.changed_interval
        found = f"{self.changed} of {self.count} {_noun(self.instead)} ({_range(low, high)})"
        if self.instead == "sibling":
            total = self.count + self.alike
            sure = f"; in {self.alike} of {total} it was sure of what to say" if self.alike else ""
            return f"{self.role}: another of its answers changed the outcome in {found}{sure}"
        words = f"{self.role}: with {IN_PLACE[self.instead]} in its place the outcome changed in {found}"
        lost = self.lost
        cost = _cost(lost.mean, lost.low, lost.high)
        verdict = "it may be idle" if self.idle else "it is not shown to be idle"
        verdict = "the team does better without its words" if self.harmful else verdict
        return f"{words}, and the team would {cost}: {verdict}"


def figures(compared: Sequence[Compared]) -> dict[str, float]:
    """Returns the metrics of a step; what was not played has none."""
    metrics: dict[str, float] = {}
    for one in compared:
        values: dict[str, float] = {}
        if one.instead == "sibling" and one.alike + one.count:
            values["sure"] = one.alike / (one.alike + one.count)
        if one.count and one.instead == "sibling":
            low, high = one.changed_interval
            values |= {"influence": one.changed / one.count, "influence_low": low, "influence_high": high}
            values["influence_reward"] = one.reward_change
        elif one.count:
            lost = one.lost
            values = dict(zip(_lost(one.instead), (lost.mean, lost.low, lost.high), strict=True))
            values[f"idle_{one.instead}"] = float(one.idle)
        metrics |= of_role(one.role, values)
    return metrics


def alarms(record: Mapping[str, float], roles: Sequence[str]) -> dict[str, str]:
    """Returns a sentence for each role that does harm or may be idle by the metrics of a step.

    Their names are harm/ROLE and idle/ROLE. Those that do harm come first. Of several comparisons in which
    a role rings, the one counts in which least is lost.
    """
    harm, idle = {}, {}
    for role in roles:
        rings = []
        for instead, words in IN_PLACE.items():
            names = of_role(role, dict.fromkeys((f"idle_{instead}", *_lost(instead)), 0.0))
            rung, mean, low, high = (record.get(name, 0.0) for name in names)
            if rung:
                rings.append((high, f"with {words} in its place the team would {_cost(mean, low, high)}"))
        if not rings:
            continue
        high, found = min(rings)
        if high < 0:
            harm[f"harm/{role}"] = f"the team does better without {role}: {found}"
        else:
            idle[f"idle/{role}"] = f"{role} may be idle: {found}"
    return harm | idle


def _lost(instead: Instead) -> tuple[str, str, str]:
    """Returns the names of what is lost, and of the ends of its interval."""
    return f"lost_{instead}", f"lost_{instead}_low", f"lost_{instead}_high"


def table(compared: Sequence[Compared]) -> list[str]:
    """Returns the lines of a table: a line for each role and what was said in its place."""
    rows: list[Sequence[str]] = [HEAD]
    for one in compared:
        row = [one.role, one.instead, str(one.count), str(one.alike)]
        if one.count:
            lost = one.lost
            low, high = one.reward_interval
            row += [
                f"{one.changed / one.count:.1%} ({_span(*one.changed_interval)})",
                f"{lost.mean:+.1%} ({_span(lost.low, lost.high, '+')})",
                f"{one.reward_change:.3f} ({low:.3f} to {high:.3f})",
            ]
        else:
            row += ["-", "-", "-"]
        rows.append([*row, f"{one.tokens:,}", f"{one.seconds:.1f}"])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]


def team_reward(groups: Sequence[Group]) -> float:
    """Returns the team rewards of all executed candidates, summed. One without a reward counts as 0."""
    executed = [group.candidates[group.chosen] for group in groups if group.chosen is not None]
    return sum(candidate.reward.team for candidate in executed if candidate.reward is not None)


def _noun(instead: Instead) -> str:
    return "groups" if instead == "sibling" else "episodes"


def _cost(mean: float, low: float, high: float) -> str:
    """Returns in words what success is lost, or gained if that is below 0."""
    if mean < 0:
        return f"gain {-mean:.1%} ({_range(-high, -low)})"
    return f"lose {mean:.1%} ({_range(low, high)})"


def _range(low: float, high: float) -> str:
    return f"95 % interval {_span(low, high)}"


def _span(low: float, high: float, sign: str = "") -> str:
    return f"{low:{sign}.1%} to {high:{sign}.1%}"
