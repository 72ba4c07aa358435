"""Makes the runs of a study that are missing, some at a time, each in a process of its own."""

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Protocol

from atgrpo_jax.common import leash
from atgrpo_jax.common.cores import cores, kept_to
from atgrpo_jax.common.errors import ConfigError, one_line
from atgrpo_jax.common.files import is_file, make_folder
from atgrpo_jax.common.progress import counted, duration, say
from atgrpo_jax.common.stopping import Stopping
from atgrpo_jax.run.ending import drawn_tokens
from atgrpo_jax.studying.asked import Study
from atgrpo_jax.studying.recorded import Run, StudyFolder, tested
from atgrpo_jax.viewing.folders import is_running, outline

LOOK_S = 0.5  # seconds between two looks at the processes
TELL_S = 60.0  # seconds between two lines on how far the runs are


class Process(Protocol):
    """A training process."""

    def poll(self) -> int | None:
        """Returns its exit code; None while it runs."""
        ...

    def ask_to_stop(self) -> None:
        """Asks it to save what it has, and to end."""
        ...

    def wait(self) -> object:
        """Waits until it has ended."""
        ...


class Training:
    """Runs a command on a leash (``common/leash.py``), on its ``own`` cores. Its output goes to ``log``."""

    def __init__(self, command: Sequence[str], log: Path, own: set[int]):
        with open(log, "ab") as words, kept_to(own):
            words.write(f"$ {shlex.join(command)}\n".encode())
            words.flush()
            self._process = subprocess.Popen(
                [sys.executable, "-I", leash.__file__, str(os.getpid()), *command],
                stdin=subprocess.DEVNULL,
                stdout=words,
                stderr=words,
                start_new_session=True,  # Ctrl-C goes to the study alone, which asks once
            )

    def poll(self) -> int | None:
        return self._process.poll()

    def ask_to_stop(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGTERM)

    def wait(self) -> object:
        return self._process.wait()


def shares(at_once: int) -> list[set[int]]:
    """Returns the cores of each of so many processes. Raises ConfigError if there are not enough.

    Sums of the CPU depend on the number of cores, so each process has as many, from start to end.
    """
    usable = cores()
    if not 1 <= at_once <= len(usable):
        raise ConfigError(f"--at_once={at_once}: this machine gives us {counted(len(usable), 'core')}")
    each = len(usable) // at_once
    return [set(usable[each * place : each * (place + 1)]) for place in range(at_once)]


def command(study: Study, run: Run) -> list[str]:
    """Returns what makes a run, or goes on with it; or what tests it in another way."""
    assert run.seed is not None
    if run.test is not None:
        params = [f"--gin_param={text}" for text in run.test.gin_params]
        params += [] if run.test.step is None else [f"--step={run.test.step}"]
        params += [f"--swap={','.join(run.test.swap)}"] if run.test.swap else []
        return [sys.executable, "-m", "atgrpo_jax.evaluate", f"--run_dir={run.folder.path}", *params]
    files = [f"--gin_file={name}" for name in study.files(run.arm)]
    params = [f"--gin_param={text}" for text in study.bindings(run.arm, run.seed)]
    return [sys.executable, "-m", "atgrpo_jax.train", *files, *params, f"--run_dir={run.folder.path}"]


def starter(study: Study, folder: StudyFolder, at_once: int) -> Callable[[Run, int], Process]:
    """Returns what starts a run in one of ``at_once`` places."""
    own = shares(at_once)

    def start(run: Run, place: int) -> Process:
        make_folder(folder.logs)
        return Training(command(study, run), folder.log(run), own[place])

    return start


def is_made(run: Run) -> bool:
    """Returns whether a run has made its last step and written its summary, and was tested if it is to be."""
    found = run.folder
    ended = found.exists() and is_file(found.summary) and outline(found).ended
    return ended and (run.test is None or tested(run) is not None)


def make(
    runs: Sequence[Run], start: Callable[[Run, int], Process], at_once: int, look_s: float = LOOK_S
) -> list[Run]:
    """Makes the runs that are not made. Returns those that failed; the others go on meanwhile.

    If this is stopped, all processes are asked to stop, and have ended when it raises.
    """
    missing = deque(run for run in runs if run.seed is not None and not is_made(run))
    what = "test" if any(run.test for run in runs) else "run"
    told = Told(counted(len(runs), what), len(runs) - len(missing))
    say(f"{counted(len(runs), what)}: {told.done} there, {len(missing)} to make, {at_once} at a time")
    going: dict[int, tuple[Run, Process]] = {}
    failed = []
    try:
        with Stopping():  # of its own: what follows may take longer than a stop has time
            while missing or going:
                for place in set(range(at_once)) - set(going):
                    run = _free(missing, [other for other, _ in going.values()])
                    if run is not None:
                        told.begins(run)
                        going[place] = run, start(run, place)
                time.sleep(look_s)
                for place, (run, process) in list(going.items()):
                    code = process.poll()
                    if code is None:
                        continue
                    del going[place]
                    made = code == 0 and is_made(run)
                    told.ended(run, made)
                    failed += [] if made else [run]
                told.now_and_then([run for run, _ in going.values()], missing)
    finally:
        if going:
            say("stopping when each run has saved its last step; a second signal stops at once")
        for _, process in going.values():
            process.ask_to_stop()
        for _, process in going.values():
            process.wait()
    return failed


def _free(missing: deque[Run], going: Sequence[Run]) -> Run | None:
    """Takes the first run in which nobody trains. A killed study's processes need a moment to end.

    Of the tests of one run, one goes on at a time.
    """
    busy = {run.folder.path for run in going}
    for run in missing:
        if run.folder.path not in busy and not is_running(run.folder):
            missing.remove(run)
            return run
    return None


class Told:
    """Says on the terminal how far a study is.

    Args:
      total: all runs, or all tests, in words.
      done: how many are made.
    """

    def __init__(self, total: str, done: int):
        self._total = total
        self.done = done
        self._said_s = time.monotonic()
        self._began_s: dict[Run, float] = {}

    def begins(self, run: Run) -> None:
        self._began_s[run] = time.monotonic()
        say(f"{run.name}: {how_far(run)}")

    def ended(self, run: Run, made: bool) -> None:
        took = duration(time.monotonic() - self._began_s[run])
        self.done += made
        end = f"{how_far(run)}; ended" if made else "failed; the others go on. It ended"
        say(f"{run.name}: {end} after {took}, {self.done} of {self._total} made")

    def now_and_then(self, going: Iterable[Run], missing: Iterable[Run]) -> None:
        if time.monotonic() - self._said_s < TELL_S:
            return
        self._said_s = time.monotonic()
        for run in going:
            say(f"{run.name}: {how_far(run)}")
        for run in missing:
            if is_running(run.folder):
                say(f"{run.name}: another process trains in it; {how_far(run)}")


def how_far(run: Run) -> str:
    """Returns in words what a run has done so far."""
    if not run.folder.exists():
        return "begins"
    if run.test is not None:
        record = tested(run)
        return "is tested again" if record is None else f"test {record['success']:.1%}"
    found = outline(run.folder)
    if found.done < 0:
        return "before its first step"
    drawn = sum(map(drawn_tokens, found.records))
    words = [f"step {found.done}", f"{drawn:,.0f} tokens" + (f" of {found.tokens:,}" if found.tokens else "")]
    for split in ("validation", "test"):
        scored = found.last(f"{split}/success")
        if scored is not None:
            words.append(f"{split} {scored[1]:.1%} (step {scored[0]})")
    return ", ".join(words)


def last_words(log: Path) -> str:
    """Returns what the last process of a log, which failed, said of it."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    begun = max((i for i, line in enumerate(lines) if line.startswith("$ ")), default=-1)
    lines = lines[begun + 1 :]
    errors = [line for line in lines if line.startswith("error: ")]
    return one_line(RuntimeError((errors or lines or ["it said nothing"])[-1]))
