"""Makes the runs of a study, compares its arms, and says whether its predictions held.

    python -m atgrpo_jax.study studies/credit_plan.toml --at_once=2

A study is a TOML file: arms, seeds, what ends a run, a measure, and predictions. They are recorded before
the first run and cannot change after it (docs/studies.md). Each run is an ordinary run folder in the
study's folder. Runs that failed do not stop the others. The same command goes on with what is missing.
"""

from pathlib import Path

from absl import flags

from atgrpo_jax.common.buckets import is_url
from atgrpo_jax.common.cli import run_main
from atgrpo_jax.common.errors import ConfigError

_STUDY_DIR = flags.DEFINE_string(
    "study_dir",
    None,
    "The folder of the study, on a disk. If it is not given, it is runs/ and the name of the study. E.g. "
    "--study_dir=runs/credit",
)
_AT_ONCE = flags.DEFINE_integer(
    "at_once",
    1,
    "How many runs are made at the same time. Each gets its share of the cores; on an accelerator, leave it "
    "at 1. E.g. --at_once=2",
)


def main(argv: list[str]) -> None:
    if len(argv) != 2:
        raise ConfigError("name one study, e.g. study studies/credit_plan.toml")
    # Imported here because JAX takes seconds: Ctrl-C and SIGTERM are handled by now.
    from atgrpo_jax.studying.asked import read
    from atgrpo_jax.studying.conducting import conduct
    from atgrpo_jax.studying.making import starter
    from atgrpo_jax.studying.recorded import StudyFolder

    path = Path(argv[1])
    study = read(path)
    given = _STUDY_DIR.value or f"runs/{path.stem}"
    if is_url(given):
        raise ConfigError(f"--study_dir={given}: a study is on a disk; an arm may name runs in a bucket")
    folder = StudyFolder(Path(given).expanduser().absolute())
    print(conduct(folder, study, starter(study, folder, _AT_ONCE.value), _AT_ONCE.value))


if __name__ == "__main__":
    run_main(main)
