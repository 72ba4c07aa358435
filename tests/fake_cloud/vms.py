"""VMs of the fake cloud: a folder is the root of each, and the startup script really runs in it."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
# Settings of the tests that reach the VMs: of JAX, and of a server that stands for the buckets.
PASSED = (
    "JAX_",
    "STORAGE_EMULATOR_HOST",
    "TENSORSTORE_GCS",
    "GOOGLE_AUTH_TOKEN_FOR_TESTING",
    "NO_GCE_CHECK",
    "GCSFS_",
)


def boot(cloud: Path, folder: Path, node: dict, runs: bool) -> None:
    """Makes the VMs of a resource, and starts the startup script on each."""
    family, _, number = node["acceleratorType"].partition("-")
    chips = int(number) // (2 if family in ("v4", "v5p") else 1)
    count = 1 if (chips <= 8 and family not in ("v4", "v5p")) or chips <= 4 else chips // 4
    workers = [f"unknown:unknown:127.0.0.{host + 1}" for host in range(count)]
    own = {"worker-network-endpoints": ",".join(workers)}
    port = _free_port()
    for host in range(count):
        root = folder / str(host)
        for name in ("bin", "dev", "tmp", "run/systemd/system", "home"):
            (root / name).mkdir(parents=True)
        own["agent-worker-number"] = str(host)
        (root / "metadata.json").write_text(json.dumps(node["metadata"] | own))
        environment = _environment(cloud, root) | {"ATGRPO_PORT": port}
        (root / "environment.json").write_text(json.dumps(environment))
        python = root / "bin" / "python3"
        python.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "$@"\n')
        python.chmod(0o755)
        script = root / "startup.sh"
        script.write_text(node["metadata"].get("startup-script", ""))
        if runs:
            start(root, ["bash", str(script)])


def _free_port() -> str:
    with socket.socket() as one:
        one.bind(("", 0))
        return str(one.getsockname()[1])


def _environment(cloud: Path, root: Path) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if key.startswith(PASSED)}
    return kept | {
        "PATH": f"{root}/bin:{HERE}/vm_bin:{HERE}/bin:/usr/bin:/bin",
        "HOME": f"{root}/home",
        "CLOUDSDK_CONFIG": f"{root}/home",  # a gcloud that is real, called by mistake, has no rights
        "LANG": "C.UTF-8",
        "FAKE_CLOUD": str(cloud),
        "FAKE_VM": str(root),
        "FAKE_PYTHON": sys.executable,
        "ATGRPO_ROOT": str(root),
        "ATGRPO_EVERY": "1",
        "ATGRPO_PAUSE": "0",
    }


GRACE_S = 30.0  # as long as a real machine has at least, and so for a slow one here, too
STARTED = ("groups.txt", "mains.txt")  # have the numbers of all process groups of a VM


def environment(root: Path) -> dict[str, str]:
    return json.loads((root / "environment.json").read_text())


def start(root: Path, words: list[str]) -> int:
    """Starts a process group of a VM, which ends with the VM at the latest. Returns its number."""
    inside = ["/bin/sh", "-c", 'cd "$0" && exec "$@"', str(root), *words]
    serial = str(root / "serial.txt")
    append = os.O_WRONLY | os.O_APPEND | os.O_CREAT
    files = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, serial, append, 0o644),
        (os.POSIX_SPAWN_DUP2, 1, 2),
        *((os.POSIX_SPAWN_CLOSE, number) for number in range(3, 64)),  # systemd would not have the caller's
    ]
    # Not a Popen: the fake ends, or the test does, long before this process.
    group = os.posix_spawn(inside[0], inside, environment(root), file_actions=files, setsid=True)
    note(root, group)
    return group


def note(root: Path, group: int, file: str = "groups.txt") -> None:
    with (root / file).open("a") as groups:
        groups.write(f"{group}\n")


def kill_newest(root: Path) -> None:
    """Kills the newest process that a unit of a VM has started, and all that belongs to it."""
    os.killpg(int(_lines(root / "mains.txt")[-1]), signal.SIGKILL)


def run(root: Path, command: str) -> str:
    """Runs what came over ssh. The VM's root is a folder here, so its paths begin with it."""
    inside = command.replace("/opt/atgrpo", f"{root}/opt/atgrpo")
    done = subprocess.run(
        ["bash", "-c", inside], env=environment(root), capture_output=True, text=True, check=False
    )
    if done.returncode:
        from fake_cloud.commands import Refused

        raise Refused(
            f"{done.stderr}ERROR: (gcloud.compute.tpus.tpu-vm.ssh) exited with code {done.returncode}"
        )
    return done.stdout


def destroy(folder: Path, grace_s: float = GRACE_S) -> None:
    """Ends all VMs in a folder: SIGTERM, after a while SIGKILL, and then the disks are gone.

    SIGTERM goes to what is like systemd, which stops its units; SIGKILL goes to everything. Nobody waits
    for longer than it takes all of them to end.
    """
    if not folder.exists():
        return
    groups = [int(line) for root in folder.iterdir() for line in _lines(root / "groups.txt")]
    deadline = time.monotonic() + grace_s
    for group in groups:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGTERM)
    while any(_lives(group) for group in groups) and time.monotonic() < deadline:
        time.sleep(0.01)
    started: set[int] = set()
    while folder.exists():
        for root in folder.iterdir():  # again each time: one of them may have started another one
            started |= {int(line) for name in STARTED for line in _lines(root / name)}
        for group in started:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)
        with contextlib.suppress(OSError):  # one that is dying has just written a file
            shutil.rmtree(folder)


def _lines(file: Path) -> list[str]:
    return file.read_text().split() if file.exists() else []


def _lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    # A process that nobody waits for is a zombie, and has ended.
    with contextlib.suppress(OSError):
        return Path(f"/proc/{group}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return True
