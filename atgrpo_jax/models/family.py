"""Defines what a family of models has of its own, and what each family has to say about itself."""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax

from atgrpo_jax.common.jsonfile import Fields
from atgrpo_jax.models.config import Architecture

# Matrices are written transposed: folders have them as [out, in], where ours are [in, out].
_TRANSPOSED = ("kernel", "head")


@dataclasses.dataclass(frozen=True, eq=False)
class Family:
    """Holds all that differs between families. There is one value for each; see families/table.py.

    Layers are called by the names of ``modules``, such as "q" and "down".
    """

    name: str  # the model_type of config.json
    folder_class: str  # the class of ``transformers`` that reads its folders
    # Made of (architecture, compute, joined, mesh), called with (x_BTD, rotation, scale_BJ, cache, attend);
    # returns (x_BTD, cache).
    block: type[nn.Module]
    norm: Callable[..., nn.Module]  # (architecture, compute) -> the norm after the last block
    modules: Mapping[str, str]  # from our module to that of a folder; those of a block without "layers.3."
    axes: tuple[tuple[str, str], ...]  # as ``arrays.mesh.parameter_shardings`` takes them
    adapted: tuple[str, ...]  # linear layers that an adapter is on
    joined: tuple[tuple[str, ...], ...]  # linear layers with the same input; see ``join_layers``
    # [in, out] of a block's linear layers; of experts [E, in, out].
    kernels: Callable[[Architecture], Mapping[str, tuple[int, ...]]]
    vectors: Callable[[Architecture], dict[str, int]]  # sizes of a block's norms and biases
    # Raises ValueError for an architecture that the family does not have.
    check: Callable[[Architecture], None]
    # The fields of an Architecture that are not spelled alike in all families: read from a
    # config.json, or RunError; and written to one. ``read`` may say that it is of another family.
    read: Callable[[Fields], dict[str, Any]]
    write: Callable[[Architecture], dict[str, Any]]
    # Gives the rotary positions in the words of all versions of ``transformers``.
    spell: Callable[[dict[str, Any]], dict[str, Any]]
    # What the first block is given of the embeddings.
    embedded: Callable[[jax.Array], jax.Array] = lambda x_BTD: x_BTD
    # How many parameters of a block's matrices a token is multiplied with; None means all.
    multiplied: Callable[[Architecture], int] | None = None
    ends: tuple[int, ...] = ()  # ids that end a sequence where config.json does not say

    def tensor_names(self, path: str, shape: tuple[int, ...]) -> list[str]:
        """Returns a folder's names for a parameter of ours: one, or that of each expert."""
        name = self.tensor_name(path)
        return [name.format(expert) for expert in range(shape[0])] if self.stacked(path) else [name]

    def stacked(self, path: str) -> bool:
        """Returns whether a parameter of ours [E, ...] is a tensor for each expert in a folder."""
        return "{}" in self.tensor_name(path)

    def tensor_name(self, path: str) -> str:
        """Returns a folder's name for a parameter of ours, such as "layer_3/q/kernel".

        It has {} in the place of an expert's number, if it is one of each expert's.
        """
        parts = path.split("/")
        layer = re.fullmatch(r"layer_(\d+)", parts[0])
        module = f"model.layers.{layer[1]}.{self.modules[parts[1]]}" if layer else self.modules[parts[0]]
        return f"{module}.{'bias' if parts[-1] == 'bias' else 'weight'}"

    def transposed(self, path: str) -> bool:
        """Returns whether a folder has it as [out, in], where ours is [in, out]."""
        return path.endswith(_TRANSPOSED)

    def target_modules(self) -> list[str]:
        """Returns what other programs call the linear layers that an adapter is on."""
        return [self.modules[name].rpartition(".")[2] for name in self.adapted]

    def block_kernels(self, architecture: Architecture) -> int:
        """Returns the number of parameters in the matrices of one block."""
        return sum(map(math.prod, self.kernels(architecture).values()))

    def block_multiplied(self, architecture: Architecture) -> int:
        """Returns how many parameters of one block's matrices a token is multiplied with."""
        return (self.multiplied or self.block_kernels)(architecture)

    def parameters(self, architecture: Architecture) -> int:
        """Returns the number of all parameters. Needs ``vocab_size``."""
        assert architecture.vocab_size is not None
        block = self.block_kernels(architecture) + sum(self.vectors(architecture).values())
        tables = (2 - architecture.tied) * architecture.vocab_size * architecture.width
        return architecture.layers * block + tables + architecture.width
