"""Says where the seconds of a training step go, and how near each part is to what this machine can do.

python -m atgrpo_jax.tools.budget --gin_file=plan.gin [--steps=3] [--trace=FOLDER] [--gin_param=...]

It trains the first steps of the run, in a temporary folder, after the warm start (which is made, or read
from its cache). The rows of the table sum to the step:

    measured    by a clock around it, in the steps themselves
    derived     from that: by shares of parts that were timed alone, or by counts
    left over   what the other rows do not explain; below 0 if parts are faster together than alone

"of the limit" compares with the machine's rate of matrix products, or of reading memory, whichever would
take the part longer; both are measured in the same process. The clock waits for the devices after each
update, and all rows of a step are packed before the first update. A run does both at the same time, so
its steps may be a little faster.
"""

import tempfile
from pathlib import Path

from absl import flags

from atgrpo_jax.common.cli import compiled_flag, gin_flags, needed_gin_files, run_main
from atgrpo_jax.common.errors import ConfigError
from atgrpo_jax.common.files import folder_path, make_folder
from atgrpo_jax.run import gin_config
from atgrpo_jax.run.compiled import keep_compiled
from atgrpo_jax.run.experiment import Experiment
from atgrpo_jax.tools.budgeting.table import Row, limits, lines, rows
from atgrpo_jax.tools.budgeting.watching import Run, watched


def budget(
    experiment: Experiment, name: str, steps: int, trace: Path | None = None
) -> tuple[Run, list[Row], list[str]]:
    """Trains steps and divides them. Returns the run, the rows, and the lines to print about ``name``."""
    with tempfile.TemporaryDirectory() as place:
        run = watched(experiment, Path(place) / "budget", steps, trace)
        reached = limits(experiment.compute.dtype)
        found = rows(run, reached)
    return run, found, list(lines(name, run, reached, found))


def main(argv: list[str], given: tuple, steps: int, trace: str | None, compiled: str | None) -> None:
    gin_file, gin_param = given
    files = needed_gin_files(argv, gin_file)
    folder = None if trace is None else _folder(trace)
    keep_compiled(compiled)
    _, _, text = budget(gin_config.load(files, gin_param.value), ", ".join(files), steps, folder)
    print("\n".join(text))
    if folder is not None:
        print(f"trace of one more step: {folder} (perfetto_trace.json.gz in it opens in ui.perfetto.dev)")


def _folder(trace: str) -> Path:
    """Makes the folder that --trace names. Raises ConfigError if it is none of a disk."""
    try:
        folder = folder_path(trace)
    except ValueError as error:
        raise ConfigError(f"--trace={trace} {error}") from error
    if not isinstance(folder, Path):
        raise ConfigError(f"--trace={trace}: give a folder of a disk")
    make_folder(folder)
    return folder


if __name__ == "__main__":
    given = gin_flags()
    steps = flags.DEFINE_integer("steps", 3, "Steps that are measured, after a first one. E.g. --steps=5", 1)
    trace = flags.DEFINE_string(
        "trace", None, "A folder for a trace of one more step, as viewers read it. E.g. --trace=trace"
    )
    compiled = compiled_flag()
    run_main(lambda argv: main(argv, given, steps.value, trace.value, compiled.value))
