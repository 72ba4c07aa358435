"""Looks for the cheapest change with which a run fits into the devices' memory.

A change is lines of a gin file. It is tried as a run would read it, so what is found also works.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import jax

from atgrpo_jax.arrays.mesh import MeshConfig
from atgrpo_jax.common.errors import ConfigError
from atgrpo_jax.common.rounding import round_up
from atgrpo_jax.engines.local.local import LocalEngineConfig
from atgrpo_jax.planning import footprint, times
from atgrpo_jax.planning.devices import Device
from atgrpo_jax.planning.workload import Workload
from atgrpo_jax.run.experiment import Experiment
from atgrpo_jax.run.team_learner import TeamLearner
from atgrpo_jax.update.batch import whole_tiles

# What a change does beside saving memory. Those that change what is learned come last.
ROUNDS = "activations are rounded to bfloat16; LossConfig.correction is for what that does to samples"
ADAPTERS = "adapters are trained, and not all parameters"
ALTERS = ((), (ROUNDS,), (ADAPTERS,), (ROUNDS, ADAPTERS))
REMAT = ("none", "dots", "block")  # each saves more than the one before it, and takes longer
SHARES = (1, 2, 4, 8)  # parts of the engine's slots and caches
TENSORS = (1, 2, 4, 8)
TRIED = "fewer rows, remat, offload, smaller caches, other meshes of these devices, bfloat16, adapters"

# Returns what a run would read with these lines after its files, on this mesh; raises ConfigError.
Read = Callable[[Sequence[str], MeshConfig], Experiment]


@dataclasses.dataclass(frozen=True)
class Change:
    """Holds a change: lines for all but the mesh, the mesh, and what it does to what is learned."""

    lines: tuple[str, ...]
    mesh: MeshConfig
    alters: tuple[str, ...] = ()


class Fit(NamedTuple):
    """Says what a step takes with a change."""

    change: Change
    bytes: float  # on each device
    seconds: float


class Search:
    """Tries changes of one run.

    ``beyond`` is by how many bytes the run takes more than was estimated, if it was compiled.
    """

    def __init__(
        self,
        experiment: Experiment,
        read: Read,
        workload: Workload,
        device: Device,
        utilisation: float,
        beyond: float = 0.0,
    ):
        self.experiment = experiment
        self._read = read
        self._workload = workload
        self.device = device
        self._utilisation = utilisation
        self._beyond = max(beyond, 0.0)
        self._learners: dict[str, TeamLearner] = {}
        # Bytes on each device, by what they hold, of what takes least so far.
        self.least: Mapping[str, float] = {"": float("inf")}
        self.refused = ""  # why a run would refuse the change that was tried last, if it would

    def cheapest(self) -> Fit | None:
        """Returns the change that costs least on the devices that there are; None if none fits."""
        for alters in ALTERS:
            if found := self._cheapest(list(self._meshes(alters)), alters):
                return found
        return None

    def on_more(self) -> Fit | None:
        """Returns what fits on the fewest devices beyond those of the run, which is trained as it is."""
        mesh = self.experiment.mesh
        side = mesh.side
        while (side := 2 * side) * mesh.policies <= len(jax.devices()):
            if found := self._cheapest(list(_splits(mesh, side)), ()):
                return found
        return None

    def seconds(self, experiment: Experiment) -> float:
        """Returns the least time of a step."""
        stages = times.seconds(
            experiment, self._learner(experiment), self._workload, self.device, self._utilisation
        )
        return sum(seconds for _, seconds, _ in stages.values())

    def _cheapest(self, meshes: Sequence[MeshConfig], alters: tuple[str, ...]) -> Fit | None:
        plain = self._altering(alters)
        if plain is None:
            return None
        tried = []
        for mesh in meshes:
            rows = list(self._rows(mesh))
            remats, offloads, shares = self._remats(), self._offloads(), list(self._shares(mesh))
            most = (*plain, *rows[-1], *offloads[-1], *shares[-1])
            # A model of few layers may take more if a whole block is computed again.
            saving = (Change((*most, *remat), mesh) for remat in reversed(remats))
            if all(self._fits(change) is None for change in saving):
                continue
            # What makes the engine draw less at once comes after what does not, if both take as long.
            for share, *parts in itertools.product(shares, remats, offloads):
                lines = (*plain, *itertools.chain(*parts), *share)
                experiment = self._tried(Change((*lines, *rows[-1]), mesh))
                if experiment is not None:
                    cost = round(self.seconds(experiment), 6), shares.index(share), len(lines)
                    tried.append((cost, lines, mesh, rows))
        for (seconds, *_), lines, mesh, rows in sorted(tried, key=lambda one: one[0]):
            for own in rows:
                change = Change((*lines, *own), mesh, alters)
                if (size := self._fits(change)) is not None:
                    return Fit(change, size, seconds)
        return None

    def _fits(self, change: Change) -> float | None:
        """Returns the bytes on each device if they fit."""
        experiment = self._tried(change)
        if experiment is None:
            return None
        learner = self._learner(experiment)
        steps = footprint.of_steps(experiment, learner, self._workload)
        steps |= {"what the compiler takes beyond the estimate": self._beyond}
        warm = footprint.of_warm_start(experiment, learner, self._workload)
        lines = max(steps, warm, key=footprint.total)
        self.least = min(self.least, lines, key=footprint.total)
        return footprint.total(lines) if footprint.fits(lines, self.device) else None

    def _tried(self, change: Change) -> Experiment | None:
        """Returns the changed run; None if a run would refuse the change."""
        try:
            experiment = self._read(change.lines, change.mesh)
            self._learner(experiment)
        except ConfigError as error:
            self.refused = str(error)
            return None
        return experiment

    def _learner(self, experiment: Experiment) -> TeamLearner:
        """Returns a learner of the same shapes; batches, engines and remat do not change these."""
        c = experiment.compute
        parts = (experiment.mesh, experiment.team, experiment.model, experiment.lora, experiment.optimizer)
        key = repr((*parts, c.dtype, c.param_dtype))
        if key not in self._learners:
            self._learners[key] = TeamLearner(experiment)
        return self._learners[key]

    def _meshes(self, alters: tuple[str, ...]) -> Iterator[MeshConfig]:
        """Yields the meshes of all the devices that there are, that of the run first."""
        mesh = self.experiment.mesh
        if ADAPTERS in alters:  # which are on one mesh
            mesh = dataclasses.replace(mesh, fsdp=mesh.fsdp * mesh.policies, policies=1)
        yield mesh
        yield from (other for other in _splits(mesh, mesh.side) if other != mesh)

    def _altering(self, alters: tuple[str, ...]) -> tuple[str, ...] | None:
        """Returns the lines of what changes what is learned; None if the run has it already."""
        lines: list[str] = []
        if ROUNDS in alters:
            if self.experiment.compute.dtype == "bfloat16":
                return None
            lines.append('config.Compute.dtype = "bfloat16"')
            if self.experiment.loss.correction is None:
                lines.append("objectives.LossConfig.correction = 2.0")
        if ADAPTERS in alters:
            if self.experiment.team.sharing not in ("shared", "full"):
                return None
            lines.append('team.Team.sharing = "lora"')
        return tuple(lines)

    def _rows(self, mesh: MeshConfig) -> Iterator[tuple[str, ...]]:
        """Yields ever fewer and shorter rows of a micro-batch. This changes no sum."""
        batch = self.experiment.batch
        least = mesh.rows
        rows = round_up(batch.rows, least)
        while True:
            line = f"batch.BatchConfig.rows = {rows}"
            own = (line,) if rows != batch.rows else ()
            yield own
            if rows == least:
                break
            rows = max(rows // 2 // least * least, least)
        tokens = whole_tiles(self._workload.longest_group)
        if tokens < batch.row(self._workload.longest_group):
            yield (*own, f"batch.BatchConfig.row_tokens = {tokens}")

    def _remats(self) -> list[tuple[str, ...]]:
        """Returns what the backward pass may compute again. XLA undoes that without ``scan``."""
        compute = self.experiment.compute
        scan = () if compute.scan else ("config.Compute.scan = True",)
        more = REMAT[REMAT.index(compute.remat) + 1 :]
        return [(), *((f'config.Compute.remat = "{remat}"', *scan) for remat in more)]

    def _offloads(self) -> list[tuple[str, ...]]:
        offloads = self.experiment.optimizer.offload
        return [(), *([] if offloads else [("optimizer.OptimizerConfig.offload = True",)])]

    def _shares(self, mesh: MeshConfig) -> Iterator[tuple[str, ...]]:
        """Yields ever less that the engine draws at once, and keeps for that."""
        engine = self.experiment.engine
        if not isinstance(engine, LocalEngineConfig):
            yield ()
            return
        drawing = engine.mesh or mesh
        least = round_up(engine.max_prompt, engine.page)
        said: tuple[str, ...] | None = None
        for share in SHARES:
            sizes = {
                "slots": round_up(max(engine.slots // share, 1), drawing.rows),
                "prompt_cache": max(engine.prompt_cache // share, least),
                "answer_cache": engine.answer_cache // share,
            }
            before = said
            said = tuple(
                f"local.LocalEngineConfig.{name} = {size}"
                for name, size in sizes.items()
                if size != getattr(engine, name)
            )
            if said != before:
                yield said


def _splits(mesh: MeshConfig, side: int) -> Iterator[MeshConfig]:
    """Yields meshes that split the parameters over ``side`` devices, and experts as now or not at all."""
    for expert, tensor in itertools.product(sorted({mesh.expert, 1}, reverse=True), TENSORS):
        if side % (expert * tensor) == 0:
            fsdp = side // (expert * tensor)
            yield dataclasses.replace(mesh, data=1, fsdp=fsdp, expert=expert, tensor=tensor)


def mesh_lines(mesh: MeshConfig, before: MeshConfig) -> Sequence[str]:
    """Returns the lines of a gin file for a mesh in the place of another one."""
    new, old = dataclasses.asdict(mesh), dataclasses.asdict(before)
    return [f"mesh.MeshConfig.{axis} = {size}" for axis, size in new.items() if size != old[axis]]


def report(search: Search, flag: bool) -> Iterator[str]:
    """Yields the lines about what would fit. With ``flag`` a mesh is written as --mesh."""
    if found := search.cheapest():
        yield from _said("the cheapest change that fits", found, search, flag)
        return
    yield f"no change that was tried fits: {TRIED}. {_lacking(search)}"
    if more := search.on_more():
        yield from _said(f"with {more.change.mesh.devices} devices it fits", more, search, flag)
    else:
        yield f"nor does it with more devices, up to {len(jax.devices())}. {_lacking(search)}"
        yield (
            "what is left is to learn otherwise: shorter answers (rollout.RolloutConfig.max_tokens) or fewer "
            "candidates, which make rows shorter, or a smaller model"
        )


def _lacking(search: Search) -> str:
    if "" in search.least:
        return f"A run would refuse each of them, e.g. {search.refused}"
    largest = max(search.least, key=lambda name: search.least[name])
    short = footprint.total(search.least) - footprint.room(search.device)
    return (
        f"Each device lacks {short / 1e9:.3f} GB at least; most is taken by {largest}, "
        f"{search.least[largest] / 1e9:.3f} GB"
    )


def _said(what: str, found: Fit, search: Search, flag: bool) -> Iterator[str]:
    change, before = found.change, search.experiment
    lines = (*(() if flag else mesh_lines(change.mesh, before.mesh)), *change.lines)
    if lines:
        yield f"{what}, as lines for the end of a gin file (or each as --gin_param, which counts more):"
        for line in lines:
            yield f"  {line}"
    if flag and change.mesh != before.mesh:
        axes = dataclasses.asdict(change.mesh).items()
        mesh = ",".join(f"{axis}={size}" for axis, size in axes if size > 1)
        yield f"{'and' if lines else what + ':'} --mesh={mesh}"
    longer = found.seconds / search.seconds(before)
    yield (
        f"then {found.bytes / 1e9:.3f} of {search.device.memory / 1e9:.3g} GB on each device, and a step of "
        f"{found.seconds:.3f} s at least, {longer:.2f} times as long as now (if nothing is exchanged)"
    )
    yield from change.alters
