"""Our sizes as tunix's."""

import jax.numpy as jnp
from tunix.models.qwen3 import model as qwen3


def model_config(m: dict) -> qwen3.ModelConfig:
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
