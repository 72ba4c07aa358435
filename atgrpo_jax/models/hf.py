"""Hugging Face model folders: config.json -> ModelConfig, safetensors <-> sharded parameters."""

import errno
import json
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from atgrpo_jax.errors import RunError
from atgrpo_jax.models.config import Dtype, ModelConfig, Remat, RopeScaling

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
GENERATION = "generation_config.json"
# Copied as they are when a trained folder is written.
COPIED = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt",
    "added_tokens.json", "chat_template.jinja", GENERATION,
)  # fmt: skip
SHARD_BYTES = 5 * 10**9

# model_type -> qk_norm, qkv_bias: what it means beyond the fields of config.json.
_VARIANTS = {"qwen3": (True, False), "qwen2": (False, True), "llama": (False, False)}
# Fields whose other values change what the model computes, in a way that we do not.
_ONLY: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",),
    "attention_bias": (None, False),
    "mlp_bias": (None, False),
    "use_sliding_window": (None, False),
    "quantization_config": (None,),
    "pretraining_tp": (None, 1),
    "partial_rotary_factor": (None, 1.0),
}


def model_config(
    folder: str,
    dtype: Dtype = "bfloat16",
    param_dtype: Dtype = "float32",
    remat: Remat = "none",
    scan: bool = False,
) -> ModelConfig:
    """What the folder's config.json describes; how it is computed is as in ``ModelConfig``.

    Raises RunError naming the field that cannot be honoured.
    """
    path = Path(folder).expanduser() / "config.json"
    raw = _read_json(path)

    def refuse(field: str, value: Any, expected: str):
        raise RunError(f"{path}: {field} = {value!r} is not supported; expected {expected}")

    def need(field: str) -> Any:
        if raw.get(field) is None:
            raise RunError(f"{path}: {field} is missing")
        return raw[field]

    kind = str(raw.get("model_type"))
    if kind not in _VARIANTS:
        refuse("model_type", kind, "one of " + ", ".join(_VARIANTS))
    for field, allowed in _ONLY.items():
        if raw.get(field) not in allowed:
            refuse(field, raw[field], repr(allowed[-1]))
    other = set(raw.get("layer_types") or ()) - {"full_attention"}
    if other:
        refuse("layer_types", sorted(other), "full_attention in all layers")
    heads, (qk_norm, qkv_bias) = need("num_attention_heads"), _VARIANTS[kind]
    # Two spellings: rope_theta and rope_scaling side by side, or both in rope_parameters.
    rope = {"rope_theta": raw.get("rope_theta")} | (raw.get("rope_scaling") or {})
    rope |= raw.get("rope_parameters") or {}
    rope_kind = rope.get("rope_type", rope.get("type", "default"))
    if rope_kind not in ("default", "llama3"):
        refuse("rope_scaling", rope_kind, "default or llama3")
    scaling = None
    if rope_kind == "llama3":
        scaling = RopeScaling(
            float(rope["factor"]),
            float(rope["low_freq_factor"]),
            float(rope["high_freq_factor"]),
            int(rope["original_max_position_embeddings"]),
        )
    return ModelConfig(
        layers=need("num_hidden_layers"),
        width=need("hidden_size"),
        mlp_width=need("intermediate_size"),
        heads=heads,
        kv_heads=raw.get("num_key_value_heads") or heads,
        head_size=raw.get("head_dim") or need("hidden_size") // heads,
        vocab_size=need("vocab_size"),
        tied=bool(raw.get("tie_word_embeddings", False)),
        rope_theta=float(rope["rope_theta"] or 10_000.0),
        rope_scaling=scaling,
        rms_epsilon=need("rms_norm_eps"),
        dtype=dtype,
        param_dtype=param_dtype,
        remat=remat,
        scan=scan,
        qk_norm=qk_norm,
        qkv_bias=qkv_bias,
    )


def end_ids(folder: str) -> set[int]:
    """The ids that end a sequence for whoever serves the folder, by both its files that name some.

    Raises RunError if one cannot be read.
    """
    root = Path(folder).expanduser()
    raw = _read_json(root / "config.json")
    # What transformers takes for a family whose config.json does not say.
    found = [raw.get("eos_token_id", 2 if raw.get("model_type") == "llama" else None)]
    if (root / GENERATION).is_file():
        found.append(_read_json(root / GENERATION).get("eos_token_id"))
    return {i for ids in found if ids is not None for i in (ids if isinstance(ids, list) else [ids])}


def description(config: ModelConfig, vocab_size: int, stop_ids: Sequence[int]) -> dict[str, Any]:
    """The config.json that ``model_config`` reads ``config`` from, for models that come from no folder.

    Raises RunError for a combination that no family has.
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
        "eos_token_id": list(stop_ids),  # or some families have another by default
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


_MODULES = {
    "attention_norm": "input_layernorm",
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "q_norm": "self_attn.q_norm",
    "k_norm": "self_attn.k_norm",
    "mlp_norm": "post_attention_layernorm",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
    "norm": "model.norm",
    "embedding": "model.embed_tokens",
    "head": "lm_head",
}


def tensor_name(path: str) -> str:
    """The folder's name of our parameter, e.g. "layer_3/q/kernel"."""
    parts = path.split("/")
    layer = re.fullmatch(r"layer_(\d+)", parts[0])
    module = f"model.layers.{layer[1]}.{_MODULES[parts[1]]}" if layer else _MODULES[parts[0]]
    return f"{module}.{'bias' if parts[-1] == 'bias' else 'weight'}"


def _transposed(path: str) -> bool:
    """Ours are [in, out], the folder's [out, in]."""
    return path.endswith(("kernel", "head"))


def load(folder: str, shapes: Any) -> Any:
    """Parameters of the folder, each device reading its own part of each tensor.

    Args:
      shapes: tree of ShapeDtypeStruct with shardings, e.g. ``Learner.shapes.params``.

    Raises RunError naming the first tensor that is missing, left over, misshapen or no float, or the file
    that cannot be read.
    """
    root = Path(folder).expanduser()
    files = _files(root)
    paths = [_path(path) for path, _ in jax.tree_util.tree_leaves_with_path(shapes)]
    names = set(map(tensor_name, paths))
    missing, extra = sorted(names - set(files)), sorted(set(files) - names)
    if "lm_head.weight" in extra:
        extra.remove("lm_head.weight")  # some folders keep a tied head a second time
    if missing:
        raise RunError(f"{root} lacks tensor {missing[0]} ({len(missing)} such)")
    if extra:
        raise RunError(f"{root} has tensor {extra[0]}, which the model does not have ({len(extra)} such)")

    def read(path, struct: jax.ShapeDtypeStruct) -> jax.Array:
        name, flip = tensor_name(_path(path)), _transposed(_path(path))
        with _opened(root / files[name]) as file:
            part = file.get_slice(name)
            shape, expected = tuple(part.get_shape()), struct.shape[:: -1 if flip else 1]
            if shape != expected:
                raise RunError(f"{root}: tensor {name} is {shape}, expected {expected}")
            if part.get_dtype() not in ("F32", "F16", "BF16"):
                raise RunError(f"{root}: tensor {name} has dtype {part.get_dtype()}, expected a float one")

            def own(index):
                values = part[index[::-1]].T if flip else part[index]
                return np.asarray(values).astype(struct.dtype, copy=False)

            return jax.make_array_from_callback(struct.shape, struct.sharding, own)

    return jax.tree_util.tree_map_with_path(read, shapes)


def save(
    folder: str,
    params: Any,
    source: str | dict[str, Any],
    dtype: str | None = None,
    stop_ids: Sequence[int] | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes a folder that ``transformers`` loads: weights, and every other file of ``source``.

    Args:
      source: a model folder, or what config.json says (``description``).
      dtype: of the written tensors; that of ``source`` if not given.
      stop_ids: what ends a sequence; that of ``source`` if not given.
      shard_bytes: of one file, at most; one file is on the host at a time.
    """
    root = Path(folder).expanduser()
    root.mkdir(parents=True, exist_ok=True)
    if isinstance(source, dict):
        raw = source
    else:
        origin = Path(source).expanduser()
        raw = _read_json(origin / "config.json")
        for name in COPIED:
            if (origin / name).exists():
                shutil.copyfile(origin / name, root / name)
    if stop_ids is not None:
        ends = {"eos_token_id": list(stop_ids)}
        raw = raw | ends
        if (root / GENERATION).exists():
            said = _read_json(root / GENERATION) | ends
            (root / GENERATION).write_text(json.dumps(said, indent=2) + "\n")
    key = "dtype" if "dtype" in raw else "torch_dtype"  # the newer spelling, and the older one
    dtype = dtype or raw.get(key) or "float32"
    shards = list(_shards(params, jnp.dtype(dtype), shard_bytes))
    index: dict[str, str] = {}
    for number, leaves in enumerate(shards, start=1):
        file = SINGLE if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        tensors = {tensor_name(path): _fetch(leaf, path, dtype) for path, leaf in leaves}
        save_tensors(root / file, tensors)
        index |= dict.fromkeys(tensors, file)
    if len(shards) > 1:
        total = sum(leaf.size for _, leaf in _leaves(params)) * jnp.dtype(dtype).itemsize
        record = {"metadata": {"total_size": total}, "weight_map": index}
        (root / INDEX).write_text(json.dumps(record, indent=2) + "\n")
    (root / "config.json").write_text(json.dumps(raw | {key: dtype}, indent=2) + "\n")


def save_tensors(file: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Raises OSError if the disk is full."""
    try:
        save_file(dict(tensors), file, metadata={"format": "pt"})
    except SafetensorError as error:  # its way of saying that the disk is full
        raise OSError(errno.ENOSPC, str(error), str(file)) from error
    file.chmod(0o644)  # the library makes it its owner's alone, and servers read it, too


def _leaves(params: Any) -> Iterator[tuple[str, jax.Array]]:
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        yield _path(path), leaf


def _shards(params: Any, dtype: np.dtype, most: int) -> Iterator[list[tuple[str, jax.Array]]]:
    """Leaves in groups of at most ``most`` bytes."""
    shard: list[tuple[str, jax.Array]] = []
    size = 0
    for path, leaf in _leaves(params):
        bytes_ = leaf.size * dtype.itemsize
        if shard and size + bytes_ > most:
            yield shard
            shard, size = [], 0
        shard.append((path, leaf))
        size += bytes_
    yield shard


def _fetch(leaf: jax.Array, path: str, dtype: str) -> np.ndarray:
    values = np.asarray(jax.device_get(leaf)).astype(jnp.dtype(dtype), copy=False)
    return np.ascontiguousarray(values.T if _transposed(path) else values)


def _path(path: tuple) -> str:
    return "/".join(str(part.key) for part in path)


def _files(root: Path) -> dict[str, str]:
    """Tensor -> file, by the index if there is one."""
    if (root / INDEX).exists():
        return _read_json(root / INDEX)["weight_map"]
    with _opened(root / SINGLE) as file:
        return dict.fromkeys(file.keys(), SINGLE)


def _opened(path: Path):
    """Raises RunError for a file that is missing, cut short or no safetensors."""
    try:
        return safe_open(path, "np")
    except (OSError, SafetensorError) as error:
        raise RunError(f"{path} cannot be read ({error}); is the folder complete?") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise RunError(f"{path} cannot be read ({error})") from error
