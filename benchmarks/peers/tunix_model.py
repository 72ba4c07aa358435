"""The item's model as tunix has it."""

import jax
import jax.numpy as jnp
import numpy as np
from clock import Item
from tunix.models.qwen3 import model as qwen3
from tunix.models.qwen3 import params as qwen3_params


def load(item: Item) -> tuple[jax.sharding.Mesh, qwen3.Qwen3]:
    """On one device."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("fsdp", "tp"))
    dtype = jnp.dtype(item.model["dtype"])
    with mesh:
        config = _config(item.model)
        return mesh, qwen3_params.create_model_from_safe_tensors(str(item.folder), config, mesh, dtype=dtype)


def _config(m: dict) -> qwen3.ModelConfig:
    dtype = jnp.dtype(m["dtype"])
    return qwen3.ModelConfig(
        num_layers=m["layers"],
        vocab_size=m["vocab_size"],
        embed_dim=m["width"],
        hidden_dim=m["mlp_width"],
        num_heads=m["heads"],
        head_dim=m["head_size"],
        num_kv_heads=m["kv_heads"],
        rope_theta=int(m["rope_theta"]),
        norm_eps=m["rms_epsilon"],
        use_tied_embedding=m["tied"],
        dtype=dtype,
        param_dtype=dtype,
    )
