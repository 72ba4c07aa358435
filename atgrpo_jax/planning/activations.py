"""Estimates the memory that an update takes on each device beside its state.

Activations are what JAX's own backward pass keeps. They are found by abstract evaluation of one
device's share of the model.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp

from atgrpo_jax.arrays.mesh import MeshConfig
from atgrpo_jax.models.config import Architecture, Compute
from atgrpo_jax.models.families.table import family_of, transformer
from atgrpo_jax.models.head import CHUNK_BYTES, table, token_loss
from atgrpo_jax.models.lora import adapter_shapes
from atgrpo_jax.models.packed import Packed
from atgrpo_jax.models.transformer import PolicyWeights, shapes_of
from atgrpo_jax.run.experiment import Experiment
from atgrpo_jax.update.batch import BatchConfig, pack
from atgrpo_jax.update.objectives import cloning


def activations(
    config: Architecture,
    compute: Compute,
    mesh: MeshConfig,
    batch: BatchConfig,
    row: int,
    lora: int | None = None,
) -> float:
    """Returns the bytes of activations on each device for one micro-batch.

    They are what the forward pass keeps for the backward pass, and what that computes again. Models
    of one and two layers are evaluated: every further layer keeps as much as the second one.
    """
    local = local_share(config, mesh)
    rows = batch.rows // mesh.rows
    compute = dataclasses.replace(compute, scan=False)
    one, two = (_bytes_a_row(dataclasses.replace(local, layers=n), compute, row, lora) for n in (1, 2))
    kept = one + (config.layers - 1) * (two - one)
    if compute.remat != "none":
        plain = dataclasses.replace(compute, remat="none")
        one, two = (_bytes_a_row(dataclasses.replace(local, layers=n), plain, row, lora) for n in (1, 2))
        kept += two - one  # those of one block, while it is computed again
    return rows * kept


def local_share(config: Architecture, mesh: MeshConfig) -> Architecture:
    """Returns one device's share of the model: each layer is split over ``mesh.tensor`` devices."""
    t = mesh.tensor
    experts = config.experts
    return dataclasses.replace(
        config,
        heads=config.heads // t,
        kv_heads=max(config.kv_heads // t, 1),
        mlp_width=config.mlp_width // t,
        experts=experts and dataclasses.replace(experts, width=experts.width // t),
        vocab_size=(config.vocab_size or t) // t,
    )


@functools.lru_cache(maxsize=64)
def _bytes_a_row(config: Architecture, compute: Compute, row: int, lora: int | None) -> int:
    """Returns the bytes that are kept for each row.

    It subtracts one row from two, because parameters are kept, too, and do not grow with the rows.
    """
    one, two = (_residuals(config, compute, rows, row, lora) for rows in (1, 2))
    return two - one


def _residuals(config: Architecture, compute: Compute, rows: int, row: int, lora: int | None) -> int:
    model = transformer(config, config.vocab_size or 1, compute)
    packed = Packed(model, MeshConfig().build())
    micro = jax.tree.map(lambda x: x[0], pack([], BatchConfig(row, rows), "token", 1))

    def backward(trained, base, micro):
        def loss(trained):
            weights = PolicyWeights(trained) if lora is None else PolicyWeights(base, trained)
            hidden_BTD, head = packed.hidden(weights, micro)
            return token_loss(head, cloning.tokens, table(weights.params), hidden_BTD, micro.trained, None)[0]

        return jax.vjp(loss, trained)[1]

    params = shapes_of(model)
    trained = params if lora is None else adapter_shapes(model, lora)
    leaves = jax.tree.leaves(jax.eval_shape(backward, trained, params, micro))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)


def copied_bytes(local: Architecture, experiment: Experiment) -> float:
    """Returns the bytes of the blocks' parameters in the activations' dtype.

    They are a device's part and, with ``fsdp``, one whole layer.
    """
    mesh = experiment.mesh
    shapes = family_of(local).kernels(local).values()
    layer = sum(math.prod(shape) // (mesh.expert if len(shape) == 3 else 1) for shape in shapes)
    return jnp.dtype(experiment.compute.dtype).itemsize * layer * (local.layers / mesh.fsdp + (mesh.fsdp > 1))


def experts_bytes(config: Architecture, experiment: Experiment, row: int) -> float:
    """Returns the bytes that ``models.experts`` takes in an update beside what it is given.

    They are the tokens that the devices along ``expert`` have together, what comes back to them, and
    their gradient in float32; and the gradients in float32 of the experts of a device.
    """
    mesh = experiment.mesh
    assert config.experts is not None
    itemsize = jnp.dtype(experiment.compute.dtype).itemsize
    tokens = experiment.batch.rows // (mesh.data * mesh.fsdp) * row
    own = config.experts.count // mesh.expert * config.experts.width // mesh.tensor
    return config.width * (tokens * (2 * itemsize + 4) + 3 * own * 4)


def head_bytes(local: Architecture, experiment: Experiment, trained: bool) -> float:
    """Returns the bytes that the head takes in an update.

    They are three arrays of a chunk's logits, the table in the activations' dtype and, if it is
    ``trained``, its gradient in float32.
    """
    vocab = local.vocab_size or experiment.tokenizer.vocab_size
    table = vocab * local.width
    return 3 * CHUNK_BYTES + table * (jnp.dtype(experiment.compute.dtype).itemsize + 4 * trained)
