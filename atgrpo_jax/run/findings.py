"""Says what is wrong with a run, from the metrics of its last steps, and what to do about it.

docs/ledger.md explains the metrics. Each rule has a threshold, and a reason for it. What was measured of
the roles' words (docs/influence.md) comes first.
"""

import re
from collections.abc import Iterator, Mapping, Sequence

from atgrpo_jax.common.metric_names import OF_ROLE, plain
from atgrpo_jax.rollout.contributions import alarms

LAST = 20  # steps that are looked at: one has too few groups to tell chance from habit
LEAST = 10  # of them must have a number
MOST = 3  # findings of theirs that are said
# What holds for two of three groups or answers is the rule and not the exception: three times as much
# is drawn as is of use.
USUAL = 2 / 3
# One in twenty: what is left to a role is within the noise of the others' gradient.
LITTLE = 0.05

Record = Mapping[str, float]
MEASURED = r"(?:sure|idle_\w+)"  # what is known of a role whose words were measured


def findings(records: Sequence[Record]) -> dict[str, str]:
    """Returns what is wrong: lines by short names, the most important one first.

    First are alarms of the newest measurement of the roles' words, if there is one, a line for a role at
    most. Then come at most ``MOST`` lines about the last ``LAST`` training steps, and none about fewer
    than ``LEAST``.
    """
    known = re.compile(f"{OF_ROLE}/[^/]+/{MEASURED}").fullmatch
    measured = next((record for record in reversed(records) if any(map(known, record))), {})
    rung = alarms(measured, [who for who, _ in _roles([measured], MEASURED)])
    recent = [record for record in records if "groups/total" in record][-LAST:]
    found: dict[str, str] = {}
    if len(recent) >= LEAST:
        for rule in (_no_signal, _untaught_role, _captured, _copies, _repeats_itself):
            found |= dict(rule(recent))
    return rung | dict(list(found.items())[:MOST])


def _no_signal(recent: Sequence[Record]) -> Iterator[tuple[str, str]]:
    """Most groups teach nothing: their candidates earn the same, and cost as much as the others."""
    without = 1 - _weighted(recent, "groups/signal", "groups/total")
    if without < USUAL:
        return
    what = f"{without:.0%} of the groups of the last {len(recent)} steps gave no signal"
    if _weighted(recent, "groups/too_small", "groups/total") >= without / 2:
        yield "no_signal", f"{what}: too few of their candidates have a reward; look at outcome/ and end/"
        return
    level = "harder" if (_mean(recent, "rollout/success") or 0.0) >= 0.5 else "easier"
    do = f"raise RolloutConfig.candidates or temperature, or draw {level} instances"
    same = _mean(recent, "groups/identical")  # none of trajectories, whose groups have one candidate
    if same is None:
        yield "no_signal", f"{what}: {do}"
    elif same >= without / 2:
        do = f"raise RolloutConfig.temperature, or draw {level} instances"
        yield "no_signal", f"{what}, and in {same:.0%} of all groups the candidates were one text: {do}"
    else:
        yield "no_signal", f"{what}, though in most of these the candidates are different texts: {do}"


def _untaught_role(recent: Sequence[Record]) -> Iterator[tuple[str, str]]:
    """A role is updated, and its groups give next to no signal: it stays as it is."""
    for who, name in _roles(recent, "signal"):
        start = name.removesuffix("signal")
        updated = [record for record in recent if f"{start}advantage_mass" in record]
        signal = _weighted(updated, name, f"{start}groups")
        if len(updated) >= LEAST and signal <= LITTLE:
            yield (
                f"no_signal/{who}",
                f"{signal:.0%} of the groups of {who} gave a signal, so it hardly learns: see on the page "
                "what its candidates say and earn",
            )


def _captured(recent: Sequence[Record]) -> Iterator[tuple[str, str]]:
    """One role has the gradient of a policy that others share (role capture, arXiv 2605.24202)."""
    for who, name in _roles(recent, "gradient_share"):
        share = _mean(recent, name)
        if share is not None and share >= 1 - LITTLE:
            yield (
                f"capture/{who}",
                f"{share:.0%} of the gradient of the policy that {who} shares is about its words: the other "
                "roles need a policy of their own (Team.sharing) or more candidates (Team.roles)",
            )


def _copies(recent: Sequence[Record]) -> Iterator[tuple[str, str]]:
    """A role says what was said just before it: its tokens buy nothing.

    Letters are all that the ledger can compare. A task may know what comes to the same, and says so by a
    metric of its own called "repeats" (as ``tasks.games.game`` does).
    """
    for who, name in _roles(recent, "repeats/[^/]+"):
        share = _mean(recent, name)
        other = plain(name.rpartition("/")[2])
        if who != other and share is not None and share >= USUAL:
            yield (
                f"copy/{who}",
                f"{who} repeats to the letter what {other} has just said in {share:.0%} of its answers: "
                f"compare with a team without {other}, or pay {who} for what it changes",
            )
    for who, name in _roles(recent, "task/repeats"):
        share = _mean(recent, name)
        if share is not None and share >= USUAL:
            yield (
                f"copy/{who}",
                f"{who} does just what it was shown in {share:.0%} of its answers, as its task counts: "
                f"compare with a team of {who} alone, or pay it for what it changes",
            )


def _repeats_itself(recent: Sequence[Record]) -> Iterator[tuple[str, str]]:
    """Later turns say what earlier ones said: they change nothing."""
    for who, name in _roles(recent, "repeats/[^/]+"):
        share = _mean(recent, name)
        if who == plain(name.rpartition("/")[2]) and share is not None and share >= 1 - LITTLE:
            yield (
                f"repeat/{who}",
                f"{who} says in {share:.0%} of its later answers what it said the last time: play fewer "
                "turns (Workflow.turns), or let its prompt show what became of that",
            )


def _roles(recent: Sequence[Record], pattern: str) -> Iterator[tuple[str, str]]:
    """Yields a role and the name of its metric, for each metric role/ROLE/PATTERN."""
    for name in sorted({name for record in recent for name in record}):
        if match := re.fullmatch(f"{OF_ROLE}/([^/]+)/{pattern}", name):
            yield plain(match[1]), name


def _mean(recent: Sequence[Record], name: str) -> float | None:
    """Returns the mean over the steps that have a metric; None if these are fewer than ``LEAST``."""
    values = [record[name] for record in recent if name in record]
    return sum(values) / len(values) if len(values) >= LEAST else None


def _weighted(recent: Sequence[Record], name: str, weight: str) -> float:
    """Returns a share of all groups of the steps, from its values in the steps and their groups."""
    total = sum(record[weight] for record in recent)
    return sum(record[name] * record[weight] for record in recent) / max(total, 1.0)
