"""Divides an update: its parts are computed alone, on the rows of a real step, and timed.

Axis letters: B rows, T tokens of a row, N query heads, M key heads, H head size, D model width.
"""

import functools
import math
import statistics
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from atgrpo_jax.common.types import Batch
from atgrpo_jax.models.head import Head, table, tied, token_loss
from atgrpo_jax.models.packed import Packed
from atgrpo_jax.models.transformer import exact_products
from atgrpo_jax.tools.budgeting.watching import Run
from atgrpo_jax.tools.probing.clock import median_seconds
from atgrpo_jax.update.batch import filled
from atgrpo_jax.update.learner import Learner, UpdateInputs
from atgrpo_jax.update.objectives import by_number

REPEATS = 3
NEWTON_STEPS = 5  # of Muon, by which a matrix is made orthogonal


class Part(NamedTuple):
    """Holds what a part of an update takes."""

    seconds: float
    flop: float = 0.0
    bytes: float = 0.0  # that it has to read and write


def divided(run: Run, policy: str, learner: Learner, inputs: UpdateInputs) -> dict[str, Part]:
    """Returns the parts of one update, and "whole": all of it, timed in the same way."""
    experiment = run.experiment
    state = run.team.policies[policy]
    compute = experiment.compute
    micro = jax.tree.map(lambda x: jnp.asarray(x[0]), inputs.batch)  # the fullest one is the first
    count = int(filled(inputs.batch))
    adapter = inputs.base is not None
    params = inputs.base if adapter else state.params
    packed = Packed(learner.model, run.learner.meshes[policy])
    with exact_products(compute):
        whole = _update_s(learner, state, inputs)
        head = Head(run.learner.meshes[policy], tied(params), not adapter)
        head_s = _head_s(run, head, learner, table(params), micro)
        attention_s = _attention_s(packed, learner, micro)
        products_s, products_flop = _products(learner, micro, adapter)
        optimizer_s, optimizer_flop = _optimizer(run, state)
    c = learner.model.architecture
    seen = sum(_seen(inputs.batch, c.window(layer)) for layer in range(c.layers))
    trained = float((inputs.batch.trained.weights > 0).sum())
    moved = 2 * _nbytes(state) + _nbytes(state.params)  # the state is read and written, gradients are read
    return {
        "whole": Part(whole),
        "attention": Part(count * attention_s, 3 * 4 * c.heads * c.head_size * seen),
        "products": Part(count * products_s, count * products_flop),
        "head": Part(count * head_s, (4 if adapter else 6) * c.width * learner.model.vocab_size * trained),
        "optimizer": Part(optimizer_s, optimizer_flop, moved),
    }


def _update_s(learner: Learner, state: Any, inputs: UpdateInputs) -> float:
    """Returns the seconds of an update, which the steps have compiled. It is given copies, and frees them."""
    times = []
    for _ in range(REPEATS):
        copy = jax.block_until_ready(jax.tree.map(jnp.copy, state))
        began = time.perf_counter()
        jax.block_until_ready(learner.update(copy, inputs))
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def _head_s(run: Run, head: Head, learner: Learner, matrix: jax.Array, micro: Batch) -> float:
    objective = by_number([loss.objective() for loss in run.experiment.losses])
    hidden_BTD = _random((*micro.tokens.shape, learner.model.architecture.width), learner)
    reference_BT = jnp.zeros(micro.tokens.shape) if run.experiment.refers else None

    def loss(matrix, hidden_BTD):
        return token_loss(head, objective.tokens, matrix, hidden_BTD, micro.trained, reference_BT)[0]

    return _gradient_s(loss, matrix, hidden_BTD)


def _attention_s(packed: Packed, learner: Learner, micro: Batch) -> float:
    c = learner.model.architecture
    B, T = micro.tokens.shape
    q_BTNH = _random((B, T, c.heads, c.head_size), learner)
    k_BTMH, v_BTMH = (_random((B, T, c.kv_heads, c.head_size), learner) for _ in range(2))
    attend = packed.attend(micro)
    seconds = 0.0
    for window, layers in Counter(c.window(layer) for layer in range(c.layers)).items():

        def one(q, k, v, window=window):
            return jnp.sum(attend(q, k, v, None, window)[0] * v.mean())

        seconds += layers * _gradient_s(one, q_BTNH, k_BTMH, v_BTMH)
    return seconds


def _products(learner: Learner, micro: Batch, adapter: bool) -> tuple[float, float]:
    """Returns seconds and FLOP of the matrix products of all blocks: forward, and both gradients.

    Under an adapter, matrices have no gradient. Those of experts are left out.
    """
    model = learner.model
    kernels = model.family.kernels(model.architecture).values()
    rows = micro.tokens.size
    multiply = jax.jit(jnp.matmul)
    seconds = flop = 0.0
    for (i, o), times in Counter(shape for shape in kernels if len(shape) == 2).items():
        for m, k, n in ((rows, i, o), (rows, o, i), (i, rows, o))[: 2 if adapter else 3]:
            factors = _random((m, k), learner), _random((k, n), learner)
            alone = median_seconds(functools.partial(multiply, *factors), REPEATS)
            seconds += times * model.architecture.layers * alone
            flop += times * model.architecture.layers * 2 * m * k * n
    return seconds, flop


def _optimizer(run: Run, state: Any) -> tuple[float, float]:
    """Returns seconds and FLOP of what turns gradients into updates."""
    config = run.experiment.optimizer
    update = jax.jit(config.build().update)
    seconds = median_seconds(lambda: update(state.params, state.opt_state, state.params), REPEATS)
    if config.algorithm != "muon":
        return seconds, 0.0
    flop = 0.0
    for path, leaf in jax.tree_util.tree_leaves_with_path(state.params):
        if path[-1].key == "kernel":
            less, more = sorted(leaf.shape[-2:])
            one = NEWTON_STEPS * (4 * less**2 * more + 2 * less**3)
            flop += math.prod(leaf.shape[:-2]) * one
    return seconds, flop


def _gradient_s(function: Callable[..., jax.Array], *given: jax.Array) -> float:
    gradient = jax.jit(jax.value_and_grad(function, argnums=tuple(range(len(given)))))
    return median_seconds(lambda: gradient(*given), REPEATS)


def _random(shape: tuple[int, ...], learner: Learner) -> jax.Array:
    return jax.random.normal(jax.random.key(0), shape, learner.model.compute.dtype)


def _seen(batch: Batch, window: int | None) -> float:
    """Returns how many tokens all tokens of a batch see, in a layer."""
    seen_ABT = batch.positions + 1 if window is None else np.minimum(batch.positions + 1, window)
    return float(np.where(batch.segments > 0, seen_ABT, 0).sum())


def _nbytes(tree: Any) -> float:
    return float(sum(leaf.nbytes for leaf in jax.tree.leaves(tree)))
