"""launch/hosts.sh and launch/slurm.sh: N processes that make one run, with a Python that is a script."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# A Python that notes how it was called as train, and does what $DO says for its host: "exit 3", "sleep 99".
# A stop has it end with 143. Two signals would be a fault.
PYTHON = """\
#!/bin/bash
if [ "$1" = -c ]; then exec {python} -S "$@"; fi
for word in "$@"; do case "$word" in --host=*) host="${{word#--host=}}" ;; esac; done
stop() {{ echo stop >> "{folder}/stops-$host"; sleep 0.3; exit 143; }}
trap stop TERM
printf '%s\\0' "$@" > "{folder}/words-${{host:-alone}}"
echo "${{CUDA_VISIBLE_DEVICES:-none}} ${{JAX_PLATFORMS:-any}}" > "{folder}/devices-${{host:-alone}}"
echo "host ${{host:-alone}} says
two lines"
echo "and an error" >&2
action="DO_${{host:-alone}}"
eval "${{!action:-exit 0}}"
"""


def install(folder: Path, root: Path, extras: str) -> dict[str, str]:
    """Makes an environment with the script for its Python, in which the checkout ``root`` is installed."""
    python = folder / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(PYTHON.format(python=sys.executable, folder=folder))
    python.chmod(0o755)
    sums = subprocess.run(["cksum"], input=(root / "setup.py").read_bytes(), capture_output=True, check=True)
    (folder / "venv" / ".atgrpo").write_text(f"{root} {sums.stdout.decode().strip()} {extras}\n")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "CUDA_"))}
    return kept | {"ATGRPO_VENV": str(folder / "venv")}


def program(folder: Path, name: str, text: str) -> None:
    (folder / "bin").mkdir(exist_ok=True)
    (folder / "bin" / name).write_text(text)
    (folder / "bin" / name).chmod(0o755)


def words(folder: Path, host: int | str) -> list[str]:
    return (folder / f"words-{host}").read_text().split("\0")[:-1]


class Launch:
    """launch/hosts.sh, with processes that do what they are told."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.environment = install(folder, ROOT, "")

    def start(self, *arguments: str, **more: str) -> subprocess.Popen:
        before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it would be ignored
        try:
            return subprocess.Popen(
                ["bash", ROOT / "launch" / "hosts.sh", *arguments], env=self.environment | more, text=True,
                stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            )  # fmt: skip
        finally:
            signal.signal(signal.SIGHUP, before)

    def run(self, *arguments: str, **more: str) -> tuple[int, list[str], list[str]]:
        """Returns the exit code, and the lines of output and errors."""
        process = self.start(*arguments, **more)
        out, err = process.communicate(timeout=60)
        return process.returncode, out.splitlines(), err.splitlines()


@pytest.fixture
def launch(tmp_path):
    return Launch(tmp_path)


def test_each_process_is_told_its_number_and_where_host_0_listens(launch):
    hostile = ["--gin_param=a = 'b c'", "--x=$HOME `id`\n*", ""]
    code, out, err = launch.run("3", "--", *hostile)
    assert code == 0
    *own, address = words(launch.folder, 0)[:5]
    assert own == ["-m", "atgrpo_jax.train", "--hosts=3", "--host=0"]
    assert 1024 <= int(address.removeprefix("--coordinator=localhost:")) < 65536
    for host in range(3):
        expected = ["-m", "atgrpo_jax.train", "--hosts=3", f"--host={host}", address, *hostile]
        assert words(launch.folder, host) == expected
        assert (launch.folder / f"devices-{host}").read_text() == "none cpu\n"
    assert [line for line in out if not line.startswith("[")] == ["host 0 says", "two lines"]
    assert err == ["and an error"]
    for host in (1, 2):
        said = [line for line in out if line.startswith(f"[host {host}] ")]
        assert sorted(line.partition("] ")[2] for line in said) == [
            "and an error",
            f"host {host} says",
            "two lines",
        ]


def test_hosts_make_a_probe(launch):
    assert launch.run("2", "probe", "--only_rounds")[0] == 0
    *own, address, last = words(launch.folder, 1)
    assert own == ["-m", "atgrpo_jax.tools.probe", "--hosts=2", "--host=1"] and last == "--only_rounds"
    assert address.startswith("--coordinator=localhost:")


@pytest.mark.parametrize(
    ("ends", "code"),
    [
        (["exit 0", "exit 0"], 0),
        (["exit 0", "exit 3"], 3),
        (["sleep 0.4; exit 134", "kill -9 $$"], 137),  # the first, in time
        (["exit 134", "sleep 0.4; exit 2"], 2),  # for people, whatever the others say
        (["exit 143", "exit 143"], 143),
    ],
)
def test_the_exit_code(launch, ends, code):
    assert launch.run("2", DO_0=ends[0], DO_1=ends[1])[0] == code


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_reaches_every_process_once(launch, number):
    nap = "while :; do sleep 0.1; done"
    process = launch.start("2", DO_0=nap, DO_1=nap)
    deadline = time.monotonic() + 30
    while not all((launch.folder / f"devices-{host}").exists() for host in (0, 1)):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(number)
    process.communicate(timeout=120)
    assert process.returncode == 143
    assert [(launch.folder / f"stops-{host}").read_text() for host in (0, 1)] == ["stop\n", "stop\n"]


def test_what_does_not_end_after_a_death_is_killed(launch):
    start = time.monotonic()
    code, _, err = launch.run("2", DO_0="sleep 98.7", DO_1="exit 134", ATGRPO_GRACE="0")
    assert code == 134
    assert "[host 0] did not end by itself, and is killed" in err
    assert time.monotonic() - start < 30
    assert not any(b"sleep\x0098.7" in command for command in commands())  # and nothing that it had started


def commands() -> list[bytes]:
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(file.read_bytes())
        except OSError:
            continue  # it has ended
    return found


def test_gpus_are_dealt_out_evenly(tmp_path):
    environment = install(tmp_path, ROOT, "[gpu]")
    program(tmp_path, "nvidia-smi", "#!/bin/sh\nprintf '0\\n1\\n2\\n3\\n'\n")
    environment["PATH"] = f"{tmp_path}/bin:{environment['PATH']}"

    def call(hosts: str, **more: str) -> subprocess.CompletedProcess:
        script = ["bash", ROOT / "launch" / "hosts.sh", hosts, "--x"]
        return subprocess.run(script, env=environment | more, capture_output=True, text=True, check=False)

    assert call("2").returncode == 0
    assert [(tmp_path / f"devices-{host}").read_text() for host in (0, 1)] == ["0,1 any\n", "2,3 any\n"]
    assert call("2", CUDA_VISIBLE_DEVICES="GPU-a,GPU-b").returncode == 0
    assert [(tmp_path / f"devices-{host}").read_text() for host in (0, 1)] == ["GPU-a any\n", "GPU-b any\n"]
    install(tmp_path / "cpu", ROOT, "")
    for none in ("", "-1"):  # as CUDA has it
        assert call("2", CUDA_VISIBLE_DEVICES=none, ATGRPO_VENV=f"{tmp_path}/cpu/venv").returncode == 0
        assert (tmp_path / "cpu" / "devices-1").read_text() == f"{none or 'none'} cpu\n"
    done = call("3")
    assert done.returncode == 2
    assert done.stderr == "error: 4 GPUs cannot be dealt out evenly to 3 hosts\n"
    program(tmp_path, "nvidia-smi", "#!/bin/sh\necho no driver\nexit 9\n")
    done = call("2")
    assert done.returncode == 2 and "error: nvidia-smi does not answer (no driver)" in done.stderr


@pytest.mark.parametrize("arguments", [[], ["0"], ["two"], ["--gin_file=plan.gin"]])
def test_a_number_of_hosts_is_needed(launch, arguments):
    code, out, err = launch.run(*arguments)
    assert (code, out) == (2, [])
    assert err == ["error: call it as: bash launch/hosts.sh N [probe] [--] ARGS, with a number of hosts"]


# srun as far as launch/slurm.sh needs it: a task a node, each with its number; the highest code of all.
SRUN = """\
import json, os, signal, subprocess, sys
words = sys.argv[1:]
flags = []
while words[0].startswith("--"):
    flags.append(words.pop(0))
with open(f"{os.environ['FOLDER']}/did.txt", "a") as did:
    did.write(json.dumps(["srun", *flags]) + "\\n")
tasks = []
for node in range(int(os.environ["SLURM_NNODES"])):
    own = {"SLURM_NODEID": str(node), "SLURM_PROCID": str(node), "SLURM_LOCALID": "0"}
    tasks.append(subprocess.Popen(words, env=os.environ | own))
signal.signal(signal.SIGTERM, lambda *_: [task.terminate() for task in tasks])
codes = [task.wait() for task in tasks]
sys.exit(max(code if code >= 0 else 128 - code for code in codes))
"""
SCONTROL = """\
#!/bin/sh
if [ "$1 $2" = "show hostnames" ] && [ "$3" = "gpu[07-08]" ]; then printf 'gpu07\\ngpu08\\n'; exit; fi
if [ "$1" = requeue ]; then echo "[\\"requeue\\", \\"$2\\"]" >> "$FOLDER/did.txt"; exit; fi
exit 1
"""


class Cluster:
    """A SLURM job of some nodes, whose processes do what they are told."""

    def __init__(self, folder: Path):
        self.folder = folder
        (folder / "launch").mkdir()
        shutil.copy(ROOT / "launch" / "common.sh", folder / "launch")
        (folder / "setup.py").write_text("")
        self.environment = install(folder, folder, "[gpu]")
        program(folder, "srun", f"#!{sys.executable} -S\n{SRUN}")
        program(folder, "scontrol", SCONTROL)
        self.environment |= {
            "PATH": f"{folder}/bin:{self.environment['PATH']}",
            "FOLDER": str(folder),
            "SLURM_SUBMIT_DIR": str(folder),
            "SLURM_JOB_ID": "8193",
            "SLURM_JOB_NODELIST": "gpu[07-08]",
            "ATGRPO_PAUSE": "0",
        }

    def start(self, nodes: int, *arguments: str, **more: str) -> subprocess.Popen:
        return subprocess.Popen(
            ["bash", ROOT / "launch" / "slurm.sh", *arguments], text=True, stderr=subprocess.PIPE,
            env=self.environment | {"SLURM_NNODES": str(nodes)} | more, start_new_session=True,
        )  # fmt: skip

    def run(self, nodes: int, *arguments: str, **more: str) -> tuple[int, list[list[str]]]:
        """Returns the exit code, and how srun and scontrol were called."""
        process = self.start(nodes, *arguments, **more)
        process.communicate(timeout=60)
        return process.returncode, self.did

    @property
    def did(self) -> list[list[str]]:
        return [json.loads(line) for line in (self.folder / "did.txt").read_text().splitlines()]


@pytest.fixture
def cluster(tmp_path):
    return Cluster(tmp_path)


ONE_NODE = ["srun", "--kill-on-bad-exit=1"]
NODES = ["srun", "--kill-on-bad-exit=0", "--wait=420", "--label"]


def test_one_node_is_no_host(cluster):
    code, did = cluster.run(1, "--gin_file=a b.gin", "--run_dir=/shared/x")
    assert (code, did) == (0, [ONE_NODE])
    expected = ["-m", "atgrpo_jax.train", "--gin_file=a b.gin", "--run_dir=/shared/x"]
    assert words(cluster.folder, "alone") == expected


def test_two_nodes_are_two_hosts(cluster):
    """The port is of the job: 61440 + 8193 mod 4096. Each node has its number, and all of its GPUs."""
    code, did = cluster.run(2, "--gin_param=x = '$HOME'")
    assert (code, did) == (0, [NODES])
    train = ["-m", "atgrpo_jax.train", "--gin_param=x = '$HOME'", "--hosts=2", "--coordinator=gpu07:61441"]
    assert [words(cluster.folder, host) for host in (0, 1)] == [[*train, "--host=0"], [*train, "--host=1"]]
    assert [(cluster.folder / f"devices-{host}").read_text() for host in (0, 1)] == ["none any\n"] * 2


@pytest.mark.parametrize(
    ("end", "steps", "requeued"),
    [("exit 0", 1, False), ("exit 2", 1, False), ("exit 143", 1, True), ("exit 134", 3, False)],
)
@pytest.mark.parametrize("nodes", [1, 2])
def test_a_run_that_ends_is_started_again_or_not(cluster, nodes, end, steps, requeued):
    """A death at most twice on these nodes, a stop in the queue, and neither 0 nor 2 at all."""
    step = ONE_NODE if nodes == 1 else NODES
    code, did = cluster.run(nodes, DO_alone=end, DO_0=end, DO_1=end)
    assert code == int(end.split()[1])
    assert did == [step] * steps + [["requeue", "8193"]] * requeued


def test_a_death_that_does_not_come_again(cluster):
    once = f"[ -e {cluster.folder}/died ] && exit 0; touch {cluster.folder}/died; exit 137"
    assert cluster.run(2, DO_1=once) == (0, [NODES, NODES])


def test_slurms_sigterm_reaches_all_nodes_and_queues_the_job_again(cluster):
    nap = "while :; do sleep 0.1; done"
    process = cluster.start(2, DO_0=nap, DO_1=nap)
    deadline = time.monotonic() + 30
    while not all((cluster.folder / f"devices-{host}").exists() for host in (0, 1)):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    # SLURM signals the step, not the script.
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[0]), signal.SIGTERM)
    process.communicate(timeout=120)
    assert process.returncode == 143
    assert cluster.did == [NODES, ["requeue", "8193"]]
    assert [(cluster.folder / f"stops-{host}").read_text() for host in (0, 1)] == ["stop\n", "stop\n"]
