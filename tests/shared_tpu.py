"""What the tests of launch/tpu.py share: a checkout of its own, a fake cloud, and ways to call it."""

import contextlib
import dataclasses
import io
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from fake_cloud.cloud import FakeCloud
from fake_cloud.commands import Refused

ROOT = Path(__file__).resolve().parents[1]
FAKE = ROOT / "tests" / "fake_cloud"
sys.path.insert(0, str(ROOT / "launch"))

from tpu import cli, shell  # noqa: E402  (from launch/)
from tpu.cloud import Cloud  # noqa: E402
from tpu.job import HostState, Job, read  # noqa: E402
from tpu.table import Patience  # noqa: E402
from tpu.watch import Watcher  # noqa: E402

BUCKET = "gs://runs-of-a-team"
WHERE = ["--zone=us-east5-a", f"--bucket={BUCKET}"]

# What a VM says of itself in the middle of a run.
HOST = HostState(
    host=0, number=1, attempt=1, phase="running", exit=None, step=3, line="", failures=0, since=1.0, time=1.0
)

# A program that behaves as train does: state in the bucket, a stop by SIGTERM, exit codes. Several hosts hold
# connections to host 0: a stop of one is a stop of all, and if one dies, the others end with 134.
STAND_IN = """
import json, os, pathlib, signal, socket, sys, threading, time
arguments = sys.argv[1:]
def flag(name, default):
    return next((word.partition("=")[2] for word in arguments if word.startswith(f"--{name}=")), default)
hosts, host = int(flag("hosts", 1)), int(flag("host", 0))
folder = pathlib.Path(os.environ["FAKE_CLOUD"], "buckets", flag("run_dir", "").removeprefix("gs://"))
folder.mkdir(parents=True, exist_ok=True)
(folder / f"arguments{host or ''}.json").write_text(json.dumps(arguments))
metrics = folder / "metrics.jsonl"
done = len(metrics.read_text().splitlines()) if metrics.exists() else 0
stopped, over, others = [], [], []
def stop(*_):
    if not stopped:
        stopped.append(1)
        for other in others:
            other.send(b"s")
def end(code, line):
    print(line, file=sys.stderr, flush=True)
    os._exit(code)
def listen(other):
    try:
        word = other.recv(1)
    except OSError:
        word = b""
    if word == b"s":
        stop()
    elif word == b"d":
        over.append(1)
    elif not (stopped or over):
        end(134, "a host is dead")
signal.signal(signal.SIGTERM, stop)
print("train begins after step", done, flush=True)
if hosts > 1:
    address, _, port = flag("coordinator", "").rpartition(":")
    if host == 0:
        server = socket.create_server(("", int(port)))
        others += [server.accept()[0] for _ in range(1, hosts)]
    deadline = time.monotonic() + 60
    while host and not others:
        try:
            others.append(socket.create_connection((address, int(port)), 1.0))
            others[0].settimeout(None)
        except OSError:
            time.sleep(0.02)
            if time.monotonic() > deadline:
                end(1, "host 0 does not come")
    for other in others:
        threading.Thread(target=listen, args=(other,), daemon=True).start()
    print("all hosts are there", flush=True)
while host and not over and not stopped:
    time.sleep(0.01)
for step in range(done, 0 if host else int(flag("steps", 3))):
    deadline = time.monotonic() + 0.02
    while (folder / "hold").exists() and not stopped or time.monotonic() < deadline:
        time.sleep(0.01)
    if stopped:
        break
    with metrics.open("a") as file:
        file.write(json.dumps({"step": step}) + "\\n")
    if (folder / "fail").exists():
        code = int((folder / "fail").read_text())
        end(code, "error: Experiment.steps = 0: must be positive" if code == 2 else "Aborted")
if stopped:
    end(143, "stopped by SIGTERM; the last step is saved")
for name in ("summary.json", "curves.png"):
    (folder / name).write_text("{}")
over.append(1)
for other in others if host == 0 else []:
    other.send(b"d")
print("done", flush=True)
"""


# The same for the probe, one of whose parts fails.
STAND_IN_PROBE = """
import pathlib, sys
out = pathlib.Path(sys.argv[1].removeprefix("--out="))
for word in sys.argv:
    if word.startswith("--host="):
        out = out / word.replace("--host=", "host-")
out.mkdir(parents=True, exist_ok=True)
for name in ("probe.json", "probe.md"):
    (out / name).write_text(repr(sys.argv[2:]))
print("a page")
sys.exit(1)
"""


def make_checkout(folder: Path, stand_in: bool) -> Path:
    """Makes a small git checkout with the launcher in it, and the package or a stand-in for it."""
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "launch" / "tpu", folder / "launch" / "tpu", ignore=ignored)
    for name in ("tpu.py", "tpu_host.sh"):
        shutil.copy(ROOT / "launch" / name, folder / "launch")
    if stand_in:
        (folder / "atgrpo_jax").mkdir()
        (folder / "atgrpo_jax" / "__init__.py").write_text("")
        (folder / "atgrpo_jax" / "train.py").write_text(STAND_IN)
        (folder / "atgrpo_jax" / "tools").mkdir()
        (folder / "atgrpo_jax" / "tools" / "probe.py").write_text(STAND_IN_PROBE)
    else:
        for name in ("atgrpo_jax", "gin"):
            shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    (folder / ".gitignore").write_text("__pycache__/\n")
    who = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    for words in (
        ["init", "-q"],
        ["add", "-A"],
        ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "x"],
    ):
        subprocess.run(["git", *words], cwd=folder, env=os.environ | who, check=True)
    return folder


class FakeShell(shell.Shell):
    """A shell whose commands are calls of the fake."""

    def __init__(self, desk: "Desk", dry: bool = False):
        super().__init__(dry, desk.checkout)
        self._desk = desk

    def execute(self, words, deadline_s, stdin):
        assert words[0] == "gcloud"
        try:
            out = self._desk.cloud.gcloud(list(words[1:]), stdin, cwd=self.root)
            return 0, out.decode(errors="replace"), ""
        except Refused as refused:
            return refused.code, "", refused.text


class Desk:
    """A laptop: a checkout, and gcloud that is the fake."""

    def __init__(self, folder: Path, stand_in: bool = True):
        self.checkout = make_checkout(folder / "checkout", stand_in)
        self.cloud = FakeCloud(folder / "cloud").make()
        self.cloud.storage.make(BUCKET.removeprefix("gs://"), "US-EAST5")
        self.environment = {
            "PATH": f"{FAKE}/bin:/usr/bin:/bin",
            "HOME": str(folder),
            "CLOUDSDK_CONFIG": str(folder),  # a gcloud that is real, called by mistake, has no rights
            "FAKE_CLOUD": str(self.cloud.folder),
            "FAKE_PYTHON": sys.executable,
            "ATGRPO_BUCKET": BUCKET,
        }

    def start(self, *words: str, **more) -> subprocess.Popen:
        """Starts launch/tpu.py as a person does."""
        return subprocess.Popen(
            [sys.executable, "-S", "launch/tpu.py", *words], cwd=self.checkout, env=self.environment,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more,
        )  # fmt: skip

    def call(self, *words: str) -> tuple[int, str, str]:
        """Runs launch/tpu.py in this process, with a gcloud that is a function. Returns code, out, err."""
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = cli.main([words[0], "--every=0", f"--bucket={BUCKET}", *words[1:]], self.shell)
        return code, out.getvalue(), err.getvalue()

    def shell(self, dry: bool) -> "FakeShell":
        return FakeShell(self, dry)

    def object(self, name: str) -> Path:
        return self.cloud.storage.path(f"{BUCKET}/atgrpo/{name}")

    def end(self) -> None:
        """Takes all VMs away."""
        for name in self.cloud.resources():
            self.cloud._queued_resources_delete(name, self.cloud.resources()[name]["zone"], {"--force": True})


class Clock:
    """A clock that only sleeping moves. ``then`` is called at every sleep."""

    def __init__(self):
        self.now = 1_000_000_000.0
        self.sleeps = 0
        self.then = lambda: None

    def sleep(self, seconds: float) -> None:
        self.now += max(seconds, 1.0)
        self.sleeps += 1
        assert self.sleeps < 300, "it goes on for ever"
        self.then()


class Room:
    """A desk with a job whose VMs are scripted, and a `watch` that is called as a function."""

    def __init__(self, desk: Desk):
        self.desk = desk
        self.clock = Clock()
        self.said: list[str] = []

    def up(self, *plans: str, delete_looks: int = 0, type: str = "v6e-8") -> None:
        self.desk.cloud.plan(*plans, delete_looks=delete_looks, boots=False)
        assert self.desk.call("up", "w", f"--type={type}", *WHERE, "--", "--gin_file=plan.gin")[0] == 0

    def says(self, attempt: int, **fields) -> None:
        """Writes what a VM says of itself, with the time."""
        moment = {"since": self.clock.now, "time": self.clock.now}
        state = dataclasses.replace(HOST, attempt=attempt, **(moment | fields))
        folder = self.desk.object(f"w/hosts/{state.host}")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "state.json").write_text(json.dumps(dataclasses.asdict(state)) + "\n")

    def watch(self, delete: bool = False, shell: FakeShell | None = None) -> int:
        cloud = Cloud(shell or self.desk.shell(False))
        return Watcher(cloud, Patience(), self.clock.sleep, lambda: self.clock.now, self.said.append).watch(
            BUCKET, "w", delete
        )

    @property
    def job(self) -> Job:
        return read(Cloud(self.desk.shell(False)), BUCKET, "w")

    @property
    def attempt(self) -> int:
        """The attempt of the machines that are there and ACTIVE; else 0."""
        found = self.desk.cloud.resources().get("w")
        return int(found["node"]["labels"]["atgrpo-attempt"]) if found and found["state"] == "ACTIVE" else 0

    def done_at(self, attempt: int) -> None:
        """Lets the run end well on the machines of an attempt, or of a later one."""
        self.clock.then = lambda: self.attempt >= attempt and self.says(self.attempt, phase="ended", exit=0)

    @property
    def text(self) -> str:
        return "\n".join(self.said)


def wait_for(what, seconds: float = 200.0) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.02)
