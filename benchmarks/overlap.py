"""What it saves to play a step while the one before is learned (``Experiment.max_lag``).

    python benchmarks/overlap.py [--rounds=12]      steps of quick.gin with and without a lag, in turn
    python benchmarks/overlap.py --simulate         accelerators that are split, by planning/estimate.py

The first has two CPU devices, one for the engine and one for the learner, whose programs have one thread
each. What disturbs the machine disturbs neighbours alike, so ``ratio`` is of two steps of one round: seconds
with a lag over those without. ``best`` is the ratio if the longer one of rollout and update hid the other.

The second compares as many devices: without a lag, all draw and then all learn. With one, some draw while
the others learn. What a device must hold is not looked at.
"""

import argparse
import dataclasses
import os
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path

ONE_THREAD = "--xla_cpu_multi_thread_eigen=false"
os.environ["XLA_FLAGS"] = f"{ONE_THREAD} {os.environ.get('XLA_FLAGS', '')}"

from hosts import MACHINES, SEEDS, SKEW, UTILISATION, Machine, setup  # noqa: E402
from items import report  # noqa: E402

from atgrpo_jax.arrays.mesh import MeshConfig  # noqa: E402
from atgrpo_jax.planning.devices import DEVICES  # noqa: E402
from atgrpo_jax.planning.estimate import Setup, estimate  # noqa: E402
from atgrpo_jax.run.folder import RunFolder  # noqa: E402
from atgrpo_jax.run.gin_config import load  # noqa: E402
from atgrpo_jax.run.loop import one_step  # noqa: E402
from atgrpo_jax.run.stages import Stages  # noqa: E402

WARM_UP = 3  # steps of each, which compile
FORWARD = 1 / 3  # of an update is the forward pass, which the check of a lagged step makes for a minibatch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--simulate", action="store_true")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--steps_of", default="quick.gin", help="a gin file")
    args = parser.parse_args()
    if not args.simulate:
        report("overlap", **measured(args.steps_of, args.rounds))
        return
    for name, machine in MACHINES.items():
        for instances in (128, 512):
            for row in simulated(machine, instances):
                report("overlap", case=name, model=machine.model, instances=instances, **row)


def measured(file: str, rounds: int) -> dict:
    x = load(file)
    x = dataclasses.replace(
        x,
        engine=dataclasses.replace(x.engine, mesh=MeshConfig(), first_device=1),
        evaluation=dataclasses.replace(x.evaluation, instances=1, validation_instances=1, every=0),
        steps=10**6,
        checkpoint_every=10**6,
    )
    with tempfile.TemporaryDirectory() as place:
        runs = [Run(dataclasses.replace(x, max_lag=lag), Path(place) / str(lag)) for lag in (0, 1)]
        for run in runs:
            for _ in range(WARM_UP):
                run.step()
        steps = [[run.step() for run in runs[:: 1 - 2 * (n % 2)]][:: 1 - 2 * (n % 2)] for n in range(rounds)]
        for run in runs:
            run.stages.__exit__()
    ratios = [lag["perf/step_s"] / plain["perf/step_s"] for plain, lag in steps]
    longer = [max(of(plain, "rollout"), of(plain, "update")) for plain, _ in steps]
    both = [of(plain, "rollout") + of(plain, "update") for plain, _ in steps]
    hidden = zip(both, longer, steps, strict=True)
    best = [1 - (two - one) / plain["perf/step_s"] for two, one, (plain, _) in hidden]
    middle = statistics.median
    return {
        "rounds": rounds,
        "ratio": round(middle(ratios), 3),
        "quarters": [round(q, 3) for q in statistics.quantiles(ratios, n=4)[::2]],
        "best": round(middle(best), 3),
        "step_s": [round(middle(pair[n]["perf/step_s"] for pair in steps), 3) for n in (0, 1)],
        "rollout_s": [round(middle(of(pair[n], "rollout") for pair in steps), 3) for n in (0, 1)],
        "update_s": [round(middle(of(pair[n], "update") for pair in steps), 3) for n in (0, 1)],
        "overlap_s": round(middle(of(lag, "overlap") for _, lag in steps), 3),
    }


def of(record: dict, stage: str) -> float:
    return record[f"perf/{stage}_s"]


class Run:
    def __init__(self, x, place: Path):
        place.mkdir()
        self.stages = Stages(x, RunFolder(place))
        self.team = self.stages.begin()

    def step(self) -> dict:
        self.team, record = one_step(self.stages, self.team, self.stages.done + 1)
        return record


def simulated(machine: Machine, instances: int) -> Iterator[dict]:
    """Yields a row for each number of devices that draw, beside all of them that do both."""
    whole = setup(machine, 1, instances, 4 * instances)
    plain = [estimate(whole, DEVICES[machine.device], UTILISATION, SKEW, seed) for seed in range(SEEDS)]
    for drawing in range(1, machine.devices):
        seconds = []
        for seed, alone in enumerate(plain):
            draws = stage(split(whole, drawing), machine, seed, "rollout")
            learns = stage(split(whole, machine.devices - drawing), machine, seed, "update")
            rest = alone.seconds - alone.stages["rollout"] - alone.stages["update"]
            check = FORWARD * learns / whole.minibatches
            seconds.append((draws, learns, max(draws, learns) + check + rest))
        means = [statistics.mean(column) for column in zip(*seconds, strict=True)]
        yield {
            "drawing": drawing,
            "learning": machine.devices - drawing,
            "ratio": round(means[2] / statistics.mean(e.seconds for e in plain), 3),
            "rollout_s": [round(statistics.mean(e.stages["rollout"] for e in plain), 1), round(means[0], 1)],
            "update_s": [round(statistics.mean(e.stages["update"] for e in plain), 1), round(means[1], 1)],
        }


def split(whole: Setup, devices: int) -> Setup:
    """Returns the same step on fewer devices, each with a copy of the weights if it draws."""
    return dataclasses.replace(
        whole, devices=devices, players=devices, shards=devices, fsdp=devices, rows=devices
    )


def stage(part: Setup, machine: Machine, seed: int, name: str) -> float:
    return estimate(part, DEVICES[machine.device], UTILISATION, SKEW, seed).stages[name]


if __name__ == "__main__":
    main()
