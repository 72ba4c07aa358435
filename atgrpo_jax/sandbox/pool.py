"""Runs programs side by side in warm workers, as isolated from everything else as possible.

docs/sandbox.md says what each level stops.
"""

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import json
import os
import queue
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from atgrpo_jax.common.checks import check_types, require
from atgrpo_jax.common.errors import RunError
from atgrpo_jax.sandbox import files, kernel, packages, start
from atgrpo_jax.sandbox.protocol import Program, Run

Level = Literal["limits", "kernel", "namespaces"]
LEVELS: tuple[Level, ...] = ("limits", "kernel", "namespaces")  # weakest first
START_S = 30.0  # most seconds until a worker is ready
_ANSWER = 1 << 16  # most bytes of an answer
GRACE_S = 5.0  # seconds beyond a program's own limits, after which its worker counts as hung
# The folders of shared libraries in Linux distributions, and files that Python reads beside them.
_SYSTEM = (
    "/lib64", "/usr/lib64", "/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu", "/lib/aarch64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu", "/etc/ld.so.cache", "/usr/share/zoneinfo", "/dev/null", "/dev/urandom",
)  # fmt: skip


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
    wall: float = 10.0  # seconds
    cpu: int = 5  # seconds
    memory_mb: int = 512
    output_kb: int = 256  # for standard output and for standard error, each
    open_files: int = 32
    threads: int = 32
    # Packages of this environment that programs may import, with all packages that these need.
    packages: tuple[str, ...] = ()

    def __post_init__(self):
        check_types(self)
        object.__setattr__(self, "packages", tuple(self.packages))
        require(self, "workers", self.workers >= 0, "must not be negative; 0 for one a core")
        for name in ("wall", "cpu", "memory_mb", "output_kb", "open_files", "threads"):
            require(self, name, getattr(self, name) > 0, "must be positive")
        require(self, "open_files", self.open_files >= 8, "Python itself needs 8")
        try:
            packages.paths(self.packages)
        except ValueError as error:
            require(self, "packages", False, str(error))

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
        self._config, self._warm_up = config, warm_up
        self._count = config.workers or os.cpu_count() or 1
        self._reasons: list[str] = []  # why stronger levels were not taken
        self._apart = False  # see ``Worker``
        self.level = self._best(
            [level for level in levels if LEVELS.index(level) >= LEVELS.index(config.level)]
        )
        self._free: queue.SimpleQueue[Worker | None] = queue.SimpleQueue()
        for _ in range(self._count):
            self._free.put(None)  # a worker is started when it is first needed
        self._threads = concurrent.futures.ThreadPoolExecutor(self._count, "sandbox")
        self.replaced = 0  # number of workers that died or hung
        self._lock = threading.Lock()
        self._workers: set[Worker] = set()
        self._closed = False

    def about(self) -> str:
        """Returns a line for people: the level, and why it is no stronger."""
        reasons = list(self._reasons)
        if self.level == "kernel" and not self._apart:
            reasons.append("no namespaces of its own: programs can ask whether a path exists")
        weaker = f" ({'; '.join(reasons)})" if reasons else ""
        return f"sandbox: level {self.level}, {self._count} programs at once{weaker}"

    @property
    def processes(self) -> list[int]:
        """Returns the process ids of the workers. Each is also the id of the worker's process group."""
        with self._lock:
            return [worker.pid for worker in self._workers]

    @property
    def busy(self) -> int:
        """Returns how many programs run."""
        return self._count - self._free.qsize()

    async def run(self, program: Program) -> Run:
        return await asyncio.get_running_loop().run_in_executor(self._threads, self.run_now, program)

    def run_now(self, program: Program) -> Run:
        """Runs a program and blocks until it ends. Raises RunError if no worker starts any more."""
        worker = self._free.get()
        try:
            if self._closed:
                return Run("crash", stderr="the sandbox is closed")
            if worker is None:
                worker = self._start()
            return worker.run(program)
        except WorkerLost as lost:
            assert worker is not None
            self._drop(worker)
            worker = None
            return Run("crash", stderr=str(lost))
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

    def _start(self) -> "Worker":
        worker = Worker(self._config, self.level, self._warm_up, self._apart)
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

    def _drop(self, worker: "Worker") -> None:
        worker.stop()
        with self._lock:
            self._workers.discard(worker)
            self.replaced += 1

    def _best(self, levels: Sequence[Level]) -> Level:
        for level in reversed(levels):
            reason = missing(level) or probe(self._config, level, self._warm_up, False)
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
        """Returns whether workers can be ``apart`` (see ``Worker``), in addition to the level."""
        useful = level == "kernel" or (level == "namespaces" and os.getuid() == 0)
        return useful and probe(self._config, level, self._warm_up, True) is None


class WorkerLost(Exception):
    """Raised if a worker died, hung, or gave an answer that cannot be read."""


class Worker:
    """A worker process and the socket to it."""

    def __init__(self, config: SandboxConfig, level: Level, warm_up: str, apart: bool):
        """Starts the process. The caller must call ``greet`` before ``run``, and finally ``stop``.

        Args:
          apart: whether the worker gets namespaces of its own at a level that has none, and, if the
            trainer is root, runs as a user that nobody else is.
        """
        self._config, self._level = config, level
        executable, self._settings, readable = worker_settings(config, level, warm_up, apart)
        command = [executable, "-s", "-S", "-B", "-c", start.BOOT]
        if level == "namespaces":
            command = [*start.bubblewrap(self._settings, readable), *command]
        self._words = tempfile.TemporaryFile()
        # SOCK_SEQPACKET delivers whole messages, never a part of one.
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                command, stdin=theirs.fileno(), stdout=theirs.fileno(), stderr=self._words,
                env=start.ENVIRONMENT, cwd="/", start_new_session=True,
            )  # fmt: skip

    @property
    def pid(self) -> int:
        return self._process.pid

    def greet(self) -> None:
        """Sends the worker its own code and settings. Raises RunError if it does not start."""
        told = [files.written(json.dumps(one)) for one in (start.sources(), self._settings)]
        try:
            answer = self._ask(told, START_S)
        except WorkerLost as lost:
            words = f"{lost}; {self._last_words()}"
            raise RunError(f"a worker of the sandbox ({self._level}) did not start: {words}") from lost
        finally:
            for one in told:
                os.close(one)
        assert answer == "ready", answer

    def run(self, program: Program) -> Run:
        """Runs a program. Raises WorkerLost if the worker dies or hangs."""
        parts = files.of(program)
        try:
            opened = [one for part in parts for one in part.opened]
            ends = self._ask(opened, self._config.wall + GRACE_S)
            return files.outcome(parts, ends, self._config.output_kb << 10)
        finally:
            for part in parts:
                part.close()

    def end(self) -> None:
        """Kills the worker. A thread that waits for its answer gets WorkerLost."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def stop(self) -> None:
        self.end()
        self._process.wait()
        self._socket.close()
        self._words.close()

    def _ask(self, opened: Sequence[int], seconds: float) -> Any:
        """Returns the worker's answer to a message with these open files. Raises WorkerLost."""
        self._socket.settimeout(seconds)
        try:
            socket.send_fds(self._socket, [b"."], opened)
            return json.loads(self._socket.recv(_ANSWER))
        except TimeoutError as error:
            raise WorkerLost("a worker did not answer in time") from error
        except (OSError, ValueError) as error:
            raise WorkerLost(f"a worker ended, or answered nonsense: {error!r}") from error

    def _last_words(self) -> str:
        self._words.seek(0)
        lines = self._words.read().decode(errors="replace").strip().splitlines()
        return " | ".join(lines[-3:]) or "it said nothing"


def worker_settings(
    config: SandboxConfig, level: Level, warm_up: str, apart: bool
) -> tuple[str, dict[str, Any], list[str]]:
    """Returns the Python that runs a worker, the worker's settings, and the paths that it reads."""
    executable = os.path.realpath(sys._base_executable)  # type: ignore[attr-defined]
    stdlib = os.path.realpath(sysconfig.get_path("stdlib"))  # programs cannot follow links
    libraries = Path(sys.base_prefix, "lib").glob("libpython*")
    site = packages.paths(config.packages)
    others = [*_SYSTEM, *map(str, libraries), executable, *map(str, site)]
    own = [str(path) for path in sorted(Path(stdlib).iterdir()) if path.name not in start.PACKAGES]
    masked = [f"{stdlib}/{name}" for name in start.PACKAGES if Path(stdlib, name).is_dir()]
    settings = {
        "path": [stdlib, f"{stdlib}/lib-dynload", *sorted({str(path.parent) for path in site})],
        "packages": config.packages,
        "warm_up": warm_up,
        "readable": [*own, *others],
        "user": start.nobody() if apart and os.getuid() == 0 else 0,
        "root": (stdlib, masked, others) if apart and level == "kernel" else None,
        "files": level != "limits" and kernel.landlock_version() > 0,
        "calls": level != "limits",
        "limits": {
            "wall": config.wall,
            "cpu": config.cpu,
            "memory": config.memory_mb << 20,
            "output": config.output_kb << 10,
            "open_files": config.open_files,
            "threads": config.threads,
        },
    }
    return executable, settings, others


def missing(level: Level) -> str | None:
    """Returns what this machine lacks for a level, or None, without trying to start a worker."""
    if not sys.platform.startswith("linux"):
        return "programs are run on Linux only"
    if level != "limits" and not kernel.seccomp_known():
        return "no table of system calls for this processor"
    if level == "kernel" and not kernel.landlock_version():
        return "this kernel has no Landlock (Linux 5.13 has it)"
    if level == "namespaces" and shutil.which("bwrap") is None:
        return "bubblewrap (bwrap) is not installed"
    return None


# A program that tries what every level above "limits" must stop, and prints what it could do.
_BURGLAR = """
import os, socket, sys
done = []
def attempt(what, work):
    try:
        work()
    except Exception:
        return
    done.append(what)
secret, parent = input(), int(input())
attempt("read a file", lambda: open(secret).read())
attempt("read an environment", lambda: open(f"/proc/{parent}/environ").read())
attempt("write a file", lambda: open(secret + ".written", "w"))
attempt("open a socket", socket.socket)
attempt("start a process", os.fork)
attempt("signal a process", lambda: os.kill(parent, 0))
print(", ".join(done))
"""


def probe(config: SandboxConfig, level: Level, warm_up: str, apart: bool) -> str | None:
    """Returns why ``level`` does not protect here; None if it does, as far as one program shows."""
    with tempfile.NamedTemporaryFile() as secret:
        worker = Worker(config, level, warm_up, apart)
        try:
            worker.greet()
            run = worker.run(Program(_BURGLAR, f"{secret.name}\n{os.getpid()}\n"))
        except (RunError, WorkerLost) as error:
            return str(error)
        finally:
            worker.stop()
    if run.end != "ok":
        return f"a program could not be run ({run.end}: {run.stderr.strip()[-200:]})"
    could = run.stdout.strip()
    return f"a program could {could}" if could and level != "limits" else None
