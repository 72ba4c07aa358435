"""Compares runs, or groups of runs that differ in their seed alone.

Axis letters: I instances, S seeds, X places along a curve.
"""

import dataclasses
import io
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import special

from atgrpo_jax.common.errors import RunError
from atgrpo_jax.common.progress import duration
from atgrpo_jax.rollout.evaluation import Difference, Score, difference
from atgrpo_jax.rollout.intervals import TAIL
from atgrpo_jax.run.ending import drawn_tokens
from atgrpo_jax.viewing.folders import Outline

Amount = Callable[[Mapping[str, Any]], float]  # from a step's record: what the step took

# The first one that has points enough is drawn. Instances of the first two were not trained on.
CURVES = ("test/success", "validation/success", "rollout/success")

MOST_BANDS = 6  # groups of which a figure shows each run and a band
STYLES = "-", "--", ":"  # of lines, after ten colours

_ALONE = "This is about these runs alone, and says nothing about other seeds"


@dataclasses.dataclass(frozen=True)
class At:
    """The evaluation by which runs are compared: on a split, after a step, or after the last one."""

    split: str = "test"
    step: int | None = None

    def score(self, run: Outline) -> tuple[int, float]:
        """Returns the step and the success there. Raises RunError if the run has none."""
        name = f"{self.split}/success"
        if self.step is not None:
            record = run.records[self.step] if self.step < len(run.records) else {}
            if name not in record:
                raise RunError(f"{run.folder.path} has no {self.split} score of step {self.step}")
            return self.step, record[name]
        found = run.last(name)  # of a run that was made longer, that of its earlier end
        if found is None or found[0] < run.done or (found[0] < run.steps and not run.ended):
            raise RunError(
                f"{run.folder.path} has no {self.split} score after training: it is at step {run.done} of "
                f"{run.steps}; --step compares runs that go on"
            )
        return found

    def interval(self, run: Outline) -> tuple[float, float]:
        record = run.records[self.score(run)[0]]
        return record[f"{self.split}/low"], record[f"{self.split}/high"]

    def total(self, run: Outline, amount: Amount) -> float:
        """Returns the sum of what the steps up to this one took."""
        return float(sum(map(amount, run.records if self.step is None else run.records[: self.step + 1])))


def at_step(runs: Sequence[Outline], step: int) -> At:
    """Returns the evaluation after a step: on test instances if all runs have that, else on those of
    validation. Raises RunError that names the steps at which all runs have one."""
    scored = {split: [_scored(run, split) for run in runs] for split in ("test", "validation")}
    for split, steps in scored.items():
        if all(step in own for own in steps):
            return At(split, step)
    common = sorted(set().union(*(set.intersection(*steps) for steps in scored.values())))
    there = ", ".join(map(str, common)) or "none"
    raise RunError(f"not all runs were evaluated after step {step}; steps after which all were: {there}")


def _scored(run: Outline, split: str) -> set[int]:
    return {step for step, record in enumerate(run.records) if f"{split}/success" in record}


@dataclasses.dataclass(frozen=True)
class Group:
    """Runs of one config, each with a seed of its own."""

    letter: str
    runs: Sequence[Outline]
    at: At = At()
    name: str = ""  # if it has one

    @property
    def title(self) -> str:
        if self.name:
            return self.name
        names = [run.name for run in self.runs]
        return ", ".join(names) if len(names) <= 3 else f"{names[0]} and {len(names) - 1} more"

    def after(self) -> list[float]:
        """Returns the success of each run that is compared. Raises RunError if a run has none."""
        return [self.at.score(run)[1] for run in self.runs]


def grouped(runs: Sequence[Outline], at: At = At()) -> list[Group]:
    """Returns groups of runs with the same settings, in the order in which they are named.

    Raises RunError if two runs of one group have the same seed: they are copies of each other.
    """
    found: dict[Any, list[Outline]] = {}
    for run in runs:
        found.setdefault(run.kind, []).append(run)
    for members in found.values():
        seeds = [run.seed for run in members]
        for run in members:
            if seeds.count(run.seed) > 1:
                same = ", ".join(str(r.folder.path) for r in members if r.seed == run.seed)
                raise RunError(f"{same} have the same config and seed {run.seed}; name one of them")
    return [Group(chr(ord("A") + i % 26), members, at) for i, members in enumerate(found.values())]


def table(groups: Sequence[Group]) -> str:
    """Returns a row for each group: scores before and after, tokens, time."""
    split = groups[0].at.split
    before, after = f"{split} before", f"{split} after"
    rows = [("", "run", "seeds", "steps", before, after, "95 % interval", "tokens", "time")]
    for group in groups:
        at = group.at
        scores = group.after()
        low, high = over_seeds(scores) if len(scores) > 1 else at.interval(group.runs[0])
        rows.append(
            (
                group.letter,
                group.title,
                str(len(group.runs)),
                "/".join(sorted({str(run.done if at.step is None else at.step) for run in group.runs})),
                _percent(np.mean([run.records[0].get(f"{split}/success", math.nan) for run in group.runs])),
                _percent(np.mean(scores)),
                f"{_percent(low)} to {_percent(high)}",
                f"{np.mean([at.total(run, drawn_tokens) for run in group.runs]):,.0f}",
                duration(float(np.mean([at.total(run, _seconds) for run in group.runs]))),
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def differences(groups: Sequence[Group]) -> list[str]:
    """Returns lines that compare each group with the first one."""
    first, *others = groups
    lines = []
    for other in others:
        pair = f"{other.letter} - {first.letter}"
        if len(first.runs) > 1 and len(other.runs) > 1:
            mean, low, high = welch(other.after(), first.after())
            lines.append(
                f"{pair}: {mean:+.1%} (95 % interval {low:+.1%} to {high:+.1%}) over seeds: what other "
                "seeds would give"
            )
        found, common = paired(other, first)
        if found is None:
            none = f"no {first.at.split} instance is the same in both"
            lines.append(f"{pair}: {none}, so they cannot be paired")
        else:
            lines.append(f"{pair}: {found} of {common} that both were tested on. {_ALONE}")
    return lines


def paired(one: Group, other: Group) -> tuple[Difference | None, int]:
    """Returns the difference of two groups on the instances that all runs have in common.

    Each instance counts with the mean over the group's runs. Also returns how many instances that
    are; if there are none, there is no difference.
    """
    ours, theirs = (
        [run.solved(group.at.split, group.at.step)[1] for run in group.runs] for group in (one, other)
    )
    common = sorted(set.intersection(*(set(solved) for solved in [*ours, *theirs])))
    if not common:
        return None, 0
    scores = [
        Score(np.array([[solved[key] for solved in runs] for key in common]), 0.0) for runs in (ours, theirs)
    ]
    return difference(*scores), len(common)


def over_seeds(scores_S: Sequence[float]) -> tuple[float, float]:
    """Returns Student's 95 % interval of the mean of what several seeds gave, within 0 to 1."""
    spread = float(np.std(scores_S, ddof=1)) / math.sqrt(len(scores_S))
    reach = float(special.stdtrit(len(scores_S) - 1, 1 - TAIL)) * spread
    mean = float(np.mean(scores_S))
    return max(0.0, mean - reach), min(1.0, mean + reach)


def welch(ours_S: Sequence[float], theirs_S: Sequence[float]) -> tuple[float, float, float]:
    """Returns the difference of two means over seeds, and its 95 % interval (Welch 1947).

    Seeds that all gave the same have no variance; then the interval is the mean alone.
    """
    mean = float(np.mean(ours_S) - np.mean(theirs_S))
    parts = [float(np.var(scores, ddof=1)) / len(scores) for scores in (ours_S, theirs_S)]
    total = sum(parts)
    if total == 0:
        return mean, mean, mean
    counts = len(ours_S), len(theirs_S)
    freedom = total**2 / sum(part**2 / (n - 1) for part, n in zip(parts, counts, strict=True))
    reach = float(special.stdtrit(freedom, 1 - TAIL)) * math.sqrt(total)
    return mean, mean - reach, mean + reach


def settings(groups: Sequence[Group]) -> list[str]:
    """Returns a line for each setting in which groups differ."""
    configs = [dict(group.runs[0].kind) for group in groups]
    names = sorted({name for config in configs for name in config})
    lines = []
    for name in names:
        values = [config.get(name, "not set") for config in configs]
        if len(set(values)) > 1:
            told = ", ".join(f"{group.letter} {value}" for group, value in zip(groups, values, strict=True))
            lines.append(f"{name}: {told}")
    return lines


def figure(groups: Sequence[Group], curve: str) -> bytes:
    """Returns a PNG of a metric over steps, tokens and seconds; bands are over seeds.

    Of many groups it has the means alone: nobody can tell ten bands apart.
    """
    buffer = io.BytesIO()
    drawn(groups, curve).savefig(buffer, dpi=110)
    return buffer.getvalue()


def drawn(groups: Sequence[Group], curve: str) -> Any:
    """Returns the figure itself, of matplotlib."""
    from matplotlib.figure import Figure  # it takes half a second
    from matplotlib.ticker import EngFormatter

    many = len(groups) > MOST_BANDS
    made = Figure(figsize=(14, 4.5), layout="constrained")
    amounts: dict[str, Amount] = {
        "step": lambda record: 1.0,
        "tokens drawn": drawn_tokens,
        "seconds": _seconds,
    }
    for axis, (title, amount) in zip(made.subplots(1, 3), amounts.items(), strict=True):
        for number, group in enumerate(groups):
            lines = [_line(run, curve, amount) for run in group.runs]
            lines = [line for line in lines if len(line[0])]
            colour = f"C{number % 10}"
            style = STYLES[number // 10 % len(STYLES)]
            for places, values in lines if not many or len(lines) == 1 else []:
                axis.plot(
                    places, values, style, color=colour, linewidth=0.8, alpha=0.5 if len(lines) > 1 else 1
                )
            if len(lines) > 1:
                grid = np.linspace(0, min(places[-1] for places, _ in lines), 50)
                all_SX = np.array([np.interp(grid, places, values) for places, values in lines])
                if not many:
                    axis.fill_between(grid, all_SX.min(0), all_SX.max(0), color=colour, alpha=0.15)
                axis.plot(grid, all_SX.mean(0), style, color=colour, linewidth=2)
            axis.plot([], [], style, color=colour, label=f"{group.letter} {group.title}")
        axis.set_xlabel(title)
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))  # 140k
        axis.grid(alpha=0.3)
    made.axes[0].set_ylabel(curve)
    if many:
        made.legend(*made.axes[0].get_legend_handles_labels(), fontsize=8, loc="outside right upper")
    else:
        made.axes[0].legend(fontsize=8)
    return made


def curve_of(groups: Sequence[Group]) -> str:
    """Returns the name of the best curve of which all runs have two points, and some run more."""

    def points(run: Outline, name: str) -> int:
        return sum(name in record for record in run.records)

    runs = [run for group in groups for run in group.runs]
    counts = {name: [points(run, name) for run in runs] for name in CURVES}
    rich = [name for name, found in counts.items() if min(found) >= 2 and max(found) > 2]
    return (rich or list(CURVES[-1:]))[0]


def _seconds(record: Mapping[str, Any]) -> float:
    return record.get("perf/step_s", 0.0)


def _line(run: Outline, curve: str, amount: Amount) -> tuple[np.ndarray, np.ndarray]:
    """Returns where a curve's points are, along the running sum of what steps took; and their values."""
    amounts = [amount(record) for record in run.records]
    places = np.cumsum(amounts) - amounts[0] if amounts else np.zeros(0)
    present = [i for i, record in enumerate(run.records) if curve in record]
    return places[present], np.array([run.records[i][curve] for i in present])


def _percent(value: Any) -> str:
    return "-" if math.isnan(value) else f"{value:.1%}"
