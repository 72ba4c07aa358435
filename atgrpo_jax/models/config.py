"""Sizes of a decoder in the Qwen3 architecture."""

import dataclasses
from typing import Literal

from atgrpo_jax.checks import check_types, require


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The defaults are the ``tiny`` preset: about two million parameters, trained in minutes on a CPU.

    The vocabulary is the tokenizer's, so it is not a field.
    """

    layers: int = 4
    width: int = 192  # D
    mlp_width: int = 576  # F
    heads: int = 6  # N
    kv_heads: int = 3  # M
    head_size: int = 32  # H
    rope_theta: float = 10_000.0
    rms_epsilon: float = 1e-6
    dtype: Literal["float32", "bfloat16"] = "float32"  # of activations; parameters are float32

    def __post_init__(self):
        check_types(self)
        for name in ("layers", "width", "mlp_width", "heads", "kv_heads", "head_size"):
            require(self, name, getattr(self, name) >= 1, "must be at least 1")
        require(self, "heads", self.heads % self.kv_heads == 0, "must be a multiple of kv_heads")
        require(self, "head_size", self.head_size % 2 == 0, "must be even for rotary positions")
        require(self, "rope_theta", self.rope_theta > 0, "must be positive")
        require(self, "rms_epsilon", self.rms_epsilon > 0, "must be positive")
