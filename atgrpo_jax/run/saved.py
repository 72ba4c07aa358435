"""Opens the folder of a run: to train in it, or to read it, also while it is trained in."""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path

from atgrpo_jax.arrays.mesh import MeshConfig
from atgrpo_jax.arrays.trees import Damaged, check_no_pattern
from atgrpo_jax.common.errors import ConfigError, RunError
from atgrpo_jax.common.files import write_atomically
from atgrpo_jax.common.hosts import ALONE, Hosts, not_seeing
from atgrpo_jax.common.progress import say
from atgrpo_jax.engines.local.local import LocalEngineConfig
from atgrpo_jax.models.transformer import PolicyWeights
from atgrpo_jax.run import gin_config
from atgrpo_jax.run.checkpoint import Checkpoints, steps_in
from atgrpo_jax.run.experiment import Experiment
from atgrpo_jax.run.folder import RunFolder
from atgrpo_jax.run.keeping import best_of
from atgrpo_jax.run.shapes import earlier, settle
from atgrpo_jax.run.team_learner import TeamLearner, TeamState


class SavedRun:
    """A run that is read from its folder. Raises RunError if the folder holds no run.

    Its parameters are put on ``mesh``, or else on a mesh as in training.
    """

    def __init__(self, path: str, mesh: MeshConfig | None = None):
        self.folder = RunFolder(path)
        if not self.folder.exists():
            raise RunError(f"{self.folder.path} holds no run")
        self.experiment = gin_config.load(str(self.folder.config))
        self._checkpoints = Checkpoints(
            self.folder.checkpoints,
            self.experiment.identity(),
            read_only=True,
            earlier=earlier(self.folder),
        )
        if mesh is not None:
            self.experiment = moved(self.experiment, mesh)
        self.learner = TeamLearner(self.experiment)

    def newest(self) -> int:
        """Returns the step of the newest checkpoint. Raises RunError if there is none."""
        step = self._checkpoints.latest()
        if step is None:
            raise RunError(f"{self.folder.path} has no checkpoint yet")
        return step

    def steps(self) -> list[int]:
        """Returns the steps of all checkpoints, in ascending order, damaged ones included."""
        return self._checkpoints.steps()

    def step_of(self, text: str | None) -> int:
        """Returns the step that a person names: a number, "best", or None for the newest.

        Raises ConfigError for another text, and RunError if no checkpoint was scored.
        """
        if text is None:
            return self.newest()
        if text == "best":
            best = best_of(self.folder.read_metrics(), self.steps())
            if best is None:
                raise RunError(f"{self.folder.path} has no checkpoint with a validation score")
            say(f"step {best[0]} has the best validation success of the checkpoints there: {best[1]:.1%}")
            return best[0]
        if not text.isdecimal() or not text.isascii():
            raise ConfigError(f"{text!r}: with --run_dir it is a step of that run, a number or best")
        return int(text)

    def weights(self, step: int) -> Mapping[str, PolicyWeights]:
        """Reads the weights of all policies after ``step``. Raises RunError if it cannot."""
        return self.learner.weights(self.team(step))

    def team(self, step: int) -> TeamState:
        """Reads the team after ``step``. Raises RunError if it cannot."""
        try:
            return self.learner.restore(self._checkpoints, step)
        except Damaged as error:
            raise RunError(
                f"{error}; there are steps {', '.join(map(str, self._checkpoints.steps()))}"
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
    folder: RunFolder, given: Experiment, hosts: Hosts = ALONE, other_hosts: bool = False
) -> Iterator[Experiment]:
    """Locks the folder for this run until the end of the ``with``, and writes the run's config there.

    Host 0 does this for all ``hosts``. Yields that config: ``given``, with the date on which the run
    began. Raises RunError if the folder holds another run or something else, has more steps than
    ``given`` asks for, or is not the same one for all hosts. It may have been made by another number
    of hosts, or on another mesh, only if ``other_hosts``.
    """
    begun = given

    def take() -> bytes:
        nonlocal begun
        if hosts.count > 1 and isinstance(folder.path, Path):
            check_no_pattern(folder.path)
        folder.exists()  # raises before a lock file is left in a folder of somebody else
        folder.lock()
        begun = _begun(folder, given, hosts.count, other_hosts)
        return b""

    try:
        hosts.told("run folder", take)
        for index in not_seeing(hosts, folder.path):
            raise RunError(
                f"host {index} does not see {folder.path} of host 0; the run folder must be on a disk that "
                "all hosts share, or in a bucket"
            )
        yield gin_config.load(str(folder.config)) if hosts.index else begun
    finally:
        folder.unlock()


def _begun(folder: RunFolder, given: Experiment, hosts: int, other_hosts: bool) -> Experiment:
    known = folder.exists()  # asked again: a run may have begun in between
    recorded = gin_config.load(str(folder.config)) if known else None
    experiment = given.begun(recorded)
    done = max(steps_in(folder.checkpoints), default=0)
    if done > experiment.steps:
        raise RunError(
            f"{folder.path} holds {done} steps already, more than Experiment.steps = {experiment.steps}; "
            "ask for more, or score one of its checkpoints: python -m atgrpo_jax.evaluate --step=..."
        )
    settle(folder, experiment, recorded, hosts, done, other_hosts)
    write_atomically(folder.config, gin_config.render(experiment).encode())
    return experiment
