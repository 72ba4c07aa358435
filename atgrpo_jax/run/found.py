"""Reads what a run folder holds, without building anything on devices."""

from atgrpo_jax.common.errors import ConfigError, RunError
from atgrpo_jax.common.hosts import ALONE, Hosts
from atgrpo_jax.common.progress import say
from atgrpo_jax.run import changes, gin_config
from atgrpo_jax.run.checkpoint import Checkpoints
from atgrpo_jax.run.folder import RunFolder
from atgrpo_jax.run.keeping import best_of
from atgrpo_jax.run.kept_files import check_kept
from atgrpo_jax.run.shapes import earlier


class FoundRun:
    """A run in its folder, which nobody changes here. Raises RunError if the folder holds no run."""

    def __init__(self, path: str, hosts: Hosts = ALONE):
        self.folder = RunFolder(path)
        if not self.folder.exists():
            raise RunError(f"{self.folder.path} holds no run")
        check_kept(self.folder.kept)
        self.experiment = gin_config.load(str(self.folder.config))
        self.checkpoints = Checkpoints(
            self.folder.checkpoints,
            self.experiment.identity(),
            read_only=True,
            hosts=hosts,
            earlier=(*earlier(self.folder), *changes.identities(self.folder)),
        )

    def newest(self) -> int:
        """Returns the step of the newest checkpoint. Raises RunError if there is none."""
        step = self.checkpoints.latest()
        if step is None:
            raise RunError(f"{self.folder.path} has no checkpoint yet")
        return step

    def steps(self) -> list[int]:
        """Returns the steps of all checkpoints, in ascending order, damaged ones included."""
        return self.checkpoints.steps()

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
            say(
                f"step {best[0]} has the best validation success of the checkpoints there: {best[1]:.1%} "
                "(of equals it is the earliest)"
            )
            return best[0]
        if not text.isdecimal() or not text.isascii():
            raise ConfigError(f"step {text!r}: it is a step of that run, so a number, or best")
        return int(text)
