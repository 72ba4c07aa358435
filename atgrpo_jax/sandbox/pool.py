"""Runs programs side by side in warm workers, as isolated from everything else as possible.

docs/sandbox.md says what each level stops.
"""

import asyncio
import concurrent.futures
import dataclasses
import os
import queue
import threading
from collections.abc import Sequence

from atgrpo_jax.common.checks import check_types, require
from atgrpo_jax.common.errors import RunError
from atgrpo_jax.common.progress import counted
from atgrpo_jax.sandbox import packages, start
from atgrpo_jax.sandbox.levels import LEVELS, Level, missing
from atgrpo_jax.sandbox.probe import probe
from atgrpo_jax.sandbox.process import WorkerLost, WorkerProcess
from atgrpo_jax.sandbox.protocol import Program, ProgramResult


@dataclasses.dataclass(frozen=True)
class SandboxConfig:
    """The limits of each program, and the lowest ``level`` of protection at which one is run:

    "namespaces"  bubblewrap: nothing else exists for the program; and all of "kernel"
    "kernel"      Landlock and seccomp: it reads Python's library and no other file, writes no file,
                  has no network, starts no process and signals none
    "limits"      time, memory and output are limited, and nothing else
    """

    level: Level = "kernel"
    workers: int = 0  # programs that run at once; 0 for one per core
    wall_s: float = 10.0  # seconds
    cpu_s: int = 5  # seconds
    memory_mb: int = 512  # MB of address space
    output_kb: int = 256  # for standard output and for standard error, each
    open_files: int = 32  # at the same time
    threads: int = 32  # at the same time
    # Packages of this environment that programs may import, with all packages that these need.
    packages: tuple[str, ...] = ()

    def __post_init__(self):
        check_types(self)
        object.__setattr__(self, "packages", tuple(self.packages))
        require(self, "workers", self.workers >= 0, "must not be negative; 0 for one a core")
        for name in ("wall_s", "cpu_s", "memory_mb", "output_kb", "open_files", "threads"):
            require(self, name, getattr(self, name) > 0, "must be positive")
        require(self, "open_files", self.open_files >= 8, "Python itself needs 8")
        try:
            packages.paths(self.packages)
        except ValueError as error:
            require(self, "packages", False, str(error))

    @property
    def limits(self) -> dict[str, float]:
        """The limits of each program, in seconds, bytes and numbers."""
        return {
            "wall_s": self.wall_s,
            "cpu_s": self.cpu_s,
            "memory": self.memory_mb << 20,
            "output": self.output_kb << 10,
            "open_files": self.open_files,
            "threads": self.threads,
        }

    def build(self, warm_up: str = "", levels: Sequence[Level] = LEVELS) -> "Sandbox":
        """Returns a sandbox. Raises RunError if this machine has no level as high as ``level``.

        Args:
          warm_up: a trusted program that every worker runs first, so that programs find the modules
            that it imports already loaded.
          levels: the levels that may be tried, weakest first.
        """
        return Sandbox(self, warm_up, levels)


class Sandbox:
    """A pool of workers.

    They run at the highest level at which a worker starts and stops what it has to (``probe``).
    """

    def __init__(self, config: SandboxConfig, warm_up: str, levels: Sequence[Level]):
        self._config = config
        self._warm_up = warm_up
        self._count = config.workers or os.cpu_count() or 1
        self._reasons: list[str] = []  # why stronger levels were not taken
        self._apart = False  # see ``start.settings``
        self.level = self._best(
            [level for level in levels if LEVELS.index(level) >= LEVELS.index(config.level)]
        )
        self._free: queue.SimpleQueue[WorkerProcess | None] = queue.SimpleQueue()
        for _ in range(self._count):
            self._free.put(None)  # a worker is started when it is first needed
        self._threads = concurrent.futures.ThreadPoolExecutor(self._count, "sandbox")
        self.replaced = 0  # number of workers that died or hung
        self._lock = threading.Lock()
        self._workers: set[WorkerProcess] = set()
        self._closed = False

    def about(self) -> str:
        """Returns a line for people: the level, and why it is no stronger."""
        reasons = list(self._reasons)
        if self.level == "kernel" and not self._apart:
            reasons.append("no namespaces of its own: programs can ask whether a path exists")
        weaker = f" ({'; '.join(reasons)})" if reasons else ""
        return f"sandbox: level {self.level}, {counted(self._count, 'program')} at once{weaker}"

    @property
    def processes(self) -> list[int]:
        """Returns the process ids of the workers. Each is also the id of the worker's process group."""
        with self._lock:
            return [worker.pid for worker in self._workers]

    @property
    def busy(self) -> int:
        """Returns how many programs run."""
        return self._count - self._free.qsize()

    async def run(self, program: Program) -> ProgramResult:
        return await asyncio.get_running_loop().run_in_executor(self._threads, self.run_now, program)

    def run_now(self, program: Program) -> ProgramResult:
        """Runs a program and blocks until it ends. Raises RunError if no worker starts any more."""
        worker = self._free.get()
        try:
            if self._closed:
                return ProgramResult("crash", stderr="the sandbox is closed")
            if worker is None:
                worker = self._start()
            return worker.run(program)
        except WorkerLost as lost:
            assert worker is not None
            self._drop(worker)
            worker = None
            return ProgramResult("crash", stderr=str(lost))
        finally:
            self._free.put(worker)

    def close(self) -> None:
        """Stops all workers without waiting. Programs that still run end as a crash."""
        with self._lock:
            self._closed = True
            for worker in self._workers:
                worker.end()
        self._threads.shutdown(cancel_futures=True)
        # A thread that has a worker still reads from it: the worker is stopped when it comes back.
        for back in [self._free.get() for _ in range(self._count)]:
            if back is not None:
                back.stop()
            self._free.put(None)
        self._workers.clear()

    def _start(self) -> WorkerProcess:
        worker = WorkerProcess(self._settings(self.level, self._apart))
        with self._lock:
            self._workers.add(worker)
            if self._closed:
                worker.end()
        try:
            worker.greet()
        except RunError:
            self._drop(worker)
            raise
        return worker

    def _drop(self, worker: WorkerProcess) -> None:
        worker.stop()
        with self._lock:
            self._workers.discard(worker)
            self.replaced += 1

    def _settings(self, level: Level, apart: bool) -> start.Settings:
        return start.settings(self._config.limits, self._config.packages, level, self._warm_up, apart)

    def _best(self, levels: Sequence[Level]) -> Level:
        for level in reversed(levels):
            reason = missing(level) or probe(self._settings(level, False))
            if reason is None:
                self._apart = self._further(level)
                return level
            self._reasons.append(f"{level}: {reason}")
        raise RunError(
            f"SandboxConfig.level = {self._config.level!r}: this machine cannot keep programs apart as far ("
            + "; ".join(self._reasons)
            + "); docs/sandbox.md says what each level needs"
        )

    def _further(self, level: Level) -> bool:
        """Returns whether workers can be ``apart`` (see ``start.settings``), in addition to the level."""
        useful = level == "kernel" or (level == "namespaces" and os.getuid() == 0)
        return useful and probe(self._settings(level, True)) is None
