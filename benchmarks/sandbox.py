"""Programs a second through the sandbox, and what many hostile ones leave behind: as JSON, one line each.

    python benchmarks/sandbox.py
    python benchmarks/sandbox.py --soak=10000

The first compares with starting an interpreter for each program, in the same run. The second runs
so many programs, a tenth of them hostile, and exits with 1 if an honest one went wrong, or if processes, open
files or memory are left.
"""

import argparse
import asyncio
import collections
import dataclasses
import os
import random
import subprocess
import sys
import time

from items import report

from atgrpo_jax.common.errors import RunError
from atgrpo_jax.sandbox.pool import LEVELS, Sandbox, SandboxConfig
from atgrpo_jax.sandbox.protocol import Program

SMALL = Program("print(sum(map(int, input().split())))", "1 2 3")
CALLED = Program("def f(x):\n    return x + 1", harness="print(f(1) == 2)", names=("f",))
HOSTILE = (
    "import os\nwhile True: os.fork()",
    "x = []\nwhile True: x.append(bytearray(1 << 20))",
    "while True: print('x' * 1000)",
    "while True: pass",
    "import time; time.sleep(100)",
    "sum(range(10 ** 12))",
    "import os; os.kill(os.getppid(), 9)",
    "import os; os.kill(os.getpid(), 9)",
    "import os; os.closerange(0, 256)",
    "import ctypes; ctypes.string_at(0)",
    "import threading, time\nthreading.stack_size(1 << 16)\n"
    "while True: threading.Thread(target=time.sleep, args=(9,)).start()",
    "open('/tmp/left_behind', 'w')",
    "import socket; socket.create_connection(('127.0.0.1', 22))",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--soak", type=int, default=0, help="programs; without it, rates")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each rate")
    args = parser.parse_args()
    if args.soak:
        sys.exit(soak(args.soak))
    rates(args.seconds)


def rates(seconds: float) -> None:
    began, count = time.monotonic(), 0
    while time.monotonic() - began < seconds:
        subprocess.run([sys.executable, "-I", "-S", "-c", SMALL.source], input=b"1 2 3", capture_output=True)
        count += 1
    limit = count / (time.monotonic() - began)
    report("sandbox", level="an interpreter for each, one at a time", programs_per_s=round(limit, 1))
    for level in LEVELS[1:]:
        for workers in (1, os.cpu_count() or 1):
            try:
                sandbox = SandboxConfig(level=level, workers=workers).build(levels=(level,))
            except RunError as error:
                report("sandbox", level=level, missing=str(error))
                break
            small, called = (rate(sandbox, program, workers, seconds) for program in (SMALL, CALLED))
            report(
                "sandbox", level=level, workers=workers, programs_per_s=round(small, 1),
                ms_a_program=round(1000 * workers / small, 2), called_per_s=round(called, 1),
                times_an_interpreter=round(small / limit, 1),
            )  # fmt: skip
            sandbox.close()


def rate(sandbox: Sandbox, program: Program, workers: int, seconds: float) -> float:
    """Programs a second, with as many waiting as are run."""

    async def keep(end: float) -> int:
        count = 0
        while time.monotonic() < end:
            assert (await sandbox.run(program)).end == "ok"
            count += 1
        return count

    async def everything(seconds: float) -> int:
        end = time.monotonic() + seconds
        return sum(await asyncio.gather(*(keep(end) for _ in range(workers))))

    asyncio.run(everything(0.5))  # starts the workers
    began = time.monotonic()
    return asyncio.run(everything(seconds)) / (time.monotonic() - began)


def soak(count: int) -> int:
    config = SandboxConfig(wall_s=1.0, cpu_s=1, memory_mb=128, output_kb=16, threads=16)
    sandbox = config.build()
    rng = random.Random(0)
    programs = [
        Program(rng.choice(HOSTILE)) if rng.random() < 0.1 else dataclasses.replace(SMALL, stdin=f"{i} 1")
        for i in range(count)
    ]
    sandbox.run_now(SMALL)
    before = resources()
    ends: collections.Counter[str] = collections.Counter()
    wrong = 0

    async def everything() -> None:
        nonlocal wrong
        waiting = iter(programs)

        async def work() -> None:
            nonlocal wrong
            for program in waiting:
                run = await sandbox.run(program)
                ends[f"{'hostile' if program.source in HOSTILE else 'honest'}, {run.end}"] += 1
                if program.source not in HOSTILE:
                    expected = f"{sum(map(int, program.stdin.split()))}\n"
                    wrong += (run.end, run.stdout) != ("ok", expected)

        await asyncio.gather(*(work() for _ in range(os.cpu_count() or 1)))

    began = time.monotonic()
    asyncio.run(everything())
    after = resources()
    sandbox.close()
    left = resources()
    report(
        "sandbox soak", level=sandbox.level, programs=count, seconds=round(time.monotonic() - began),
        wrong=wrong, replaced=sandbox.replaced, ends=dict(sorted(ends.items())), before=before, after=after,
        closed=left, file_left=os.path.exists("/tmp/left_behind"),
    )  # fmt: skip
    grown = after["memory_mb"] > before["memory_mb"] + 50 or after["files"] > before["files"] + 20
    return int(bool(wrong or grown or sandbox.replaced or left["processes"]))


def resources() -> dict[str, float]:
    """Counts this process and all below it, their open files and their resident memory."""
    parents: dict[int, list[int]] = collections.defaultdict(list)
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/stat") as file:
                    parents[int(file.read().rsplit(")")[1].split()[1])].append(int(entry))
            except (FileNotFoundError, ProcessLookupError):
                continue
    family, queue = [], [os.getpid()]
    while queue:
        family.append(queue.pop())
        queue += parents[family[-1]]
    pages = files = 0
    for pid in family:
        with open(f"/proc/{pid}/statm") as file:
            pages += int(file.read().split()[1])
        files += len(os.listdir(f"/proc/{pid}/fd"))
    return {
        "processes": len(family) - 1,
        "files": files,
        "memory_mb": round(pages * os.sysconf("SC_PAGE_SIZE") / 1e6),
    }


if __name__ == "__main__":
    main()
