"""Trains from Python, without gin: what ``import atgrpo_jax`` offers."""

import os
from collections.abc import Sequence
from typing import Any

from atgrpo_jax.common.cli import look_for_no_missing_tpu
from atgrpo_jax.common.errors import ConfigError
from atgrpo_jax.run import gin_config
from atgrpo_jax.run.experiment import Experiment
from atgrpo_jax.run.folder import RunFolder
from atgrpo_jax.run.kept_source import kept
from atgrpo_jax.run.loop import train
from atgrpo_jax.run.saved import claim
from atgrpo_jax.run.starts import Asked


def load_experiment(gin_files: str | Sequence[str], bindings: Sequence[str] = ()) -> Experiment:
    """Returns the experiment of gin files, e.g. "smoke.gin", and of further bindings.

    Raises ConfigError, in one line that names the file at fault.
    """
    return gin_config.load(gin_files, bindings)


def train_team(
    experiment: Experiment,
    run_dir: str | os.PathLike[str],
    begin_from: str | os.PathLike[str] | None = None,
    from_step: str | int | None = None,
    change: bool = False,
    other_hosts: bool = False,
    changed_code: bool = False,
) -> dict[str, Any]:
    """Trains to ``experiment.steps`` and returns the summary. A run that is in the folder goes on.

    The folder is the same as that of ``python -m atgrpo_jax.train``, and every command reads it. The
    source of a task, a loss or another part that a notebook or the script itself defines is kept in
    the folder.

    ``begin_from``, ``from_step``, ``change``, ``other_hosts`` and ``changed_code`` are what --from,
    --from_step, --change, --other_hosts and --changed_code are to ``train`` (docs/forks.md). All other files
    are written as by that command, but for report.html, which ``python -m atgrpo_jax.report`` writes.

    It works inside a running event loop (a notebook) and in any thread. Signals reach only the main
    thread, so a stop is heard only there: it saves the last complete step and raises Stopped. It never
    ends the process, so it has to wait while something is compiled.

    Raises UserError for what a person can mend, in one line.
    """
    if from_step is not None and begin_from is None:
        raise ConfigError('from_step needs begin_from, e.g. begin_from="runs/plan", from_step="best"')
    step = None if from_step is None else str(from_step)
    asked = None if begin_from is None else Asked.parse(os.fspath(begin_from), step)
    look_for_no_missing_tpu()
    folder = RunFolder(run_dir)
    folder.exists()  # raises before anything is written in a folder of somebody else
    claimed = claim(
        folder,
        kept(experiment, folder.code),
        other_hosts=other_hosts,
        change=change,
        asked=asked,
        changed_code=changed_code,
    )
    with claimed as begun:
        return train(begun, folder, may_exit=False)
