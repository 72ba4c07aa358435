"""Says which run folder and which config are meant if a person names only one of them."""

from pathlib import Path

from atgrpo_jax.common.errors import ConfigError
from atgrpo_jax.run.folder import RunFolder
from atgrpo_jax.run.starts import ALL, Asked


def default_run_dir(files: list[str]) -> Path:
    """Returns the folder of a run of these files. Raises ConfigError if none can be named after them."""
    if not files:
        raise ConfigError("--gin_file is missing, e.g. --gin_file=plan.gin; or name a run, with --run_dir")
    for name in files:
        if Path(name).name == "config.gin":
            run = name.rpartition("/")[0] or "."
            raise ConfigError(
                f"{name} is the config of a run: --run_dir={run} goes on with it, and another --run_dir "
                f"begins a new run like it (from its weights with --from={run})"
            )
    return Path("runs") / "_".join(Path(name).stem for name in files)


def config_of(folder: RunFolder, asked: Asked | None) -> str:
    """Returns the config of a run that goes on, or else of the one run that a fork starts from."""
    if folder.exists():
        return str(folder.config)
    if asked is None:
        raise ConfigError(f"--gin_file is missing, and {folder.path} holds no run yet")
    if ALL not in asked.runs:
        raise ConfigError("--from names several runs, so say whose settings count: --gin_file=RUN/config.gin")
    origin = RunFolder(asked.runs[ALL])
    if not origin.exists():
        raise ConfigError(f"--from={origin.path} holds no run")
    return str(origin.config)
