"""Writes what a study has found: tables, a figure, and a verdict for each prediction.

The tables tell nothing that depends on the machine, such as seconds, so a study that was stopped and
went on leaves the same bytes.
"""

import csv
import io
from collections.abc import Mapping, Sequence

import numpy as np

from atgrpo_jax.common.files import write_atomically
from atgrpo_jax.studying.asked import Study
from atgrpo_jax.studying.measured import Measured, common
from atgrpo_jax.studying.recorded import StudyFolder
from atgrpo_jax.studying.verdicts import Verdict, success
from atgrpo_jax.viewing.comparing import Group, curve_of, figure

MEASURES = {"test": "test success", "validation": "mean validation success on the way"}
_COLUMNS = ("arm", "seeds", "mean", "low", "high", "each", "instances", "steps", "tokens",
            "useful_tokens", "test_tokens")  # fmt: skip


def write(
    folder: StudyFolder,
    study: Study,
    digest: str,
    arms: Mapping[str, Sequence[Measured]],
    verdicts: Sequence[Verdict],
) -> str:
    """Writes all results. Returns the page, which is for people.

    Args:
      arms: the runs of each arm that have ended, by seed; none for an arm without any.
    """
    rows = [_row(name, runs) for name, runs in arms.items() if runs]
    judged = [
        (str(one.prediction), one.word, *_ends(one), one.why, one.prediction.because) for one in verdicts
    ]
    write_atomically(folder.table, _csv([_COLUMNS, *rows]))
    names = ("prediction", "verdict", "mean", "low", "high", "measured", "because")
    write_atomically(folder.verdicts, _csv([names, *judged]))
    page = _page(folder, study, digest, arms, verdicts)
    write_atomically(folder.page, page.encode())
    groups = [
        Group(chr(ord("A") + place % 26), [one.run for one in runs], name=name)
        for place, (name, runs) in enumerate(arms.items())
        if runs and not study.arms[name].again
    ]
    if groups:
        write_atomically(folder.figure, figure(groups, curve_of(groups)))
    return page


def _row(name: str, runs: Sequence[Measured]) -> tuple[str, ...]:
    found = success(runs)
    return (
        name,
        " ".join(str(run.seed) for run in runs),
        *(f"{value:.6f}" for value in (found.mean, found.low, found.high)),
        " ".join(f"{run.score:.6f}" for run in runs),
        str(len(common(runs))),
        " ".join(str(run.steps) for run in runs),
        f"{np.mean([run.drawn for run in runs]):.0f}",
        "" if _useful(runs) is None else f"{_useful(runs):.2f}",
        f"{np.mean([run.test_tokens for run in runs]):.2f}",
    )


def _ends(verdict: Verdict) -> tuple[str, str, str]:
    found = verdict.interval
    if found is None:
        return "", "", ""
    mean, low, high = (f"{value:.6f}" for value in (found.mean, found.low, found.high))
    return mean, low, high


def _csv(rows: Sequence[Sequence[str]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


def _page(
    folder: StudyFolder,
    study: Study,
    digest: str,
    arms: Mapping[str, Sequence[Measured]],
    verdicts: Sequence[Verdict],
) -> str:
    lines = [f"# {study.title or folder.path.name}", ""]
    ends = f"{study.tokens:,} sampled tokens" if study.tokens else f"{study.steps} steps"
    if study.tokens or study.steps:
        lines += [f"Each run ends with the step by which it has {ends}.", ""]
    head = ("arm", "seeds", f"{MEASURES[study.measure]} (95 % interval)", "each seed", "steps", "tokens",
            "tokens a useful group", "tokens of a test episode")  # fmt: skip
    rows = [_told(name, runs) for name, runs in arms.items()]
    lines += [*_markdown(head, rows), ""]
    about = [f"- {name}: {arm.about}" for name, arm in study.arms.items() if arm.about]
    lines += [*about, *([""] if about else [])]
    if verdicts:
        judged = [
            (f"{place}. {one.prediction}", one.why, one.word, one.prediction.because)
            for place, one in enumerate(verdicts, start=1)
        ]
        lines += [
            *_markdown(("prediction", "measured (95 % interval)", "verdict", "why it was made"), judged),
            "",
        ]
        known = sorted({name for one in verdicts for name in one.prediction.arms if study.arms[name].runs})
        if known:
            lines += [f"Runs of {', '.join(known)} were there before these predictions.", ""]
    lines += [
        "Intervals are for other seeds and other instances; with one seed, for other instances alone. "
        "A difference is paired by both.",
        "",
        f"Digest of the study, recorded before its first run: `{digest}`",
        "",
        f"![curves]({folder.figure.name})",
    ]
    return "\n".join(lines) + "\n"


def _told(name: str, runs: Sequence[Measured]) -> tuple[str, ...]:
    if not runs:
        return (name, "none has ended", *[""] * 6)
    steps = sorted({run.steps for run in runs})
    return (
        name,
        ", ".join(str(run.seed) for run in runs),
        f"{success(runs)} of {len(common(runs))}",
        ", ".join(f"{run.score:.1%}" for run in runs),
        str(steps[0]) if len(steps) == 1 else f"{steps[0]} to {steps[-1]}",
        f"{np.mean([run.drawn for run in runs]):,.0f}",
        "no such group" if _useful(runs) is None else f"{_useful(runs):.1f}",
        f"{np.mean([run.test_tokens for run in runs]):.1f}",
    )


def _useful(runs: Sequence[Measured]) -> float | None:
    """Returns how many tokens were drawn for each group with a signal; None without such a group."""
    groups = sum(run.useful for run in runs)
    return sum(run.drawn for run in runs) / groups if groups else None


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(map(_cell, row)) + " |" for row in lines]


def _cell(text: str) -> str:
    """Returns a text as it can stand in a table, on one line."""
    return " ".join(text.split()).replace("|", "\\|")
