"""Runs a Pallas kernel with one program for each tile, on TPUs (Mosaic) and GPUs (Triton).

Axis letters: B rows, T tokens of a row, N query heads, H head size.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.experimental.pallas import triton as plgpu

Platform = Literal["tpu", "gpu"]


@dataclasses.dataclass(frozen=True)
class How:
    """Says how a kernel is run: for which platform, on which tiles, and whether it is interpreted."""

    platform: Platform
    tile: int
    interpret: bool


class Specs:
    """Says which part of [B, heads, T, H], or of a vector [B, heads, 1, T], a program gets.

    It gets a tile or all tokens, of its query head (``tile``, ``all``), of the key head that this
    head shares (``shared``, ``all_shared``), or of the codes' only head (``code``, ``codes``).
    """

    def __init__(self, tile: int, queries_a_key: int):
        self._tile = tile
        self._queries_a_key = queries_a_key

    def tile(self, x: Any, head: Callable = lambda h: h) -> pl.BlockSpec:
        if x.shape[2] == 1:
            return pl.BlockSpec((None, None, 1, self._tile), lambda b, h, i, *_: (b, head(h), 0, i))
        return pl.BlockSpec((None, None, self._tile, x.shape[3]), lambda b, h, i, *_: (b, head(h), i, 0))

    def all(self, x: Any, head: Callable = lambda h: h) -> pl.BlockSpec:
        return pl.BlockSpec((None, None, *x.shape[2:]), lambda b, h, i, *_: (b, head(h), 0, 0))

    def shared(self, x: Any) -> pl.BlockSpec:
        return self.tile(x, lambda h: h // self._queries_a_key)

    def all_shared(self, x: Any) -> pl.BlockSpec:
        return self.all(x, lambda h: h // self._queries_a_key)

    def code(self, x: Any) -> pl.BlockSpec:
        return self.tile(x, lambda h: 0)

    def codes(self, x: Any) -> pl.BlockSpec:
        return self.all(x, lambda h: 0)


def launch(
    how: How,
    kernel: Callable,
    scalars: Sequence[jax.Array],
    inputs: Sequence[jax.Array],
    specs: Sequence[Callable[[Any], pl.BlockSpec]],
    outputs: Sequence[jax.ShapeDtypeStruct],
) -> Sequence[jax.Array]:
    """Runs a kernel on scalars, inputs, outputs: one program for each tile of the first output."""
    B, N, T, _ = outputs[0].shape
    grid = B, N, T // how.tile
    in_specs = [spec(x) for spec, x in zip(specs, inputs, strict=True)]
    out_specs = [Specs(how.tile, 1).tile(x) for x in outputs]
    grid_spec: Any
    params: Any
    if how.platform == "tpu":
        grid_spec = pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(scalars), grid=grid, in_specs=in_specs, out_specs=out_specs
        )
        held = sum(map(_block_bytes, [*inputs, *outputs], in_specs + out_specs))
        params = pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "parallel"),
            vmem_limit_bytes=2 * held + 2**24,  # twice: fetched ahead; 2^24 for the program
        )
    else:
        everything = [pl.BlockSpec(x.shape, lambda *_, n=x.ndim: (0,) * n) for x in scalars]
        grid_spec = pl.GridSpec(grid=grid, in_specs=everything + in_specs, out_specs=out_specs)
        params = plgpu.CompilerParams(num_warps=4, num_stages=2)
    call = pl.pallas_call(
        kernel, outputs, grid_spec=grid_spec, compiler_params=params, interpret=how.interpret
    )
    return call(*scalars, *inputs)


def _block_bytes(x: Any, spec: Any) -> int:
    return math.prod(size or 1 for size in spec.block_shape) * x.dtype.itemsize
