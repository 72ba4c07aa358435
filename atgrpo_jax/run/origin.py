"""Begins a run whose policies start from those of other runs: a fork.

What it started from is in origin.json. The digest of it, with the digests of the checkpoints and no path,
is ``Experiment.origin``. So a fork is the same run wherever its origin is, and needs it no more once its
own step 0 is saved. The optimizers start fresh, and there is no warm start.
"""

import dataclasses
import functools
import json
from typing import Any

import jax
import jax.numpy as jnp

from atgrpo_jax.arrays.finite_trees import check_tree
from atgrpo_jax.common.cli import typed
from atgrpo_jax.common.errors import ConfigError, RunError
from atgrpo_jax.common.files import is_file, read_file, remove_file, write_atomically
from atgrpo_jax.common.hosts import ALONE, Hosts
from atgrpo_jax.common.progress import say
from atgrpo_jax.common.types import hash_bytes
from atgrpo_jax.models.lora import merge
from atgrpo_jax.rollout.team import BASE
from atgrpo_jax.run.experiment import Experiment
from atgrpo_jax.run.folder import RunFolder
from atgrpo_jax.run.found import FoundRun
from atgrpo_jax.run.starts import Asked, Start, starts
from atgrpo_jax.run.team_learner import TeamLearner
from atgrpo_jax.run.team_state import Given

_LOST = "this fork has no checkpoint of its own yet, and cannot begin"


def fork(folder: RunFolder, given: Experiment, recorded: Experiment | None, asked: Asked) -> Experiment:
    """Returns the experiment of a fork, and writes origin.json. Nothing is written if it exists already.

    Raises ConfigError or RunError, in one line, if policies cannot start from what is asked for.
    """
    if recorded is not None:
        if recorded.origin is None or read(folder)["asked"] != dataclasses.asdict(asked):
            what = "did not begin from another one" if recorded.origin is None else "began from another one"
            raise RunError(f"{folder.path} holds a run that {what}; give another --run_dir, or no --from")
        return given
    found = starts(given, asked)
    content = {name: dataclasses.astuple(start)[2:] for name, start in sorted(found.items())}
    digest = hash_bytes(repr(content)).hex()
    text = {
        "digest": digest,
        "starts": {name: dataclasses.asdict(start) for name, start in found.items()},
        "asked": dataclasses.asdict(asked),
    }
    write_atomically(folder.origin, (json.dumps(text, indent=1) + "\n").encode())
    return dataclasses.replace(given, warm_start=None, origin=digest)


def refuse_without(folder: RunFolder, given: Experiment) -> None:
    """Raises ConfigError if a new run is to be a fork, and nothing says of what.

    Removes origin.json of a fork that ended before it had a config.
    """
    if given.origin is not None:
        raise ConfigError(
            "this config is that of a fork (Experiment.origin): say again what a new run starts from, as in "
            "--from=RUN, or give --gin_param='experiment.Experiment.origin = None'"
        )
    if is_file(folder.origin):
        remove_file(folder.origin)


def read(folder: RunFolder) -> dict[str, Any]:
    """Returns what origin.json says. Raises RunError if it is not there."""
    if not is_file(folder.origin):
        raise RunError(f"{folder.origin} is missing, and this is the run of a fork; put it back")
    return json.loads(read_file(folder.origin))


def origins(folder: RunFolder) -> str:
    """Returns a line on what a fork began from, such as "plan (step 300)"; "" for another run."""
    if not is_file(folder.origin):
        return ""
    found = json.loads(read_file(folder.origin))["starts"].values()
    names = (f"{start['run'].rpartition('/')[2]} (step {start['step']})" for start in found)
    return ", ".join(dict.fromkeys(names))


def load(folder: RunFolder, experiment: Experiment, learner: TeamLearner, hosts: Hosts = ALONE) -> Given:
    """Reads the parameters that a fork starts from.

    Raises RunError if the origin is not what it was when the fork began.
    """
    written = read(folder)
    if written["digest"] != experiment.origin:
        raise RunError(f"{folder.origin} is of another run; put this run's own back")
    found = {name: Start(**start) for name, start in written["starts"].items()}
    params: dict[str, Any] = {}
    adapters: dict[str, Any] = {}
    others: list[str] = []  # runs whose adapters come to the base of another one
    runs = {start.run: _reached(start.run, hosts) for start in found.values()}
    for name, start in found.items():
        reading = _Reading(start, runs[start.run])
        if start.takes == "adapter":
            adapters[name] = reading.policy(learner.shapes[name].params)
        elif start.takes == "weights":
            params[name] = reading.policy(learner.shapes_of(name).params)
        elif start.takes == "base":
            params[name] = reading.base(learner.shapes_of(name).params)
        else:
            lora = reading.run.experiment.lora
            adapter = reading.policy(learner.shapes_of(name, lora).params)
            base = reading.base(learner.shapes_of(name).params)
            params[name] = _merged(base, adapter, lora.scale)
        if start.takes == "adapter" and start.run != found[BASE].run:
            others.append(start.run)
    for run in others:
        _check_same_base(runs[run], found[BASE].run, params[BASE], learner)
    if hosts.index == 0:
        for name, start in found.items():
            say(f"{name} starts from {start.policy} ({start.takes}) after step {start.step} of {start.run}")
    for name, own in (*params.items(), *adapters.items()):
        check_tree(own, f"{name}, as its origin left it", "begin from another step")
    return Given(params, adapters)


class _Reading:
    """Reads from the checkpoint of a start. Raises RunError if it is another one than it was."""

    def __init__(self, start: Start, run: FoundRun):
        self._start = start
        self.run = run
        try:
            digest = run.checkpoints.digest(start.step)
        except RunError as error:
            raise RunError(f"{_LOST}: {error}") from error
        if digest != start.checkpoint:
            raise RunError(f"{_LOST}: checkpoint {start.step} in {start.run} is another one now")

    def policy(self, shapes: Any) -> Any:
        name = self._start.policy
        return self.run.checkpoints.restore_params(self._start.step, {name: shapes})[name]

    def base(self, shapes: Any) -> Any:
        return self.run.checkpoints.restore_base(shapes, self._start.step)


def _merged(base: Any, adapter: Any, scale: float) -> Any:
    shardings = jax.tree.map(lambda leaf: leaf.sharding, base)
    return jax.jit(functools.partial(merge, scale=scale), out_shardings=shardings)(base, adapter)


def _reached(path: str, hosts: Hosts) -> FoundRun:
    try:
        return FoundRun(path, hosts)
    except RunError as error:
        raise RunError(f"{_LOST}: {error}") from error


def _check_same_base(run: FoundRun, base: str, params: Any, learner: TeamLearner) -> None:
    """Raises RunError if adapters come from other weights than the ones that they are put on."""
    theirs = run.checkpoints.restore_base(learner.shapes_of(BASE).params)
    if not all(jax.tree.leaves(jax.tree.map(lambda a, b: bool(jnp.array_equal(a, b)), theirs, params))):
        raise RunError(
            f"the adapters of {run.folder.path} are on other weights than those of {base}, so "
            f"they cannot be on one base; merge one of them: {typed('atgrpo_jax.export')} --merge"
        )
