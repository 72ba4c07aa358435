"""How a step scales over hosts, by simulation and arithmetic (planning/estimate.py): tables, and a figure.

    python benchmarks/hosts.py [--case=v5e|v6e|v5p|h100] [--hosts=1,2,4] [--figure=docs/hosts.png]

Strong scaling keeps the step's instances, weak scaling has as many for each host. ``efficiency`` is the
sampled tokens a second over those of one host, divided by the number of hosts. ``rollout`` is what the
rollout alone would have. Devices have their published rates; what Python takes was measured.
"""

import argparse
import dataclasses
import statistics
from collections.abc import Iterator, Sequence

from items import report

from atgrpo_jax.arrays.mesh import MeshConfig
from atgrpo_jax.engines.local.local import LocalEngineConfig
from atgrpo_jax.models.config import preset
from atgrpo_jax.planning import hosts
from atgrpo_jax.planning.devices import DEVICES
from atgrpo_jax.planning.estimate import Estimate, Setup, estimate, setup_of
from atgrpo_jax.planning.events import Skew
from atgrpo_jax.planning.workload import Workload
from atgrpo_jax.run.gin_config import load
from atgrpo_jax.update.batch import BatchConfig

SEEDS = 3
SKEW = Skew(mean=512.0, sigma=0.8, ends=0.15)
WORKLOAD = Workload(
    groups=1024,
    prompt=600,
    longest_prompt=1000,
    new=2048,
    candidates=4,
    longest_answer=2048,
    longest_group=9192,
)
UTILISATION = 0.4


@dataclasses.dataclass(frozen=True)
class Machine:
    """A kind of host, and the model that is trained on it."""

    model: str
    device: str
    devices: int  # of a host
    player: int = 1  # devices that hold one copy


MACHINES = {
    "v5e": Machine("qwen3-1.7b", "v5e", 4),
    "v6e": Machine("qwen3-1.7b", "v6e", 4),
    "v5p": Machine("qwen3-8b", "v5p", 4),
    "h100": Machine("qwen3-8b", "h100", 8),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--case", choices=MACHINES, action="append", help="all, if not given")
    parser.add_argument("--hosts", default="1,2,4,8,16,32,64", help="the numbers of hosts; 1 comes first")
    parser.add_argument("--figure", help="a PNG file to write")
    args = parser.parse_args()
    counts = [int(count) for count in args.hosts.split(",")]
    curves = {}
    for name in args.case or MACHINES:
        machine = MACHINES[name]
        for scaling in ("strong", "weak"):
            rows = list(curve(machine, scaling, counts))
            curves[name, scaling] = rows
            for row in rows:
                report("hosts", case=name, model=machine.model, scaling=scaling, **row)
        for row in changes(machine, min(max(counts), 8)):
            report("hosts", case=name, model=machine.model, **row)
    if args.figure:
        draw(curves, args.figure)


def setup(machine: Machine, count: int, instances: int = 128, slots: int = 512) -> Setup:
    x = load("plan.gin")
    devices = machine.devices * count
    engine = LocalEngineConfig(
        slots=max(slots, devices),
        max_prompt=1024,
        mesh=MeshConfig(data=devices // machine.player, tensor=machine.player),
    )
    x = dataclasses.replace(
        x,
        model=preset(machine.model),
        compute=dataclasses.replace(x.compute, dtype="bfloat16", remat="block", scan=True),
        warm_start=None,
        mesh=MeshConfig(fsdp=devices),
        engine=engine,
        batch=BatchConfig(row_tokens=8192, rows=devices),
        loss=dataclasses.replace(x.loss, minibatches=2),
        rollout=dataclasses.replace(x.rollout, instances=instances, candidates=4, max_tokens=2048),
    )
    return setup_of(x, engine.drawing(x.mesh), WORKLOAD, SKEW, count)


def curve(machine: Machine, scaling: str, counts: Sequence[int]) -> Iterator[dict]:
    """Yields a row for each number of hosts."""
    one: list[Estimate] = []
    for count in counts:
        times = count if scaling == "weak" else 1
        found = of_seeds(machine, setup(machine, count, 128 * times, 512 * times))
        one = one or found
        yield {
            "hosts": count,
            "efficiency": mean(found, lambda e: e.rate) / mean(one, lambda e: e.rate) / count,
            "rollout": mean(found, drawn) / mean(one, drawn) / count,
            "spread": mean(found, lambda e: e.played.spread),
            "filled": mean(found, lambda e: e.filled),
            "seconds": mean(found, lambda e: e.seconds),
            "stages": {stage: round(seconds, 2) for stage, seconds in found[0].stages.items()},
            "longest_s": mean(found, lambda e: e.longest_s),
            "lost": hosts.lost(found[0], one[0], count),
        }


def changes(machine: Machine, count: int) -> Iterator[dict]:
    """Yields what one changed setting does to the tokens a second of so many hosts."""
    base = setup(machine, count, instances=512)
    rate = mean(of_seeds(machine, base), lambda e: e.rate)
    for name, other in hosts.others(base):
        gain = mean(of_seeds(machine, other), lambda e: e.rate) / rate
        yield {"hosts": count, "instances": 512, "change": name, "gain": round(gain, 3)}
    for slots in (512, 2048):
        some = dataclasses.replace(base, slots=slots)
        shares = [mean(of_seeds(machine, some, handed_out), drawn) for handed_out in (True, False)]
        spreads = [
            mean(of_seeds(machine, some, handed_out), lambda e: e.played.spread)
            for handed_out in (True, False)
        ]
        change = f"instances handed out, not in fixed shares; {slots} slots; rollout only"
        row = {"hosts": count, "instances": 512, "change": change, "gain": round(shares[0] / shares[1], 3)}
        yield row | {"spreads": spreads}


def of_seeds(machine: Machine, one: Setup, handed_out: bool = True) -> list[Estimate]:
    device = DEVICES[machine.device]
    return [estimate(one, device, UTILISATION, SKEW, seed, handed_out) for seed in range(SEEDS)]


def drawn(found: Estimate) -> float:
    """Returns the tokens a second of the rollout alone."""
    return found.tokens / found.played.slowest_s


def mean(found: list[Estimate], value) -> float:
    return round(statistics.mean(value(one) for one in found), 4)


def draw(curves: dict, path: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, sides = pyplot.subplots(1, 2, figsize=(9, 3.6), sharey=True)
    for side, scaling in zip(sides, ("strong", "weak"), strict=True):
        for (name, kind), rows in curves.items():
            if kind == scaling:
                counts = [row["hosts"] for row in rows]
                (line,) = side.plot(counts, [row["efficiency"] for row in rows], marker="o", label=name)
                rollout = [row["rollout"] for row in rows]
                side.plot(counts, rollout, linestyle=":", color=line.get_color())
        side.set_xscale("log", base=2)
        side.set_xticks(counts, counts)
        side.set_xlabel("hosts")
        side.set_title("128 instances" if scaling == "strong" else "128 instances a host")
        side.grid(alpha=0.3)
    sides[0].set_ylabel("efficiency")
    sides[0].set_ylim(0, 1.05)
    sides[1].legend(title="dotted: the rollout alone", fontsize=8, title_fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
