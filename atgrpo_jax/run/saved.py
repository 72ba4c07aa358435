"""Opens the folder of a run: to train in it, or to read it, also while it is trained in."""

import contextlib
import copy
import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path

from atgrpo_jax.arrays.mesh import MeshConfig
from atgrpo_jax.arrays.trees import Damaged, check_no_pattern
from atgrpo_jax.common.cli import typed
from atgrpo_jax.common.errors import ConfigError, RunError
from atgrpo_jax.common.files import write_atomically
from atgrpo_jax.common.hosts import ALONE, Hosts, not_seeing
from atgrpo_jax.common.progress import counted
from atgrpo_jax.engines.local.local import LocalEngineConfig
from atgrpo_jax.models.transformer import PolicyWeights
from atgrpo_jax.run import changes, gin_config, last_step, origin
from atgrpo_jax.run.checkpoint import steps_in
from atgrpo_jax.run.ending import Ending
from atgrpo_jax.run.experiment import Experiment
from atgrpo_jax.run.folder import RunFolder
from atgrpo_jax.run.found import FoundRun
from atgrpo_jax.run.kept_files import check_kept, keep
from atgrpo_jax.run.kept_modules import settle_code
from atgrpo_jax.run.kept_source import carry
from atgrpo_jax.run.playing import picking
from atgrpo_jax.run.shapes import settle
from atgrpo_jax.run.starts import Asked
from atgrpo_jax.run.team_learner import TeamLearner
from atgrpo_jax.run.team_state import TeamState


class SavedRun(FoundRun):
    """A run that is read from its folder. Raises RunError if the folder holds no run.

    Its parameters are put on ``mesh``, or else on a mesh as in training.
    """

    def __init__(self, path: str, mesh: MeshConfig | None = None):
        super().__init__(path)
        if mesh is not None:
            self.experiment = moved(self.experiment, mesh)
        self.learner = TeamLearner(self.experiment)
        self._by_settings = {self.experiment.identity(): self}

    def at(self, step: int) -> "SavedRun":
        """Returns this run with the settings by which it made ``step``; see ``changes``.

        It is this same one if they have not changed since. Teams of one can be given to the other.
        """
        experiment = changes.experiment_at(self.folder, step)
        # On the mesh that this run has now, whatever it was then.
        experiment = dataclasses.replace(experiment, mesh=self.experiment.mesh, engine=self.experiment.engine)
        found = self._by_settings.get(experiment.identity())
        if found is None:
            found = copy.copy(self)
            found.experiment = experiment
            found.learner = TeamLearner(experiment)
            self._by_settings[experiment.identity()] = found
        return found

    def weights(self, step: int) -> Mapping[str, PolicyWeights]:
        """Reads the weights of all policies after ``step``. Raises RunError if it cannot."""
        return self.learner.weights(self.team(step))

    def team(self, step: int) -> TeamState:
        """Reads the team after ``step``. Raises RunError if it cannot."""
        try:
            return self.learner.restore(self.checkpoints, step)
        except Damaged as error:
            raise RunError(
                f"{error}; there are steps {', '.join(map(str, self.checkpoints.steps()))}"
            ) from error


def moved(experiment: Experiment, mesh: MeshConfig) -> Experiment:
    """Returns the experiment on another mesh, which its engine shares if it draws in this process.

    Raises ConfigError if it cannot be there.
    """
    engine = experiment.engine
    if isinstance(engine, LocalEngineConfig):
        engine = dataclasses.replace(engine, mesh=None, first_device=0)
    try:
        return dataclasses.replace(experiment, mesh=mesh, engine=engine)
    except ValueError as error:
        raise ConfigError(f"--mesh: {error}") from error


@contextlib.contextmanager
def claim(
    folder: RunFolder,
    given: Experiment,
    hosts: Hosts = ALONE,
    other_hosts: bool = False,
    change: bool = False,
    asked: Asked | None = None,
    changed_code: bool = False,
) -> Iterator[Experiment]:
    """Locks the folder for this run until the end of the ``with``, and writes the run's config there.

    Host 0 does this for all ``hosts``. Yields that config: ``given``, with the date on which the run
    began. Raises ConfigError if the instances of its steps cannot be had. Raises RunError if the folder
    holds another run or something else, has more steps than ``given`` asks for, or is not the same one for
    all hosts. It may have been made by another number of hosts, or on another mesh, only if
    ``other_hosts``. Settings may have changed only if ``change``, and the user's own modules only if
    ``changed_code``. A new run starts from another one if that is ``asked`` for.
    """
    begun = given

    def take() -> bytes:
        nonlocal begun
        picking(given)  # a pool that cannot be had is found before anything is written
        if hosts.count > 1 and isinstance(folder.path, Path):
            check_no_pattern(folder.path)
        folder.exists()  # raises before a lock file is left in a folder of somebody else
        folder.lock()
        begun = _begun(folder, given, hosts.count, other_hosts, change, asked, changed_code)
        return b""

    try:
        hosts.told("run folder", take)
        for index in not_seeing(hosts, folder.path):
            raise RunError(
                f"host {index} does not see {folder.path} of host 0; the run folder must be on a disk that "
                "all hosts share, or in a bucket"
            )
        yield given.begun(gin_config.load(str(folder.config))) if hosts.index else begun
    finally:
        folder.unlock()


def _begun(
    folder: RunFolder,
    given: Experiment,
    hosts: int,
    other_hosts: bool,
    change: bool,
    asked: Asked | None,
    changed_code: bool,
) -> Experiment:
    known = folder.exists()  # asked again: a run may have begun in between
    check_kept(folder.kept)
    recorded = gin_config.load(str(folder.config)) if known else None
    if change and recorded is None:
        raise RunError(f"{folder.path} holds no run yet, so nothing can change in it; leave --change out")
    if asked is not None:
        given = origin.fork(folder, given, recorded, asked)
    elif recorded is None:
        origin.refuse_without(folder, given)
    experiment = given.begun(recorded)
    changing = change or other_hosts or changed_code
    done = max(steps_in(folder.checkpoints), default=0)
    if done > experiment.steps:
        raise RunError(
            f"{folder.path} holds {counted(done, 'step')} already, more than Experiment.steps = "
            f"{experiment.steps}; ask for more, or score one of its checkpoints: "
            f"{typed('atgrpo_jax.evaluate')} --step=..."
        )
    records = folder.read_metrics()[: done + 1]
    enough = Ending(experiment.steps, experiment.tokens, records).last
    if done > enough:
        raise RunError(
            f"{folder.path} holds {counted(done, 'step')} already, and {enough} of them drew "
            f"Experiment.tokens = {experiment.tokens}; ask for more"
        )
    missed = last_step.is_missed(experiment, folder, done)
    if missed and (changing or last_step.step_before(experiment, folder, done) is None):
        more = f"Experiment.steps = {done + 1}" if done == experiment.steps else "more Experiment.tokens"
        raise RunError(
            f"{folder.path} holds step {done} already, which was not made as the last one, so no test was "
            f"played after it; ask for a step more ({more}), or score it as it is: "
            f"{typed('atgrpo_jax.evaluate')} --run_dir={folder.path} --step={done}"
        )
    like = recorded
    if recorded is not None:
        changes.forget_undone(folder, recorded)
        like = changes.allowed(folder, recorded, experiment) if change else recorded
    settle(folder, experiment, like, hosts, done, other_hosts)
    if recorded is not None and like is not None:
        changes.record(folder, recorded, like, done)
    carry(experiment, folder.code)
    settle_code(experiment, folder.code, done, changed_code)
    if recorded is None:
        reads = keep(experiment, folder.kept)
    else:  # the same contents, where the run keeps them
        own = {name: getattr(recorded, name) for name in ("task", "tokenizer", "pretrained")}
        reads = dataclasses.replace(experiment, **own)
    text = gin_config.render(reads)
    write_atomically(folder.config, gin_config.movable(text, folder.path).encode())
    return experiment
