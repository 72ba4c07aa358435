"""Lists the runs in a folder: state, step, success, age, and what forks began from.

    python -m atgrpo_jax.runs runs

The folder is ``runs`` if none is named.
"""

from atgrpo_jax.common.cli import run_main
from atgrpo_jax.common.errors import ConfigError, RunError, UserError
from atgrpo_jax.common.progress import duration
from atgrpo_jax.run.origin import origins
from atgrpo_jax.viewing.folders import age_s, outline, runs_in, state


def main(argv: list[str]) -> None:
    if len(argv) > 2:
        raise ConfigError(f"unexpected argument {argv[2]!r}; name one folder, e.g. runs")
    path = argv[1] if len(argv) == 2 else "runs"
    rows: list[tuple[str, ...]] = [("run", "state", "step", "test", "validation", "seed", "age", "from")]
    for folder in runs_in(path):
        try:
            run = outline(folder)
        except UserError as error:
            rows.append((folder.path.name, f"cannot be read: {error}", "", "", "", "", "", ""))
            continue
        scores = []
        for split in ("test", "validation"):
            found = run.last(f"{split}/success")
            scores.append("-" if found is None else f"{found[1]:.1%} (step {found[0]})")
        age = age_s(folder)
        rows.append(
            (
                run.name,
                state(run),
                str(max(run.done, 0)) + ("" if run.tokens else f"/{run.steps}"),
                *scores,
                run.seed,
                "-" if age == float("inf") else duration(age),
                origins(folder),
            )
        )
    if len(rows) == 1:
        raise RunError(f"{path} has no run folders")
    if not any(row[-1] for row in rows[1:]):
        rows = [row[:-1] for row in rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


if __name__ == "__main__":
    run_main(main)
