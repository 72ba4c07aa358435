"""Reads and writes adapters as PEFT folders."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from atgrpo_jax.arrays.tree_paths import path_text
from atgrpo_jax.common.copies import local_folder
from atgrpo_jax.common.errors import RunError
from atgrpo_jax.common.jsonfile import Fields, read_object
from atgrpo_jax.models.family import Family
from atgrpo_jax.models.hf.hf import save_tensors
from atgrpo_jax.models.hf.tensors import Slices, opened
from atgrpo_jax.models.lora import LoraConfig

ABOUT = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
_BASE_DIGEST = "base_digest"  # in the metadata of WEIGHTS, which other programs leave alone
# What PEFT can do to an adapter and we cannot; None is a field that is not there.
_PLAIN = {
    "bias": ("none", None), "use_rslora": (False, None), "use_dora": (False, None),
    "lora_bias": (False, None), "fan_in_fan_out": (False, None), "modules_to_save": (None, []),
    "rank_pattern": ({}, None), "alpha_pattern": ({}, None), "trainable_token_indices": (None,),
    "alora_invocation_tokens": (None,), "layer_replication": (None,), "use_qalora": (False, None),
    "arrow_config": (None,),
    "init_lora_weights": (True, False, "gaussian", None),  # others change the base, too
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class AdapterFolder:
    """What a PEFT folder says of its adapter."""

    config: LoraConfig
    base: str  # the model that it is on, as adapter_config.json names it
    base_digest: str  # of the numbers that it was trained on; "" if the folder does not say


def is_adapter(folder: str) -> bool:
    """Returns whether a folder holds an adapter. Raises RunError as ``local_folder`` does."""
    return (local_folder(folder) / ABOUT).is_file()


def read_about(folder: str) -> AdapterFolder:
    """Reads what a PEFT folder says. Raises RunError for what we cannot compute, with its name."""
    root = local_folder(folder)
    said = Fields(root / ABOUT, read_object(root / ABOUT))
    if said.text("peft_type") != "LORA":
        raise said.refuse("peft_type", said.raw["peft_type"], "LORA")
    said.only(_PLAIN)
    config = LoraConfig(said.whole("r", 2**16), said.positive("lora_alpha"))
    with opened(root / WEIGHTS) as file:
        digest = (file.metadata() or {}).get(_BASE_DIGEST, "")
    return AdapterFolder(config, said.text("base_model_name_or_path", ""), digest)


def load_adapter(folder: str, shapes: Any, family: Family) -> Any:
    """Returns the adapter of a PEFT folder; each device reads its own part of each tensor.

    Args:
      shapes: tree of ShapeDtypeStruct with shardings, of an adapter on ``family``.

    Raises RunError with the name of the first tensor that is missing, left over, misshapen, no
    float or not finite, or of the file that cannot be read.
    """
    root = local_folder(folder)
    path = root / WEIGHTS
    with opened(path) as file:
        stored = set(file.keys())
    leaves = [path_text(own) for own, _ in jax.tree_util.tree_leaves_with_path(shapes)]
    names = {own: _tensor(family, *own.split("/")) for own in leaves}
    if missing := sorted(set(names.values()) - stored):
        raise RunError(f"{path} lacks tensor {missing[0]} ({len(missing)} such)")
    if extra := sorted(stored - set(names.values())):
        raise RunError(f"{path} has tensor {extra[0]}, which is not of such an adapter ({len(extra)} such)")

    def read(own: Any, struct: jax.ShapeDtypeStruct) -> jax.Array:
        part = Slices(root, names[path_text(own)], path, struct.shape[::-1])  # torch keeps [out, in]

        def asked(index: Any) -> np.ndarray:
            return part.read(index[::-1], struct.dtype).T

        return jax.make_array_from_callback(struct.shape, struct.sharding, asked)

    return jax.tree_util.tree_map_with_path(read, shapes)


def save_adapter(
    folder: str,
    adapter: Any,
    config: LoraConfig,
    family: Family,
    base: str,
    dtype: str = "float32",
    base_digest: str = "",
) -> None:
    """Writes a PEFT folder: adapter_model.safetensors and adapter_config.json.

    Args:
      base: the model folder (or hub name) that the adapter belongs to.
      dtype: that of the written tensors.
      base_digest: what ``digest_of`` says of the numbers that it was trained on.

    Raises OSError if the disk is full.
    """
    root = Path(folder).expanduser()
    root.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for layer, modules in adapter.items():
        for name, ab in modules.items():
            for letter in "ab":  # torch keeps [out, in]
                values = np.ascontiguousarray(np.asarray(ab[letter]).astype(jnp.dtype(dtype)).T)
                tensors[_tensor(family, layer, name, letter)] = values
    save_tensors(root / WEIGHTS, tensors, {_BASE_DIGEST: base_digest} if base_digest else {})
    about = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": config.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": sorted({name.split(".")[-3] for name in tensors}),
        "inference_mode": True,
    }
    (root / ABOUT).write_text(json.dumps(about, indent=2) + "\n")


def digest_of(params: Any) -> str:
    """Returns a digest of parameters that says whether others have the same numbers, in whatever type."""
    digest = hashlib.blake2b(digest_size=16)
    leaves = {path_text(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    for name, leaf in sorted(leaves.items()):
        digest.update(f"{name} {leaf.shape}\n".encode())
        digest.update(np.ascontiguousarray(jax.device_get(leaf), dtype=np.float32).data)
    return digest.hexdigest()


def _tensor(family: Family, layer: str, module: str, letter: str) -> str:
    """Returns PEFT's name for one of the two matrices on a linear layer."""
    kernel = family.tensor_name(f"{layer}/{module}/kernel").removesuffix(".weight")
    return f"base_model.model.{kernel}.lora_{letter.upper()}.weight"
