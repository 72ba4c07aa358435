"""systemd as far as launch/tpu_host.sh needs it: units of one process, and their rules.

systemctl daemon-reload | start UNIT | stop UNIT | restart UNIT; systemd-run [--collect] --unit=NAME WORDS.
Each unit has a process that keeps it (``keep``). Seconds are cut short, so that tests do not wait.
"""

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fake_cloud import vms

STOP_S = 25.0  # TimeoutStopSec of the units
RESTART_S = 0.05  # for RestartSec
KNOWN = {
    "User", "WorkingDirectory", "Environment", "ExecStartPre", "ExecStart", "ExecStopPost", "StandardOutput",
    "StandardError", "Restart", "RestartPreventExitStatus", "RestartSec", "KillSignal", "KillMode",
    "TimeoutStopSec", "LimitMEMLOCK", "LimitNOFILE",
}  # fmt: skip


class Unit:
    """The [Service] part of a unit file."""

    def __init__(self, root: Path, name: str):
        self.root = root
        self.name = name.removesuffix(".service")
        self.fields: dict[str, list[str]] = {}
        part = ""
        for line in (root / "run/systemd/system" / f"{self.name}.service").read_text().splitlines():
            if line.startswith("["):
                part = line
            elif part == "[Service]":
                key, _, value = line.partition("=")
                assert key in KNOWN, f"systemd knows no {key} in [Service], or this fake does not"
                self.fields.setdefault(key, []).append(value)

    def one(self, key: str, default: str = "") -> str:
        return self.fields.get(key, [default])[-1]

    def environment(self) -> dict[str, str]:
        env = vms.environment(self.root)
        for line in self.fields.get("Environment", []):
            env.update(word.split("=", 1) for word in shlex.split(line))
        # The fakes come first: this machine may have a gcloud of its own, in the same place as a VM.
        env["PATH"] = vms.environment(self.root)["PATH"] + ":" + env["PATH"]
        return env

    def run(self, command: str, more: dict[str, str]) -> int:
        words = shlex.split(command.lstrip("+"))
        return subprocess.run(words, env=self.environment() | more, cwd=self.root, check=False).returncode

    def main(self) -> subprocess.Popen:
        target = self.one("StandardOutput")
        out = open(target.removeprefix("append:"), "ab") if target else None
        process = subprocess.Popen(
            shlex.split(self.one("ExecStart")), env=self.environment(), stdin=subprocess.DEVNULL,
            stdout=out, stderr=out, cwd=self.one("WorkingDirectory") or self.root, start_new_session=True,
        )  # fmt: skip
        vms.note(self.root, process.pid, "mains.txt")
        return process


def keep(root: Path, name: str) -> None:
    """Runs a unit until it ends for good, or until SIGTERM: then it stops it as systemd does."""
    unit = Unit(root, name)
    stopping: list[int] = []
    signal.signal(signal.SIGTERM, lambda *_: stopping.append(1))
    while True:
        for command in unit.fields.get("ExecStartPre", []):
            unit.run(command, {})
        process = unit.main()
        asked = 0.0
        while process.poll() is None:
            if stopping and not asked:
                asked = time.monotonic()
                process.send_signal(signal.SIGTERM)
            if asked and time.monotonic() - asked > STOP_S:
                process.kill()
            time.sleep(0.01)
        with contextlib.suppress(ProcessLookupError):  # KillMode=mixed: what it has left behind
            os.killpg(process.pid, signal.SIGKILL)
        code = process.returncode
        status = str(code) if code >= 0 else signal.Signals(-code).name.removeprefix("SIG")
        for command in unit.fields.get("ExecStopPost", []):
            unit.run(command, {"EXIT_STATUS": status, "EXIT_CODE": "exited" if code >= 0 else "killed"})
        if stopping or not _again(unit, code):
            return
        time.sleep(RESTART_S)


def _again(unit: Unit, code: int) -> bool:
    rule = unit.one("Restart", "no")
    clean = code in (0, -signal.SIGHUP, -signal.SIGINT, -signal.SIGTERM, -signal.SIGPIPE)
    kept = str(code) in unit.one("RestartPreventExitStatus").split()
    return not kept and (rule == "always" or (rule == "on-failure" and not clean))


def start(root: Path, name: str) -> None:
    group = vms.start(root, [sys.executable, "-S", __file__, "keep", str(root), name])
    (root / "run" / f"{name}.pid").write_text(str(group))


def loaded(root: Path, name: str) -> bool:
    return (root / "run/systemd/system" / f"{name}.service").exists()


def stop(root: Path, name: str) -> None:
    file = root / "run" / f"{name}.pid"
    if not file.exists():
        return
    pid = int(file.read_text())
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    while vms._lives(pid):
        time.sleep(0.01)
    file.unlink()


def main(words: list[str]) -> int:
    root = Path(os.environ["FAKE_VM"])
    if words[0] == "keep":
        keep(Path(words[1]), words[2])
    elif words[0] == "systemctl" and words[1] in ("start", "stop", "restart"):
        name = words[2].removesuffix(".service")
        if words[1] == "stop" and not loaded(root, name):
            print(f"Failed to stop {name}.service: Unit {name}.service not loaded.", file=sys.stderr)
            return 5
        if words[1] in ("stop", "restart"):
            stop(root, name)
        if words[1] in ("start", "restart"):
            Unit(root, name)  # it is there and can be read
            start(root, name)
    elif words[0] == "systemd-run":
        vms.start(root, [word for word in words[1:] if not word.startswith("--")])
    elif words[1:] != ["daemon-reload"]:
        print(f"the fake knows no {words}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
