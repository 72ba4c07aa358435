"""Models of ``transformers`` to compare with: small random ones of every architecture and variant."""

from pathlib import Path

import jax
import jax.numpy as jnp
import tokenizers
import torch
import transformers

from atgrpo_jax.arrays.mesh import MeshConfig, parameter_shardings
from atgrpo_jax.models.attention import causal_mask, masked_attention
from atgrpo_jax.models.families.table import transformer
from atgrpo_jax.models.hf import hf
from atgrpo_jax.models.transformer import init_params, logits

SIZES = {
    "vocab_size": 96, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3,
    "num_attention_heads": 6, "max_position_embeddings": 512, "initializer_range": 0.15,
    "attn_implementation": "eager",
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10_000.0, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
}  # fmt: skip
WINDOWED = {
    "num_key_value_heads": 2, "head_dim": 16, "sliding_window": 24, "pad_token_id": 0, "num_hidden_layers": 4,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
}  # fmt: skip
# Two bases, and a stretch of the layers without a window.
BASES = {
    "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 3e4},
    "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
}
NOPE = {"num_key_value_heads": 2, "num_hidden_layers": 4, "pad_token_id": 0}
MIXED = {"num_key_value_heads": 2, "head_dim": 16, "num_experts": 5, "moe_intermediate_size": 28}
VARIANTS = {
    "qwen3": ("Qwen3", {"num_key_value_heads": 2, "head_dim": 16, "tie_word_embeddings": True}),
    "qwen3 untied": ("Qwen3", {"num_key_value_heads": 6, "head_dim": 8, "tie_word_embeddings": False}),
    "qwen2": ("Qwen2", {"num_key_value_heads": 1, "tie_word_embeddings": True}),
    "qwen2 untied": ("Qwen2", {"num_key_value_heads": 3, "tie_word_embeddings": False}),
    "llama": ("Llama", {"num_key_value_heads": 6, "tie_word_embeddings": False}),
    "llama 3": ("Llama", {"num_key_value_heads": 3, "tie_word_embeddings": True, "rope_parameters": LLAMA3}),
    "qwen3 moe": ("Qwen3Moe", MIXED | {"norm_topk_prob": True, "num_experts_per_tok": 2}),
    "qwen3 moe, shares as they are": (
        "Qwen3Moe",
        MIXED | {"norm_topk_prob": False, "num_experts_per_tok": 3},
    ),
    "gemma 3": ("Gemma3", WINDOWED),
    "gemma 3 stretched": ("Gemma3", WINDOWED | {"rope_parameters": BASES, "query_pre_attn_scalar": 24}),
    "mistral": ("Mistral", {"num_key_value_heads": 2, "head_dim": 16, "sliding_window": None}),
    "mistral windowed": ("Mistral", {"num_key_value_heads": 3, "sliding_window": 24}),
    "ministral": ("Ministral", WINDOWED | {"layer_types": ["full_attention", *["sliding_attention"] * 3]}),
    "smollm3": ("SmolLM3", NOPE),
    "smollm3 untied": (
        "SmolLM3",
        NOPE | {"no_rope_layers": [0, 1, 1, 0], "tie_word_embeddings": False, "rope_parameters": LLAMA3},
    ),
}


CONFIGS = {"Gemma3": "Gemma3TextConfig"}  # where it has another name


def make(folder: Path, kind: str, options: dict, dtype=torch.float32):
    torch.manual_seed(0)
    config = getattr(transformers, CONFIGS.get(kind, f"{kind}Config"))(**SIZES | options)
    model = getattr(transformers, f"{kind}ForCausalLM")(config).to(dtype).eval()
    for name, weight in model.named_parameters():  # biases and scales start at constants
        if name.endswith("bias") or "norm" in name:
            weight.data += 0.3 * torch.randn_like(weight)
    model.save_pretrained(folder)
    return model


def make_tokenizer(folder: Path) -> None:
    """One id a byte, an end of turn, and a chat template."""
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocab = {letter: i for i, letter in enumerate(letters)}
    inner = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, []))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = tokenizers.decoders.ByteLevel()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|end|>")
    fast.chat_template = (
        "{% for m in messages %}{{ m['role'] }}:{{ m['content'] }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    fast.save_pretrained(folder)


def shapes_of(architecture, mesh=None):
    model = transformer(architecture, architecture.vocab_size)
    shapes = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
    shardings = parameter_shardings(shapes, (mesh or MeshConfig()).build(), model.family.axes)
    return model, jax.tree.map(
        lambda s, sharding: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding), shapes, shardings
    )


def ours(folder, mesh=None):
    model, shapes = shapes_of(hf.architecture(str(folder)), mesh)
    return model, hf.load(str(folder), shapes)


def forward(model, params, tokens_BT):
    """Output of every block, final hidden states and logits."""

    def causal(q, k, v, _, window):
        return masked_attention(q, k, v, causal_mask(jnp.arange(q.shape[1])[None], window)), None

    positions_BT = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1]), tokens_BT.shape)
    (hidden, _), captured = model.apply(
        {"params": params}, tokens_BT, positions_BT, causal,
        capture_intermediates=lambda module, _: isinstance(module, model.family.block),
        mutable=["intermediates"],
    )  # fmt: skip
    layers = captured["intermediates"]
    blocks = [layers[f"layer_{i}"]["__call__"][0][0] for i in range(model.architecture.layers)]
    return blocks, hidden, logits(params, hidden)
