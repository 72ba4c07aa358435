"""Defines Gemma 3, its text part.

Most layers see only a window of the earlier tokens; these have a rotary base of their own. What a
block adds is normed before and after, norms scale by 1 + their weight, and embeddings are scaled by
the root of the width. The MLP is GeGLU. Axis letters beyond the package's: J adapters.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from atgrpo_jax.common.checks import require
from atgrpo_jax.common.errors import RunError
from atgrpo_jax.common.jsonfile import Fields
from atgrpo_jax.models.config import Architecture, Compute, RopeScaling, RopeStretch
from atgrpo_jax.models.families import dense
from atgrpo_jax.models.families.dense import FULL, SLIDING
from atgrpo_jax.models.family import Family

_THETA = 1_000_000.0
_LOCAL_THETA = 10_000.0
# What fresh blocks scale their additions by, so that tokens are still recognised after all blocks.
_OUT_SCALE = 0.05


class Norm(nn.Module):
    epsilon: float
    param_dtype: str
    start: float = 1.0  # what a fresh norm scales by

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        init = nn.initializers.constant(self.start - 1.0)
        scale = self.param("scale", init, (x.shape[-1],), jnp.dtype(self.param_dtype))
        wide = x.astype(jnp.float32)
        mean_square = jnp.mean(wide * wide, axis=-1, keepdims=True)
        normed = wide * jax.lax.rsqrt(mean_square + self.epsilon)
        return (normed * (1.0 + scale.astype(jnp.float32))).astype(x.dtype)


def _norm(
    architecture: Architecture, compute: Compute, name: str | None = None, start: float = 1.0
) -> nn.Module:
    return Norm(architecture.rms_epsilon, compute.param_dtype, start, name=name)


class Block(dense.DenseBlock):
    @nn.compact
    def __call__(self, x_BTD, rotation, scale_BJ, cache, attend):
        norm = functools.partial(_norm, self.architecture, self.compute)
        h_BTD = norm("attention_norm")(x_BTD)
        out_BTD, cache = self.attention(h_BTD, rotation, scale_BJ, cache, attend, norm)
        x_BTD += norm("attention_out_norm", _OUT_SCALE)(out_BTD)
        h_BTD = norm("mlp_norm")(x_BTD)
        out_BTD = self.mlp(h_BTD, scale_BJ, functools.partial(nn.gelu, approximate=True))
        x_BTD += norm("mlp_out_norm", _OUT_SCALE)(out_BTD)
        return x_BTD, cache


def _vectors(c: Architecture) -> dict[str, int]:
    around = ("attention_norm", "attention_out_norm", "mlp_norm", "mlp_out_norm")
    return dict.fromkeys(around, c.width) | {"q_norm": c.head_size, "k_norm": c.head_size}


def _embedded(x_BTD: jax.Array) -> jax.Array:
    """Scales embeddings; the factor is rounded to their dtype, as in ``transformers``."""
    return x_BTD * jnp.asarray(x_BTD.shape[-1] ** 0.5, x_BTD.dtype)


def _check(c: Architecture) -> None:
    sizes = {size for size in c.windows if size}
    for name in ("experts", "rotary"):
        rule = "the family gemma3_text has none; docs/models.md says which one has"
        require(c, name, not getattr(c, name), rule)
    require(c, "windows", len(sizes) <= 1, "gemma3_text has windows of one size")
    scaling = c.rope_scaling
    require(c, "rope_scaling", not isinstance(scaling, RopeScaling), "gemma3_text has RopeStretch or None")
    apart = c.local_rope_theta is not None or scaling is None or not sizes
    rule = "layers with windows are not stretched in gemma3_text, so they need a base of their own"
    require(c, "local_rope_theta", apart, rule)


# Allowed values of fields of config.json. With others, the model would compute something that we do not.
_ONLY: dict[str, tuple[Any, ...]] = {
    "hidden_activation": ("gelu_pytorch_tanh", None),
    "attention_bias": (False, None),
    "attn_logit_softcapping": (None,),
    "final_logit_softcapping": (None,),
    "use_bidirectional_attention": (False, None),
}


def _read(said: Fields) -> dict[str, Any]:
    said.only(_ONLY)
    theta, scaling = _rope(said, FULL, "rope_theta", _THETA)
    local, local_scaling = _rope(said, SLIDING, "rope_local_base_freq", _LOCAL_THETA)
    if local_scaling is not None:
        raise said.refuse("rope_parameters", said.raw["rope_parameters"], f"no scaling of {SLIDING}")
    head_size = said.whole("head_dim", 2**12, 256)
    scalar = said.whole("query_pre_attn_scalar", 2**20, 256)
    return {
        "kv_heads": said.whole("num_key_value_heads", 2**12, 4),
        "head_size": head_size,
        "tied": said.flag("tie_word_embeddings", True),
        "rope_theta": theta,
        "rope_scaling": scaling,
        "windows": _windows(said),
        "local_rope_theta": local,
        "query_scalar": None if scalar == head_size else scalar,
    }


def _windows(said: Fields) -> tuple[int, ...]:
    """Returns the window of each layer."""
    types = said.given("layer_types", None)
    if types is None:
        layers = said.whole("num_hidden_layers", 2**12)
        every = said.whole("sliding_window_pattern", 2**12, 6)
        types = [SLIDING if number % every else FULL for number in range(1, layers + 1)]
    return dense.windows(said, types, said.whole("sliding_window", 2**30, 4096))


def _rope(said: Fields, kind: str, plain: str, default: float) -> tuple[float, RopeStretch | None]:
    """Returns the base and the scaling of the rotary positions of layers of a ``kind``.

    There are two spellings: rope_theta, rope_local_base_freq and rope_scaling side by side, or
    rope_parameters by kinds of layers. Raises RunError if a folder has both and they differ.
    """
    parts = said.part("rope_parameters")
    if parts and type(parts.get(kind)) is not dict:
        raise said.refuse("rope_parameters", parts, f"an object for {kind}")
    inner = Fields(f"{said.path}: rope_parameters: {kind}", parts[kind] if parts else {})
    theta = inner.positive("rope_theta", said.positive(plain, default))
    if theta != said.positive(plain, theta):
        raise said.refuse(plain, said.raw[plain], f"{theta}, as in rope_parameters")
    scaling = _stretch(inner)
    older = said.part("rope_scaling") if kind == FULL else {}
    if not older:
        return theta, scaling
    same = _stretch(Fields(f"{said.path}: rope_scaling", older))
    if parts and same != scaling:
        raise said.refuse("rope_parameters", parts, "what rope_scaling says, or one of the two")
    return theta, same


def _stretch(part: Fields) -> RopeStretch | None:
    name = "rope_type" if part.raw.get("rope_type") is not None else "type"
    kind = part.text(name, "default")
    if kind not in ("default", "linear"):
        raise part.refuse(name, kind, "default or linear")
    part.only({"partial_rotary_factor": (1.0, None)})
    if kind == "default":
        return None
    try:
        return RopeStretch(part.positive("factor"))
    except ValueError as error:
        raise RunError(f"{part.path}: {error}") from error


def _write(c: Architecture) -> dict[str, Any]:
    scaling = None if c.rope_scaling is None else {"rope_type": "linear", "factor": c.rope_scaling.factor}
    local = c.rope_theta if c.local_rope_theta is None else c.local_rope_theta
    raw = {
        "hidden_activation": "gelu_pytorch_tanh",
        "attention_bias": False,
        "query_pre_attn_scalar": c.head_size if c.query_scalar is None else c.query_scalar,
        "sliding_window": max(c.windows, default=0) or 4096,
        "layer_types": dense.layer_types(c),
        "rope_theta": c.rope_theta,
        "rope_local_base_freq": local,
        "rope_scaling": scaling,
    }
    return raw | {"rope_parameters": _parts(raw)}


def _parts(raw: dict[str, Any]) -> dict[str, Any]:
    """Returns rope_parameters of the fields that say the same."""
    full = {"rope_theta": raw["rope_theta"]} | (raw.get("rope_scaling") or {"rope_type": "default"})
    return {FULL: full, SLIDING: {"rope_type": "default", "rope_theta": raw["rope_local_base_freq"]}}


def _spell(raw: dict[str, Any]) -> dict[str, Any]:
    """Gives the rotary positions where ``transformers`` before and after version 5 looks for them."""
    said = Fields("config.json", raw)
    theta, scaling = _rope(said, FULL, "rope_theta", _THETA)
    local, _ = _rope(said, SLIDING, "rope_local_base_freq", _LOCAL_THETA)
    older = None if scaling is None else {"rope_type": "linear", "factor": scaling.factor}
    raw = raw | {"rope_theta": theta, "rope_local_base_freq": local, "rope_scaling": older}
    return raw | {"rope_parameters": _parts(raw)}


GEMMA3 = Family(
    "gemma3_text",
    folder_class="Gemma3ForCausalLM",
    block=Block,
    norm=_norm,
    modules=dense.MODULES
    | {
        "attention_norm": "input_layernorm",
        "attention_out_norm": "post_attention_layernorm",
        "mlp_norm": "pre_feedforward_layernorm",
        "mlp_out_norm": "post_feedforward_layernorm",
    },
    axes=dense.AXES,
    adapted=dense.LINEAR,
    joined=(dense.QKV, dense.GATE_UP),
    kernels=dense.kernels,
    vectors=_vectors,
    check=_check,
    read=_read,
    write=_write,
    spell=_spell,
    embedded=_embedded,
    ends=(1,),
)
