"""Estimates the least time of a step, from its arithmetic and the weights that it reads."""

import dataclasses
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from atgrpo_jax.models.config import Architecture, Compute
from atgrpo_jax.models.families.table import family_of
from atgrpo_jax.planning.devices import HOST_LINK, Device
from atgrpo_jax.planning.footprint import bytes_on_hosts
from atgrpo_jax.planning.workload import Workload
from atgrpo_jax.run.experiment import Experiment
from atgrpo_jax.run.team_learner import TeamLearner

AFTER = "playing on"  # of counterfactual credit. Candidates that lead to the same state share it: at most


def work(
    architecture: Architecture,
    compute: Compute,
    vocab: int,
    workload: Workload,
    groups: float,
    refers: bool = False,
) -> dict[str, float]:
    """Returns the FLOP of the rollout and of the update on so many ``groups``.

    Each group's prompt counts once. The head counts for new tokens only, and attention for the
    tokens that a token sees. Blocks that are computed again count twice forward. If the loss
    ``refers`` to the starting policies, these go forward, too.
    """
    c = architecture
    block = 2 * c.layers * family_of(c).block_multiplied(c)
    new = workload.candidates * workload.new
    seen = sum(_seen(workload, c.window(layer)) for layer in range(c.layers))
    blocks = block * (workload.prompt + new) + 4 * c.heads * c.head_size * seen
    head = 2 * c.width * vocab * new
    again = blocks if compute.remat == "block" else 0.0
    passes = 4 if refers else 3
    return {"rollout": groups * (blocks + head), "update": groups * (passes * (blocks + head) + again)}


def _seen(workload: Workload, window: int | None) -> float:
    """Returns how many tokens those of a group see in all, in a layer."""

    def up_to(tokens: float) -> float:
        """Returns how many tokens the first so many see; half of the square without a window."""
        narrow = tokens if window is None else min(tokens, window)
        return narrow**2 / 2 + (tokens - narrow) * narrow

    prompt = up_to(workload.prompt)
    return prompt + workload.candidates * (up_to(workload.prompt + workload.new) - prompt)


def seconds(
    experiment: Experiment, policies: TeamLearner, workload: Workload, device: Device, utilisation: float
) -> Mapping[str, tuple[float, float, str]]:
    """Returns stage -> (FLOP, least seconds, what limits it), of all rounds of a step.

    The groups are divided evenly among all who speak in a turn. Optimizer state that is offloaded
    comes and goes in each update. What counterfactual credit plays on is a stage if there is any.
    """
    stages = _stages(experiment, policies, workload, device, utilisation)
    if not workload.continued:
        return stages
    alone = dataclasses.replace(workload, groups=workload.continued, candidates=1)
    after = _stages(experiment, policies, alone, device, utilisation)["rollout"]
    return {"rollout": stages["rollout"], AFTER: after, "update": stages["update"]}


def _stages(
    experiment: Experiment, policies: TeamLearner, workload: Workload, device: Device, utilisation: float
) -> dict[str, tuple[float, float, str]]:
    workflow = experiment.task.workflow
    speakers = experiment.team.drawn(workflow.turn_roles)
    totals = {"rollout": [0.0, 0.0, 0.0], "update": [0.0, 0.0, 0.0]}
    updates: dict[Any, float] = defaultdict(float)  # mesh -> seconds; meshes work side by side
    # A speaker's turns follow each other, so its samples of a turn are the most that are drawn together.
    turns = workflow.turns
    samples = workload.groups / len(speakers) / turns * workload.candidates
    together = experiment.engine.at_once or samples
    steps = workload.rounds * turns * math.ceil(samples / together) * workload.new
    for role in speakers:
        policy = experiment.team.policy(role)
        model = experiment.architecture(experiment.initial_name(policy))
        vocab = model.vocab_size or experiment.tokenizer.vocab_size
        own = workload.rounds * workload.groups / len(speakers)
        done = work(model, experiment.compute, vocab, workload, own, experiment.refers)
        rate = device.flops * utilisation * experiment.mesh.side
        numbers = model.layers * family_of(model).block_kernels(model) + vocab * model.width
        read = jnp.dtype(experiment.compute.dtype).itemsize * numbers
        reading = steps * read / experiment.mesh.side / device.bandwidth
        for stage, flop in done.items():
            totals[stage][0] += flop
            totals[stage][1] += flop / rate
        totals["rollout"][2] += reading
        updates[policies.meshes[policy]] += done["update"] / rate
    if experiment.optimizer.offload:
        moves = 2 * experiment.loss.minibatches * experiment.loss.epochs
        for policy in policies.names:
            waiting = bytes_on_hosts(policies.shapes[policy]) / experiment.mesh.side
            updates[policies.meshes[policy]] += moves * waiting / HOST_LINK
    totals["update"][1] = max(updates.values())  # side by side; the engine draws for one at a time
    return {
        stage: (flop, max(computing, reading), "arithmetic" if computing >= reading else "reading weights")
        for stage, (flop, computing, reading) in totals.items()
    }


def report(
    experiment: Experiment, policies: TeamLearner, workload: Workload, device: Device, utilisation: float
) -> Sequence[str]:
    """Returns the lines about a step."""
    longest = workload.longest_group
    rounds = f"{workload.rounds} rounds of " if workload.rounds > 1 else ""
    lines = [
        f"a step at most: {rounds}{workload.groups} groups of {workload.prompt:.0f} + "
        f"{workload.candidates} x {workload.new} tokens, "
        f"the longest {longest} in rows of {experiment.batch.row(longest)}"
    ]
    stages = seconds(experiment, policies, workload, device, utilisation)
    for stage, (flop, least, limit) in stages.items():
        at = f"at {utilisation:.0%} of the peak rate; the limit is {limit}"
        lines.append(f"  {stage:10} {flop / 1e12:12.3f} TFLOP  {least:10.3f} s {at}")
    return lines
