"""Turns the config.json of a Hugging Face folder into a ModelConfig, and the other way round."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from atgrpo_jax.common.errors import RunError
from atgrpo_jax.common.jsonfile import Fields, read_object
from atgrpo_jax.models.config import Dtype, ModelConfig, Remat, RopeScaling

GENERATION = "generation_config.json"

# model_type -> (qk_norm, qkv_bias): what a family has without a field in config.json.
_VARIANTS = {"qwen3": (True, False), "qwen2": (False, True), "llama": (False, False)}
# Allowed values of fields. With others, the model would compute something that we do not.
_ONLY: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu", None),
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "quantization_config": (None,),
    "compression_config": (None,),
    "pretraining_tp": (1, None),
    "partial_rotary_factor": (1.0, None),
}
# Fields that ``transformers`` does not read for a family.
_NOT_READ = {
    "qwen2": ("attention_bias", "mlp_bias", "pretraining_tp"),
    "qwen3": ("mlp_bias", "pretraining_tp"),
    "llama": (),
}
_DTYPES = ("float32", "bfloat16", "float16")


def model_config(
    folder: str,
    dtype: Dtype = "bfloat16",
    param_dtype: Dtype = "float32",
    remat: Remat = "none",
    scan: bool = False,
) -> ModelConfig:
    """Returns what the folder's config.json describes.

    The other arguments say how it is computed, as in ``ModelConfig``. Raises RunError with the name
    of the first field that we cannot honour.
    """
    path = Path(folder).expanduser() / "config.json"
    said = fields(path.parent)
    kind = said.text("model_type")
    if kind not in _VARIANTS:
        raise said.refuse("model_type", kind, "one of " + ", ".join(_VARIANTS))
    for field, allowed in _ONLY.items():
        value = said.given(field, None)
        if field not in _NOT_READ[kind] and not any(
            value == a and type(value) in (type(a), int) for a in allowed
        ):
            raise said.refuse(field, value, repr(allowed[0]))
    stored_dtype(said)
    width = said.whole("hidden_size", 2**20)
    heads = said.whole("num_attention_heads", 2**12)
    qk_norm, qkv_bias = _VARIANTS[kind]
    layers = said.whole("num_hidden_layers", 2**12)
    _refuse_windows(said, kind, layers)
    theta, scaling = _rope(said, kind)
    try:
        return ModelConfig(
            layers=layers,
            width=width,
            mlp_width=said.whole("intermediate_size", 2**22),
            heads=heads,
            kv_heads=said.whole("num_key_value_heads", 2**12, heads),
            head_size=said.whole("head_dim", 2**12, 128 if kind == "qwen3" else width // heads),
            vocab_size=said.whole("vocab_size", 2**24),
            tied=said.flag("tie_word_embeddings", False),
            rope_theta=theta,
            rope_scaling=scaling,
            rms_epsilon=said.positive("rms_norm_eps", 1e-6),
            dtype=dtype,
            param_dtype=param_dtype,
            remat=remat,
            scan=scan,
            qk_norm=qk_norm,
            qkv_bias=qkv_bias,
        )
    except ValueError as error:  # sizes that do not go together
        raise RunError(f"{path}: {error}") from error


def fields(root: Path) -> Fields:
    """Returns the fields of a folder's config.json.

    Raises RunError for a folder of an adapter, which ``transformers`` would read with its model.
    """
    if (root / "adapter_config.json").exists():
        raise RunError(
            f"{root} holds an adapter (adapter_config.json); merge it into its model and give that folder"
        )
    return Fields(root / "config.json", read_object(root / "config.json"))


def stored_dtype(said: Fields) -> str:
    """Returns the dtype of a folder's tensors; float32, which loses nothing, if it does not say.

    Raises RunError for a dtype that we do not read.
    """
    name = "dtype" if said.given("dtype", None) is not None else "torch_dtype"
    word = said.text(name, "float32").removeprefix("torch.")
    if word not in (*_DTYPES, "auto"):
        raise said.refuse(name, word, "one of " + ", ".join(_DTYPES))
    return "float32" if word == "auto" else word


def _refuse_windows(said: Fields, kind: str, layers: int) -> None:
    """Raises RunError if a layer sees only a window of the earlier tokens."""
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


def end_ids(folder: str) -> set[int]:
    """Returns the ids that end a sequence for programs that serve the folder.

    They are those of config.json and of generation_config.json. Raises RunError if one of these
    files cannot be read.
    """
    root = Path(folder).expanduser()
    said = Fields(root / "config.json", read_object(root / "config.json"))
    found = set(said.ids("eos_token_id"))
    if "eos_token_id" not in said.raw and said.raw.get("model_type") == "llama":
        found = {2}  # the default of transformers for that family
    if (root / GENERATION).is_file():
        found |= set(Fields(root / GENERATION, read_object(root / GENERATION)).ids("eos_token_id"))
    return found


def check_same_model(config: ModelConfig, folder: str) -> None:
    """Raises RunError if ``config`` is not the model that the folder's config.json describes.

    Compares what the shapes of the tensors do not show.
    """
    there = model_config(folder)
    for name in ("heads", "kv_heads", "head_size", "rope_theta", "rope_scaling", "rms_epsilon"):
        ours = getattr(config, name)
        theirs = getattr(there, name)
        if ours != theirs:
            raise RunError(f"ModelConfig.{name} = {ours!r}, but {theirs!r} by the config.json of {folder}")


def description(config: ModelConfig, vocab_size: int, stop_ids: Sequence[int]) -> dict[str, Any]:
    """Returns a config.json that ``model_config`` reads as ``config``, for models without a folder.

    Raises RunError if no family has this combination of ``qk_norm`` and ``qkv_bias``.
    """
    variants = {variant: kind for kind, variant in _VARIANTS.items()}
    kind = variants.get((config.qk_norm, config.qkv_bias))
    if kind is None:
        raise RunError("no Hugging Face model has both ModelConfig.qk_norm and qkv_bias")
    raw: dict[str, Any] = {
        "architectures": [{"qwen3": "Qwen3", "qwen2": "Qwen2", "llama": "Llama"}[kind] + "ForCausalLM"],
        "model_type": kind,
        "vocab_size": vocab_size,
        "hidden_size": config.width,
        "intermediate_size": config.mlp_width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_size,
        "rope_theta": config.rope_theta,
        "rms_norm_eps": config.rms_epsilon,
        "tie_word_embeddings": config.tied,
        "max_position_embeddings": 32_768,
        "hidden_act": "silu",
        "attention_bias": False,
        "eos_token_id": list(stop_ids),  # given because some families have another default
        "dtype": config.param_dtype,
    }
    if config.rope_scaling is not None:
        scaling = config.rope_scaling
        raw["max_position_embeddings"] = int(scaling.factor * scaling.original)
        raw["rope_scaling"] = {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low,
            "high_freq_factor": scaling.high,
            "original_max_position_embeddings": scaling.original,
        }
    return raw
