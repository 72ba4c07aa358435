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
from atgrpo_jax.rollout.team import Team
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

    The groups are divided evenly among all who speak in a turn. What counterfactual credit plays on is a
    stage if there is any. Nothing is said of drawing if the engine does not draw on the run's devices.
    """
    stages = {}
    drawing = experiment.engine.drawing(experiment.mesh)
    if drawing is not None:
        given = experiment, drawing.mesh.side, device, utilisation
        stages["rollout"] = _rollout(*given, workload)
        if workload.continued:
            alone = dataclasses.replace(workload, groups=workload.continued, candidates=1)
            stages[AFTER] = _rollout(*given, alone)
    stages["update"] = *_updates(experiment, policies, workload, device, utilisation), "arithmetic"
    return stages


def _rollout(
    experiment: Experiment, devices: int, device: Device, utilisation: float, workload: Workload
) -> tuple[float, float, str]:
    """Returns what drawing takes on so many devices; the engine draws for one policy at a time."""
    workflow = experiment.task.workflow
    speakers = experiment.team.drawn(workflow.turn_roles)
    # A speaker's turns follow each other, so its samples of a turn are the most that are drawn together.
    turns = workflow.turns
    samples = workload.groups / len(speakers) / turns * workload.candidates
    together = experiment.engine.at_once or samples
    steps = workload.rounds * turns * math.ceil(samples / together) * workload.new
    itemsize = jnp.dtype(experiment.compute.dtype).itemsize
    flop = reading = 0.0
    for role in speakers:
        model, vocab = _model(experiment, experiment.team.policy(role))
        own = workload.rounds * workload.groups / len(speakers)
        flop += work(model, experiment.compute, vocab, workload, own)["rollout"]
        numbers = model.layers * family_of(model).block_kernels(model) + vocab * model.width
        reading += steps * itemsize * numbers / devices / device.bandwidth
    computing = flop / (device.flops * utilisation * devices)
    limit = "arithmetic" if computing >= reading else "reading weights"
    return flop, max(computing, reading), limit


def _updates(
    experiment: Experiment, policies: TeamLearner, workload: Workload, device: Device, utilisation: float
) -> tuple[float, float]:
    """Returns the FLOP and the least seconds of a step's updates: the mean, if policies take turns.

    Frozen policies have none. Optimizer state that is offloaded comes and goes in each update.
    """
    team, loss = experiment.team, experiment.loss
    flops = _learnt(experiment, team, workload, experiment.refers)
    moving = {name: loss.epochs * flop for name, flop in flops.items() if name not in team.frozen}
    states = {name: policies.shapes[name] for name in moving}
    updates = loss.minibatches * loss.epochs
    taken = _seconds_of(experiment, moving, states, device, utilisation, updates)
    if team.alternate:
        return sum(moving.values()) / len(moving), sum(taken.values()) / len(moving)
    return sum(moving.values()), _side_by_side(policies, taken)


def cloning(
    experiment: Experiment, policies: TeamLearner, workload: Workload, device: Device, utilisation: float
) -> float:
    """Returns the least seconds of a step of the warm start, which is one update of all that is started from.

    Frozen policies and the base of adapters are, too, and nothing is compared with.
    """
    starting = experiment.team.starting(experiment.task.workflow.roles)
    flops = _learnt(experiment, starting, workload, refers=False)
    states = {name: policies.shapes_of(name) for name in flops}
    return _side_by_side(policies, _seconds_of(experiment, flops, states, device, utilisation, 1))


def _learnt(experiment: Experiment, team: Team, workload: Workload, refers: bool) -> dict[str, float]:
    """Returns the FLOP of an epoch by the policies of ``team``."""
    speakers = experiment.team.drawn(experiment.task.workflow.turn_roles)
    own = workload.rounds * workload.groups / len(speakers)
    found: dict[str, float] = defaultdict(float)
    for role in speakers:
        policy = team.policy(role)
        model, vocab = _model(experiment, policy)
        found[policy] += work(model, experiment.compute, vocab, workload, own, refers)["update"]
    return found


def _seconds_of(
    experiment: Experiment,
    flops: Mapping[str, float],
    states: Mapping[str, Any],
    device: Device,
    utilisation: float,
    updates: int,
) -> dict[str, float]:
    """Returns the least seconds of each policy's updates, of which there are so many."""
    side = experiment.mesh.side
    rate = device.flops * utilisation * side
    moves = 2 * updates if experiment.optimizer.offload else 0
    return {
        name: flop / rate + moves * bytes_on_hosts(states[name]) / side / HOST_LINK
        for name, flop in flops.items()
    }


def _side_by_side(policies: TeamLearner, taken: Mapping[str, float]) -> float:
    """Returns how long updates take if meshes work at the same time."""
    meshes: dict[Any, float] = defaultdict(float)
    for name, own in taken.items():
        meshes[policies.meshes[name]] += own
    return max(meshes.values())


def _model(experiment: Experiment, policy: str) -> tuple[Architecture, int]:
    """Returns a policy's model, and how large its vocabulary is."""
    model = experiment.architecture(experiment.initial_name(policy))
    return model, model.vocab_size or experiment.tokenizer.vocab_size


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
    if "rollout" not in stages:
        lines.append(f"  rollout    {elsewhere(experiment)}")
    return lines


def elsewhere(experiment: Experiment) -> str:
    """Says why nothing is known of drawing."""
    return f"left out: {type(experiment.engine).__name__} does not draw on the devices of this page"
