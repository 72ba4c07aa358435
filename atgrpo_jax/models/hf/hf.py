"""Reads and writes Hugging Face folders: safetensors <-> sharded parameters; see config_json.py."""

import errno
import json
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from atgrpo_jax.arrays.tree_paths import path_text
from atgrpo_jax.common.buckets import is_url
from atgrpo_jax.common.copies import local_folder
from atgrpo_jax.common.errors import RunError
from atgrpo_jax.common.jsonfile import Fields, read_object
from atgrpo_jax.models.family import Family
from atgrpo_jax.models.hf.config_json import (
    DTYPES,
    GENERATION,
    architecture,
    check_same_model,
    description,
    dtype_of,
    end_ids,
    family_in,
    fields,
    stored_dtype,
)
from atgrpo_jax.models.hf.tensors import INDEX, SINGLE, Slices, Tensors, same

# What config.json says, and the parameters both ways: all that callers need of a folder.
__all__ = [
    "DTYPES", "GENERATION", "architecture", "check_same_model", "copy_beside", "copy_tokenizer",
    "description", "dtype_of", "end_ids", "has_weights", "load", "save", "write_ends",
]  # fmt: skip

# Files of a tokenizer.
_TOKENIZER = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt",
    "added_tokens.json", "chat_template.jinja",
)  # fmt: skip
# Files that a trained folder gets as they are in its source.
COPIED = (*_TOKENIZER, GENERATION)
SHARD_BYTES = 5 * 10**9

# Tensors that older versions stored, and that we compute: rotary frequencies and causal masks.
_BUFFERS = re.compile(r".*\brotary_emb\.(inv_freq|cos_cached|sin_cached)|.*\battn\.(bias|masked_bias)")

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"


def load(folder: str, shapes: Any) -> Any:
    """Returns the parameters of a folder; each device reads its own part of each tensor.

    Args:
      shapes: tree of ShapeDtypeStruct with shardings, e.g. ``Learner.shapes.params``.

    Raises RunError with the name of the first tensor that is missing, left over, misshapen, no
    float or not finite, or of the file that cannot be read.
    """
    root = local_folder(folder)
    family = family_in(fields(root))
    tensors = Tensors(root)
    leaves = dict(_leaves(shapes))
    names = {name for path, leaf in leaves.items() for name in family.tensor_names(path, leaf.shape)}
    stored = {name for name in tensors if not _BUFFERS.fullmatch(name)}
    if HEAD not in names and HEAD in stored:
        stored = _tied(root, tensors, leaves["embedding"].shape, stored)
    instead = {EMBEDDING: HEAD} if HEAD in stored - names else {}  # stored under that name
    missing = sorted(names - stored - set(instead))
    extra = sorted(stored - names - set(instead.values()))
    if missing:
        raise RunError(f"{root} lacks tensor {missing[0]} ({len(missing)} such)")
    if extra:
        raise RunError(f"{root} has tensor {extra[0]}, which the model does not have ({len(extra)} such)")

    def read(path, struct: jax.ShapeDtypeStruct) -> jax.Array:
        own = path_text(path)
        flip = family.transposed(own)
        stacked = family.stacked(own)
        shape = struct.shape[1:] if stacked else struct.shape
        stored_shape = shape[::-1] if flip else shape
        parts = [
            tensors.slices(instead.get(name, name), stored_shape)
            for name in family.tensor_names(own, struct.shape)
        ]

        def one(part: Slices, index: tuple[slice, ...]) -> np.ndarray:
            values = part.read(index[::-1] if flip else index, struct.dtype)
            return values.T if flip else values

        def asked(index: Any) -> np.ndarray:
            if not stacked:
                return one(parts[0], index)
            return np.stack([one(part, index[1:]) for part in parts[index[0]]])

        return jax.make_array_from_callback(struct.shape, struct.sharding, asked)

    return jax.tree_util.tree_map_with_path(read, shapes)


def _tied(root: Path, tensors: Tensors, shape: tuple[int, ...], stored: set[str]) -> set[str]:
    """Returns the names ``stored`` without a tied head that is stored beside the embedding.

    Raises RunError if that head is not the embedding: ``transformers`` unties it from version 5 on,
    and dropped it before.
    """
    if EMBEDDING not in stored:
        return stored
    if not same(tensors.slices(EMBEDDING, shape), tensors.slices(HEAD, shape), shape[0]):
        raise RunError(
            f"{root}: {HEAD} differs from {EMBEDDING}, but config.json says tie_word_embeddings; "
            f"set it to false if {HEAD} is meant, or remove that tensor"
        )
    return stored - {HEAD}


def save(
    folder: str,
    params: Any,
    source: str | dict[str, Any],
    dtype: str | None = None,
    stop_ids: Sequence[int] | None = None,
    shard_bytes: int = SHARD_BYTES,
    whole: Iterator[Any] | None = None,
) -> None:
    """Writes a folder that ``transformers`` loads: weights, and the ``COPIED`` files of ``source``.

    Args:
      source: a model folder, or what config.json says (``description``).
      dtype: that of the written tensors; that of ``source`` if not given.
      stop_ids: ids that end a sequence; those of ``source`` if not given.
      shard_bytes: most bytes of one file; one file's tensors are on the host at a time.
      whole: gives the leaves of ``params`` in their order, each when it is to be written, as arrays
        that this host has whole; they are ``params``' own if not given.

    Raises RunError if ``dtype`` cannot hold a weight, and OSError if the disk is full.
    """
    root = Path(folder).expanduser()
    root.mkdir(parents=True, exist_ok=True)
    for stale in (root / INDEX, root / SINGLE, *root.glob("model-*-of-*.safetensors")):
        stale.unlink(missing_ok=True)
    if isinstance(source, dict):
        raw = source
    else:
        origin = local_folder(source)
        raw = read_object(origin / "config.json")
        copy_beside(source, root)
    if stop_ids is not None:
        raw = raw | {"eos_token_id": list(stop_ids)}
        write_ends(root, stop_ids)
    said = Fields("config.json", raw)
    family = family_in(said)
    dtype = dtype or stored_dtype(said)
    shards = list(_shards(params, jnp.dtype(dtype), shard_bytes))
    whole = iter(jax.tree.leaves(params)) if whole is None else whole
    index: dict[str, str] = {}
    for number, leaves in enumerate(shards, start=1):
        file = SINGLE if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        tensors: dict[str, np.ndarray] = {}
        for path, _ in leaves:
            tensors |= _fetched(next(whole), path, family, dtype)
        save_tensors(root / file, tensors)
        index |= dict.fromkeys(tensors, file)
    if len(shards) > 1:
        total = sum(leaf.size for _, leaf in _leaves(params)) * jnp.dtype(dtype).itemsize
        record = {"metadata": {"total_size": total}, "weight_map": index}
        (root / INDEX).write_text(json.dumps(record, indent=2) + "\n")
    (root / "config.json").write_text(json.dumps(_spelled(raw, family, dtype), indent=2) + "\n")


def copy_beside(source: str, root: Path) -> None:
    """Copies the ``COPIED`` files of a model folder."""
    origin = local_folder(source)
    for name in COPIED:
        if (origin / name).exists():
            shutil.copyfile(origin / name, root / name)


def copy_tokenizer(source: str, root: Path) -> None:
    """Copies the files of a folder's tokenizer, in place of all that are in ``root``."""
    origin = local_folder(source)
    for name in _TOKENIZER:
        (root / name).unlink(missing_ok=True)
        if (origin / name).exists():
            shutil.copyfile(origin / name, root / name)


def write_ends(root: Path, stop_ids: Sequence[int], new: bool = False) -> None:
    """Says in generation_config.json which ids end a sequence. It is made only if it may be ``new``."""
    path = root / GENERATION
    if new or path.exists():
        said = read_object(path) if path.exists() else {}
        path.write_text(json.dumps(said | {"eos_token_id": list(stop_ids)}, indent=2) + "\n")


def has_weights(folder: str) -> bool:
    """Returns whether a folder on this disk holds weights; one in a bucket is believed to."""
    return is_url(folder) or any((Path(folder) / name).is_file() for name in (SINGLE, INDEX))


def _spelled(raw: dict[str, Any], family: Family, dtype: str) -> dict[str, Any]:
    """Returns config.json in words that ``transformers`` before and after version 5 understand.

    It has one of dtype and torch_dtype, which both versions read.
    """
    key = "dtype" if "dtype" in raw else "torch_dtype"
    said = {name: value for name, value in raw.items() if name not in ("dtype", "torch_dtype")} | {key: dtype}
    return family.spell(said)


def save_tensors(
    file: Path, tensors: Mapping[str, np.ndarray], about: Mapping[str, str] = MappingProxyType({})
) -> None:
    """Writes a safetensors file, with ``about`` in its metadata. Raises OSError if the disk is full."""
    try:
        save_file(dict(tensors), file, metadata={"format": "pt", **about})
    except SafetensorError as error:  # the library raises this if the disk is full
        raise OSError(errno.ENOSPC, str(error), str(file)) from error
    file.chmod(0o644)  # the library lets only the owner read it, but servers must


def _leaves(params: Any) -> Iterator[tuple[str, jax.Array]]:
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        yield path_text(path), leaf


def _shards(params: Any, dtype: np.dtype, most: int) -> Iterator[list[tuple[str, jax.Array]]]:
    """Yields the leaves in groups of at most ``most`` bytes, or of one larger leaf."""
    shard: list[tuple[str, jax.Array]] = []
    size = 0
    for path, leaf in _leaves(params):
        bytes_ = leaf.size * dtype.itemsize
        if shard and size + bytes_ > most:
            yield shard
            shard = []
            size = 0
        shard.append((path, leaf))
        size += bytes_
    yield shard


def _fetched(leaf: jax.Array, path: str, family: Family, dtype: str) -> dict[str, np.ndarray]:
    """Returns the tensors of a parameter, by their names in a folder."""
    values = np.asarray(jax.device_get(leaf))
    parts = values if family.stacked(path) else [values]
    flip = family.transposed(path)
    names = family.tensor_names(path, leaf.shape)
    return {name: _as_written(name, part, flip, dtype) for name, part in zip(names, parts, strict=True)}


def _as_written(name: str, values: np.ndarray, flip: bool, dtype: str) -> np.ndarray:
    with np.errstate(over="ignore"):  # raised below, with its name
        written = values.astype(jnp.dtype(dtype), copy=False)
    if np.isfinite(values).all() and not np.isfinite(written).all():
        most = float(np.abs(values).max())
        raise RunError(
            f"tensor {name} has numbers up to {most:.3g}, which {dtype} cannot hold; use bfloat16: export "
            'has --dtype, and else "dtype" in the config.json of the folder that it comes from counts'
        )
    return np.ascontiguousarray(written.T if flip else written)
