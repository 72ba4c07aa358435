"""Trains against an SGLang server that is killed (-9) at random moments, and checks the groups: as JSON.

    python benchmarks/kill_server.py --kills=10

Starts ``train`` on plan_sglang.gin with few instances. Exits with 1 if the run does not end well, if a step
is missing, or if a group in its episodes is not whole or of other weights than the last ones.
"""

import argparse
import gzip
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from items import report

ROOT = Path(__file__).resolve().parents[1]
CANDIDATES = 4
SETTINGS = (
    "warm_start.WarmStartConfig.steps = 30", "rollout.RolloutConfig.instances = 8",
    "evaluation.EvaluationConfig.instances = 10", "evaluation.EvaluationConfig.validation_instances = 10",
    "evaluation.EvaluationConfig.every = 0",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--steps", type=int, default=80)
    args = parser.parse_args()
    rng, kills = random.Random(0), 0
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "run"
        lines = (*SETTINGS, f"experiment.Experiment.steps = {args.steps}")
        command = [sys.executable, "-m", "atgrpo_jax.train", "--gin_file=plan_sglang.gin"]
        command += [f"--run_dir={folder}", *(f"--gin_param={line}" for line in lines)]
        began = time.monotonic()
        run = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
        done = 0
        while run.poll() is None and kills < args.kills:
            if len(steps(folder)) <= done:  # since the last kill: the server draws, and is not starting
                time.sleep(0.1)
                continue
            done = len(steps(folder))
            time.sleep(rng.uniform(0, 4))
            leash = server_of(run.pid)
            if leash is not None:
                os.killpg(leash, signal.SIGKILL)
                kills += 1
        _, said = run.communicate()
        done, broken = steps(folder), broken_groups(folder)
        restarts = said.count("has ended and is started again")
        report(
            "kill_server", kills=kills, restarts=restarts, drawn_again=said.count("is drawn again"),
            exit_code=run.returncode, steps=len(done), missing=sorted(set(range(args.steps + 1)) - set(done)),
            broken_groups=broken, seconds=round(time.monotonic() - began),
        )  # fmt: skip
        if run.returncode or broken or len(done) != args.steps + 1:
            print(said[-3000:], file=sys.stderr)
            sys.exit(1)


def server_of(pid: int) -> int | None:
    """The process group of the server that a run has started."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            parent = int((entry / "stat").read_text().rsplit(")")[1].split()[1])
            if parent == pid and b"leash.py" in (entry / "cmdline").read_bytes():
                return int(entry.name)
        except (FileNotFoundError, ProcessLookupError):
            continue
    return None


def steps(folder: Path) -> list[int]:
    path = folder / "metrics.jsonl"
    return [json.loads(line)["step"] for line in path.read_text().splitlines()] if path.exists() else []


def broken_groups(folder: Path) -> int:
    """Groups without all their candidates, or not drawn from the weights of the step before."""
    broken = 0
    for path in sorted((folder / "episodes").glob("*.gz")):
        with gzip.open(path, "rt") as file:
            for line in file:
                group = json.loads(line)
                whole = len(group["candidates"]) == CANDIDATES
                broken += not (whole and group["version"] == group["step"] - 1)
    return broken


if __name__ == "__main__":
    main()
