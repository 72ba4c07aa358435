"""Whether the simulated rollout of several hosts (planning/events.py) takes as long as real processes do.

    python benchmarks/hosts_check.py [--hosts=1,2,4] [--steps=3]

The processes are joined and meet as those of a run; player, engine, lanes, counter, gathering are the real
ones. Only the device is not: a chunk of tokens takes as long to sleep as the model says that it takes to
draw, and lengths are drawn from a lognormal distribution. What Python itself takes is measured first, in a
process whose device takes no time. Then the predictions are printed, then what came, as JSON lines.
"""

import argparse
import dataclasses
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from items import report
from scipy.optimize import nnls

from atgrpo_jax.planning.events import Asked, Played, Skew, Speed, rollout

ROOT = Path(__file__).resolve().parents[1]
SAMPLES = 4
TURNS = 3
ROLES = ("scout", "mover")
MOST = 512  # tokens
BOUND = 0.10  # of a prediction's error


@dataclasses.dataclass(frozen=True)
class Case:
    """A rollout to predict. Slots and instances are those of all hosts."""

    name: str
    instances: int
    slots: int
    step_s: float = 12e-3
    sample_s: float = 0.0
    chunk: int = 16
    mean: float = 30.0
    sigma: float = 0.8
    ends: float = 0.2
    handed_out: bool = True

    def asked(self, seed: int) -> Asked:
        skew = Skew(self.mean, self.sigma, self.ends)
        return skew.asked(self.instances, 1, TURNS, len(ROLES), SAMPLES, MOST, seed)

    def speed(self, hosts: int, python: dict[str, float]) -> Speed:
        return Speed(self.slots // hosts, self.chunk, self.step_s, self.sample_s, **python)

    def at_once(self, hosts: int) -> int:
        """Returns how many instances a host plays at the same time."""
        if hosts == 1:  # it takes all of them
            return self.instances
        return -(-min(self.slots // SAMPLES, self.instances) // hosts)


CASES = (
    Case("all at once, weights are read", instances=24, slots=96),
    Case("few slots, samples cost", instances=36, slots=48, step_s=3e-3, sample_s=6e-4),
    Case("the same, fixed shares", 36, 48, step_s=3e-3, sample_s=6e-4, handed_out=False),
    Case("long answers, few turns", 36, 48, step_s=3e-3, sample_s=3e-4, mean=90.0, sigma=1.0, ends=0.5),
)
# To see what Python takes for chunks, for samples in them, and for turns.
IDLE = [
    Case(f"idle {slots} {chunk}", 24, slots, step_s=0.0, chunk=chunk, ends=0.0)
    for slots, chunk in ((96, 16), (96, 4), (16, 16))
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--hosts", default="1,2,4", help="how many processes")
    parser.add_argument("--steps", type=int, default=3, help="steps of each case, with a seed each")
    parser.add_argument("--host", type=int, help="for the processes themselves")
    parser.add_argument("--count", type=int)
    parser.add_argument("--coordinator")
    parser.add_argument("--cases", help="JSON")
    args = parser.parse_args()
    if args.host is not None:
        cases = [Case(**case) for case in json.loads(args.cases)]
        return host(args.count, args.host, args.coordinator, cases, args.steps)
    python = calibrated()
    told_ms = {name.replace("_s", "_ms"): round(1e3 * seconds, 3) for name, seconds in python.items()}
    report("hosts_check", phase="calibration", **told_ms)
    counts = [int(count) for count in args.hosts.split(",")]
    predictions = {}
    for count in counts:
        for case in CASES:
            said = [predicted(case, count, seed, python) for seed in range(args.steps)]
            predictions[count, case.name] = said
            seconds = [round(played.slowest_s, 3) for played in said]
            report("hosts_check", phase="prediction", hosts=count, case=case.name, seconds=seconds)
    for count in counts:
        found = started(count, CASES, args.steps)
        for case in CASES:
            told(count, case, predictions[count, case.name], found[case.name])


def predicted(case: Case, hosts: int, seed: int, python: dict[str, float]) -> Played:
    speed = case.speed(hosts, python)
    return rollout(case.asked(seed), speed, hosts, case.at_once(hosts), case.handed_out)


def told(count: int, case: Case, said: Sequence[Played], came: Sequence[dict]) -> None:
    errors = [one.slowest_s / other["slowest_s"] - 1 for one, other in zip(said, came, strict=True)]
    report(
        "hosts_check",
        phase="came",
        hosts=count,
        case=case.name,
        seconds=[round(other["slowest_s"], 3) for other in came],
        spread=[round(other["spread"], 3) for other in came],
        spread_said=[round(one.spread, 3) for one in said],
        with_gather=[round(other["all_s"], 3) for other in came],
        errors=[round(error, 3) for error in errors],
        within=all(abs(error) <= BOUND for error in errors),
    )


def calibrated() -> dict[str, float]:
    """Returns the seconds that Python takes, by names of ``Speed``: what fits the measured rollouts best."""
    found = started(1, IDLE, 4)
    best = [min(steps[1:], key=lambda one: one["slowest_s"]) for steps in found.values()]
    names = {"chunk_s": "chunks", "live_s": "live", "turn_s": "draws"}
    rows = np.array([[one[counted] for counted in names.values()] for one in best], float)
    fit, _ = nnls(rows, np.array([one["slowest_s"] for one in best]))
    return dict(zip(names, fit.tolist(), strict=True))


def started(count: int, cases: Sequence[Case], steps: int) -> dict[str, list[dict]]:
    """Runs all cases on so many processes. Returns the steps of each case."""
    with socket.socket() as free:
        free.bind(("", 0))
        address = f"localhost:{free.getsockname()[1]}"
    given = json.dumps([dataclasses.asdict(case) for case in cases])
    line = [sys.executable, __file__, f"--count={count}", f"--coordinator={address}", f"--cases={given}"]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    processes = [
        subprocess.Popen(
            [*line, f"--steps={steps}", f"--host={host}"], stdout=subprocess.PIPE, env=environment, text=True
        )
        for host in range(count)
    ]
    output, *_ = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        raise SystemExit(f"a process failed: {[process.returncode for process in processes]}")
    found: dict[str, list[dict]] = {}
    for line in output.splitlines():
        if not line.startswith("{"):  # gloo's
            continue
        one = json.loads(line)
        found.setdefault(one["case"], []).append(one)
    return found


def host(count: int, index: int, coordinator: str, cases: Sequence[Case], steps: int) -> None:
    """One of the processes. That of host 0 prints what came."""
    from atgrpo_jax.hosts.joining import HostPlace, joined

    place = HostPlace(count, index, coordinator) if count > 1 else None
    with joined(place, heartbeat_s=60, patience_s=600) as hosts:
        for case in cases:
            for step in range(steps):
                line = played_step(hosts, case, step)
                if index == 0:
                    print(json.dumps({"case": case.name} | line), flush=True)


def played_step(hosts, case: Case, seed: int) -> dict:
    """Plays a step with the real player and engine. Returns what it took."""
    from hosts_engine import player_of

    from atgrpo_jax.rollout.rollout import play_all

    asked = case.asked(seed)
    player, clock, close = player_of(case, asked, hosts)
    if not case.handed_out:
        hosts = Fixed(hosts, case.instances)
    hosts.meet("ready", lambda: b"")
    began = time.perf_counter()
    at_once = case.at_once(hosts.count) * hosts.count
    episodes = play_all(player, 1, "train", range(case.instances), hosts=hosts, at_once=at_once)
    all_s = time.perf_counter() - began
    close()
    own = {"chunks": clock.chunks, "live": clock.live, "ended_s": clock.ended_s - began}
    found = [json.loads(one) for one in hosts.meet("took", lambda: json.dumps(own).encode())]
    ended = [one["ended_s"] for one in found]
    draws = sum(len(episode.groups) for episode in episodes)
    assert draws == asked.draws_IE.sum()
    return {
        "all_s": all_s,
        "slowest_s": max(ended),
        "spread": max(ended) / (sum(ended) / len(ended)),
        "chunks": sum(one["chunks"] for one in found),
        "live": sum(one["live"] for one in found),
        "draws": draws,
    }


class Fixed:
    """Hosts whose counter gives each of them its fixed share."""

    def __init__(self, hosts, instances: int):
        self._hosts = hosts
        self._numbers: Iterator[int] = iter(range(hosts.index, instances, hosts.count))
        self._end = instances

    def counter(self):
        return lambda: next(self._numbers, self._end)

    def __getattr__(self, name):
        return getattr(self._hosts, name)


if __name__ == "__main__":
    main()
