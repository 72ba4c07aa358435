"""Estimates a run's memory on each device and the least time of a step.

It needs neither weights nor accelerators. Parameters and optimizer state are exact: their shapes
and shardings are those of the run. Activations are what JAX's own backward pass keeps. They are
found by abstract evaluation of one device's share of the model.
"""

import asyncio
import dataclasses
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from atgrpo_jax.arrays.mesh import MeshConfig, on_host
from atgrpo_jax.common.errors import ConfigError
from atgrpo_jax.common.rounding import power_of_two
from atgrpo_jax.common.types import Sampling
from atgrpo_jax.engines.local.local import LocalEngineConfig
from atgrpo_jax.engines.sglang_jax.sglang_jax import SGLangJaxConfig
from atgrpo_jax.models.config import ModelConfig
from atgrpo_jax.models.head import CHUNK_BYTES
from atgrpo_jax.models.lora import init_adapter
from atgrpo_jax.models.packed import Packed
from atgrpo_jax.models.transformer import PolicyWeights, Transformer, init_params
from atgrpo_jax.rollout.rollout import Player
from atgrpo_jax.run.experiment import Experiment
from atgrpo_jax.run.policies import Policies
from atgrpo_jax.update.batch import BatchConfig, pack
from atgrpo_jax.update.objectives import cloning
from atgrpo_jax.update.warm_start import demonstrations


@dataclasses.dataclass(frozen=True)
class Device:
    """Holds the published figures of one device."""

    name: str
    memory: float  # bytes
    flops: float  # FLOP a second, in bfloat16 matrix products
    bandwidth: float  # bytes a second


DEVICES = {
    "v4": Device("TPU v4", 32e9, 275e12, 1.23e12),
    "v5e": Device("TPU v5e", 16e9, 197e12, 0.82e12),
    "v5p": Device("TPU v5p", 95e9, 459e12, 2.77e12),
    "v6e": Device("TPU v6e", 32e9, 918e12, 1.64e12),
    "a100": Device("NVIDIA A100", 80e9, 312e12, 2.04e12),
    "h100": Device("NVIDIA H100", 80e9, 989e12, 3.35e12),
    "h200": Device("NVIDIA H200", 141e9, 989e12, 4.8e12),
}


_GRADIENTS = "gradients, and of one micro-batch"
_COPY = "parameters in bfloat16, gathered"
_ACTIVATIONS = "activations of the update"
_HEAD = "the head's logits and gradient"


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Holds the number and the lengths of a training step's groups.

    It is assumed that all episodes last all turns, and that all answers are as long as the limit
    allows.
    """

    groups: int  # of all roles in one step
    prompt: float  # tokens, mean
    longest_prompt: int  # tokens
    new: int  # tokens of one candidate
    candidates: int  # of each group

    @property
    def group(self) -> int:
        """Returns the tokens of the longest group."""
        return self.longest_prompt + self.candidates * self.new


def sizes(experiment: Experiment, instances: int = 16) -> Sizes:
    """Measures prompts in demonstrated episodes of the first ``instances`` training instances."""
    propose = demonstrations(experiment.task, experiment.tokenizer, 1, experiment.seed)

    async def play(runner):
        player = Player(
            experiment.task,
            experiment.team,
            experiment.tokenizer,
            propose,
            Sampling(),
            experiment.seed,
            runner=runner,
            select="random",
        )
        return await asyncio.gather(*(player.play(1, "train", index) for index in range(instances)))

    with experiment.running() as runner:
        episodes = asyncio.run(play(runner))
    origins = [group.origin for episode in episodes for group in episode.groups]
    lengths = [len(origin.prompt_ids) for origin in origins]
    roles, turns = len(experiment.task.workflow.order), experiment.task.workflow.turns
    tree = experiment.rollout.tree
    return Sizes(
        groups=experiment.rollout.instances * roles * turns * (1 if tree else experiment.rollout.candidates),
        prompt=float(np.mean(lengths)),
        longest_prompt=max(lengths),
        new=experiment.rollout.max_tokens,
        candidates=experiment.rollout.candidates if tree else 1,
    )


def memory(experiment: Experiment, policies: Policies, group: Sizes) -> dict[str, float]:
    """Returns the bytes on each device, by what they hold.

    If several meshes are side by side, they are those of the fullest one.
    """
    sides: dict[Any, list[str]] = defaultdict(list)
    for name in policies.names:
        sides[policies.meshes[name]].append(name)
    return max((_memory(experiment, policies, names, group) for names in sides.values()), key=_total)


def _total(lines: Mapping[str, float]) -> float:
    return sum(lines.values())


def _memory(
    experiment: Experiment, policies: Policies, names: Sequence[str], group: Sizes
) -> dict[str, float]:
    lines: dict[str, float] = {}
    held = {name: policies.shapes[name] for name in names}
    for name, shapes in held.items():
        lines[f"parameters, {name}"] = bytes_a_device(shapes.params)
        lines[f"optimizer, {name}"] = bytes_a_device(shapes.opt_state)
    if policies.adapted:
        lines["parameters, base of adapters"] = bytes_a_device(policies.base_shapes())
    lines[_GRADIENTS] = 2 * max(bytes_a_device(shapes.params) for shapes in held.values())
    row = experiment.batch.row(group.group)
    configs = {name: experiment.architecture(experiment.initial_name(name)) for name in names}
    local = {name: _local(config, experiment.mesh) for name, config in configs.items()}
    copied = [_copy(local[name], experiment) for name, c in configs.items() if c.dtype != c.param_dtype]
    if copied:
        lines[_COPY] = max(copied)
    ranks = {name: experiment.lora.rank if name in policies.adapted else None for name in configs}
    lines[_ACTIVATIONS] = max(
        activations(config, experiment.mesh, experiment.batch, row, ranks[name])
        for name, config in configs.items()
    )
    lines[_HEAD] = max(_head(local[name], experiment, trained=ranks[name] is None) for name in configs)
    lines["cache of the rollout"] = sum(_cache(config, experiment, group) for config in set(configs.values()))
    for name, shapes in held.items():
        fused = 0 if name in policies.adapted else _fused(configs[name], experiment, shapes.params)
        if fused:
            lines[f"parameters arranged for the rollout, {name}"] = fused
    return lines


def measured(lines: Mapping[str, float], update: float) -> dict[str, float]:
    """Replaces the estimates for the update by ``update``, the bytes that the compiler measured."""
    estimates = {_GRADIENTS, _COPY, _ACTIVATIONS, _HEAD}
    return {name: size for name, size in lines.items() if name not in estimates} | {
        "the update beside its state, as compiled": update
    }


def update_bytes(experiment: Experiment, policies: Policies, longest: int) -> int:
    """Compiles the update and returns the bytes that it takes on each device.

    State and base are not counted. The bytes are those of the policy whose update takes most, on a
    micro-batch with groups of at most ``longest`` tokens. The policies' devices need not exist.

    Raises ConfigError with the compiler's words if the update does not compile, for example because
    it does not fit.
    """
    batch = pack(
        [], dataclasses.replace(experiment.batch, row_tokens=experiment.batch.row(longest)), "token", 1
    )
    most = 0
    for name in policies.names:
        base = bytes_a_device(policies.base_shapes()) if name in policies.adapted else 0
        try:
            programs = [program.memory_analysis() for program in policies.compile(name, batch)]
        except jax.errors.JaxRuntimeError as error:
            raise ConfigError(f"the update of {name} does not compile: {error}") from error
        for m in programs:
            assert m is not None
            held = m.argument_size_in_bytes + m.output_size_in_bytes - m.alias_size_in_bytes
            peak = held + m.temp_size_in_bytes + m.generated_code_size_in_bytes
            most = max(most, peak - bytes_a_device(policies.shapes[name]) - base)
    return most


def bytes_a_device(tree: Any) -> int:
    """Returns the bytes on each device of arrays, or of shapes with shardings.

    Those in host memory do not count.
    """
    leaves = (x for x in jax.tree.leaves(tree) if not on_host(x.sharding))
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in leaves)


def bytes_on_hosts(tree: Any) -> int:
    """Returns the bytes in the memory of all hosts of arrays, or of shapes with shardings."""
    leaves = (x for x in jax.tree.leaves(tree) if on_host(x.sharding))
    shards = (
        (len(x.sharding.device_set), math.prod(x.sharding.shard_shape(x.shape)), x.dtype) for x in leaves
    )
    return sum(devices * size * dtype.itemsize for devices, size, dtype in shards)


def activations(
    config: ModelConfig, mesh: MeshConfig, batch: BatchConfig, row: int, lora: int | None = None
) -> float:
    """Returns the bytes of activations on each device for one micro-batch.

    They are what the forward pass keeps for the backward pass, and what that computes again.
    """
    local, rows = _local(config, mesh), batch.rows // (mesh.data * mesh.fsdp)
    kept = _kept(local, row, lora)
    if config.remat != "none":
        plain = dataclasses.replace(local, remat="none")
        one, two = (_kept(dataclasses.replace(plain, layers=n), row, lora) for n in (1, 2))
        kept += two - one  # those of one block, while it is computed again
    return rows * kept


def _local(config: ModelConfig, mesh: MeshConfig) -> ModelConfig:
    """Returns one device's share of the model: each layer is split over ``mesh.tensor`` devices."""
    t = mesh.tensor
    return dataclasses.replace(
        config,
        heads=config.heads // t,
        kv_heads=max(config.kv_heads // t, 1),
        mlp_width=config.mlp_width // t,
        vocab_size=(config.vocab_size or t) // t,
        scan=False,
    )


def _kept(config: ModelConfig, row: int, lora: int | None) -> int:
    """Returns the bytes that are kept for each row.

    It subtracts one row from two, because parameters are kept, too, and do not grow with the rows.
    """
    one, two = (_residuals(config, rows, row, lora) for rows in (1, 2))
    return two - one


def _residuals(config: ModelConfig, rows: int, row: int, lora: int | None) -> int:
    model = Transformer(config, config.vocab_size or 1)
    packed = Packed(model, MeshConfig().build())
    micro = jax.tree.map(lambda x: x[0], pack([], BatchConfig(row, rows), "token", 1))

    def backward(trained, base, micro):
        def loss(trained):
            weights = PolicyWeights(trained) if lora is None else PolicyWeights(base, trained)
            return packed.loss(cloning, weights, micro, None, jnp.float32(1))[0]

        return jax.vjp(loss, trained)[1]

    params = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
    trained = params
    if lora is not None:
        trained = jax.eval_shape(lambda: init_adapter(params, jax.random.key(0), lora))
    leaves = jax.tree.leaves(jax.eval_shape(backward, trained, params, micro))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)


def _copy(local: ModelConfig, experiment: Experiment) -> float:
    """Returns the bytes of the blocks' parameters in the activations' dtype.

    They are a device's part and, with ``fsdp``, one whole layer.
    """
    layer = local.block_kernels()
    return (
        jnp.dtype(local.dtype).itemsize
        * layer
        * (local.layers / experiment.mesh.fsdp + (experiment.mesh.fsdp > 1))
    )


def _head(local: ModelConfig, experiment: Experiment, trained: bool) -> float:
    """Returns the bytes that the head takes in an update.

    They are three arrays of a chunk's logits, the table in the activations' dtype and, if it is
    ``trained``, its gradient in float32.
    """
    vocab = local.vocab_size or experiment.tokenizer.vocab_size
    table = vocab * local.width
    return 3 * CHUNK_BYTES + table * (jnp.dtype(local.dtype).itemsize + 4 * trained)


def _cache(config: ModelConfig, experiment: Experiment, group: Sizes) -> float:
    """Returns the bytes of the in-process engine on each device: its pages, and its rows' logits.

    They are 0 for SGLang servers, which run elsewhere. Raises ConfigError for sglang-jax.
    """
    local, engine = _local(config, experiment.mesh), experiment.engine
    if isinstance(engine, SGLangJaxConfig):
        raise ConfigError("Experiment.engine is SGLangJaxConfig, whose memory plan does not know")
    if not isinstance(engine, LocalEngineConfig):
        return 0.0
    rows = engine.slots / (experiment.mesh.data * experiment.mesh.fsdp)
    most = rows * power_of_two(group.new)
    places = engine.prompt_cache + min(engine.answer_cache or most, most)
    place = 2 * local.layers * local.kv_heads * local.head_size * jnp.dtype(local.dtype).itemsize
    vocab = config.vocab_size or experiment.tokenizer.vocab_size
    return places * place + 3 * 4 * rows * vocab


def _fused(config: ModelConfig, experiment: Experiment, params: Any) -> int:
    """Returns the bytes of a small model's second copy in the engine; see ``transformer.join_layers``."""
    if (
        not isinstance(experiment.engine, LocalEngineConfig)
        or experiment.mesh.fsdp * experiment.mesh.tensor > 1
    ):
        return 0
    if bytes_a_device(params) > experiment.engine.joined_mb * 1e6:
        return 0
    outputs = (config.heads + 2 * config.kv_heads) * config.head_size + 2 * config.mlp_width
    biases = (config.heads + 2 * config.kv_heads) * config.head_size if config.qkv_bias else 0
    size = config.layers * (config.width * outputs + biases)
    return size * jnp.dtype(config.param_dtype).itemsize


def work(config: ModelConfig, vocab: int, group: Sizes, groups: float) -> dict[str, float]:
    """Returns the FLOP of the rollout and of the update on so many ``groups``.

    Each group's prompt counts once. The head counts for new tokens only, and attention for the
    tokens that a token sees. Blocks that are computed again count twice forward.
    """
    block = 2 * config.layers * config.block_kernels()
    span = 4 * config.layers * config.heads * config.head_size
    new = group.candidates * group.new
    blocks = block * (group.prompt + new) + span * (
        group.prompt**2 / 2 + new * (group.prompt + group.new / 2)
    )
    head = 2 * config.width * vocab * new
    again = blocks if config.remat == "block" else 0.0
    return {"rollout": groups * (blocks + head), "update": groups * (3 * (blocks + head) + again)}


def seconds(
    experiment: Experiment, policies: Policies, group: Sizes, device: Device, utilisation: float
) -> Mapping[str, tuple[float, float, str]]:
    """Returns stage -> (FLOP, least seconds, what limits it).

    The groups are divided evenly among the roles.
    """
    roles = experiment.task.workflow.order
    totals = {"rollout": [0.0, 0.0, 0.0], "update": [0.0, 0.0, 0.0]}
    updates: dict[Any, float] = defaultdict(float)  # mesh -> seconds; meshes work side by side
    samples = group.groups / len(roles) * group.candidates
    together = experiment.engine.slots if isinstance(experiment.engine, LocalEngineConfig) else samples
    steps = math.ceil(samples / together) * group.new
    for role in roles:
        policy = experiment.team.policy(role)
        config = experiment.architecture(experiment.initial_name(policy))
        vocab = config.vocab_size or experiment.tokenizer.vocab_size
        done = work(config, vocab, group, group.groups / len(roles))
        rate = device.flops * utilisation * experiment.mesh.side
        read = jnp.dtype(config.dtype).itemsize * (
            config.layers * config.block_kernels() + vocab * config.width
        )
        reading = steps * read / experiment.mesh.side / device.bandwidth
        for stage, flop in done.items():
            totals[stage][0] += flop
            totals[stage][1] += flop / rate
        totals["rollout"][2] += reading
        updates[policies.meshes[policy]] += done["update"] / rate
    totals["update"][1] = max(updates.values())  # side by side; the engine draws for one at a time
    return {
        stage: (flop, max(computing, reading), "arithmetic" if computing >= reading else "reading weights")
        for stage, (flop, computing, reading) in totals.items()
    }


def device(name: str) -> Device:
    """Returns a device by its name. Raises ConfigError if it is not in ``DEVICES``."""
    if name not in DEVICES:
        raise ConfigError(f"--device={name}: expected one of {', '.join(DEVICES)}")
    return DEVICES[name]


def fits(lines: Mapping[str, float], on: Device) -> bool:
    """Returns whether a twelfth of the memory is left for the runtime and for fragmentation."""
    return _total(lines) <= on.memory * 11 / 12


def report(lines: Mapping[str, float], on: Device, mesh: MeshConfig) -> Sequence[str]:
    """Returns the lines of the memory table."""
    width = max(map(len, lines))
    verdict = "fits" if fits(lines, on) else "does not fit"
    return [
        f"mesh {mesh}: {mesh.devices} x {on.name}, {on.memory / 1e9:.0f} GB each",
        *(f"  {name:{width}}  {size / 1e9:8.3f} GB" for name, size in lines.items()),
        f"  {'in all, on each device':{width}}  {_total(lines) / 1e9:8.3f} GB: {verdict}",
    ]
