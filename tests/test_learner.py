import dataclasses
import functools
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fakes import PARITY, credited, small_model

from atgrpo_jax.arrays.mesh import MeshConfig, check_mesh, divided_parameters
from atgrpo_jax.common.errors import ConfigError
from atgrpo_jax.common.types import Batch, Group, Trained
from atgrpo_jax.credit.groups import Credited
from atgrpo_jax.models.packed import Packed
from atgrpo_jax.models.transformer import PolicyWeights, Transformer, init_params
from atgrpo_jax.run.metrics import CompileCounter
from atgrpo_jax.update.batch import BatchConfig, each, minibatches, pack
from atgrpo_jax.update.learner import Learner
from atgrpo_jax.update.objectives import LossConfig, cloning
from atgrpo_jax.update.optimizer import OptimizerConfig

MODEL = small_model()
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


def test_float32_is_multiplied_in_float32_backward_too():
    batch = packed(items())
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batch)
    numbers = tuple(jax.ShapeDtypeStruct((), dtype) for dtype in (jnp.int32, jnp.float32, jnp.float32))
    text = learner()._jit_update.lower(learner().shapes, shapes, numbers, None, None).as_text()
    products = [line for line in text.splitlines() if "stablehlo.dot_general" in line]
    assert products and all("precision = [HIGHEST, HIGHEST]" in product for product in products)


@jax.jit
def loss_and_gradient(batch: Batch):
    """Of the batch, at fixed parameters."""
    objective = LossConfig().objective()
    params = init_params(MODEL, jax.random.key(0))

    def total(params):
        value = jnp.float32(0)
        for a in range(batch.tokens.shape[0]):
            micro = jax.tree.map(lambda x, a=a: x[a], batch)
            value += PACKED.loss(objective, PolicyWeights(params), micro, None, jnp.float32(1.0))[0]
        return value

    return jax.value_and_grad(total)(params)


def with_old_logprobs(batch: Batch, old_logprobs: np.ndarray) -> Batch:
    return batch._replace(trained=batch.trained._replace(old_logprobs=old_logprobs))


def assert_same(one, other, tolerance=PARITY):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), one, other)


def separate_rows(groups: list[Credited]) -> list[Credited]:
    """Every candidate as a group of its own, with its prompt: what other trainers do."""
    rows = []
    for item in groups:
        for k, candidate in enumerate(item.group.candidates):
            rows.append(Credited(Group((candidate,), 0), item.advantages_K[k : k + 1], np.ones(1, bool)))
    return rows


@pytest.mark.thorough
def test_prefix_shared_equals_separate_rows():
    """Loss and gradient to 1e-5. Separate rows are one candidate a group, three times as many groups, so
    the paper's mean over groups of equal size is the same number."""
    shared = packed(items())
    separate = packed(separate_rows(items()), BatchConfig(row_tokens=32, rows=4))
    assert (separate.segments > 0).sum() > (shared.segments > 0).sum()
    assert_same(loss_and_gradient(shared), loss_and_gradient(separate))


@pytest.mark.thorough
def test_logprobs_of_a_branch_equal_those_of_its_plain_row():
    group = items()[2]
    batch = packed([group], BatchConfig(row_tokens=64, rows=1))
    params = learner().init(jax.random.key(0)).params
    micro = jax.tree.map(lambda x: x[0], batch)
    logprobs, entropy = batch_logprobs(PolicyWeights(params), micro, jnp.float32(0.7))
    start = 0
    for candidate in group.group.candidates:
        alone = Credited(Group((candidate,), 0), group.advantages_K[:1], np.ones(1, bool))
        row = jax.tree.map(lambda x: x[0], packed([alone], BatchConfig(row_tokens=32, rows=1)))
        expected, expected_entropy = batch_logprobs(PolicyWeights(params), row, jnp.float32(0.7))
        n = len(candidate.sample.tokens)
        mine = slice(start, start + n)
        np.testing.assert_allclose(logprobs[0, mine], expected[0, :n], **PARITY)
        np.testing.assert_allclose(entropy[0, mine], expected_entropy[0, :n], **PARITY)
        start += n


@pytest.mark.thorough
@pytest.mark.parametrize(
    "config",
    [
        BatchConfig(row_tokens=128, rows=4),
        BatchConfig(row_tokens=48, rows=1),
        BatchConfig(row_tokens=31, rows=2),
    ],
    ids=["longer rows", "a row at a time", "a group a row"],
)
def test_padding_packing_and_micro_batches_change_nothing(config):
    state, metrics = learner().update(learner().init(jax.random.key(0)), packed(items()), 1.0)
    other, other_metrics = learner().update(learner().init(jax.random.key(0)), packed(items(), config), 1.0)
    assert_same(state.params, other.params)
    assert_same(metrics, other_metrics)


@pytest.mark.thorough
@pytest.mark.parametrize("remat", ["dots", "block"])
def test_computing_again_changes_nothing_but_the_memory(remat):
    model = Transformer(dataclasses.replace(MODEL.config, remat=remat), 64)
    state, _ = learner().update(learner().init(jax.random.key(0)), packed(items()), 1.0)
    again = learner(model=model)
    other, _ = again.update(again.init(jax.random.key(0)), packed(items()), 1.0)
    assert_same(state.params, other.params)

    def kept(model):  # bytes that the backward pass finds ready
        params = init_params(model, jax.random.key(0))
        micro = jax.tree.map(lambda x: x[0], packed(items()))
        rows = Packed(model, MeshConfig().build())

        def loss(params):
            return rows.loss(cloning, PolicyWeights(params), micro, None, jnp.float32(1.0))[0]

        _, backward = jax.vjp(loss, params)
        return sum(leaf.nbytes for leaf in jax.tree.leaves(backward))

    assert kept(model) < kept(MODEL)


@pytest.mark.thorough
@pytest.mark.parametrize("remat", ["none", "dots", "block"])
def test_one_block_for_all_layers_changes_nothing_but_the_program(remat):
    def model(scan, layers=2):
        config = dataclasses.replace(MODEL.config, remat=remat, scan=scan, layers=layers)
        return Transformer(config, 64)

    def update(scan):
        ours = learner(model=model(scan))
        return ours.update(ours.init(jax.random.key(0)), packed(items()), 1.0)[0].params

    assert_same(update(False), update(True))

    def program(scan, layers):
        made = model(scan, layers)
        params = jax.eval_shape(lambda: init_params(made, jax.random.key(0)))
        micro = jax.tree.map(lambda x: x[0], packed(items()))
        logprobs = jax.jit(Packed(made, MeshConfig().build()).logprobs)
        return len(logprobs.lower(PolicyWeights(params), micro, jnp.float32(1.0)).as_text().splitlines())

    # A layer more is a parameter of each kind more to stack, and not a block's worth of operations.
    assert program(True, 4) - program(True, 2) < (program(False, 4) - program(False, 2)) / 3


def test_only_filled_micro_batches_are_run():
    batch = packed(items(), BatchConfig(row_tokens=48, rows=1))
    empty = each(lambda a: np.concatenate([a, np.zeros_like(a)]), batch)
    one, _ = learner().update(learner().init(jax.random.key(0)), batch, 1.0)
    other, _ = learner().update(learner().init(jax.random.key(0)), empty, 1.0)
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_permuting_candidates_changes_nothing():
    order = [2, 0, 1]
    permuted = [
        Credited(
            Group(tuple(i.group.candidates[k] for k in order), 0),
            i.advantages_K[order],
            i.mask_K[order],
        )
        for i in items()
    ]
    assert_same(loss_and_gradient(packed(items())), loss_and_gradient(packed(permuted)))


def test_the_loss_is_that_of_the_formula():
    """Per-candidate mean of the clipped terms, from the logprobs of plain rows."""
    groups = items()
    params = learner().init(jax.random.key(0)).params
    expected = 0.0
    for item in groups:
        for k, candidate in enumerate(item.group.candidates):
            one = Credited(Group((candidate,), 0), item.advantages_K[k : k + 1], np.ones(1, bool))
            row = jax.tree.map(lambda x: x[0], packed([one]))
            logprobs, _ = batch_logprobs(PolicyWeights(params), row, jnp.float32(1.0))
            new = np.asarray(logprobs)[row.trained.weights > 0]
            ratio = np.exp(new - np.array(candidate.sample.logprobs))
            a = float(item.advantages_K[k])
            term = np.minimum(ratio * a, np.clip(ratio, 0.8, 1.2) * a)
            term = np.maximum(term, 3 * a) if a < 0 else term
            expected -= term.mean() / 3 / len(groups)
    value, _ = loss_and_gradient(packed(groups))
    np.testing.assert_allclose(value, expected, rtol=1e-5)


@pytest.mark.thorough
@pytest.mark.parametrize(
    "change",
    [
        {"clip_low": 0.45},
        {"clip_high": 0.5},
        {"dual_clip": None},
        {"aggregate": "token"},
        {"aggregate": "constant"},
        {"entropy": 0.1},
        {"kl": 0.1},
        {"epochs": 2},
        {"minibatches": 3},
        {"correction": 2.0},
    ],
    ids=str,
)
def test_every_option_changes_the_result(change):
    def near_the_policy(batch, params, seed):
        """Old logprobs such that ratios lie around all the bounds: between 0.5 and 5."""
        own = [
            batch_logprobs(PolicyWeights(params), jax.tree.map(lambda x, a=a: x[a], batch), jnp.float32(1.0))[
                0
            ]
            for a in range(len(batch.tokens))
        ]
        noise = np.random.default_rng(seed).uniform(-1.6, 0.7, batch.tokens.shape)
        return with_old_logprobs(batch, np.asarray(own) + noise.astype(np.float32))

    def after(loss):
        ours = learner(loss)
        state = ours.init(jax.random.key(0))
        reference = ours.init(jax.random.key(1)).params if loss.kl else None
        batches = minibatches(
            items(), ROWS, count=loss.minibatches, epochs=loss.epochs, seed=0,
            aggregate=loss.aggregate, constant=16,
        )  # fmt: skip
        near = [near_the_policy(batch, state.params, i) for i, batch in enumerate(batches)]
        return ours.train(state, near, 1.0, reference, correction=loss.correction)[0].params

    base = LossConfig(minibatches=2)
    changed = dataclasses.replace(base, **change)
    gaps = jax.tree.map(lambda a, b: jnp.abs(a - b).max(), after(base), after(changed))
    assert max(jax.tree.leaves(gaps)) > 1e-5


def test_metrics_of_a_policy_that_sampled_its_own_tokens():
    """Old logprobs are the learner's own: ratio 1, nothing clipped, gap 0 in the first update only."""
    ours, batch = learner(), packed(items())
    state = ours.init(jax.random.key(0))
    micro = jax.tree.map(lambda x: x[0], batch)
    logprobs, _ = batch_logprobs(PolicyWeights(state.params), micro, jnp.float32(1.0))
    own = with_old_logprobs(batch, np.asarray(logprobs)[None])
    metrics = jax.device_get(ours.train(state, [own, own], 1.0)[1]).metrics()
    assert metrics["logprob_gap"] < 1e-5
    assert metrics["updates"] == 2
    assert metrics["trained_tokens"] == 2 * (batch.segments > 0).sum()
    state = ours.init(jax.random.key(0))
    _, metrics = ours.update(state, own, 1.0)
    np.testing.assert_allclose(metrics["ratio"], 1.0, rtol=1e-5)
    assert metrics["clip_fraction"] == 0
    off = with_old_logprobs(batch, own.trained.old_logprobs - 0.25)
    _, far = ours.update(ours.init(jax.random.key(0)), off, 1.0)
    np.testing.assert_allclose(far["logprob_gap"], 0.25, rtol=1e-4)


def test_the_objective_by_hand():
    """Two tokens of ratio 1, so the surrogate is their advantages; entropy is wanted, distance is not."""
    logprobs_BT = old_BT = jnp.array([[-1.0, -2.0]])
    weights_BT, entropy_BT = jnp.array([[0.5, 0.25]]), jnp.array([[3.0, 2.0]])
    reference_BT = logprobs_BT + jnp.log(jnp.array([[2.0, 0.5]]))
    ints = jnp.zeros((1, 2), jnp.int32)
    trained = Trained(ints, ints, old_BT, jnp.array([[1.0, -4.0]]), weights_BT)
    distance = 0.5 * (2 - 1 - np.log(2)) + 0.25 * (0.5 - 1 - np.log(0.5))
    for entropy, kl in ((0.0, 0.0), (0.1, 0.0), (0.1, 0.3)):
        objective = LossConfig(entropy=entropy, kl=kl).objective()
        loss, metrics = objective(logprobs_BT, entropy_BT, reference_BT if kl else None, trained)
        np.testing.assert_allclose(loss, 0.5 - entropy * 2.0 + kl * distance, rtol=1e-5)
        np.testing.assert_allclose(metrics["entropy"], 2.0, rtol=1e-6)
        if kl:
            np.testing.assert_allclose(metrics["kl_start"], distance, rtol=1e-5)


def own_logprobs(params, batch: Batch, temperature: float) -> np.ndarray:
    micro = jax.tree.map(lambda x: x[0], batch)
    return np.asarray(batch_logprobs(PolicyWeights(params), micro, jnp.float32(temperature))[0])[None]


@pytest.mark.parametrize("correction", [None, 2.0])
def test_an_update_is_at_the_temperature_of_the_samples(correction):
    ours, batch = learner(), packed(items())
    state = ours.init(jax.random.key(0))
    sampled = with_old_logprobs(batch, own_logprobs(state.params, batch, 0.7))
    _, updates = ours.train(state, [sampled], 0.7, correction=correction)
    metrics = jax.device_get(updates).metrics()
    assert metrics["logprob_gap"] < 1e-5
    np.testing.assert_allclose(metrics["ratio"], 1.0, rtol=1e-5)
    _, updates = ours.train(ours.init(jax.random.key(0)), [sampled], 1.0, correction=correction)
    assert jax.device_get(updates).metrics()["logprob_gap"] > 0.1


def test_an_update_takes_its_old_states_memory():
    """Two copies of parameters and moments would not fit where one does."""
    state = learner().init(jax.random.key(0))
    learner().update(state, packed(items()), 1.0)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))


def test_importance_weights_are_truncated_and_change_nothing_for_the_policys_own_tokens():
    ours, batch = learner(), packed(items())
    state = ours.init(jax.random.key(0))
    micro = jax.tree.map(lambda x: x[0], batch)
    own = np.asarray(batch_logprobs(PolicyWeights(state.params), micro, jnp.float32(1.0))[0])[None]
    trained = batch.trained.weights > 0
    off = np.where(trained, np.random.default_rng(0).uniform(-1, 1, own.shape), 0).astype(np.float32)
    corrected, found = ours.corrected(state.params, with_old_logprobs(batch, own - off), 1.0, most=1.5)
    factor = np.minimum(np.exp(off), 1.5)
    assert factor.max() == 1.5 and factor.min() < 0.5
    np.testing.assert_allclose(corrected.trained.old_logprobs[trained], own[trained], **PARITY)
    expected = batch.trained.advantages * factor
    np.testing.assert_allclose(corrected.trained.advantages[trained], expected[trained], **PARITY)
    np.testing.assert_allclose(found["logprob_gap"], np.abs(off).max(), **PARITY)
    np.testing.assert_allclose(
        found["correction"], np.average(factor, weights=batch.trained.weights), **PARITY
    )

    mine = with_old_logprobs(batch, own)
    plain, _ = ours.train(state, [mine, mine], 1.0)
    again, metrics = ours.train(ours.init(jax.random.key(0)), [mine, mine], 1.0, correction=2.0)
    assert_same(plain.params, again.params)
    np.testing.assert_allclose(jax.device_get(metrics).metrics()["correction"], 1.0, **PARITY)


def test_without_batches_a_policy_stays_as_it_is():
    ours = learner()
    state = ours.init(jax.random.key(0))
    same, trained = ours.train(state, [], 1.0)
    assert same is state and trained.metrics() == {"updates": 0.0, "trained_tokens": 0.0}


def test_nothing_recompiles_for_another_temperature_or_fill():
    ours = learner()
    config = BatchConfig(row_tokens=48, rows=1)
    state, _ = ours.update(ours.init(jax.random.key(0)), packed(items(), config), 1.0)
    counter = CompileCounter()
    lengths = ((7, 7), (1, 1, 1), (2, 9), (3, 3, 3))
    for seed, temperature, groups in ((1, 0.7, 4), (2, 1.3, 3), (3, 1.0, 1)):
        state, _ = ours.update(state, packed(items(seed, lengths[:groups]), config), temperature)
    assert counter.count == 0


def sharded_update(mesh, model=MODEL):
    """On rows of two tiles."""
    batch = packed(items(lengths=((30, 25, 20), (9, 40, 1), (6, 2, 7))), BatchConfig(row_tokens=128, rows=4))
    assert (batch.pairs >= 0).sum() > 3
    ours = learner(mesh=mesh, model=model)
    return ours.update(ours.init(jax.random.key(0)), batch, 1.0)


@pytest.mark.thorough
@pytest.mark.parametrize(
    "mesh",
    [
        MeshConfig(fsdp=4),
        MeshConfig(tensor=4),  # more than key heads
        MeshConfig(data=2, fsdp=2, tensor=2),
    ],
    ids=str,
)
def test_sharded_equals_unsharded(mesh):
    state, metrics = sharded_update(MeshConfig())
    other, other_metrics = sharded_update(mesh)
    kernel = other.params["layer_0"]["gate"]["kernel"]
    assert len(kernel.sharding.device_set) == mesh.data * mesh.fsdp * mesh.tensor
    assert kernel.addressable_shards[0].data.shape == (32 // mesh.fsdp, 48 // mesh.tensor)
    moment = other.opt_state[1][0].mu["layer_0"]["gate"]["kernel"]
    assert moment.sharding == kernel.sharding
    assert_same(jax.device_get(state.params), jax.device_get(other.params))
    assert_same(jax.device_get(metrics), jax.device_get(other_metrics))


@pytest.mark.thorough
def test_fused_kernels_are_sharded_like_tiles():
    """Interpreted, as on a TPU."""
    fused = Transformer(dataclasses.replace(MODEL.config, attention="fused"), 64)
    state, metrics = sharded_update(MeshConfig())
    other, other_metrics = sharded_update(MeshConfig(data=2, fsdp=2, tensor=2), fused)
    assert_same(jax.device_get((state.params, metrics)), jax.device_get((other.params, other_metrics)))


@pytest.mark.slow
def test_several_processes_make_one_update(tmp_path):
    """Two of four devices each, as the hosts of a TPU slice: what one process with eight devices does."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    script, out = Path(__file__).with_name("process.py"), tmp_path / "found.npz"
    lines = [[sys.executable, str(script), address, "2", str(i), str(out)] for i in range(2)]
    running = [subprocess.Popen(line, stderr=subprocess.PIPE, text=True) for line in lines]
    for process in running:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    state, metrics = sharded_update(MeshConfig(data=2, fsdp=2, tensor=2))
    with np.load(out) as found:
        assert_same(jax.tree.leaves(jax.device_get((state.params, metrics))), list(found.values()))


@pytest.mark.thorough
def test_policies_on_meshes_of_their_own_are_updated_at_the_same_time():
    """Nobody waits for the first policy's updates before the second one's are under way elsewhere."""
    config = MeshConfig(policies=2)
    learners = [Learner(MODEL, OPTIMIZER, cloning, config.build(place=place)) for place in range(2)]
    many = each(lambda a: np.concatenate([a] * 300), packed(items()))

    def train():
        return [ours.train(ours.init(jax.random.key(0)), [many], 1.0) for ours in learners]

    jax.block_until_ready(train())  # compiled
    (one, _), (other, _) = train()
    assert not one.params["embedding"].is_ready() and not other.params["embedding"].is_ready()
    assert one.params["embedding"].devices().isdisjoint(other.params["embedding"].devices())
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(one), jax.device_get(other))


@pytest.mark.thorough
def test_nothing_but_the_batch_moves_to_the_devices():
    ours = learner(LossConfig(kl=0.1))
    state = ours.init(jax.random.key(0))
    with pytest.raises(jax.errors.JaxRuntimeError, match="Disallowed host-to-device transfer"):
        ours.update(state, packed(items()), 1.0, jax.device_get(state.params))


@pytest.mark.thorough
def test_the_optimizer_state_may_wait_on_the_host():
    mesh = MeshConfig(data=2, fsdp=2, tensor=2)  # alone: test_policies.py
    stays, waits = (
        learner(mesh=mesh, optimizer=OptimizerConfig("muon", offload=offload)) for offload in (False, True)
    )
    one, other = stays.init(jax.random.key(0)), waits.init(jax.random.key(0))
    for seed in range(2):
        one, _ = stays.update(one, packed(items(seed)), 1.0)
        other, _ = waits.update(other, packed(items(seed)), 1.0)
        kinds = {leaf.sharding.memory_kind for leaf in jax.tree.leaves(other.opt_state) if leaf.ndim}
        assert kinds == {"pinned_host"}
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(one), jax.device_get(other))


def test_a_mesh_that_does_not_fit_is_refused():
    """By the number of devices, and by a width of 50 that four parts do not divide."""
    odd = Transformer(dataclasses.replace(MODEL.config, mlp_width=50), 64)
    sizes = list(divided_parameters(jax.eval_shape(lambda: init_params(odd, jax.random.key(0)))))
    check_mesh(MeshConfig(data=2, fsdp=2, tensor=2), 8, sizes)
    with pytest.raises(ConfigError) as raised:
        check_mesh(MeshConfig(data=4, fsdp=4), 8, sizes)
    assert str(raised.value) == (
        "mesh data = 4, fsdp = 4, tensor = 1: needs 16 devices, 8 found; the nearest possible is "
        "data = 2, fsdp = 4, tensor = 1"
    )
    with pytest.raises(
        ConfigError, match=r"the nearest possible is data = 2, fsdp = 2, tensor = 1, policies = 2"
    ):
        check_mesh(MeshConfig(data=2, fsdp=3, policies=2), 8, sizes)
    with pytest.raises(
        ConfigError, match=r"layer_\d/\w+/kernel has size 50, which tensor = 4 does not divide"
    ):
        check_mesh(MeshConfig(tensor=4), 8, sizes)


@pytest.mark.thorough
def test_cloning_learns_its_demonstrations():
    ours = Learner(MODEL, OptimizerConfig(learning_rate=1e-2), cloning, MeshConfig().build())
    state, batch = ours.init(jax.random.key(0)), packed(items(), aggregate="token")
    losses = []
    for _ in range(30):
        state, metrics = ours.update(state, batch, 1.0)
        losses.append(float(metrics["loss"]))
    assert losses[0] > 3.5 and losses[-1] < 1.0


@pytest.mark.thorough
def test_advantages_move_logprobs_their_way():
    groups = items()
    ours, batch = learner(optimizer=OptimizerConfig(learning_rate=1e-3)), packed(groups)
    state = ours.init(jax.random.key(0))
    micro = jax.tree.map(lambda x: x[0], batch)
    before, _ = batch_logprobs(PolicyWeights(state.params), micro, jnp.float32(1.0))
    batch = with_old_logprobs(batch, np.asarray(before)[None])
    state, _ = ours.update(state, batch, 1.0)
    after, _ = batch_logprobs(PolicyWeights(state.params), micro, jnp.float32(1.0))
    trained = micro.trained.weights > 0
    moved = np.asarray(after - before)[trained] * micro.trained.advantages[trained]
    assert moved.mean() > 0


@pytest.mark.parametrize(
    "wrong",
    [
        {"clip_low": 1.0},
        {"clip_high": 0.0},
        {"dual_clip": 1.0},
        {"kl": -1.0},
        {"epochs": 0},
        {"correction": 0.5},
    ],
)
def test_loss_config_refuses(wrong):
    with pytest.raises(ValueError, match=f"LossConfig.{next(iter(wrong))}"):
        LossConfig(**wrong)


def test_the_rate_warms_up_and_stays():
    rate = OptimizerConfig(learning_rate=0.4, warmup=3).rate()
    np.testing.assert_allclose([rate(i) for i in (0, 1, 2, 3, 99)], [0.1, 0.2, 0.3, 0.4, 0.4], rtol=1e-6)


def test_the_rate_falls_as_half_a_cosine_after_the_warm_up():
    rate = OptimizerConfig(learning_rate=0.4, warmup=3, decay=10, final=0.25).rate()
    np.testing.assert_allclose([rate(i) for i in (0, 3, 8, 13, 99)], [0.1, 0.4, 0.25, 0.1, 0.1], rtol=1e-6)


def stepped(config, gradients, params=None):
    """Parameters after updates with these gradients, each a tree of arrays."""
    params = params or jax.tree.map(jnp.ones_like, gradients[0])
    optimizer = config.build()
    state = optimizer.init(params)
    for gradient in gradients:
        updates, state = optimizer.update(gradient, state, params)
        params = jax.tree.map(jnp.add, params, updates)
    return params


GRADIENTS = [
    {"layer": {"kernel": jnp.array([[3.0, 0.5], [-1.0, 2.0]])}, "scale": jnp.array([4.0, -0.1])},
    {"layer": {"kernel": jnp.array([[-1.0, 0.2], [0.3, 0.1]])}, "scale": jnp.array([0.5, 0.2])},
    {"layer": {"kernel": jnp.array([[0.1, -0.2], [0.3, 0.4]])}, "scale": jnp.array([-0.3, 0.6])},
]


@pytest.mark.parametrize(
    "change",
    [
        {"learning_rate": 0.2},
        {"b1": 0.5},
        {"b2": 0.5},
        {"epsilon": 0.1},
        {"weight_decay": 0.3},
        {"clip_norm": 0.5},
        {"warmup": 2},
        {"decay": 2},
        {"decay": 2, "final": 0.7},
        {"algorithm": "muon"},
        {"algorithm": "muon", "momentum": 0.2},
    ],
    ids=str,
)
def test_every_option_of_the_optimizer_changes_the_update(change):
    base = OptimizerConfig(learning_rate=0.1)
    other = {"momentum": {"algorithm": "muon"}, "final": {"decay": 2}}
    for name, needed in other.items():
        if name in change:
            base = dataclasses.replace(base, **needed)
    one, changed = (stepped(x, GRADIENTS) for x in (base, dataclasses.replace(base, **change)))
    gaps = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), one, changed)
    assert max(jax.tree.leaves(gaps)) > 1e-4


def test_adamw_by_hand():
    """Moments, their correction, epsilon outside the root, decay of the parameters and not of the moments."""
    config = OptimizerConfig(
        learning_rate=0.1, b1=0.8, b2=0.9, epsilon=0.3, weight_decay=0.05, clip_norm=100.0
    )
    found = stepped(config, [{"x": jnp.array(2.0)}, {"x": jnp.array(-1.0)}])["x"]
    x, mean, square = 1.0, 0.0, 0.0
    for count, gradient in enumerate((2.0, -1.0), start=1):
        mean, square = 0.8 * mean + 0.2 * gradient, 0.9 * square + 0.1 * gradient**2
        step = (mean / (1 - 0.8**count)) / ((square / (1 - 0.9**count)) ** 0.5 + 0.3)
        x -= 0.1 * (step + 0.05 * x)
    np.testing.assert_allclose(found, x, rtol=1e-6)


@pytest.mark.parametrize(("norm", "left"), [(10.0, 5.0), (1.0, 1.0), (None, 5.0)])
def test_gradients_are_clipped_by_the_norm_of_all_of_them(norm, left):
    """Of norm 5. Adam's first step is g / (|g| + 1) with an epsilon of one."""
    config = OptimizerConfig(learning_rate=1.0, epsilon=1.0, weight_decay=0.0, clip_norm=norm)
    moved = stepped(config, [{"a": jnp.array(3.0), "b": jnp.array([0.0, -4.0])}])
    a, b = 3.0 * left / 5, 4.0 * left / 5
    np.testing.assert_allclose(moved["a"], 1 - a / (a + 1), **PARITY)
    np.testing.assert_allclose(moved["b"], [1, 1 + b / (b + 1)], **PARITY)


@pytest.mark.parametrize("algorithm", ["adamw", "muon"])
def test_without_a_gradient_parameters_shrink_by_rate_times_decay(algorithm):
    config = OptimizerConfig(algorithm, learning_rate=0.1, weight_decay=0.2)
    still = jax.tree.map(jnp.zeros_like, GRADIENTS[0])
    params = {"layer": {"kernel": jnp.array([[1.0, 2.0], [3.0, -4.0]])}, "scale": jnp.array([5.0, -6.0])}
    found = stepped(config, [still], params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, 0.98 * b, rtol=1e-6), found, params)


def test_muon_moves_kernels_along_orthogonal_matrices():
    left, _, right = np.linalg.svd(np.random.default_rng(0).normal(size=(8, 32)), full_matrices=False)
    uneven = (left * np.linspace(0.05, 1, 8)) @ right
    gradient = {"layer": {"kernel": jnp.asarray(uneven)}, "embedding": jnp.asarray(uneven)}
    params = jax.tree.map(jnp.zeros_like, gradient)
    optimizer = OptimizerConfig("muon", learning_rate=0.1, weight_decay=0.0).build()
    moved, _ = optimizer.update(gradient, optimizer.init(params), params)
    kernel = np.asarray(moved["layer"]["kernel"])
    # Newton-Schulz brings singular values near to 1, between 0.68 and 1.13 for these coefficients; a
    # matrix of 8 of them has the root mean square 1 / sqrt(32), which is scaled to 0.2.
    sizes = np.linalg.svd(kernel, compute_uv=False) / (0.1 * 0.2 * np.sqrt(32))
    assert 0.6 < sizes.min() < sizes.max() < 1.2
    steps = np.asarray(moved["embedding"]) * -np.sign(uneven)  # Adam's first one: of one size, whatever
    np.testing.assert_allclose(steps, steps[0, 0], rtol=1e-3)  # the gradient's
    assert 0.1 <= steps[0, 0] < 0.15


@pytest.mark.parametrize(
    "wrong",
    [{"learning_rate": 0.0}, {"b2": 1.0}, {"warmup": -1}, {"decay": -1}, {"final": 1.5}, {"clip_norm": 0.0}],
)
def test_optimizer_config_refuses(wrong):
    with pytest.raises(ValueError, match=f"OptimizerConfig.{next(iter(wrong))}"):
        OptimizerConfig(**wrong)
