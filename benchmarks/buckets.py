"""Seconds of a checkpoint and of a step's records, in a bucket and on this disk: as JSON lines.

    python benchmarks/buckets.py [--mb=64] [--latency_ms=30]

The bucket is the scripted store of the tests, in a process of its own, which answers each request after a
time that a distant one would need. Its throughput is that of this machine, so only the share of the requests
can be learned from it, and not what a real bucket's rate does.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from items import report

HERE = Path(__file__).resolve().parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--mb", type=int, default=64, help="of a checkpoint")
    parser.add_argument("--latency_ms", type=float, default=30.0, help="of each request")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    sys.path.insert(0, str(HERE.parent / "tests"))
    import fake_gcs

    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "objects" / "a-bucket").mkdir(parents=True)
        server = subprocess.Popen(
            [
                sys.executable, fake_gcs.__file__, f"{folder}/objects",
                f"--latency_s={args.latency_ms / 1000}",
            ],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            assert server.stdout is not None
            os.environ |= fake_gcs.environment(server.stdout.readline().strip())
            measure("disk", f"{folder}/disk", args)
            measure("bucket", "gs://a-bucket/runs", args)
        finally:
            server.kill()
            server.wait()


def measure(where: str, root: str, args: argparse.Namespace) -> None:
    import jax
    import numpy as np

    from atgrpo_jax.arrays import trees
    from atgrpo_jax.common.files import make_folder, write_atomically
    from atgrpo_jax.run.folder import RunFolder
    from atgrpo_jax.run.metrics import write_record
    from atgrpo_jax.run.tracking import Tracking
    from atgrpo_jax.tracking.trackers import Trackers

    leaves = 32
    size = args.mb * 2**20 // 4 // leaves
    tree = {str(n): jax.random.normal(jax.random.key(n), (size,)) for n in range(leaves)}
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)
    folder = RunFolder(root)
    make_folder(folder.episodes)
    tracking = Tracking(Trackers(), folder, {})
    values = {f"metric/{n}": float(n) for n in range(60)}
    episodes = np.random.default_rng(0).bytes(300_000)
    seconds: dict[str, list[float]] = {"save": [], "check": [], "restore": [], "records": []}
    for step in range(args.repeats + 1):
        place = folder.checkpoints / str(step)
        marks = [time.perf_counter()]
        trees.write_tree(place, tree, {"step": step})
        marks.append(time.perf_counter())
        trees.about_tree(place)
        marks.append(time.perf_counter())
        jax.block_until_ready(trees.read_tree(place, shapes))
        marks.append(time.perf_counter())
        write_atomically(folder.episodes / f"step_{step:06d}.jsonl.gz", episodes)
        tracking.send(write_record(folder, step, values))
        marks.append(time.perf_counter())
        for name, begin, end in zip(seconds, marks, marks[1:], strict=False):
            seconds[name].append(end - begin)
    for name, all_ in seconds.items():
        kept = sorted(all_[1:])
        report(
            "buckets",
            where=where,
            what=name,
            mb=args.mb,
            latency_ms=args.latency_ms,
            seconds=round(kept[len(kept) // 2], 3),
            range=[round(kept[0], 3), round(kept[-1], 3)],
            first_s=round(all_[0], 3),
        )


if __name__ == "__main__":
    main()
