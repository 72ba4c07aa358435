"""What runs on a VM, by the Python of its image. launch/tpu_host.sh calls it; so do the two units.

python3 on_vm.py BASE before LOCK DEVICES    removes libtpu's lock file, if no process holds a chip
python3 on_vm.py BASE train                  becomes the run
python3 on_vm.py BASE probe ARGUMENTS        becomes the probe
python3 on_vm.py BASE ended                  notes how the run ended, and says so to the bucket
python3 on_vm.py BASE phase WORD [LINE]      notes what tpu_host.sh does, and says so to the bucket
python3 on_vm.py BASE report SECONDS         says it every so many seconds, until SIGTERM
python3 on_vm.py BASE mayrun                 says what comes now, and ends with 0 if that is the run

BASE has job.json, newest.json (the same, read later), vm.json (host, attempt, addresses of all VMs, and
the run's Python), log.txt, phase.json and ended.json.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

DONE = (0, 2, 143)  # exit codes after which nothing starts the run again; as in tpu_host.sh's unit
MOST = 8_000_000  # bytes of a log that are copied: its end
LEAST = 50_000_000  # bytes of disk, below which a line says that it is full
UPLOAD_S = 120.0
TURN_S = 10.0  # the longest that a report waits for another one
PORT = 8482  # where the first VM listens for the others: the port that JAX itself takes on Cloud TPUs


def read(path: Path) -> dict[str, Any]:
    """Returns a JSON file, or {} if it is not there or was cut short by a full disk."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}


def write(path: Path, fields: dict[str, Any]) -> None:
    """Writes a JSON file, whole or not at all."""
    beside = path.with_suffix(".new")
    beside.write_text(json.dumps(fields))
    beside.replace(path)


def unlock(lock: Path, devices: str) -> None:
    """Removes a lock that an aborted run has left: libtpu would refuse the chips to the next one."""
    if not lock.exists():
        return
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if re.fullmatch(devices, os.readlink(link)):
                print(f"process {link.parts[2]} holds {os.readlink(link)}: {lock} stays", flush=True)
                return
        except OSError:
            continue  # the process ended meanwhile
    lock.unlink()


def addresses(endpoints: str) -> list[str]:
    """Returns the addresses of all VMs, the first one first, from the metadata "worker-network-endpoints".

    It is a list of addresses or, in its older form, of NAME:ID:ADDRESS.
    """
    return [worker.strip().rpartition(":")[2] for worker in endpoints.split(",") if worker.strip()]


def hosts_flags(vm: dict[str, Any], vms: int) -> list[str]:
    """Returns the flags of train by which the VMs find each other. One VM needs none.

    Ends with 1 if the metadata names another number of VMs: preparing the VM again reads it again.
    """
    if vms == 1:
        return []
    named = addresses(vm["endpoints"])
    if len(named) != vms:
        sys.exit(f"error: the metadata server names {len(named)} VMs ({vm['endpoints']!r}), and not {vms}")
    port = os.environ.get("ATGRPO_PORT", PORT)  # for tests, whose VMs share one machine
    return [f"--hosts={vms}", f"--host={vm['host']}", f"--coordinator={named[0]}:{port}"]


def train(base: Path) -> None:
    """Becomes the run, with the arguments of the job file. No shell sees them."""
    become(base, "atgrpo_jax.train", read(base / "job.json")["train"])


def become(base: Path, module: str, words: list[str]) -> None:
    """Becomes a command of the package, which all VMs run together."""
    vm = read(base / "vm.json")
    flags = hosts_flags(vm, read(base / "job.json").get("vms", 1))
    os.execv(vm["python"], [vm["python"], "-m", module, *words, *flags])


def ended(base: Path, status: str) -> dict[str, Any]:
    """Notes an end of the run, and returns the phase. ``status`` is systemd's: a code, or a signal's name."""
    code = int(status) if status.isdigit() else 128 + getattr(signal, f"SIG{status}", 0)
    now = time.time()
    before = read(base / "ended.json")
    number = read(base / "job.json").get("number")
    failures = [moment for moment in before.get("failures", []) if now - moment < 3600]
    if before.get("number") != number:
        failures = []
    if code not in DONE:
        failures.append(now)
    write(base / "ended.json", {"number": number, "exit": code, "failures": failures})
    return {"phase": "ended", "line": "" if code == 0 else last_line(base / "log.txt")}


def settled(base: Path) -> dict[str, Any]:
    """Returns the phase of a VM that is prepared: "running" if there is a run that nobody stopped and that
    has not come to its end here."""
    job = read(base / "job.json")
    before = read(base / "ended.json")
    if before.get("number") == job["number"] and before.get("exit") in (0, 2):
        return {"phase": "ended", "line": last_line(base / "log.txt") if before["exit"] else ""}
    newest = read(base / "newest.json")  # as tpu_host.sh read it a moment ago: job.json may be minutes old
    runs = job["train"] is not None and newest.get("wanted", job["wanted"]) == "run"
    return {"phase": "running" if runs else "ready", "line": ""}


def last_line(log: Path) -> str:
    """Returns the log's last line that says what went wrong, or its last line.

    The state of all threads follows after a line of C++ that is fatal.
    """
    lines = [line for line in tail(log, 200_000).decode(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"error:|F\d{4} |Fatal Python error: (?!Aborted)", line)]
    return (errors or lines or [""])[-1][:500]


def tail(path: Path, most: int) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - most))
            return file.read()
    except OSError:
        return b""


def full(base: Path, least: int = LEAST) -> str:
    """Returns what to say of a full disk, whose log could not take it; or ""."""
    left = shutil.disk_usage(base).free
    return f"error: the VM's disk is full ({left / 1e6:.0f} MB left)" if left < least else ""


def newest_step(run_dir: str) -> int:
    """Returns the step of the last whole line of the run's metrics.jsonl, or -1."""
    if run_dir.startswith("gs://"):
        done = gcloud("cat", f"{run_dir}/metrics.jsonl", "--range=-100000")
        lines = done.stdout
    else:
        lines = tail(Path(run_dir) / "metrics.jsonl", 100_000)
    for line in reversed(lines.splitlines()):
        try:
            return int(json.loads(line)["step"])
        except (ValueError, KeyError, TypeError):
            continue  # it is the part of a line
    return -1


def gcloud(*words: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """Runs one command on the bucket, with the rights of the VM's service account."""
    return subprocess.run(
        ["gcloud", "storage", *words], input=stdin, capture_output=True, timeout=UPLOAD_S, check=False
    )


@contextlib.contextmanager
def in_turn(lock: Path) -> Iterator[None]:
    """Keeps other processes out meanwhile. If one does not end, or a full disk has no room, it goes on."""
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(lock.open("a"))
        except OSError:
            yield
            return
        until = time.monotonic() + TURN_S
        while time.monotonic() < until:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.05)
        yield


class Reporter:
    """Copies what this VM does to the bucket. Nothing that goes wrong here ends the run.

    Several processes report. Each reads what there is and writes it before the next one reads: else an older
    state could come last.
    """

    def __init__(self, base: Path, storage: Callable[..., subprocess.CompletedProcess[bytes]] = gcloud):
        self._base = base
        self._storage = storage
        self._copied = b""

    def say(self, phase: dict[str, Any]) -> None:
        """Notes what this VM does, and reports it, even if a full disk cannot take the note."""
        with in_turn(self._base / "report.lock"):
            try:
                write(self._base / "phase.json", dict(phase, since=time.time()))
            except OSError as error:
                print(f"cannot write {self._base}: {error.strerror}", flush=True)
            self._report(phase)

    def report(self) -> None:
        """Copies the log and the state, with the phase that the disk has."""
        with in_turn(self._base / "report.lock"):
            self._report(read(self._base / "phase.json"))

    def _report(self, phase: dict[str, Any]) -> None:
        job = read(self._base / "job.json")
        vm = read(self._base / "vm.json")
        end = read(self._base / "ended.json")
        ours = end.get("number") == job["number"]
        fields = {
            "host": vm["host"],
            "number": job["number"],
            "attempt": vm["attempt"],
            "phase": phase.get("phase", "setup"),
            "exit": end["exit"] if ours and phase.get("phase") == "ended" else None,
            "step": newest_step(job["run_dir"]) if job["train"] is not None else -1,
            "line": phase.get("line") or full(self._base),
            "failures": len(end.get("failures", [])) if ours else 0,
            "since": phase.get("since") or time.time(),
            "time": time.time(),
        }
        folder = f"{job['bucket']}/atgrpo/{job['name']}/hosts/{vm['host']}"
        log = tail(self._base / "log.txt", MOST)
        # The log goes first: who reads the state finds the lines that belong to it.
        if log != self._copied and self._put(f"{folder}/log-{vm['attempt']}.txt", log):
            self._copied = log
        # A line, since the states of all VMs are read together.
        self._put(f"{folder}/state.json", json.dumps(fields).encode() + b"\n")

    def _put(self, url: str, content: bytes) -> bool:
        """Writes an object from memory: a full disk does not matter. Returns whether it was written."""
        try:
            done = self._storage("cp", "-", url, stdin=content)
        except subprocess.TimeoutExpired:
            print(f"cannot write {url}: no answer within {UPLOAD_S:g} s", flush=True)
            return False
        if done.returncode:
            print(f"cannot write {url}: {done.stderr.decode(errors='replace').strip()}", flush=True)
        return done.returncode == 0


def keep_reporting(base: Path, every_s: float) -> None:
    """Reports until SIGTERM, and then once more."""
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    reporter = Reporter(base)
    while not stop.wait(every_s):
        reporter.report()
    reporter.report()


def main(words: list[str]) -> int:
    base = Path(words[0])
    what = words[1]
    if what == "before":
        unlock(Path(words[2]), words[3])
        write(base / "phase.json", {"phase": "running", "line": "", "since": time.time()})
    elif what == "train":
        train(base)
    elif what == "probe":
        become(base, "atgrpo_jax.tools.probe", words[2:])
    elif what == "ended":
        Reporter(base).say(ended(base, os.environ.get("EXIT_STATUS", "1")))
    elif what == "phase":
        Reporter(base).say({"phase": words[2], "line": " ".join(words[3:])})
    elif what == "report":
        keep_reporting(base, float(words[2]))
    elif what == "mayrun":
        phase = settled(base)
        Reporter(base).say(phase)
        return 0 if phase["phase"] == "running" else 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
