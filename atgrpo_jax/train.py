"""Trains a team, or goes on with a run that stopped.

python -m atgrpo_jax.train --gin_file=plan.gin [--gin_param=...] [--run_dir=...]
"""

from pathlib import Path

from absl import flags

from atgrpo_jax.common.cli import gin_flags, look_for_no_missing_tpu, refuse_arguments, run_main
from atgrpo_jax.common.errors import ConfigError

_GIN_FILE, _GIN_PARAM = gin_flags()
_RUN_DIR = flags.DEFINE_string(
    "run_dir", None, "The run folder; runs/<name of the gin file> if not given. A run goes on in it."
)


def main(argv: list[str]) -> None:
    refuse_arguments(argv)
    if _GIN_FILE.value is None:
        raise ConfigError("--gin_file is missing, e.g. --gin_file=plan.gin")
    # Imported here because JAX takes seconds: Ctrl-C and SIGTERM are handled by now.
    from atgrpo_jax.run import gin_config
    from atgrpo_jax.run.folder import RunFolder
    from atgrpo_jax.run.loop import train
    from atgrpo_jax.run.report import summary_text
    from atgrpo_jax.run.saved import claim

    look_for_no_missing_tpu()
    experiment = gin_config.load(_GIN_FILE.value, _GIN_PARAM.value)
    folder = RunFolder(_RUN_DIR.value or Path("runs") / Path(_GIN_FILE.value).stem)
    print(summary_text(train(claim(folder, experiment), folder)))


if __name__ == "__main__":
    run_main(main)
