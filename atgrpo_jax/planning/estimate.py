"""Estimates the stages of a step over several hosts: what all do at once, and what each repeats.

The rollout is simulated (events.py). The other stages are arithmetic.

Axis letters: I instances, E episodes of an instance, G draws of an episode.
"""

import dataclasses
import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from atgrpo_jax.engines.protocol import Drawing
from atgrpo_jax.models.families.table import family_of
from atgrpo_jax.planning import times
from atgrpo_jax.planning.devices import Device
from atgrpo_jax.planning.events import Asked, Played, Skew, Speed, rollout
from atgrpo_jax.planning.workload import Workload
from atgrpo_jax.run.experiment import Experiment
from atgrpo_jax.update.batch import first_fit

GATE_DRAWS = 9 * 64  # tokens that the gate draws on each host
MEETINGS = 8  # of a step
COLLECTIVE_S = 1e-5  # of a sum over a player's devices, two in each layer; assumed, not measured
PACKED = 1024  # groups that are packed to see how full rows are


@dataclasses.dataclass(frozen=True)
class HostWork:
    """Holds the seconds that Python takes on a host. docs/performance.md says how they were measured."""

    chunk_s: float = 1e-3  # to fill slots, call the devices and read what they drew
    live_s: float = 2e-5  # more of that for each sample
    turn_s: float = 1e-3  # to score a group and write the next prompt
    take_s: float = 1e-3  # to take an instance from the counter
    own_token_s: float = 1.5e-7  # to encode a token that was sampled here
    token_s: float = 3e-7  # for each token of all hosts: to decode, audit and pack it
    group_s: float = 3e-4  # for each group of all hosts
    record_token_s: float = 1.1e-6  # for each token of all hosts: host 0 writes, the others wait
    record_group_s: float = 2e-4
    meeting_s: float = 5e-3
    gather_rate: float = 1e8  # bytes a second that a host receives
    token_bytes: float = 11.0  # of a message with episodes
    group_bytes: float = 1700.0


@dataclasses.dataclass(frozen=True)
class Setup:
    """Holds the numbers of a run that the time of its steps depends on."""

    hosts: int
    devices: int  # of a host
    players: int  # whole copies of the weights that draw, of a host
    shards: int  # parts of a host's slots, each on its own devices
    gathering: int  # devices of a player that each have a part of every matrix
    copied: bool  # whether each push copies whole weights
    slots: int  # of all hosts
    chunk: int
    instances: int
    episodes: int  # of an instance
    turns: int  # most of an episode
    draws: int  # of a turn, one after the other
    groups: int  # of a draw
    samples: int  # of a group
    prompt: float  # tokens, mean
    most: int  # tokens of an answer
    row_tokens: int
    rows: int  # of a micro-batch
    minibatches: int
    epochs: int
    fsdp: int  # the learner's
    policies: int  # with parameters of their own; they are drawn and updated in turn
    layers: float
    numbers: float  # parameters that a token is multiplied with
    group_flop: float  # to learn from a group whose answers are as long as the mean
    prompt_flop: float  # to compute a prompt
    token_bytes: float  # keys and values of a token
    itemsize: int  # bytes of a number in the activations' dtype
    param_bytes: int  # of a parameter that is pushed

    @property
    def at_once(self) -> int:
        """Returns how many instances a host plays at the same time. One alone begins all of them."""
        if self.hosts == 1:
            return self.instances
        most = min(-(-self.slots // (self.episodes * self.samples)), self.instances)
        return -(-most // self.hosts)

    @property
    def in_flight(self) -> int:
        """Returns how many samples a host draws at the same time, at most."""
        asked = self.at_once * self.episodes * self.groups * self.samples
        return min(asked, self.slots // self.hosts)


def setup_of(experiment: Experiment, drawing: Drawing, workload: Workload, skew: Skew, hosts: int) -> Setup:
    """Returns the numbers of a run whose mesh spans so many hosts. ``drawing`` is its engine's."""
    workflow = experiment.task.workflow
    stages = len(workflow.stages)
    speakers = experiment.team.drawn(workflow.turn_roles)
    rollout = experiment.rollout
    mean = dataclasses.replace(workload, new=max(round(skew.mean), 1))
    compute = experiment.compute
    policies = [experiment.team.policy(role) for role in speakers]
    numbers = []
    flops = []
    prompts = []
    caches = []
    layers = []
    for policy in policies:
        model = experiment.architecture(experiment.initial_name(policy))
        vocab = model.vocab_size or experiment.tokenizer.vocab_size
        multiplied = model.layers * family_of(model).block_multiplied(model)
        numbers.append(multiplied + vocab * model.width)
        flops.append(times.work(model, compute, vocab, mean, 1, experiment.refers)["update"])
        prompts.append(2 * multiplied * workload.prompt)
        layers.append(model.layers)
        caches.append(2 * model.layers * model.kv_heads * model.head_size)
    return Setup(
        hosts=hosts,
        devices=experiment.mesh.devices // hosts,
        players=drawing.mesh.data // hosts,
        shards=drawing.mesh.rows // hosts,
        gathering=drawing.mesh.fsdp,
        copied=drawing.copied and any(experiment.initial_name(policy) == policy for policy in policies),
        slots=drawing.slots,
        chunk=drawing.chunk,
        instances=rollout.instances,
        episodes=1 if rollout.tree else rollout.candidates,
        turns=workflow.turns,
        draws=stages,
        groups=-(-len(speakers) // stages),
        samples=workload.candidates,
        prompt=workload.prompt,
        most=workload.longest_answer,
        row_tokens=experiment.batch.row(round(workload.longest_prompt + workload.candidates * skew.mean)),
        rows=experiment.batch.rows,
        minibatches=experiment.loss.minibatches,
        epochs=experiment.loss.epochs,
        fsdp=experiment.mesh.fsdp,
        policies=len({experiment.initial_name(policy) for policy in policies}),
        layers=float(np.mean(layers)),
        numbers=float(np.mean(numbers)),
        group_flop=float(np.mean(flops)),
        prompt_flop=float(np.mean(prompts)),
        token_bytes=float(np.mean(caches)) * jnp.dtype(compute.dtype).itemsize,
        itemsize=jnp.dtype(compute.dtype).itemsize,
        param_bytes=jnp.dtype(compute.param_dtype).itemsize,
    )


class Estimate(NamedTuple):
    """Says what a step takes over several hosts."""

    stages: dict[str, float]  # seconds
    played: Played
    longest_s: float  # of the longest episode, if its host played nothing else
    filled: float  # part of the update's rows that holds tokens
    tokens: int  # sampled

    @property
    def seconds(self) -> float:
        return sum(self.stages.values())

    @property
    def rate(self) -> float:
        """Returns the sampled tokens a second, of all hosts."""
        return self.tokens / self.seconds


def estimate(
    setup: Setup,
    device: Device,
    utilisation: float,
    skew: Skew,
    seed: int = 0,
    handed_out: bool = True,
    work: HostWork = HostWork(),
) -> Estimate:
    """Estimates a step. ``utilisation`` is the part of the device's published rates that is reached.

    ``handed_out`` says how hosts get instances; see ``events.rollout``.
    """
    s = setup
    asked = skew.asked(s.instances, s.episodes, s.turns, s.draws, s.groups * s.samples, s.most, seed)
    speed = speed_of(s, device, utilisation, skew, work)
    played = rollout(asked, speed, s.hosts, s.at_once, handed_out)
    sizes = _group_sizes(s, asked)
    tokens = sum(played.tokens)
    micro, filled = _packed(s, sizes)
    message = tokens * work.token_bytes + len(sizes) * work.group_bytes
    others = 1 - 1 / s.hosts
    link = device.link * utilisation
    row = s.devices // s.players
    stages = {
        "rollout": played.slowest_s,
        "gather": (max(played.tokens) * work.own_token_s + message / work.gather_rate) * (s.hosts > 1),
        "pack": tokens * work.token_s + len(sizes) * work.group_s,
        "update": _update_s(s, device, utilisation, len(sizes), micro, filled),
        "push": s.copied * s.policies * s.numbers * s.param_bytes / row * others / link,
        "gate": -(-GATE_DRAWS * s.policies // (s.slots // s.hosts)) * (speed.step_s + work.chunk_s),
        "record": tokens * work.record_token_s + len(sizes) * work.record_group_s,
        "meetings": MEETINGS * work.meeting_s * (s.hosts > 1),
    }
    return Estimate(stages, played, _longest_s(asked, speed), filled, tokens)


def speed_of(s: Setup, device: Device, utilisation: float, skew: Skew, work: HostWork) -> Speed:
    """Returns how fast a host draws. A decoding step reads all weights, or computes all slots."""
    row = s.devices // s.players
    tensor = row * s.players // s.shards
    flops = device.flops * utilisation
    bytes_read = s.numbers * s.itemsize / tensor
    computing = s.slots / s.hosts / s.shards * 2 * s.numbers / tensor / flops
    between = bytes_read * (1 - 1 / s.gathering) / (device.link * utilisation)
    between += 2 * s.layers * COLLECTIVE_S * (row > s.gathering)
    seen = s.prompt / s.samples + skew.mean / 2  # a prompt is read once for its samples
    return Speed(
        slots=s.slots // s.hosts,
        chunk=s.chunk,
        step_s=s.policies * (max(bytes_read / (device.bandwidth * utilisation), computing) + between),
        sample_s=s.token_bytes * seen / tensor / (device.bandwidth * utilisation) / s.shards,
        prompt_s=s.groups * s.prompt_flop / (flops * s.devices),
        chunk_s=work.chunk_s,
        live_s=work.live_s,
        turn_s=s.groups * work.turn_s,
        take_s=work.take_s * (s.hosts > 1),
    )


def _longest_s(asked: Asked, speed: Speed) -> float:
    """Returns the time of the episode whose draws take most steps, if nothing else were drawn."""
    longest_IEG = asked.tokens_IEGK.max(-1)
    counted_IEG = np.arange(longest_IEG.shape[-1]) < asked.draws_IE[..., None]
    steps_IE = (longest_IEG * counted_IEG).sum(-1)
    samples = asked.tokens_IEGK.shape[-1]
    return float(steps_IE.max()) * (speed.step_s + samples * speed.sample_s)


def _group_sizes(s: Setup, asked: Asked) -> np.ndarray:
    """Returns the tokens of all groups: prompt and answers."""
    grouped = asked.tokens_IEGK.reshape(*asked.tokens_IEGK.shape[:3], s.groups, s.samples).sum(-1)
    played_IEG = np.arange(grouped.shape[2]) < asked.draws_IE[..., None]
    return (grouped[played_IEG] + round(s.prompt)).ravel()


def _packed(s: Setup, sizes: np.ndarray) -> tuple[int, float]:
    """Returns the number of micro-batches of an epoch, and which part of their rows holds tokens.

    Policies have as many groups each. How full rows of several groups are is seen on some of them.
    """
    tokens = s.row_tokens
    while tokens < sizes.max():
        tokens *= 2
    some = sizes[:PACKED]
    fits = some.sum() / (len(first_fit(some.tolist(), tokens)) * tokens)
    micro = 0
    for part in np.array_split(sizes, min(s.minibatches * s.policies, len(sizes))):
        micro += -(-math.ceil(part.sum() / fits / tokens) // s.rows)
    return micro, float(sizes.sum()) / (micro * s.rows * tokens)


def _update_s(s: Setup, device: Device, utilisation: float, groups: int, micro: int, filled: float) -> float:
    """Returns the seconds of all updates: those of the arithmetic, or of moving arrays about."""
    devices = s.hosts * s.devices
    computing = groups * s.group_flop / (device.flops * utilisation * devices) / filled
    gathered = s.numbers * (2 * s.itemsize + 4) * (1 - 1 / s.fsdp)  # parameters twice, and gradients
    reduced = s.numbers / s.fsdp * 2 * 4 * (devices > s.fsdp)  # gradients over data
    updates = s.minibatches * s.policies
    moving = (micro * gathered + updates * reduced) / (device.link * utilisation)
    return s.epochs * max(computing, moving)
