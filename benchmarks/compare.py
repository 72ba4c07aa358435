"""Validation success of several runs at equal numbers of sampled tokens: a Markdown table and a PNG.

python benchmarks/compare.py --png=compare.png RUN_DIR [RUN_DIR ...]
"""

import argparse
import itertools
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from atgrpo_jax.run.folder import RunFolder

SHARES = (0.25, 0.5, 0.75, 1.0)  # of the tokens that every run reached


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--png", type=Path, required=True)
    args = parser.parse_args()
    curves = {run.name: curve(RunFolder(run)) for run in args.runs}
    budget = min(points[-1][0] for points in curves.values())
    print("| run | start | " + " | ".join(f"{share * budget / 1e3:.0f} k tokens" for share in SHARES) + " |")
    print("|---" * (len(SHARES) + 2) + "|")
    for name, points in curves.items():
        scores = [points[0][1]] + [last_before(points, share * budget) for share in SHARES]
        print(f"| {name} | " + " | ".join(f"{score:.1%}" for score in scores) + " |")
    figure, axis = plt.subplots(figsize=(7, 4), constrained_layout=True)
    for name, points in curves.items():
        axis.plot(*zip(*((t / 1e3, s) for t, s in points), strict=True), "o-", markersize=4, label=name)
    axis.axvline(budget / 1e3, color="grey", linewidth=0.8, linestyle=":")
    axis.set(xlabel="sampled tokens (thousands)", ylabel="validation success", ylim=(0, 1.02))
    axis.grid(alpha=0.3)
    axis.legend()
    figure.savefig(args.png, dpi=110)


def curve(folder: RunFolder) -> list[tuple[float, float]]:
    """(tokens sampled for training so far, validation success) wherever it was measured."""
    records = folder.read_metrics()
    tokens = itertools.accumulate(record.get("rollout/tokens", 0.0) for record in records)
    return [
        (so_far, record["validation/success"])
        for so_far, record in zip(tokens, records, strict=True)
        if "validation/success" in record
    ]


def last_before(points: list[tuple[float, float]], tokens: float) -> float:
    """The score measured last before a number of tokens was exceeded."""
    return [score for so_far, score in points if so_far <= tokens][-1]


if __name__ == "__main__":
    main()
