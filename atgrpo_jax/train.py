"""``python -m atgrpo_jax.train --gin_file=plan.gin [--gin_param=...] [--run_dir=...]``"""

from pathlib import Path

from absl import flags

from atgrpo_jax import config
from atgrpo_jax.cli import gin_flags, run
from atgrpo_jax.errors import ConfigError, RunError
from atgrpo_jax.experiment import Experiment, difference
from atgrpo_jax.loop import train
from atgrpo_jax.report import summary_text
from atgrpo_jax.run_folder import RunFolder, write_atomically

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
    claim(folder, experiment)
    print(summary_text(train(experiment, folder)))


def claim(folder: RunFolder, experiment: Experiment) -> None:
    """Makes the folder this run's, with its full config in it. Raises RunError if it is another run's."""
    known = folder.exists()
    folder.lock()
    if known:
        differs = difference(experiment, config.load(str(folder.config)))
        if differs:
            raise RunError(f"{folder.path} holds a run of another config ({differs}); give another --run_dir")
    write_atomically(folder.config, config.render(experiment).encode())


if __name__ == "__main__":
    run(main)
