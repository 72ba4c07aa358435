"""Makes an optimizer and its learning rate of settings that gin files give."""

import dataclasses
import inspect
from typing import Any, Literal

import jax
import optax

from atgrpo_jax.common.checks import check_types, require


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Sets the optimizer and its rate: a linear warm-up, then a constant rate or a cosine decay.

    A training step makes at most ``LossConfig.epochs * LossConfig.minibatches`` updates.

    "muon" orthogonalises the momentum of every matrix of a block (Jordan 2024) and scales it to a root
    mean square of 0.2 of the rate (2502.16982, eq. 4). AdamW with Nesterov's momentum updates the rest:
    embedding, head, norms, and adapters. A warm start from scratch takes less than half of the updates
    that it takes with AdamW (docs/log.md).
    """

    algorithm: Literal["adamw", "muon"] = "adamw"  # see above
    learning_rate: float = 3e-4  # after the warm-up
    warmup: int = 0  # updates
    decay: int = 0  # updates after the warm-up in which the rate falls; 0 keeps it constant
    final: float = 0.1  # the rate after the decay, as a share of learning_rate
    b1: float = 0.9  # decay of AdamW's mean of gradients
    b2: float = 0.99  # decay of AdamW's mean of their squares
    momentum: float = 0.95  # used by Muon only
    epsilon: float = 1e-8  # is added to the root of that
    weight_decay: float = 0.01  # share of a weight that an update takes off, times the rate
    clip_norm: float | None = 1.0  # largest global norm of the gradient; None does not clip
    offload: bool = False  # keep the optimizer state in host memory between updates

    def __post_init__(self):
        check_types(self)
        for name in ("learning_rate", "epsilon"):
            require(self, name, getattr(self, name) > 0, "must be positive")
        require(self, "clip_norm", self.clip_norm is None or self.clip_norm > 0, "must be positive, or None")
        for name in ("warmup", "decay", "weight_decay"):
            require(self, name, getattr(self, name) >= 0, "must not be negative")
        require(self, "final", 0 <= self.final <= 1, "must be in [0, 1]")
        for name in ("b1", "b2", "momentum"):
            require(self, name, 0 <= getattr(self, name) < 1, "must be in [0, 1)")
        scales = "consistent_rms" in inspect.signature(optax.contrib.muon).parameters
        rule = "muon needs optax >= 0.2.8, and sglang-jax comes with an older one"
        require(self, "algorithm", scales or self.algorithm != "muon", rule)

    def rate(self) -> optax.Schedule:
        """Returns the schedule: number of the update, counted from 0 -> learning rate."""
        first = self.learning_rate / (self.warmup + 1)
        peak = self.learning_rate
        if not self.decay:
            return optax.linear_schedule(first, peak, self.warmup)
        total = self.warmup + self.decay
        return optax.warmup_cosine_decay_schedule(first, peak, self.warmup, total, peak * self.final)

    def build(self) -> optax.GradientTransformation:
        if self.algorithm == "adamw":
            step = optax.adamw(
                self.rate(), b1=self.b1, b2=self.b2, eps=self.epsilon, weight_decay=self.weight_decay
            )
        else:
            step = optax.contrib.muon(
                self.rate(),
                beta=self.momentum,
                eps=self.epsilon,
                weight_decay=self.weight_decay,
                adam_b1=self.b1,
                adam_b2=self.b2,
                adam_weight_decay=self.weight_decay,
                muon_weight_dimension_numbers=_muon_matrices,
                consistent_rms=0.2,
            )
        if self.clip_norm is None:
            return step
        return optax.chain(optax.clip_by_global_norm(self.clip_norm), step)


def _muon_matrices(params: Any) -> Any:
    """Marks the parameters that Muon updates: kernels, which are matrices [in, out] or stacks of them."""

    def dimensions(path, leaf):
        return optax.contrib.MuonDimensionNumbers(-2, -1) if path[-1].key == "kernel" else None

    return jax.tree_util.tree_map_with_path(dimensions, params)
