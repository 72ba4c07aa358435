"""A run opened for reading, while it may be going on."""

from collections.abc import Mapping

from atgrpo_jax import config
from atgrpo_jax.checkpoint import Checkpoints
from atgrpo_jax.errors import RunError
from atgrpo_jax.models.transformer import Weights
from atgrpo_jax.policies import Policies
from atgrpo_jax.run_folder import RunFolder
from atgrpo_jax.trees import Damaged


class SavedRun:
    """Raises RunError if the folder holds no run."""

    def __init__(self, path: str):
        self.folder = RunFolder(path)
        if not self.folder.exists():
            raise RunError(f"{self.folder.path} holds no run")
        self.x = config.load(str(self.folder.config))
        self.policies = Policies(self.x)
        self._checkpoints = Checkpoints(self.folder.checkpoints, self.x.identity(), read_only=True)

    def newest(self) -> int:
        """Its last checkpoint. Raises RunError if there is none."""
        step = self._checkpoints.latest()
        if step is None:
            raise RunError(f"{self.folder.path} has no checkpoint yet")
        return step

    def weights(self, step: int) -> Mapping[str, Weights]:
        """Of every policy after ``step``. Raises RunError if that cannot be read."""
        try:
            return self.policies.weights(self.policies.restore(self._checkpoints, step))
        except Damaged as error:
            raise RunError(
                f"{error}; there are steps {', '.join(map(str, self._checkpoints.steps()))}"
            ) from error
