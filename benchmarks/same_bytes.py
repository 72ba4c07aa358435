"""Trains briefly in several ways and writes digests of all that is saved, to compare two commits.

    python benchmarks/same_bytes.py --out=before.json
    python benchmarks/same_bytes.py --out=after.json --against=before.json

The second prints what differs, a line for each run, step and kind, and exits with 1 if anything does. Digests
are comparable on one machine, with the same releases of JAX and NumPy. It starts ``train`` as users do and
reads the files that it leaves; it imports nothing of the package. Where the package's modules move, ``TRAIN``
and ``MODULES`` are all that has to be edited.

Kinds: ``episodes`` are the files as they are. ``episodes without state`` leave out the digests of states,
which hash the names of a task's classes and fields. ``rewards`` and ``advantages`` are of all candidates.
``metrics`` are the values without perf/. ``parameters and optimizer`` and ``base of adapters`` are digests of
each array.
"""

import argparse
import gzip
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

ROOT = Path(__file__).resolve().parents[1]
STEPS = 3

# How the package spells its modules. The keys are the words that the texts below use.
TRAIN = "atgrpo_jax.train"
MODULES = {
    "batch": "atgrpo_jax.update.batch",
    "config": "atgrpo_jax.models.config",
    "evaluation": "atgrpo_jax.rollout.evaluation",
    "experiment": "atgrpo_jax.run.experiment",
    "local": "atgrpo_jax.engines.local.local",
    "lora": "atgrpo_jax.models.lora",
    "math": "atgrpo_jax.tasks.math.math",
    "mesh": "atgrpo_jax.arrays.mesh",
    "objectives": "atgrpo_jax.update.objectives",
    "pool": "atgrpo_jax.sandbox.pool",
    "rollout": "atgrpo_jax.rollout.rollout",
    "sudoku": "atgrpo_jax.tasks.games.sudoku",
    "team": "atgrpo_jax.rollout.team",
    "tokens": "atgrpo_jax.tokens.tokens",
    "warm_start": "atgrpo_jax.update.warm_start",
    "workflow": "atgrpo_jax.tasks.workflow",
}

SMALL = f"""
experiment.Experiment.steps = {STEPS}
experiment.Experiment.checkpoint_every = {STEPS}
config.Architecture.layers = 1
config.Architecture.width = 32
config.Architecture.mlp_width = 64
config.Architecture.heads = 2
config.Architecture.kv_heads = 1
config.Architecture.head_size = 16
warm_start.WarmStartConfig.instances = 3
warm_start.WarmStartConfig.candidates = 4
warm_start.WarmStartConfig.learning_rate = 2e-2
warm_start.WarmStartConfig.warmup = 2
warm_start.WarmStartConfig.cache_dir = "{{folder}}/cache"
evaluation.EvaluationConfig.instances = 2
evaluation.EvaluationConfig.validation_instances = 2
evaluation.EvaluationConfig.every = 0
"""
TOOLS = """
experiment.Experiment.engine = @local.LocalEngineConfig()
experiment.Experiment.sandbox = @pool.SandboxConfig()
experiment.Experiment.tokenizer = @tokens.TinyTokenizer()
pool.SandboxConfig.workers = 2
local.LocalEngineConfig.slots = 16
rollout.RolloutConfig.instances = 4
rollout.RolloutConfig.candidates = 4
rollout.RolloutConfig.max_tokens = 12
batch.BatchConfig.rows = 2
objectives.LossConfig.minibatches = 2
workflow.Workflow.turns = 2
"""
PROGRAM = ("```python\nprint('", "')\n```")
BOX = (r"\boxed{", "}")
CELLS = tuple(f" {row}{column}{digit}" for row in range(4) for column in range(4) for digit in range(1, 5))

# What each run adds to SMALL. ``{folder}`` is where the run's files are.
RUNS = {
    "smoke": """
include "smoke.gin"
warm_start.WarmStartConfig.steps = 20
""",
    "lora": """
include "smoke.gin"
include "parts/lora.gin"
warm_start.WarmStartConfig.steps = 20
lora.LoraConfig.rank = 4
""",
    "full": """
include "smoke.gin"
team.Team.sharing = "full"
warm_start.WarmStartConfig.steps = 20
""",
    "sudoku": f"""
include "sudoku.gin"
{TOOLS}
sudoku.Sudoku.prompts = "sudoku/full"
workflow.Workflow.order = ("tool", "filler")
tokens.TinyTokenizer.words = {(*PROGRAM, *CELLS)}
warm_start.WarmStartConfig.steps = 30
batch.BatchConfig.row_tokens = 1536
""",
    "math": f"""
include "parts/tiny.gin"
{TOOLS}
experiment.Experiment.task = @math.Math()
math.Math.files = {{
    "train": "{{folder}}/train.jsonl",
    "validation": "{{folder}}/validation.jsonl",
    "test": "{{folder}}/test.jsonl",
}}
workflow.Workflow.order = (("tool", "reasoner"),)
tokens.TinyTokenizer.words = {(*PROGRAM, *BOX)}
warm_start.WarmStartConfig.steps = 30
batch.BatchConfig.row_tokens = 1536
""",
}

Found = dict[str, dict[str, dict[str, dict[str, Any]]]]  # run, step, kind, item: a digest or a number


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", help="file to write")
    parser.add_argument("--against", help="a file that it wrote, to compare with")
    parser.add_argument("--runs", default=",".join(RUNS), help="which of them, with commas")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    names = args.runs.split(",")
    if unknown := sorted(set(names) - set(RUNS)):
        parser.error(f"--runs: there is no {', '.join(unknown)}; there are {', '.join(RUNS)}")
    if not (args.out or args.against):
        parser.error("give --out, --against, or both")
    before = json.loads(Path(args.against).read_text()) if args.against else None
    found = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name in names:
            found[name] = trained(name, args.seed, Path(scratch))
    if args.out:
        Path(args.out).write_text(json.dumps(found, indent=1) + "\n")
    if before is not None:
        lines = differences({name: before.get(name, {}) for name in names}, found)
        print("\n".join(lines) or f"the same: {', '.join(names)}")
        sys.exit(bool(lines))


def trained(name: str, seed: int, scratch: Path) -> dict[str, dict[str, dict[str, Any]]]:
    """Runs one of RUNS and returns what it has left, by step and kind."""
    folder = scratch / name
    folder.mkdir()
    write_problems(folder)
    (folder / "run.gin").write_text(gin_text(name, folder))
    command = [sys.executable, "-m", TRAIN, f"--gin_file={folder / 'run.gin'}", f"--run_dir={folder / 'run'}"]
    command.append(f"--gin_param=experiment.Experiment.seed = {seed}")
    own = {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    compiled = {"JAX_COMPILATION_CACHE_DIR": str(scratch / "compiled")}
    began = time.monotonic()
    done = subprocess.run(
        command, cwd=folder, env=compiled | os.environ | own, capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(f"{name}: train ended with {done.returncode}\n{done.stderr[-3000:]}")
    left = read_run(folder / "run")
    updates = sum(updates_of(kinds["metrics"]) for kinds in left.values())
    if not updates:
        sys.exit(f"{name}: no policy was updated, so this run would show nothing")
    print(f"{name}: {time.monotonic() - began:.0f} s, {updates:.0f} updates", file=sys.stderr)
    return left


def gin_text(name: str, folder: Path) -> str:
    """The whole gin file of a run. Imports give each module the word that the bindings use for it."""
    body = RUNS[name] + SMALL
    lines = ["from __gin__ import dynamic_registration"]
    for word, module in MODULES.items():
        if f"{word}." in body:
            package, _, last = module.rpartition(".")
            lines.append(f"from {package} import {last}" + (f" as {word}" if word != last else ""))
    return "\n".join(lines) + "\n" + body.replace("{folder}", str(folder))


def write_problems(folder: Path) -> None:
    """Sums of one digit for the math run: three files, no problem in two of them."""
    pairs = [(a, b) for a in range(10) for b in range(10 - a)]
    for number, split in enumerate(("train", "validation", "test")):
        rows = [{"question": f"{a} + {b} = ?", "answer": str(a + b)} for a, b in pairs[number::3]]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def updates_of(metrics: Mapping[str, Any]) -> float:
    return sum(
        value for name, value in metrics.items() if name.startswith("policy/") and name.endswith("/updates")
    )


def read_run(folder: Path) -> dict[str, dict[str, dict[str, Any]]]:
    """Digests of a run folder, by step, kind and item."""
    found = {}
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        kept = {name: value for name, value in record.items() if not name.startswith("perf/")}
        found[str(record["step"])] = {"metrics": kept}
    for file in sorted((folder / "episodes").glob("step_??????.jsonl.gz")):
        step = str(int(file.name.removeprefix("step_").removesuffix(".jsonl.gz")))
        found[step] |= read_episodes(file)
    last = max(found, key=int)
    found[last]["parameters and optimizer"] = read_tree(folder / "checkpoints" / last / "state")
    base = folder / "base" / "state"
    if base.is_dir():
        found[last]["base of adapters"] = read_tree(base)
    return found


def read_episodes(file: Path) -> dict[str, dict[str, Any]]:
    groups = []
    for line in gzip.open(file, "rt"):
        episode = json.loads(line)
        shared = {name: value for name, value in episode.items() if name != "groups"}
        groups += [shared | group for group in episode["groups"]]
    bare = [{name: value for name, value in group.items() if name != "state"} for group in groups]
    return {
        "episodes": {file.name: digest(file.read_bytes())},
        "episodes without state": {place(group): digest_of(group) for group in bare},
        "rewards": {place(group): digest_of(chosen(group, "team", "local", "parts")) for group in bare},
        "advantages": {place(group): digest_of(chosen(group, "advantage", "trained")) for group in bare},
    }


def place(group: Mapping[str, Any]) -> str:
    return f"instance {group['instance']}, episode {group['episode']}, turn {group['turn']}, {group['role']}"


def chosen(group: Mapping[str, Any], *names: str) -> list[list[Any]]:
    """The named fields of each candidate. A field that is gone is an error, and not a digest of nothing."""
    return [[candidate[name] for name in names] for candidate in group["candidates"]]


def read_tree(folder: Path) -> dict[str, str]:
    """Digests of kind, shape and bytes of a saved tree's arrays, by path."""
    reader = ocp.Checkpointer(ocp.PyTreeCheckpointHandler())
    shapes = reader.metadata(folder).item_metadata.tree
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), shapes)
    tree = reader.restore(folder, args=ocp.args.PyTreeRestore(restore_args=as_numpy))
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): digest_of_array(leaf) for path, leaf in leaves}


def digest_of_array(leaf: Any) -> str:
    array = np.asarray(leaf)
    return digest(f"{array.dtype} {array.shape} ".encode() + array.tobytes())


def digest_of(value: Any) -> str:
    return digest(json.dumps(value, sort_keys=True).encode())


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def differences(before: Found, after: Found) -> list[str]:
    """A line for each run, step and kind that is not the same on both sides."""
    lines = []
    for run in before.keys() | after.keys():
        steps_before, steps_after = before.get(run, {}), after.get(run, {})
        for step in steps_before.keys() | steps_after.keys():
            kinds_before, kinds_after = steps_before.get(step, {}), steps_after.get(step, {})
            for kind in kinds_before.keys() | kinds_after.keys():
                said = difference(kinds_before.get(kind, {}), kinds_after.get(kind, {}))
                if said:
                    lines.append(f"{run}, step {step}, {kind}: {said}")
    return sorted(lines)


def difference(before: Mapping[str, Any], after: Mapping[str, Any], most: int = 4) -> str:
    """How many items differ, and the first of them; "" if none does."""
    items = sorted(before.keys() | after.keys())
    other = [item for item in items if item not in before or item not in after or before[item] != after[item]]
    shown = [f"{item} ({one(before, item)} -> {one(after, item)})" for item in other[:most]]
    more = [f"and {len(other) - most} more"] if len(other) > most else []
    return f"{len(other)} of {len(items)} differ: " + ", ".join([*shown, *more]) if other else ""


def one(items: Mapping[str, Any], item: str) -> str:
    return str(items[item]) if item in items else "none"


if __name__ == "__main__":
    main()
