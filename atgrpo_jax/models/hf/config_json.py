"""Turns the config.json of a Hugging Face folder into an Architecture, and the other way round."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from atgrpo_jax.common.copies import existing_folder, local_folder
from atgrpo_jax.common.errors import RunError
from atgrpo_jax.common.jsonfile import Fields, read_object
from atgrpo_jax.models.config import Architecture, Dtype
from atgrpo_jax.models.families.table import FAMILIES, family_of
from atgrpo_jax.models.family import Family

GENERATION = "generation_config.json"

DTYPES = ("float32", "bfloat16", "float16")


def architecture(folder: str) -> Architecture:
    """Returns what the folder's config.json describes.

    Raises RunError with the name of the first field that we cannot honour.
    """
    path = existing_folder(folder) / "config.json"
    said = fields(path.parent)
    family = family_in(said)
    said.only({"quantization_config": (None,), "compression_config": (None,)})
    stored_dtype(said)
    try:
        own = {"family": family.name} | family.read(said)
        found = Architecture(
            layers=said.whole("num_hidden_layers", 2**12),
            width=said.whole("hidden_size", 2**20),
            mlp_width=said.whole("intermediate_size", 2**22),
            heads=said.whole("num_attention_heads", 2**12),
            vocab_size=said.whole("vocab_size", 2**24),
            rms_epsilon=said.positive("rms_norm_eps", 1e-6),
            **own,
        )
        family_of(found)
    except ValueError as error:  # sizes that do not go together
        raise RunError(f"{path}: {error}") from error
    return found


def family_in(said: Fields) -> Family:
    """Returns the family that a config.json names. Raises RunError for one that we do not have."""
    kind = said.text("model_type")
    if kind not in FAMILIES:
        raise said.refuse("model_type", kind, "one of " + ", ".join(FAMILIES))
    return FAMILIES[kind]


def fields(root: Path) -> Fields:
    """Returns the fields of a folder's config.json.

    Raises RunError for a folder of an adapter, which ``transformers`` would read with its model.
    """
    if (root / "adapter_config.json").exists():
        raise RunError(
            f"{root} holds an adapter (adapter_config.json); merge it into its model and give that folder "
            "(export --merge writes such folders)"
        )
    return Fields(root / "config.json", read_object(root / "config.json"))


def stored_dtype(said: Fields) -> str:
    """Returns the dtype of a folder's tensors; float32, which loses nothing, if it does not say.

    Raises RunError for a dtype that we do not read.
    """
    name = "dtype" if said.given("dtype", None) is not None else "torch_dtype"
    word = said.text(name, "float32").removeprefix("torch.")
    if word not in (*DTYPES, "auto"):
        raise said.refuse(name, word, "one of " + ", ".join(DTYPES))
    return "float32" if word == "auto" else word


def dtype_of(source: str | dict[str, Any]) -> str:
    """Returns the dtype in which a model folder, or a ``description``, stores its tensors."""
    return stored_dtype(Fields("config.json", source) if isinstance(source, dict) else fields(Path(source)))


def end_ids(folder: str) -> set[int]:
    """Returns the ids that end a sequence for programs that serve the folder.

    They are those of config.json and of generation_config.json. Raises RunError if one of these
    files cannot be read.
    """
    root = local_folder(folder)
    said = Fields(root / "config.json", read_object(root / "config.json"))
    found = set(said.ids("eos_token_id"))
    family = FAMILIES.get(str(said.raw.get("model_type")))
    if "eos_token_id" not in said.raw and family is not None:
        found = set(family.ends)  # the default of transformers
    if (root / GENERATION).is_file():
        found |= set(Fields(root / GENERATION, read_object(root / GENERATION)).ids("eos_token_id"))
    return found


def check_same_model(ours: Architecture, folder: str) -> None:
    """Raises RunError if the folder's config.json describes another model.

    The vocabulary is not compared: it may be padded, and the shapes of the tensors show it.
    """
    theirs = architecture(folder)
    for field in dataclasses.fields(Architecture):
        mine = getattr(ours, field.name)
        other = getattr(theirs, field.name)
        if mine != other and field.name != "vocab_size":
            raise RunError(
                f"Architecture.{field.name} = {mine!r}, but {other!r} by the config.json of {folder}"
            )


def description(
    described: Architecture, vocab_size: int, stop_ids: Sequence[int], dtype: Dtype = "float32"
) -> dict[str, Any]:
    """Returns a config.json that ``architecture`` reads as ``described``, for models without a folder.

    ``dtype`` is that of the parameters.
    """
    family = family_of(described)
    raw: dict[str, Any] = {
        "architectures": [family.folder_class],
        "model_type": family.name,
        "vocab_size": vocab_size,
        "hidden_size": described.width,
        "intermediate_size": described.mlp_width,
        "num_hidden_layers": described.layers,
        "num_attention_heads": described.heads,
        "num_key_value_heads": described.kv_heads,
        "head_dim": described.head_size,
        "rms_norm_eps": described.rms_epsilon,
        "tie_word_embeddings": described.tied,
        "max_position_embeddings": 32_768,
        "eos_token_id": list(stop_ids),  # given because some families have another default
        "dtype": dtype,
    }
    return raw | family.write(described)
