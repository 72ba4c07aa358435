"""Defines Qwen3, Qwen2 and Llama. Their block is the same but for QK-norm and biases.

It has RMSNorm, rotary positions, grouped queries and SwiGLU. Axis letters beyond the package's: J
adapters.
"""

import functools
from typing import Any

import flax.linen as nn

from atgrpo_jax.common.checks import require
from atgrpo_jax.common.errors import RunError
from atgrpo_jax.common.jsonfile import Fields
from atgrpo_jax.models.config import Architecture, Compute, RopeScaling, RopeStretch
from atgrpo_jax.models.families import dense
from atgrpo_jax.models.family import Family
from atgrpo_jax.models.layers import RMSNorm


def _norm(architecture: Architecture, compute: Compute, name: str | None = None) -> nn.Module:
    return RMSNorm(architecture.rms_epsilon, compute.param_dtype, name=name)


class Block(dense.DenseBlock):
    qk_norm: bool = False
    qkv_bias: bool = False

    @nn.compact
    def __call__(self, x_BTD, rotation, scale_BJ, cache, attend):
        norm = functools.partial(_norm, self.architecture, self.compute)
        h_BTD = norm("attention_norm")(x_BTD)
        qk_norm = norm if self.qk_norm else None
        out_BTD, cache = self.attention(h_BTD, rotation, scale_BJ, cache, attend, qk_norm, self.qkv_bias)
        x_BTD += out_BTD
        h_BTD = norm("mlp_norm")(x_BTD)
        x_BTD += self.mlp(h_BTD, scale_BJ, nn.silu)
        return x_BTD, cache


class Qwen3Block(Block):
    qk_norm: bool = True


class Qwen2Block(Block):
    qkv_bias: bool = True


def _vectors(c: Architecture, qk_norm: bool, qkv_bias: bool) -> dict[str, int]:
    sizes = {"attention_norm": c.width, "mlp_norm": c.width}
    if qk_norm:
        sizes |= {"q_norm": c.head_size, "k_norm": c.head_size}
    if qkv_bias:
        sizes |= {name: dense.kernels(c)[name][1] for name in dense.QKV}
    return sizes


def _check(c: Architecture) -> None:
    for name in ("windows", "local_rope_theta", "query_scalar", "experts", "rotary"):
        rule = f"the family {c.family} has none; docs/models.md says which one has"
        require(c, name, not getattr(c, name), rule)
    stretched = isinstance(c.rope_scaling, RopeStretch)
    require(c, "rope_scaling", not stretched, f"{c.family} has RopeScaling or None")


# Allowed values of fields of config.json. With others, the model would compute something that we do not.
_ONLY: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu", None),
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "pretraining_tp": (1, None),
    "partial_rotary_factor": (1.0, None),
}
# Fields that ``transformers`` does not read for a family.
_NOT_READ = {
    "qwen2": ("attention_bias", "mlp_bias", "pretraining_tp"),
    "qwen3": ("mlp_bias", "pretraining_tp"),
    "llama": (),
}


def _read(said: Fields) -> dict[str, Any]:
    kind = said.text("model_type")
    said.only({name: allowed for name, allowed in _ONLY.items() if name not in _NOT_READ[kind]})
    width = said.whole("hidden_size", 2**20)
    heads = said.whole("num_attention_heads", 2**12)
    _refuse_windows(said, kind)
    theta, scaling = _rope(said, kind)
    return {
        "kv_heads": said.whole("num_key_value_heads", 2**12, heads),
        "head_size": said.whole("head_dim", 2**12, 128 if kind == "qwen3" else width // heads),
        "tied": said.flag("tie_word_embeddings", False),
        "rope_theta": theta,
        "rope_scaling": scaling,
    }


def _refuse_windows(said: Fields, kind: str) -> None:
    """Raises RunError if a layer sees only a window of the earlier tokens."""
    layers = said.whole("num_hidden_layers", 2**12)
    types = said.given("layer_types", None)
    if types is not None and (type(types) is not list or set(map(str, types)) - {"full_attention"}):
        raise said.refuse("layer_types", types, "full_attention in all layers")
    full = 0 if kind == "llama" else said.whole("max_window_layers", 2**20, 28, least=0)
    if said.flag("use_sliding_window", False) and types is None and full < layers:
        raise said.refuse("use_sliding_window", True, "false, or max_window_layers of at least all layers")


def _rope(said: Fields, kind: str) -> tuple[float, RopeScaling | None]:
    """Returns the base of rotary positions, and Llama 3's scaling if there is one.

    There are two spellings: rope_theta and rope_scaling side by side, or both in rope_parameters.
    Raises RunError if a folder has both spellings and they differ.
    """
    readings = {}
    for spelling in ("rope_scaling", "rope_parameters"):
        part = said.part(spelling)
        if part:
            readings[spelling] = _rope_reading(said, kind, spelling, part)
    if not readings:
        return said.positive("rope_theta", 10_000.0), None
    if len(set(readings.values())) > 1:
        raise said.refuse(
            "rope_parameters", said.raw["rope_parameters"], "what rope_scaling says, or one of the two"
        )
    return next(iter(readings.values()))


def _rope_reading(
    said: Fields, kind: str, spelling: str, part: dict[str, Any]
) -> tuple[float, RopeScaling | None]:
    inner = Fields(f"{said.path}: {spelling}", part)
    name = "rope_type" if part.get("rope_type") is not None else "type"
    rope_kind = inner.text(name, "default")
    if rope_kind not in ("default", "llama3"):
        raise said.refuse(spelling, rope_kind, "default or llama3")
    if inner.given("partial_rotary_factor", 1.0) != 1.0:
        raise inner.refuse("partial_rotary_factor", part["partial_rotary_factor"], "1.0")
    if any(type(value) is dict for value in part.values()):
        raise said.refuse(spelling, part, "one for all layers")
    theta = inner.positive("rope_theta", said.positive("rope_theta", 10_000.0))
    if theta != said.positive("rope_theta", theta):
        raise said.refuse("rope_theta", said.raw["rope_theta"], f"{theta}, as in {spelling}")
    if rope_kind == "default":
        return theta, None
    length = said.whole("max_position_embeddings", 2**40, 2048 if kind == "llama" else 32_768)
    original = inner.whole("original_max_position_embeddings", 2**40, length)
    original = said.whole("original_max_position_embeddings", 2**40, original)
    low = inner.positive("low_freq_factor")
    high = inner.positive("high_freq_factor")
    try:
        return theta, RopeScaling(inner.positive("factor"), low, high, original)
    except ValueError as error:
        raise RunError(f"{inner.path}: {error}") from error


def _write(c: Architecture) -> dict[str, Any]:
    raw: dict[str, Any] = {"hidden_act": "silu", "attention_bias": False, "rope_theta": c.rope_theta}
    if c.rope_scaling is None:
        return raw
    scaling = c.rope_scaling
    assert isinstance(scaling, RopeScaling)
    rope = {
        "rope_type": "llama3",
        "factor": scaling.factor,
        "low_freq_factor": scaling.low,
        "high_freq_factor": scaling.high,
        "original_max_position_embeddings": scaling.original,
    }
    return raw | {"max_position_embeddings": int(scaling.factor * scaling.original), "rope_scaling": rope}


def _spell(raw: dict[str, Any]) -> dict[str, Any]:
    """Gives the rotary base where ``transformers`` before version 5 looks for it."""
    rope = dict(raw.get("rope_parameters") or {})
    if not rope or raw.get("rope_scaling"):
        return raw
    theta = rope.pop("rope_theta", None) or raw.get("rope_theta") or 10_000.0
    kind = rope.get("rope_type") or rope.get("type") or "default"
    return raw | {"rope_theta": theta, "rope_scaling": None if kind == "default" else rope}


def _family(name: str, block: type[Block], ends: tuple[int, ...] = ()) -> Family:
    return Family(
        name,
        folder_class=f"{name.capitalize()}ForCausalLM",
        block=block,
        norm=_norm,
        modules=dense.MODULES | {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"},
        axes=dense.AXES,
        adapted=dense.LINEAR,
        joined=(dense.QKV, dense.GATE_UP),
        kernels=dense.kernels,
        vectors=functools.partial(_vectors, qk_norm=block.qk_norm, qkv_bias=block.qkv_bias),
        check=_check,
        read=_read,
        write=_write,
        spell=_spell,
        ends=ends,
    )


QWEN3 = _family("qwen3", Qwen3Block)
QWEN2 = _family("qwen2", Qwen2Block)
LLAMA = _family("llama", Block, ends=(2,))
