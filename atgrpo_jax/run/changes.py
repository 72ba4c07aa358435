"""Records settings that change in the middle of a run, and finds those of an earlier step.

changes.jsonl has a line for each change: ``after_step``, the last step before it; ``changed``, the old and
new value of every field; ``before``, the identity that the run had; and ``config``, the name of the
config.gin that counted up to then, in configs/.
"""

import dataclasses
import json
from typing import Any

from atgrpo_jax.common.errors import RunError
from atgrpo_jax.common.files import append_json_line, read_file, read_json_lines, write_atomically
from atgrpo_jax.common.literals import literal
from atgrpo_jax.run import gin_config
from atgrpo_jax.run.experiment import Experiment, experiment_changes, experiment_difference
from atgrpo_jax.run.folder import RunFolder
from atgrpo_jax.run.kept_source import make_importable

# Parts of an experiment and of its team that may change between two steps. Everything else is what the
# weights are, what they are for, or where their randomness comes from.
PARTS = ("optimizer", "loss", "rollout", "credit", "batch", "evaluation", "max_logprob_gap", "gate")
OF_TEAM = ("alpha", "frozen", "rates", "alternate", "roles")


def with_changes(recorded: Experiment, ours: Experiment) -> Experiment:
    """Returns the recorded experiment with all of ours that may change in the middle of a run.

    The optimizer's algorithm stays, and whether it clips: its state depends on them.
    """
    same_state = ours.optimizer.algorithm == recorded.optimizer.algorithm
    same_state = same_state and (ours.optimizer.clip_norm is None) == (recorded.optimizer.clip_norm is None)
    parts = {name: getattr(ours, name) for name in PARTS if same_state or name != "optimizer"}
    team = dataclasses.replace(recorded.team, **{name: getattr(ours.team, name) for name in OF_TEAM})
    try:
        return dataclasses.replace(recorded, team=team, **parts)
    except ValueError:  # it fits our roles or mesh, not the recorded ones; these differ and are refused
        return recorded


def allowed(folder: RunFolder, recorded: Experiment, ours: Experiment) -> Experiment:
    """Returns the recorded experiment with all that changes. Mesh and engine stay as recorded.

    Raises RunError if something else differs than may change.
    """
    changed = with_changes(recorded, ours)
    differs = experiment_difference(ours, dataclasses.replace(changed, mesh=ours.mesh, engine=ours.engine))
    if differs:
        raise RunError(
            f"{folder.path}: this cannot change in the middle of a run: {differs}; begin a new run from its "
            f"weights: --from={folder.path} --run_dir=..."
        )
    return changed


def record(folder: RunFolder, recorded: Experiment, changed: Experiment, done: int) -> None:
    """Writes down what changes after step ``done``, and keeps the old config, if anything does."""
    found = {
        name: {"old": _plain(old), "new": _plain(new)}
        for name, new, old in experiment_changes(changed, recorded)
    }
    if not found:
        return
    name = folder.keep_config(read_file(folder.config))
    line = {"after_step": done, "changed": found, "before": recorded.identity(), "config": name}
    append_json_line(folder.changes, line)


def forget_undone(folder: RunFolder, recorded: Experiment) -> None:
    """Removes the last change if a kill came before the config that it leads to."""
    lines = read_json_lines(folder.changes)
    if lines and lines[-1]["before"] == recorded.identity():
        _write(folder, lines[:-1])


def rewind(folder: RunFolder, step: int) -> None:
    """Notes that the run goes on after ``step``: what was to change later counts from there on."""
    lines = read_json_lines(folder.changes)
    if any(line["after_step"] > step for line in lines):
        _write(folder, [line | {"after_step": min(step, line["after_step"])} for line in lines])


def identities(folder: RunFolder) -> tuple[str, ...]:
    """Returns the identities that the run had before its settings changed."""
    return tuple(line["before"] for line in read_json_lines(folder.changes))


def on_the_way(folder: RunFolder) -> dict[str, str]:
    """Returns what changed after which step, and from which value to which, as texts by name.

    Several changes of a field after the same step are one; what came back to its value has not changed.
    """
    found: dict[str, tuple[Any, Any]] = {}
    for line in read_json_lines(folder.changes):
        for name, change in line["changed"].items():
            place = f"{name} after step {line['after_step']}"
            old, _ = found.get(place, (change["old"], None))
            found[place] = old, change["new"]
    return {place: f"{old!r} to {new!r}" for place, (old, new) in found.items() if old != new}


def experiment_at(folder: RunFolder, step: int) -> Experiment:
    """Returns the experiment by which a run made ``step``, or would make it if it is not made yet.

    Raises ConfigError if a config cannot be read.
    """
    for line in read_json_lines(folder.changes):
        if step <= line["after_step"]:
            make_importable(folder.code)
            return gin_config.load(str(folder.configs / line["config"]))
    return gin_config.load(str(folder.config))


def _write(folder: RunFolder, lines: list[dict[str, Any]]) -> None:
    write_atomically(folder.changes, "".join(json.dumps(line) + "\n" for line in lines).encode())


def _plain(value: Any) -> Any:
    return repr(value) if literal(value) is None else value
