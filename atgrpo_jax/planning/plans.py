"""Makes the page of a plan: what stands in for what, memory, times, and what would fit."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import jax

from atgrpo_jax.arrays.mesh import MeshConfig, provide_devices
from atgrpo_jax.common.errors import ConfigError
from atgrpo_jax.common.progress import say
from atgrpo_jax.models.config import PRESETS, preset
from atgrpo_jax.planning import fitting, footprint, hosts, hours, times, tpu_compiler
from atgrpo_jax.planning.devices import device_named, device_of_memory
from atgrpo_jax.planning.events import Skew
from atgrpo_jax.planning.stand_ins import StandIns
from atgrpo_jax.planning.workload import workload_of
from atgrpo_jax.run.experiment import Experiment
from atgrpo_jax.run.team_learner import TeamLearner

MOST = 512  # devices of the largest mesh that is tried to see what fits


@dataclasses.dataclass(frozen=True)
class Asked:
    """Holds what a plan is asked about: a run, its devices, and what is supposed of both."""

    gin_files: Sequence[str]
    bindings: Sequence[str] = ()
    device: str = "v5e"
    mesh: MeshConfig | None = None  # instead of the config's
    preset: str | None = None  # a model instead of the config's
    hosts: int | None = None  # that have the mesh's devices between them
    answer: float | None = None  # tokens of an answer, mean; only for several hosts
    sigma: float = 0.8  # how unequal answers are; only for several hosts
    compile: bool = False  # the update, for TPUs
    utilisation: float = 0.4  # the part of the device's peak rate that is reached
    device_gb: float | None = None  # memory of another device, of which no rates are known

    def __post_init__(self):
        if self.device_gb is not None and (self.compile or self.hosts is not None):
            flag = "--compile" if self.compile else "--hosts"
            raise ConfigError(f"{flag} needs a --device: --device_gb says nothing of it but its memory")
        if self.preset is not None and self.preset not in PRESETS:
            raise ConfigError(f"--preset={self.preset}: expected one of {', '.join(PRESETS)}")

    def read(self, stand_ins: StandIns, lines: Sequence[str] = ()) -> Experiment:
        """Returns what a run would read, with more ``lines``. Raises ConfigError if it would refuse."""
        axes = {} if self.mesh is None else dataclasses.asdict(self.mesh)
        mesh = [f"mesh.MeshConfig.{axis} = {size}" for axis, size in axes.items()]
        experiment = stand_ins.load(self.gin_files, [*self.bindings, *mesh, *lines])
        changes: dict[str, object] = {}
        if self.preset is not None:
            changes["model"] = preset(self.preset)
            changes["compute"] = dataclasses.replace(
                experiment.compute, dtype="bfloat16", remat="block", scan=True
            )
            changes["pretrained"] = None
        try:
            changed = dataclasses.replace(experiment, **changes)  # type: ignore[arg-type]
        except ValueError as error:
            raise ConfigError(str(error)) from error
        if self.hosts is not None:
            hosts.check(changed, self.hosts)
        return changed

    def changed(self, lines: Sequence[str], mesh: MeshConfig, before: MeshConfig) -> Experiment:
        """Returns what a run would read with more ``lines``, on another mesh than ``before``.

        The mesh is asked for as it was: by --mesh, or by lines.
        """
        if self.mesh is not None:
            return dataclasses.replace(self, mesh=mesh).read(StandIns(self.preset), lines)
        return self.read(StandIns(self.preset), [*fitting.mesh_lines(mesh, before), *lines])


class Plan:
    """A plan. ``fits`` is whether the run fits; ``lines`` are what to print, and come one by one.

    ``memory`` has the bytes on each device, by what they hold, of the part of the run that takes most.

    If JAX has started already, meshes have at most the devices that it has.
    """

    def __init__(self, asked: Asked):
        """Raises ConfigError if a run would refuse the config."""
        self._asked = asked
        gb = asked.device_gb
        self._device = device_named(asked.device) if gb is None else device_of_memory(gb)
        stand_ins = StandIns(asked.preset)
        self.experiment = experiment = asked.read(stand_ins)
        count = experiment.engine.devices_needed(experiment.mesh)
        provide_devices(max(MOST, count))
        devices: Sequence[Any] = jax.devices()[:count]  # from now on there are ``MOST``
        if asked.compile:
            devices = tpu_compiler.tpus(asked.device, experiment.mesh.devices)
        self._policies = TeamLearner(experiment, devices=devices)
        most = experiment.engine.longest_prompt(experiment.longest_answer) if stand_ins.unread else None
        self.workload = workload_of(experiment, longest=most or 0)
        self._told = stand_ins.report(most)
        self._steps = footprint.of_steps(experiment, self._policies, self.workload)
        self._warm = footprint.of_warm_start(experiment, self._policies, self.workload)
        self._beyond = 0.0
        if asked.compile:
            self._compile()
        self.memory = max(self._steps, self._warm, key=footprint.total)
        self.fits = footprint.fits(self.memory, self._device)

    def lines(self) -> Iterator[str]:
        asked, device, experiment = self._asked, self._device, self.experiment
        yield from self._told
        yield from footprint.report(self.memory, device, experiment.mesh)
        if self.memory != self._steps:
            yield from footprint.report_steps(self._steps, device)
        if offloaded := self._offloaded():
            yield f"  optimizer state in the memory of all hosts: {offloaded / 1e9:.3f} GB"
        if asked.device_gb is not None:
            what = "times" if self.fits else "times, and what would fit,"
            yield f"{what} need the rates of a device that --device knows"
            return
        for part in (times, hours):
            yield from part.report(experiment, self._policies, self.workload, device, asked.utilisation)
        if asked.hosts is not None:
            skew = Skew(asked.answer or self.workload.new / 4, asked.sigma)
            yield from hosts.report(experiment, self.workload, skew, device, asked.utilisation, asked.hosts)
        if not self.fits:
            say("looking for what would fit, which takes up to a minute")
            yield from fitting.report(self.search(), asked.mesh is not None)

    def _offloaded(self) -> int:
        """Returns the bytes of optimizer state in the memory of all hosts, at most."""
        policies = self._policies
        starts = self.experiment.initial_names if self._warm else ()
        cloned = {name: policies.shapes_of(name) for name in starts}
        return max(map(footprint.bytes_on_hosts, (policies.shapes, cloned)))

    def search(self) -> fitting.Search:
        """Returns a search for what would fit."""

        def read(lines: Sequence[str], mesh: MeshConfig) -> Experiment:
            return self._asked.changed(lines, mesh, self.experiment.mesh)

        return fitting.Search(
            self.experiment, read, self.workload, self._device, self._asked.utilisation, self._beyond
        )

    def _compile(self) -> None:
        say(f"compiling the update for {self._device.name}, which takes minutes for a large model")
        longest = self.workload.longest_group
        update = footprint.update_bytes(self.experiment, self._policies, longest)
        measured = footprint.measured(self._steps, update)
        self._beyond = footprint.total(measured) - footprint.total(self._steps)
        self._steps = measured
        row = self.experiment.batch.row
        if (
            self._warm
            and not self._policies.adapted
            and row(self.workload.longest_demonstrated) <= row(longest)
        ):
            self._warm = footprint.measured(self._warm, update)  # it is the same update
