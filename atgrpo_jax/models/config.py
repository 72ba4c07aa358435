"""Describes a decoder (``Architecture``), and apart from that how it is computed (``Compute``)."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal

from atgrpo_jax.common.checks import check_types, require
from atgrpo_jax.common.literals import told

Dtype = Literal["float32", "bfloat16"]
Remat = Literal["none", "dots", "block"]


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """Describes Llama 3's rotary frequencies for contexts longer than those of its first training.

    Wavelengths above ``original / low`` positions are stretched by ``factor``. Those below
    ``original / high`` stay. Between the two, the frequency goes linearly from one to the other.
    """

    factor: float = 8.0
    low: float = 1.0
    high: float = 4.0
    original: int = 8192  # positions of the first training's context

    def __post_init__(self):
        check_types(self)
        require(self, "factor", self.factor >= 1, "must be at least 1")
        require(self, "low", 0 < self.low < self.high, "must be positive and below high")
        require(self, "original", self.original >= 1, "must be at least 1")


@dataclasses.dataclass(frozen=True)
class RopeStretch:
    """Divides all rotary frequencies by one factor ("linear" scaling)."""

    factor: float = 8.0  # how much longer contexts may be

    def __post_init__(self):
        check_types(self)
        require(self, "factor", self.factor >= 1, "must be at least 1")


@dataclasses.dataclass(frozen=True)
class Experts:
    """Describes a mixture of experts: MLPs of which a router chooses a few for each token."""

    count: int = 128  # of experts in each layer
    chosen: int = 8  # for each token
    width: int = 768  # of each expert
    normed: bool = True  # whether the shares of the chosen ones are scaled so that their sum is 1

    def __post_init__(self):
        check_types(self)
        for name in ("count", "chosen", "width"):
            require(self, name, getattr(self, name) >= 1, "must be at least 1")
        require(self, "chosen", self.chosen <= self.count, f"must be at most count = {self.count}")


@dataclasses.dataclass(frozen=True)
class Architecture:
    """Describes a decoder as the config.json of its folder does.

    ``family`` is the ``model_type`` there. It says which block the decoder has; families/table.py
    lists the families. The defaults are the ``tiny`` preset: a Qwen3 of about two million
    parameters, which trains in minutes on a CPU.
    """

    layers: int = 4  # L
    width: int = 192  # D
    mlp_width: int = 576  # F
    heads: int = 6  # N
    kv_heads: int = 3  # M
    head_size: int = 32  # H
    vocab_size: int | None = None  # V; None means the tokenizer's
    family: str = "qwen3"
    tied: bool = True  # whether the head is the embedding
    rope_theta: float = 10_000.0  # base of the rotary frequencies
    rope_scaling: RopeScaling | RopeStretch | None = None  # for contexts longer than those of training
    rms_epsilon: float = 1e-6  # is added to the mean square in norms
    # How many tokens the layers 0, 1, ... see, themselves included; then again from the first. 0 means
    # all of the earlier tokens, and so does ().
    windows: tuple[int, ...] = ()
    local_rope_theta: float | None = None  # of layers with a window; theirs is not scaled
    query_scalar: int | None = None  # scores are divided by its square root; None means head_size
    experts: Experts | None = None  # instead of one MLP, of width ``mlp_width``
    # Whether the layers 0, 1, ... have rotary positions; then again from the first. () means all.
    rotary: tuple[bool, ...] = ()

    def __post_init__(self):
        check_types(self)
        object.__setattr__(self, "windows", _shortest(self.windows, self.layers, 0))
        object.__setattr__(self, "rotary", _shortest(self.rotary, self.layers, True))
        for name in ("layers", "width", "mlp_width", "heads", "kv_heads", "head_size"):
            require(self, name, getattr(self, name) >= 1, "must be at least 1")
        require(self, "heads", self.heads % self.kv_heads == 0, "must be a multiple of kv_heads")
        require(self, "head_size", self.head_size % 2 == 0, "must be even for rotary positions")
        require(self, "vocab_size", self.vocab_size is None or self.vocab_size >= 1, "must be at least 1")
        require(self, "rope_theta", self.rope_theta > 0, "must be positive")
        require(self, "rms_epsilon", self.rms_epsilon > 0, "must be positive")
        require(self, "windows", all(size >= 0 for size in self.windows), "must not be negative")
        for name in ("local_rope_theta", "query_scalar"):
            value = getattr(self, name)
            require(self, name, value is None or value > 0, "must be positive, or None")

    def __repr__(self) -> str:
        """Tells ``rotary`` only if it is set: runs from before it are known by this text."""
        return told(self, {"rotary": ()})

    @property
    def period(self) -> int:
        """Returns after how many layers they are alike again."""
        return math.lcm(len(self.windows) or 1, len(self.rotary) or 1)

    def window(self, layer: int) -> int | None:
        """Returns how many tokens a layer sees; None if it sees all."""
        return (self.windows[layer % len(self.windows)] or None) if self.windows else None

    def rope(self, layer: int) -> tuple[float, RopeScaling | RopeStretch | None] | None:
        """Returns the base and the scaling of a layer's rotary positions; None if it has none."""
        if self.rotary and not self.rotary[layer % len(self.rotary)]:
            return None
        if self.local_rope_theta is not None and self.window(layer) is not None:
            return self.local_rope_theta, None
        return self.rope_theta, self.rope_scaling


def _shortest(values: Sequence[Any], layers: int, plain: Any) -> tuple[Any, ...]:
    """Returns the shortest tuple that says the same of ``layers`` layers; () if all are ``plain``."""
    all_ = [values[layer % len(values)] for layer in range(layers)] if values else []
    periods = range(1, len(all_) + 1)
    period = next((p for p in periods if all_[p:] == all_[:-p]), 0)
    return () if all(value == plain for value in all_) else tuple(all_[:period])


@dataclasses.dataclass(frozen=True)
class Compute:
    """Says how a model is computed, whatever its architecture. Folders and random models take any."""

    dtype: Dtype = "float32"  # of activations
    param_dtype: Dtype = "float32"  # of parameters
    # What the backward pass computes again: nothing, all but matrix products, or whole blocks.
    remat: Remat = "none"
    # "auto" uses fused kernels where there are some: for packed rows on TPU and GPU, for pages in
    # decoding on GPU. "tiles" visits tiles and pages one by one in plain XLA. "fused" is "auto",
    # but interprets the kernels on a CPU, for tests.
    attention: Literal["auto", "fused", "tiles"] = "auto"
    # Compiles one block for all layers: much faster to compile, but copies the blocks' parameters.
    scan: bool = False

    def __post_init__(self):
        check_types(self)

    def wants_kernel(self, platform: str) -> bool:
        """Returns whether attention is to be a kernel where there is one for its sizes."""
        return self.attention == "fused" or (self.attention == "auto" and platform != "cpu")


def _qwen3(layers, width, mlp_width, heads, tied=True) -> Architecture:
    return Architecture(layers, width, mlp_width, heads, 8, 128, 151_936, tied=tied, rope_theta=1e6)


def _qwen2(layers, width, mlp_width, heads, kv_heads, vocab_size, epsilon=1e-6) -> Architecture:
    head_size = 64 if width == 896 else 128
    return Architecture(
        layers, width, mlp_width, heads, kv_heads, head_size, vocab_size, "qwen2",
        tied=vocab_size == 151_936, rope_theta=1e6, rms_epsilon=epsilon,
    )  # fmt: skip


def _llama(layers, width, mlp_width, heads, kv_heads, head_size, vocab_size, tied, theta, scaling=None):
    return Architecture(
        layers, width, mlp_width, heads, kv_heads, head_size, vocab_size, "llama",
        tied=tied, rope_theta=theta, rope_scaling=scaling, rms_epsilon=1e-5,
    )  # fmt: skip


def _gemma3(layers, width, mlp_width, heads) -> Architecture:
    return Architecture(
        layers, width, mlp_width, heads, 1, 256, 262_144, "gemma3_text",
        rope_theta=1e6, windows=(512,) * 5 + (0,), local_rope_theta=1e4,
    )  # fmt: skip


# Published sizes, from the models' own config.json, so that planning needs no download.
PRESETS: dict[str, Architecture] = {
    "tiny": Architecture(),
    "qwen3-0.6b": _qwen3(28, 1024, 3072, 16),
    "qwen3-1.7b": _qwen3(28, 2048, 6144, 16),
    "qwen3-4b": _qwen3(36, 2560, 9728, 32),
    "qwen3-8b": _qwen3(36, 4096, 12_288, 32, tied=False),
    "qwen3-14b": _qwen3(40, 5120, 17_408, 40, tied=False),
    "qwen3-32b": _qwen3(64, 5120, 25_600, 64, tied=False),
    "qwen2.5-0.5b": _qwen2(24, 896, 4864, 14, 2, 151_936),
    "qwen2.5-1.5b": _qwen2(28, 1536, 8960, 12, 2, 151_936),
    "qwen2.5-3b": _qwen2(36, 2048, 11_008, 16, 2, 151_936),
    "qwen2.5-7b": _qwen2(28, 3584, 18_944, 28, 4, 152_064),
    "qwen2.5-14b": _qwen2(48, 5120, 13_824, 40, 8, 152_064, 1e-5),
    "qwen2.5-32b": _qwen2(64, 5120, 27_648, 40, 8, 152_064, 1e-5),
    "llama-3.2-1b": _llama(16, 2048, 8192, 32, 8, 64, 128_256, True, 5e5, RopeScaling(32.0)),
    "llama-3.2-3b": _llama(28, 3072, 8192, 24, 8, 128, 128_256, True, 5e5, RopeScaling(32.0)),
    "llama-3.1-8b": _llama(32, 4096, 14_336, 32, 8, 128, 128_256, False, 5e5, RopeScaling()),
    "smollm2-135m": _llama(30, 576, 1536, 9, 3, 64, 49_152, True, 1e5),
    "smollm2-360m": _llama(32, 960, 2560, 15, 5, 64, 49_152, True, 1e5),
    "smollm2-1.7b": _llama(24, 2048, 8192, 32, 32, 64, 49_152, True, 1.3e5),
    "qwen3-30b-a3b": Architecture(
        48, 2048, 6144, 32, 4, 128, 151_936, "qwen3_moe", tied=False, rope_theta=1e6, experts=Experts()
    ),
    "gemma-3-270m": _gemma3(18, 640, 2048, 4),
    "gemma-3-1b": _gemma3(26, 1152, 6912, 4),
    "mistral-7b-v0.3": Architecture(
        32, 4096, 14_336, 32, 8, 128, 32_768, "mistral", tied=False, rope_theta=1e6, rms_epsilon=1e-5
    ),
    "smollm3-3b": Architecture(
        36, 2048, 11_008, 16, 4, 128, 128_256, "smollm3", rope_theta=5e6, rotary=(True, True, True, False)
    ),
}


def published(folder: str) -> str | None:
    """Returns the preset of the model that a folder, or a name on a hub, is called after.

    "Qwen/Qwen3-8B-Base" is called after qwen3-8b. None if it is called after none.
    """
    word = folder.rstrip("/").rpartition("/")[2].lower()
    sizes = [name for name, own in PRESETS.items() if own.vocab_size is not None]
    return max((name for name in sizes if f"{word}-".startswith(f"{name}-")), key=len, default=None)


def preset(name: str) -> Architecture:
    """Returns a published architecture. Raises ValueError for a name that is not in ``PRESETS``."""
    if name not in PRESETS:
        raise ValueError(f"preset name = {name!r}: expected one of {', '.join(PRESETS)}")
    return PRESETS[name]
