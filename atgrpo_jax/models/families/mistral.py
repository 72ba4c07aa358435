"""Defines Mistral and Ministral: Llama, but layers may see only a window of the earlier tokens.

All layers of a Mistral have the same window, or none. Those of a Ministral may take turns.
"""

import dataclasses
from typing import Any

from atgrpo_jax.common.checks import require
from atgrpo_jax.common.jsonfile import Fields
from atgrpo_jax.models.config import Architecture
from atgrpo_jax.models.families import dense, llama

_SIZE = 4096  # of a window
# What ``transformers`` takes where a config.json leaves a field out. A window that is null is none.
_LEFT_OUT = {"num_key_value_heads": 8, "max_position_embeddings": 131_072, "sliding_window": _SIZE}


def _check(c: Architecture) -> None:
    sizes = {size for size in c.windows if size}
    require(c, "windows", len(sizes) <= 1, f"{c.family} has windows of one size")
    alike = c.family == "ministral" or len(c.windows) <= 1
    require(c, "windows", alike, "mistral has the same in all layers; in ministral they may take turns")
    llama.LLAMA.check(dataclasses.replace(c, windows=()))


def _read(said: Fields) -> dict[str, Any]:
    """Reads what Llama has, too, as Llama does.

    A Mistral whose layers have types is a Ministral: ``transformers`` reads it as one.
    """
    full = Fields(said.path, {**_LEFT_OUT, **said.raw})
    types = full.given("layer_types", None)
    # Llama's fields about windows are read here, or by neither family.
    as_llama = {"model_type": "llama", "layer_types": None, "use_sliding_window": None}
    own = llama.LLAMA.read(Fields(said.path, {**full.raw, **as_llama}))
    return own | {
        "family": said.text("model_type") if types is None else "ministral",
        "windows": _windows(full, types),
    }


def _windows(said: Fields, types: Any) -> tuple[int, ...]:
    none = said.raw["sliding_window"] is None
    if types is None:
        types = [dense.FULL if none else dense.SLIDING] * said.whole("num_hidden_layers", 2**12)
    found = dense.windows(said, types, 1 if none else said.whole("sliding_window", 2**30))
    if none and any(found):
        raise said.refuse("sliding_window", None, f"a size, as layer_types has {dense.SLIDING}")
    return found


def _write(c: Architecture) -> dict[str, Any]:
    size = max(c.windows, default=0)
    if c.family == "mistral":
        return llama.LLAMA.write(c) | {"sliding_window": size or None}
    # ``transformers`` needs a size, even if no layer has a window.
    return llama.LLAMA.write(c) | {"sliding_window": size or _SIZE, "layer_types": dense.layer_types(c)}


MISTRAL = dataclasses.replace(
    llama.LLAMA, name="mistral", folder_class="MistralForCausalLM", check=_check, read=_read, write=_write
)
MINISTRAL = dataclasses.replace(MISTRAL, name="ministral", folder_class="MinistralForCausalLM")
