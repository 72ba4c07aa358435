"""Seconds to the end of step 1 of a start that keeps what it makes, and of the next one, which loads that.

    python benchmarks/start.py [--gin_file=smoke.gin] [--gin_param=...] [--rounds=2]

A round has three starts. The ``first`` finds nothing: it makes the warm start and compiles. The ``second``
finds both. ``compiling`` finds the warm start alone, as after a change of JAX. There is a line for each,
and one for their ratios. Starts are processes of their own that train one step in a fresh run folder.
Parts are seconds of wall time: importing, tracing Python into JAX's programs, lowering these for XLA, and
compiling or loading them. ``rest`` is what a run does itself: making or reading the warm start, evaluating
step 0, saving, and the step. ``cpu`` is the processor time of all threads, which tells more on a machine
that others use.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable

from items import machine, report

EVENTS = {
    "tracing": "/jax/core/compile/jaxpr_trace_duration",
    "lowering": "/jax/core/compile/jaxpr_to_mlir_module_duration",
    "compiling_or_loading": "/jax/core/compile/backend_compile_duration",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--gin_file", default="smoke.gin")
    parser.add_argument("--gin_param", action="append", default=[])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--began", type=float, help="only this start, by another one of this program")
    parser.add_argument("--compiled", help="where that start keeps programs")
    parser.add_argument("--kept", help="where that start keeps its warm start")
    args = parser.parse_args()
    if args.began is not None:
        print(json.dumps(started(args)))
        return
    with tempfile.TemporaryDirectory() as folder:
        for number in range(1, args.rounds + 1):
            kept = f"--kept={folder}/kept_{number}"
            found = {
                "first": start(kept, f"--compiled={folder}/compiled_{number}"),
                "second": start(kept, f"--compiled={folder}/compiled_{number}"),
                "compiling": start(kept, f"--compiled={folder}/anew_{number}"),
            }
            for name, figures in found.items():
                report("start", gin_file=args.gin_file, round=number, start=name, **figures)
            for name in ("first", "compiling"):
                ratios = {
                    what: round(found["second"][what] / found[name][what], 3) for what in ("seconds", "cpu")
                }
                report("start", gin_file=args.gin_file, round=number, **{f"second_by_{name}": ratios})
    report("start", **machine())


def start(*places: str) -> dict[str, float]:
    """Returns what a process says of its start."""
    words = [sys.executable, *sys.argv, *places, f"--began={time.time()}"]
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def started(args: argparse.Namespace) -> dict[str, float]:
    """Trains a step in this process. Returns seconds and counts."""
    import jax

    from atgrpo_jax.run import gin_config
    from atgrpo_jax.run.compiled import keep_compiled
    from atgrpo_jax.run.folder import RunFolder
    from atgrpo_jax.run.loop import one_step
    from atgrpo_jax.run.saved import claim
    from atgrpo_jax.run.stages import Stages

    parts = {"imports": time.time() - args.began}
    spans: dict[str, list[tuple[float, float]]] = {event: [] for event in EVENTS.values()}
    events: Counter = Counter()

    def timed(event: str, seconds: float, **_: object) -> None:
        if event in spans:
            spans[event].append((time.time() - seconds, time.time()))

    jax.monitoring.register_event_duration_secs_listener(timed)
    jax.monitoring.register_event_listener(lambda event, **_: events.update([event]))
    keep_compiled(args.compiled)
    experiment = gin_config.load(args.gin_file, args.gin_param)
    if experiment.warm_start is not None:
        own = dataclasses.replace(experiment.warm_start, cache_dir=args.kept)
        experiment = dataclasses.replace(experiment, warm_start=own)
    with tempfile.TemporaryDirectory() as place:
        folder = RunFolder(os.path.join(place, "run"))
        with claim(folder, experiment) as begun, Stages(begun, folder) as stages:
            one_step(stages, stages.begin(), 1)
            seconds, cpu = time.time() - args.began, time.process_time()
    parts |= {name: covered(spans[event]) for name, event in EVENTS.items()}
    parts["rest"] = seconds - sum(parts.values())
    found = {"seconds": seconds, "cpu": cpu} | parts
    found["programs"] = len(spans[EVENTS["compiling_or_loading"]])
    found["loaded"] = events["/jax/compilation_cache/cache_hits"]
    return {name: round(value, 2) for name, value in found.items()}


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """Returns the length of what spans cover; they may hold one another."""
    total, until = 0.0, float("-inf")
    for began, ended in sorted(spans):
        total += max(0.0, ended - max(began, until))
        until = max(until, ended)
    return total


if __name__ == "__main__":
    main()
