"""Writes adapters as PEFT folders."""

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from atgrpo_jax.models.family import Family
from atgrpo_jax.models.hf.hf import save_tensors
from atgrpo_jax.models.lora import LoraConfig


def save_adapter(
    folder: str, adapter: Any, config: LoraConfig, family: Family, base: str, dtype: str = "float32"
) -> None:
    """Writes a PEFT folder: adapter_model.safetensors and adapter_config.json.

    Args:
      base: the model folder (or hub name) that the adapter belongs to.
      dtype: that of the written tensors.

    Raises OSError if the disk is full.
    """
    root = Path(folder).expanduser()
    root.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for layer, modules in adapter.items():
        for name, ab in modules.items():
            kernel = family.tensor_name(f"{layer}/{name}/kernel")
            module = "base_model.model." + kernel.removesuffix(".weight")
            for letter in "ab":  # torch keeps [out, in]
                values = np.ascontiguousarray(np.asarray(ab[letter]).astype(jnp.dtype(dtype)).T)
                tensors[f"{module}.lora_{letter.upper()}.weight"] = values
    save_tensors(root / "adapter_model.safetensors", tensors)
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
    (root / "adapter_config.json").write_text(json.dumps(about, indent=2) + "\n")
