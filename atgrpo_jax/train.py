"""``python -m atgrpo_jax.train --gin_file=plan.gin [--gin_param=...] [--run_dir=...]``"""

from pathlib import Path

from absl import flags

from atgrpo_jax import config
from atgrpo_jax.checkpoint import steps_in
from atgrpo_jax.cli import gin_flags, run
from atgrpo_jax.errors import ConfigError, RunError
from atgrpo_jax.experiment import Experiment, difference
from atgrpo_jax.files import write_atomically
from atgrpo_jax.loop import train
from atgrpo_jax.report import summary_text
from atgrpo_jax.run_folder import RunFolder

_GIN_FILE, _GIN_PARAM = gin_flags()
_RUN_DIR = flags.DEFINE_string(
    "run_dir", None, "The run folder; runs/<name of the gin file> if not given. A run goes on in it."
)


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise ConfigError(f"unexpected argument {argv[1]!r}; see --help")
    if _GIN_FILE.value is None:
        raise ConfigError("--gin_file is missing, e.g. --gin_file=plan.gin")
    experiment = config.load(_GIN_FILE.value, _GIN_PARAM.value)
    folder = RunFolder(_RUN_DIR.value or Path("runs") / Path(_GIN_FILE.value).stem)
    print(summary_text(train(claim(folder, experiment), folder)))


def claim(folder: RunFolder, given: Experiment) -> Experiment:
    """Makes the folder this run's, with its full config in it, which it returns: what is given, on the day
    on which the run began. Raises RunError if it is another run's."""
    folder.exists()  # nothing is left in a folder that is no run's
    folder.lock()
    known = folder.exists()  # asked again: a run may have begun in between
    recorded = config.load(str(folder.config)) if known else None
    experiment = given.begun(recorded)
    if recorded:
        differs = difference(experiment, recorded)
        if differs:
            raise RunError(f"{folder.path} holds a run of another config ({differs}); give another --run_dir")
    done = max(steps_in(folder.checkpoints), default=0)
    if done > experiment.steps:
        raise RunError(
            f"{folder.path} holds {done} steps already, more than Experiment.steps = {experiment.steps}; "
            "ask for more, or score one of its checkpoints: python -m atgrpo_jax.evaluate --step=..."
        )
    write_atomically(folder.config, config.render(experiment).encode())
    return experiment


if __name__ == "__main__":
    run(main)
