"""Whether one commit is as fast as another: a step of each in turn, many times, in processes of their own.

    git worktree add /tmp/before COMMIT
    python benchmarks/alternate.py --root=/tmp/before --root=. [--item=tiny] [--rounds=40]

What disturbs a machine for seconds disturbs neighbours alike, so ratios are of steps of one round. Prints for
each root the median ratio to the first one, with the 95 % interval of a bootstrap over rounds. A step is that
of step.py: push, rollout, pack, update.
"""

import argparse
import os
import random
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from items import report

# Runs step.py of a checkout, and waits before each rollout until it is told to go on.
WAITING = """
import asyncio, runpy, sys, time
began = None
run = asyncio.run
def waiting(coroutine):
    global began
    if began is not None:
        print("took", time.perf_counter() - began, flush=True)
    if not sys.stdin.readline():
        raise SystemExit
    began = time.perf_counter()
    return run(coroutine)
asyncio.run = waiting
sys.path.insert(0, "benchmarks")
sys.argv = ["step.py", *sys.argv[1:]]
runpy.run_path("benchmarks/step.py", run_name="__main__")
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--root", action="append", required=True, help="a checkout; the first is compared with"
    )
    parser.add_argument("--item", default="tiny")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--warmup", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as cache:
        workers = [start(Path(root).resolve(), args, f"{cache}/{n}") for n, root in enumerate(args.root)]
        for worker in workers * args.warmup:  # one after the other, also while they compile
            step(worker)
        rounds = []
        for _ in range(args.rounds):
            order = random.sample(range(len(workers)), len(workers))
            took = {n: step(workers[n]) for n in order}
            rounds.append([took[n] for n in range(len(workers))])
        for worker in workers:
            worker.kill()
    for n, root in enumerate(args.root):
        ratios = [took[n] / took[0] for took in rounds]
        low, high = interval(ratios)
        report(
            "alternate",
            item=args.item,
            root=root,
            seconds=round(statistics.median(took[n] for took in rounds), 4),
            ratio=round(statistics.median(ratios), 4),
            interval=[round(low, 4), round(high, 4)],
            rounds=args.rounds,
        )


def start(root: Path, args: argparse.Namespace, cache: str) -> subprocess.Popen:
    steps = f"--steps={args.rounds + 10}"
    return subprocess.Popen(
        [sys.executable, "-c", WAITING, f"--item={args.item}", f"--warmup={args.warmup}", steps],
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(root), "JAX_COMPILATION_CACHE_DIR": cache},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def step(worker: subprocess.Popen) -> float:
    assert worker.stdin is not None and worker.stdout is not None
    worker.stdin.write("\n")
    worker.stdin.flush()
    for line in worker.stdout:
        if line.startswith("took "):
            return float(line.split()[1])
    raise RuntimeError(f"a process ended with code {worker.wait()}")


def interval(ratios: list[float]) -> tuple[float, float]:
    rng = random.Random(0)
    medians = sorted(statistics.median(rng.choices(ratios, k=len(ratios))) for _ in range(2000))
    return medians[50], medians[1949]


if __name__ == "__main__":
    main()
