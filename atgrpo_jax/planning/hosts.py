"""Says what a run does with several hosts: what each draws, who waits for what, what would help."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

from atgrpo_jax.arrays.spread import check_hosts
from atgrpo_jax.common.errors import ConfigError
from atgrpo_jax.common.progress import counted
from atgrpo_jax.planning.devices import Device
from atgrpo_jax.planning.estimate import Estimate, Setup, estimate, setup_of
from atgrpo_jax.planning.events import Skew
from atgrpo_jax.planning.workload import Workload
from atgrpo_jax.run.agreement import check_one_host, check_precision
from atgrpo_jax.run.experiment import Experiment

GAIN = 1.05  # a setting helps if it samples so many times as many tokens a second
WHY = {
    "pack": "; every host decodes and packs what all have sampled",
    "record": "; host 0 writes the episodes, and the others wait",
}


def check(experiment: Experiment, hosts: int) -> None:
    """Raises ConfigError if a run would refuse so many hosts, which have its mesh between them."""
    mesh = experiment.mesh
    if mesh.devices % hosts:
        raise ConfigError(
            f"--hosts={hosts}: mesh {mesh} has {counted(mesh.devices, 'device')}, not as many on each host"
        )
    check_one_host(experiment, hosts)
    check_precision(experiment)
    check_hosts(mesh, mesh.devices, hosts)
    experiment.engine.check_hosts(mesh, hosts)


def report(
    experiment: Experiment, workload: Workload, skew: Skew, device: Device, utilisation: float, hosts: int
) -> Sequence[str]:
    """Returns the lines about a step over several hosts."""
    drawing = experiment.engine.drawing(experiment.mesh)
    about = f"over {counted(hosts, 'host')} with {counted(experiment.mesh.devices // hosts, 'device')} each"
    if drawing is None:
        return [f"{about}: samples are drawn elsewhere, so nothing is said of the rollout"]
    setup = setup_of(experiment, drawing, workload, skew, hosts)

    def tried(setup: Setup) -> Estimate:
        return estimate(setup, device, utilisation, skew)

    found = tried(setup)
    one = tried(alone(setup))
    gains = {name: tried(other).rate / found.rate for name, other in others(setup)}
    return [
        f"{about}, if answers have {skew.mean:.0f} tokens in the mean (sigma {skew.sigma:g}):",
        f"  samples in flight: {setup.in_flight} a host, {setup.in_flight // setup.players} a player, "
        f"in {setup.slots // hosts} slots a host",
        f"  rows of the update: {found.filled:.0%} full",
        *(f"  {stage:8} {seconds:10.3f} s{_why(stage, found)}" for stage, seconds in found.stages.items()),
        f"  {found.rate / one.rate:.1f} times the tokens a second of one host; "
        f"most is lost to {lost(found, one, hosts)}",
        *(f"  {gains[name]:.2f} times as many with {name}" for name in helpful(gains)),
    ]


def helpful(gains: Mapping[str, float]) -> list[str]:
    """Returns the names of the changes that gain most, at most three."""
    return [name for name in sorted(gains, key=lambda name: -gains[name]) if gains[name] >= GAIN][:3]


def _why(stage: str, found: Estimate) -> str:
    if stage == "rollout":
        return (
            f"; the slowest host takes {found.played.spread:.2f} times the mean, the longest episode alone "
            f"{found.longest_s:.1f} s"
        )
    return WHY.get(stage, "")


def alone(setup: Setup) -> Setup:
    """Returns the same step on one host, with its part of the devices."""
    rows = max(setup.rows // setup.hosts, setup.devices)
    return dataclasses.replace(setup, hosts=1, rows=rows, fsdp=min(setup.fsdp, setup.devices))


def lost(found: Estimate, one: Estimate, hosts: int) -> str:
    """Returns the stage that takes longest beyond its part of what one host needs."""
    beyond = {stage: seconds - one.stages[stage] / hosts for stage, seconds in found.stages.items()}
    worst = max(beyond, key=lambda stage: beyond[stage])
    if worst == "rollout" and found.longest_s > 0.8 * found.stages[worst]:
        return "the rollout's longest episode"
    return worst


def others(s: Setup) -> Iterator[tuple[str, Setup]]:
    """Yields changes of the settings, by name. Whether they fit, and learn as well, is not looked at."""

    def changed(name: str, **values) -> tuple[str, Setup]:
        return name, dataclasses.replace(s, **values)

    instances = 2 * s.instances
    slots = 2 * s.slots
    yield changed(f"RolloutConfig.instances = {instances}", instances=instances)
    yield changed(f"LocalEngineConfig.slots = {slots}", slots=slots)
    more = f"RolloutConfig.instances = {instances}, LocalEngineConfig.slots = {slots}"
    yield changed(more, instances=instances, slots=slots)
    if s.slots % (2 * s.hosts * s.shards) == 0:
        yield changed(f"LocalEngineConfig.slots = {s.slots // 2}", slots=s.slots // 2)
    candidates = 2 * s.episodes * s.samples
    yield changed(
        f"RolloutConfig.candidates = {candidates}",
        episodes=s.episodes if s.episodes == 1 else candidates,
        samples=s.samples if s.episodes > 1 else candidates,
    )
    if s.players % 2 == 0:
        devices = 2 * s.devices // s.players
        more = f"{devices} devices a player (LocalEngineConfig.mesh)"
        yield changed(more, players=s.players // 2, shards=s.shards // 2)
    if s.rows // 2 % (s.hosts * s.devices) == 0:
        yield changed(f"BatchConfig.rows = {s.rows // 2}", rows=s.rows // 2)
    if s.minibatches > 1:
        yield changed(f"LossConfig.minibatches = {s.minibatches // 2}", minibatches=s.minibatches // 2)
    yield changed(f"RolloutConfig.max_tokens = {s.most // 2}", most=s.most // 2)
