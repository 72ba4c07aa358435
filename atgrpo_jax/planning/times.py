"""Estimates the least time of a step, from its arithmetic and the weights that it reads."""

import math
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from atgrpo_jax.models.config import ModelConfig
from atgrpo_jax.planning.devices import Device
from atgrpo_jax.planning.workload import Workload
from atgrpo_jax.run.experiment import Experiment
from atgrpo_jax.run.team_learner import TeamLearner


def work(config: ModelConfig, vocab: int, workload: Workload, groups: float) -> dict[str, float]:
    """Returns the FLOP of the rollout and of the update on so many ``groups``.

    Each group's prompt counts once. The head counts for new tokens only, and attention for the
    tokens that a token sees. Blocks that are computed again count twice forward.
    """
    block = 2 * config.layers * config.block_kernels()
    span = 4 * config.layers * config.heads * config.head_size
    new = workload.candidates * workload.new
    blocks = block * (workload.prompt + new) + span * (
        workload.prompt**2 / 2 + new * (workload.prompt + workload.new / 2)
    )
    head = 2 * config.width * vocab * new
    again = blocks if config.remat == "block" else 0.0
    return {"rollout": groups * (blocks + head), "update": groups * (3 * (blocks + head) + again)}


def seconds(
    experiment: Experiment, policies: TeamLearner, workload: Workload, device: Device, utilisation: float
) -> Mapping[str, tuple[float, float, str]]:
    """Returns stage -> (FLOP, least seconds, what limits it).

    The groups are divided evenly among the roles.
    """
    roles = experiment.task.workflow.order
    totals = {"rollout": [0.0, 0.0, 0.0], "update": [0.0, 0.0, 0.0]}
    updates: dict[Any, float] = defaultdict(float)  # mesh -> seconds; meshes work side by side
    samples = workload.groups / len(roles) * workload.candidates
    together = experiment.engine.at_once or samples
    steps = math.ceil(samples / together) * workload.new
    for role in roles:
        policy = experiment.team.policy(role)
        config = experiment.architecture(experiment.initial_name(policy))
        vocab = config.vocab_size or experiment.tokenizer.vocab_size
        done = work(config, vocab, workload, workload.groups / len(roles))
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
