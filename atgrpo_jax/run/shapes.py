"""Records on how many hosts and which mesh a run is made: its bytes depend on both.

A run goes on with the same ones. If a person asks for others, the run folder keeps a line on it, and
checkpoints from before are still its own.
"""

import dataclasses
from typing import Any

from atgrpo_jax.common.errors import RunError
from atgrpo_jax.common.files import append_json_line, is_file, read_json_lines, remove_file
from atgrpo_jax.common.progress import counted
from atgrpo_jax.run.changes import with_changes
from atgrpo_jax.run.experiment import Experiment, experiment_difference
from atgrpo_jax.run.folder import RunFolder
from atgrpo_jax.run.kept_files import differences


def settle(
    folder: RunFolder, ours: Experiment, recorded: Experiment | None, hosts: int, done: int, other: bool
) -> None:
    """Checks that a run can go on as ``ours`` on so many hosts, and records it.

    Args:
      recorded: the experiment that the folder holds; None for a new run.
      done: the step of the newest checkpoint.
      other: whether another number of hosts, another mesh or another local engine is allowed.

    Raises RunError if anything else than that differs, or that and it is not allowed.
    """
    if recorded is None:
        if is_file(folder.shapes):  # of a run that ended before it had a config
            remove_file(folder.shapes)
        if hosts > 1:  # without the file it is one host
            _record(folder, ours, None, hosts, 0)
        return
    theirs = recorded
    if other:
        theirs = dataclasses.replace(recorded, mesh=ours.mesh, engine=ours.engine)
    differs = experiment_difference(ours, theirs)
    if differs:
        hint = _hint(folder, ours, recorded, other)
        raise RunError(
            f"{folder.path} holds a run of another config ({differs}); give another --run_dir{hint}"
        )
    before = read_json_lines(folder.shapes)[-1]["hosts"] if is_file(folder.shapes) else 1
    if before != hosts and not other:
        raise RunError(
            f"{folder.path} was made by {counted(before, 'host')}, and now it would be {hosts}; with "
            "--other_hosts it goes on with other rounding, and the folder records it"
        )
    if before != hosts or ours.identity() != recorded.identity():
        _record(folder, ours, recorded, hosts, done)


def earlier(folder: RunFolder) -> tuple[str, ...]:
    """Returns the identities that the run had before its mesh changed."""
    lines = read_json_lines(folder.shapes) if is_file(folder.shapes) else []
    return tuple(line["before"] for line in lines if "before" in line)


def _record(folder: RunFolder, ours: Experiment, recorded: Experiment | None, hosts: int, done: int) -> None:
    line: dict[str, Any] = {"after_step": done, "hosts": hosts, "mesh": str(ours.mesh)}
    if recorded is not None:
        line["before"] = recorded.identity()
    append_json_line(folder.shapes, line)


def _hint(folder: RunFolder, ours: Experiment, recorded: Experiment, other: bool) -> str:
    """Returns what else can be done: with this run, if what differs may change, or with its weights, if
    they fit; "" if nothing can."""
    moved = dataclasses.replace(recorded, mesh=ours.mesh, engine=ours.engine)
    if not other and not experiment_difference(ours, moved):
        return ", or --other_hosts to go on with other bytes"
    if not experiment_difference(ours, with_changes(moved if other else recorded, ours)):
        return ", or --change to go on with this from the next step"
    if _same_weights(ours, recorded):
        return f", or --from={folder.path} with it to begin there with this run's weights"
    return ""


def _same_weights(ours: Experiment, recorded: Experiment) -> bool:
    """Returns whether the recorded run's weights can be ours: policies, sizes and tokens are the same."""

    def meant(x: Experiment) -> tuple[Any, ...]:
        return x.policies, x.initial_names, x.model, x.lora, x.compute.param_dtype, x.tokenizer

    return not any(differences("weights", meant(ours), meant(recorded)))
