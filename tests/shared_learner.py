"""What the tests of the update share: a small learner, its batches, and how results are compared."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from fakes import PARITY, SMALL, credited, small_model

from atgrpo_jax.arrays.mesh import MeshConfig
from atgrpo_jax.common.types import Batch, Group
from atgrpo_jax.credit.groups import Credited
from atgrpo_jax.models.config import Experts
from atgrpo_jax.models.families.table import transformer
from atgrpo_jax.models.head import table, token_loss
from atgrpo_jax.models.packed import Packed
from atgrpo_jax.models.transformer import PolicyWeights, init_params
from atgrpo_jax.update.batch import BatchConfig, pack
from atgrpo_jax.update.learner import Learner, UpdateInputs
from atgrpo_jax.update.objectives import LossConfig
from atgrpo_jax.update.optimizer import OptimizerConfig
from atgrpo_jax.update.updates import Updates

MODEL = small_model()
MIXTURE = transformer(
    dataclasses.replace(SMALL, family="qwen3_moe", experts=Experts(count=8, chosen=2, width=12)), 64
)
PACKED = Packed(MODEL, MeshConfig().build())
batch_logprobs = jax.jit(PACKED.logprobs)
ROWS = BatchConfig(row_tokens=48, rows=4)
# Adam divides a first gradient by its own size, which blows rounding up; with a large epsilon an update is
# the gradient, nearly, and two ways to the same gradient can be compared through it.
OPTIMIZER = OptimizerConfig(learning_rate=1.0, epsilon=1.0)


def items(seed=0, lengths=((3, 5, 2), (4, 4, 1), (6, 2, 7))):
    rng = np.random.default_rng(seed)
    return [credited(rng, 4 + 3 * i, list(n)) for i, n in enumerate(lengths)]


def packed(groups, config=ROWS, aggregate="candidate") -> Batch:
    return pack(groups, config, aggregate, 16)


@functools.lru_cache  # a learner holds compiled functions: one for each config, for all tests
def learner(loss=None, mesh=None, optimizer=OPTIMIZER, model=MODEL) -> Learner:
    loss = loss or LossConfig()
    return Learner(model, optimizer, loss.objective(), (mesh or MeshConfig()).build())


def train(ours, state, batches, reference=None, correction=None):
    """The updates on some batches, as ``TeamLearner.update`` makes them: (state, their ``Updates``)."""
    given = [UpdateInputs(batch, reference=reference) for batch in batches]
    corrected = [(inputs, {}) for inputs in given]
    if correction is not None:
        corrected = [ours.corrected(state.params, inputs, correction) for inputs in given]
    records, tokens = [], 0
    for inputs, found in corrected:
        state, metrics = ours.update(state, inputs)
        records.append(metrics | found)
        tokens += int((inputs.batch.segments > 0).sum())
    return state, Updates(records, tokens)


def micro_loss(objective, params, micro, reference_BT=None, packed=PACKED):
    """The loss of a micro-batch, by the model's hidden states and the head."""
    hidden_BTD, head = packed.hidden(PolicyWeights(params), micro)
    return token_loss(head, objective.tokens, table(params), hidden_BTD, micro.trained, reference_BT)[0]


def loss_and_gradient(batch: Batch):
    """Of the batch, at fixed parameters."""
    return loss_of(PACKED, init_params(MODEL, jax.random.key(0)), batch)


@functools.partial(jax.jit, static_argnums=0)
def loss_of(rows: Packed, params, batch: Batch):
    """The loss of a batch, and its gradient."""
    objective = LossConfig().objective()

    def total(params):
        value = jnp.float32(0)
        for a in range(batch.tokens.shape[0]):
            micro = jax.tree.map(lambda x, a=a: x[a], batch)
            value += micro_loss(objective, params, micro, packed=rows)
        return value

    return jax.value_and_grad(total)(params)


def separate_rows(groups: list[Credited]) -> list[Credited]:
    """Every candidate as a group of its own, with its prompt: what other trainers do."""
    rows = []
    for item in groups:
        for k, candidate in enumerate(item.group.candidates):
            rows.append(Credited(Group((candidate,), 0), item.advantages_K[k : k + 1], np.ones(1, bool)))
    return rows


def with_old_logprobs(batch: Batch, old_logprobs: np.ndarray) -> Batch:
    return batch._replace(trained=batch.trained._replace(old_logprobs=old_logprobs))


def assert_same(one, other, tolerance=PARITY):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), one, other)


def at_temperature(batch: Batch, temperature: float) -> Batch:
    temperatures = np.full_like(batch.trained.temperatures, temperature)
    return batch._replace(trained=batch.trained._replace(temperatures=temperatures))


def own_logprobs(params, batch: Batch) -> np.ndarray:
    micro = jax.tree.map(lambda x: x[0], batch)
    return np.asarray(batch_logprobs(PolicyWeights(params), micro)[0])[None]


def sharded_update(mesh, model=MODEL):
    """On rows of two tiles."""
    batch = packed(items(lengths=((30, 25, 20), (9, 40, 1), (6, 2, 7))), BatchConfig(row_tokens=128, rows=4))
    assert (batch.pairs >= 0).sum() > 3
    ours = learner(mesh=mesh, model=model)
    return ours.update(ours.init(jax.random.key(0)), UpdateInputs(batch))
