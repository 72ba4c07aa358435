"""Says which trackers a run has."""

import dataclasses
from collections.abc import Mapping

from atgrpo_jax.common.checks import check_types, require
from atgrpo_jax.tracking.mlflow import MLflow
from atgrpo_jax.tracking.tensorboard import TensorBoard
from atgrpo_jax.tracking.tracker import TrackerConfig
from atgrpo_jax.tracking.trackio import Trackio
from atgrpo_jax.tracking.wandb import Wandb


@dataclasses.dataclass(frozen=True)
class Trackers:
    """What shows the records of a run, beside its folder, which has all of it."""

    tensorboard: TensorBoard | None = TensorBoard()  # None writes nothing for it
    wandb: Wandb | None = None  # Weights & Biases
    mlflow: MLflow | None = None  # a server of MLflow, or its database
    trackio: Trackio | None = None  # of Hugging Face
    others: Mapping[str, TrackerConfig] = dataclasses.field(default_factory=dict)  # your own, by name
    rows: int = 50  # of the table of episodes that each evaluation gives, at most; 0 for no tables
    letters: int = 2000  # of a prompt or an answer in it; of longer ones its two ends

    def __post_init__(self):
        check_types(self)
        require(self, "rows", self.rows >= 0, "must not be negative")
        require(self, "letters", self.letters >= 1, "must be at least 1")
        taken = sorted(set(self.others) & {field.name for field in dataclasses.fields(self)})
        require(self, "others", not taken, f"another name than {', '.join(taken)}")

    def chosen(self) -> dict[str, TrackerConfig]:
        """Returns the settings of those that the run has, by name."""
        own = {"tensorboard": self.tensorboard, "wandb": self.wandb, "mlflow": self.mlflow,
               "trackio": self.trackio}  # fmt: skip
        return {name: config for name, config in (own | dict(self.others)).items() if config is not None}
