"""Everything that defines a run, as one frozen value."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from atgrpo_jax.batch import BatchConfig
from atgrpo_jax.checks import check_types, require
from atgrpo_jax.engines.local import LocalEngineConfig
from atgrpo_jax.evaluation import EvaluationConfig
from atgrpo_jax.groups import CreditConfig
from atgrpo_jax.learner import LossConfig, OptimizerConfig
from atgrpo_jax.mesh import MeshConfig
from atgrpo_jax.models.config import ModelConfig
from atgrpo_jax.models.lora import LoraConfig
from atgrpo_jax.rollout import RolloutConfig
from atgrpo_jax.tasks.base import Task
from atgrpo_jax.team import Team
from atgrpo_jax.tokens import TinyTokenizer, Tokenizer
from atgrpo_jax.types import hash_bytes
from atgrpo_jax.warm_start import WarmStartConfig

# Fields that may change when a run is resumed: they do not touch what was already done.
FREE = ("steps", "checkpoint_every", "keep_checkpoints")


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A run. Policies start from random parameters, or from Hugging Face folders of the ``model``'s
    architecture (one for all, or one for each policy by name), and then from the ``warm_start`` if there is
    one."""

    task: Task
    team: Team = Team()
    tokenizer: Tokenizer = TinyTokenizer()
    model: ModelConfig = ModelConfig()
    pretrained: str | Mapping[str, str] | None = None
    lora: LoraConfig = LoraConfig()  # of policies that are adapters
    mesh: MeshConfig = MeshConfig()
    engine: LocalEngineConfig = LocalEngineConfig()
    rollout: RolloutConfig = RolloutConfig()
    credit: CreditConfig = CreditConfig()
    batch: BatchConfig = BatchConfig()
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    warm_start: WarmStartConfig | None = WarmStartConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    steps: int = 100
    seed: int = 0
    checkpoint_every: int = 10  # steps
    keep_checkpoints: int = 2  # newest ones, beside that of step 0
    max_logprob_gap: float = 1e-3  # between sampler and learner on the same tokens

    def __post_init__(self):
        check_types(self)
        object.__setattr__(self, "pretrained", _absolute(self.pretrained))
        for name in ("steps", "checkpoint_every", "keep_checkpoints"):
            require(self, name, getattr(self, name) >= 1, "must be at least 1")
        require(self, "max_logprob_gap", self.max_logprob_gap > 0, "must be positive")
        tree = self.rollout.mode == "tree"
        require(
            self,
            "credit",
            tree == (self.credit.baseline == "group"),
            f"with RolloutConfig.mode = {self.rollout.mode!r} every baseline would have one member; "
            'use baseline "group" with mode "tree", "instance" with "trajectories"',
        )
        self.team.policies(self.task.workflow.order)
        require(
            self,
            "model",
            self.vocab_size >= self.tokenizer.vocab_size,
            f"a vocabulary smaller than the tokenizer's {self.tokenizer.vocab_size}",
        )
        if isinstance(self.pretrained, Mapping):
            roles = self.task.workflow.order
            starts = self.team.starting(roles).policies(roles)
            same = set(self.pretrained) == set(starts)
            require(self, "pretrained", same, f"must name exactly {', '.join(starts)}")
        rows = self.mesh.data * self.mesh.fsdp
        require(
            self,
            "batch",
            self.batch.rows % rows == 0,
            f"BatchConfig.rows must be a multiple of mesh data x fsdp = {rows}",
        )

    @property
    def policies(self) -> tuple[str, ...]:
        return self.team.policies(self.task.workflow.order)

    @property
    def vocab_size(self) -> int:
        """Of the model; a folder's may be padded beyond its tokenizer's."""
        return self.model.vocab_size or self.tokenizer.vocab_size

    def identity(self) -> str:
        """Equal for experiments that leave the same bytes, step by step."""
        return hash_bytes(repr(_without_free(self))).hex()


def _absolute(folders: str | Mapping[str, str] | None) -> str | dict[str, str] | None:
    """A run may be read from another directory than it was started in."""
    if isinstance(folders, Mapping):
        return {name: str(Path(folder).expanduser().absolute()) for name, folder in folders.items()}
    return None if folders is None else str(Path(folders).expanduser().absolute())


def difference(ours: Experiment, theirs: Experiment) -> str | None:
    """The first field in which two experiments differ, apart from ``FREE`` ones, as a line for people."""
    return _difference("Experiment", _without_free(ours), _without_free(theirs))


def _without_free(experiment: Experiment) -> Experiment:
    defaults: dict[str, Any] = {f.name: f.default for f in dataclasses.fields(Experiment) if f.name in FREE}
    warm_start = experiment.warm_start
    if warm_start is not None:
        warm_start = dataclasses.replace(warm_start, cache_dir="")
    return dataclasses.replace(experiment, **defaults, warm_start=warm_start)


def _difference(name: str, ours: Any, theirs: Any) -> str | None:
    if type(ours) is type(theirs) and dataclasses.is_dataclass(ours):
        for field in dataclasses.fields(ours):
            inner = f"{type(ours).__name__}.{field.name}"
            found = _difference(inner, getattr(ours, field.name), getattr(theirs, field.name))
            if found:
                return found
        return None
    return None if ours == theirs else f"{name} = {theirs!r} there, {ours!r} given"
