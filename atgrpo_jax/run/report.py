"""Writes what a person gets at the end of a run: the summary, and the curves as a PNG."""

import io
import json
from collections.abc import Sequence
from typing import Any

from atgrpo_jax.common.cli import typed
from atgrpo_jax.common.errors import RunError
from atgrpo_jax.common.files import Place, is_file, write_atomically
from atgrpo_jax.common.metric_names import OF_POLICY, OF_ROLE
from atgrpo_jax.common.progress import counted, duration
from atgrpo_jax.rollout.evaluation import available
from atgrpo_jax.run.ending import Ending
from atgrpo_jax.run.experiment import Experiment
from atgrpo_jax.run.findings import findings
from atgrpo_jax.run.folder import RunFolder

# The title of a panel, and patterns of the metrics in it; a star is any policy or role.
PANELS = (
    ("Success", ("rollout/success", "validation/success", "test/success")),
    ("Share of groups", ("groups/signal", "groups/zero_variance")),
    ("Mean reward of a candidate", (f"{OF_ROLE}/*/team", f"{OF_ROLE}/*/local")),
    ("Entropy (nats a token)", (f"{OF_POLICY}/*/entropy",)),
    ("KL to the sampling policy (nats a token)", (f"{OF_POLICY}/*/kl_old",)),
    ("Seconds", ("perf/rollout_s", "perf/update_s", "perf/step_s")),
    ("Groups with signal, and gradient, by role", (f"{OF_ROLE}/*/signal", f"{OF_ROLE}/*/gradient_share")),
)
_LOST = "solved before training, fails now"


def summarise(experiment: Experiment, folder: RunFolder) -> dict[str, Any]:
    """Writes summary.json and curves.png from metrics.jsonl; returns the summary."""
    records = folder.read_metrics()
    keys = ("success", "low", "high", "turns")
    before = _scores(folder, records, 0, keys)
    last = Ending(experiment.steps, experiment.tokens, records).last
    after = _scores(folder, records, last, keys)
    summary = {
        "run_dir": str(folder.path),
        "steps": last,
        "instances": available(experiment.task, "test", experiment.evaluation.instances),
        "before": before,
        "after": after,
        "train_seconds": sum(record.get("perf/step_s", 0.0) for record in records),
        "findings": findings(records),
        "failures": failures(folder, last),
        "tensorboard": experiment.trackers.tensorboard is not None,
    }
    folder.check_ours()
    write_atomically(folder.summary, (json.dumps(summary, indent=2) + "\n").encode())
    draw_curves(folder)
    return summary


def draw_curves(folder: RunFolder) -> None:
    """Draws curves.png of all steps so far."""
    plot_curves(folder.read_metrics(), folder.path.name, folder.curves)


def _scores(
    folder: RunFolder, records: list[dict[str, Any]], step: int, keys: Sequence[str]
) -> dict[str, Any]:
    try:
        return {key: records[step][f"test/{key}"] for key in keys}
    except (IndexError, KeyError) as error:
        raise RunError(f"{folder.metrics} has no test scores of step {step} ({error})") from error


def failures(folder: RunFolder, last: int) -> dict[str, str]:
    """Returns failed test episodes that are worth a look, by the name that ``report --text`` takes, and why.

    They are one that was solved before training, if there is one, and then one of each end.
    """
    solved_before = set()
    if is_file(folder.episodes_of(0, "test")):
        solved_before = {e["instance"] for e in folder.read_episodes(0, "test") if e["solved"]}
    found: dict[str, str] = {}
    if is_file(folder.episodes_of(last, "test")):
        for episode in folder.read_episodes(last, "test"):
            known = episode["instance"] in solved_before
            why = _LOST if known else f"failed: {episode['end']}"
            if not episode["solved"] and why not in found.values():
                found[f"{last}/test/{episode['instance']}"] = why
    return dict(sorted(found.items(), key=lambda item: item[1] != _LOST))


def summary_text(summary: dict[str, Any]) -> str:
    """Returns the summary as a text for people."""

    def score(name: str) -> str:
        s = summary[name]
        return f"{s['success']:.1%} (95 % interval {s['low']:.1%} to {s['high']:.1%})"

    run_dir = summary["run_dir"]
    page = f"{typed('atgrpo_jax.report')} --run_dir={run_dir} --text="
    looks = [f"  {page}{name}    # {why}" for name, why in summary["failures"].items()]
    board = f"  {typed('tensorboard.main')} --logdir={run_dir}/tensorboard"
    curves = [board] if summary["tensorboard"] else []
    found = [f"  {line}" for line in summary["findings"].values()]
    return "\n".join(
        (
            f"Held-out success on {summary['instances']} test instances:",
            f"  before  {score('before')}",
            f"  after   {score('after')}, {counted(summary['steps'], 'step')}, "
            f"{duration(summary['train_seconds'])} of training",
            f"Run folder: {run_dir}",
            "  report.html  curves.png  metrics.jsonl  episodes/  checkpoints/  config.gin",
            *(["What does not look right (docs/ledger.md, docs/influence.md):", *found] if found else []),
            "Next:",
            f"  open {run_dir}/report.html in a browser",
            *looks,
            f"  {typed('atgrpo_jax.evaluate')} --run_dir={run_dir}",
            *curves,
        )
    )


def plot_curves(records: list[dict[str, Any]], title: str, path: Place) -> None:
    """Draws a PNG with one panel for each row of ``PANELS``."""
    from matplotlib.figure import Figure  # it takes half a second, which the start of a run can do without

    figure = Figure(figsize=(16, 7), layout="constrained")
    axes = list(figure.subplot_mosaic("aaabbbcccddd;eeeeffffgggg").values())
    for axis, (name, patterns) in zip(axes, PANELS, strict=True):
        keys = {key for record in records for key in record}
        drawn = [key for key in sorted(keys) if _matches_any(key, patterns)]
        for key in drawn:
            points = [(record["step"], record[key]) for record in records if key in record]
            steps, values = zip(*points, strict=True)
            sparse = len(points) < 0.5 * len(records)
            label = f"{key} (of executed candidates)" if key == "rollout/success" else key  # the best of K
            style = "o" if len(points) < 3 else "o-" if sparse else "-"
            axis.plot(steps, values, style, markersize=4, linewidth=1.2, label=label)
        axis.set_title(name, fontsize=10)
        axis.set_xlabel("step", fontsize=9)
        axis.grid(alpha=0.3)
        if drawn:
            axis.legend(fontsize=8)
    axes[0].set_ylim(-0.02, 1.02)
    figure.suptitle(title, parse_math=False)
    drawn_png = io.BytesIO()
    figure.savefig(drawn_png, dpi=110)
    write_atomically(path, drawn_png.getvalue())


def _matches_any(key: str, patterns: Sequence[str]) -> bool:
    return any(_matches(key, pattern) for pattern in patterns)


def _matches(key: str, pattern: str) -> bool:
    levels = key.split("/")
    wanted = pattern.split("/")
    return len(levels) == len(wanted) and all(
        w in ("*", level) for level, w in zip(levels, wanted, strict=True)
    )
