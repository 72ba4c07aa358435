"""Defines SmolLM3: Llama, but some layers have no rotary positions.

Those layers know the order of tokens only from what each of them sees.
"""

import dataclasses
from typing import Any

from atgrpo_jax.common.jsonfile import Fields
from atgrpo_jax.models.config import Architecture
from atgrpo_jax.models.families import llama

# What ``transformers`` takes where a config.json leaves a field out.
_LEFT_OUT = {"num_key_value_heads": 4, "max_position_embeddings": 32_768, "tie_word_embeddings": True}
_THETA = 2_000_000.0


def _check(c: Architecture) -> None:
    llama.LLAMA.check(dataclasses.replace(c, rotary=()))


def _read(said: Fields) -> dict[str, Any]:
    """Reads what Llama has, too, as Llama does."""
    # The published folder has pretraining_tp = 2, which no model reads.
    as_llama = {"model_type": "llama", "pretraining_tp": None}
    own = llama.LLAMA.read(Fields(said.path, _LEFT_OUT | _with_theta(said) | as_llama))
    return own | {"rotary": _rotary(said)}


def _with_theta(said: Fields) -> dict[str, Any]:
    """Returns the fields with the rotary base, also if neither spelling has it."""
    parts = map(said.part, ("rope_parameters", "rope_scaling"))
    if any(part.get("rope_theta") is not None for part in parts):
        return {**said.raw}
    return {**said.raw, "rope_theta": said.given("rope_theta", _THETA)}


def _rotary(said: Fields) -> tuple[bool, ...]:
    """Returns whether each layer has rotary positions."""
    layers = said.whole("num_hidden_layers", 2**12)
    told = said.given("no_rope_layers", None)
    if told is None:
        every = said.whole("no_rope_layer_interval", 2**20, 4)
        return tuple(number % every != 0 for number in range(1, layers + 1))
    if type(told) is not list or len(told) < layers or not all(type(x) is int and x in (0, 1) for x in told):
        raise said.refuse("no_rope_layers", told, f"1 or 0 for each of {layers} layers; 0 has no positions")
    return tuple(x == 1 for x in told[:layers])


def _write(c: Architecture) -> dict[str, Any]:
    rotary = [int(c.rope(layer) is not None) for layer in range(c.layers)]
    # ``transformers`` has default ids of these, which a small vocabulary does not have.
    nothing = {"bos_token_id": None, "pad_token_id": None}
    return llama.LLAMA.write(c) | {"no_rope_layers": rotary} | nothing


def _spell(raw: dict[str, Any]) -> dict[str, Any]:
    return llama.LLAMA.spell(_with_theta(Fields("config.json", raw)))


SMOLLM3 = dataclasses.replace(
    llama.LLAMA,
    name="smollm3",
    folder_class="SmolLM3ForCausalLM",
    check=_check,
    read=_read,
    write=_write,
    spell=_spell,
    ends=(128_001,),
)
