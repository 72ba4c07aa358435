"""launch/tpu.py from `up` to the end, with VMs that really run launch/tpu_host.sh and systemd's rules."""

import ast
import json
import signal
import subprocess

import pytest
from shared_tpu import BUCKET, WHERE, Desk, wait_for

pytestmark = pytest.mark.slow

HOSTILE = [
    "--gin_file=a file.gin",
    "--gin_param=x = \"$HOME\" + 'a' + `id`",
    "--gin_param=two\nlines\\ and \ttabs; rm -rf ~ && : | cat > $(x) !! %n #",
    "--gin_param=ünïcode ☃",
    "",
    "--steps=3",
]


@pytest.fixture
def desk(tmp_path):
    desk = Desk(tmp_path)
    yield desk
    desk.end()


def up(desk: Desk, *after: str, flags: tuple[str, ...] = (), kind: str = "v6e-8") -> None:
    code, _, err = desk.call("up", "w", f"--type={kind}", *WHERE, "--spot", *flags, "--", *after)
    assert code == 0, err
    desk.call("status", "w")  # this look finds them ACTIVE, and they boot


def state(desk: Desk, host: int = 0) -> dict:
    file = desk.object(f"w/hosts/{host}/state.json")
    return json.loads(file.read_text()) if file.exists() else {}


def comes(desk: Desk, host: int = 0, **fields) -> None:
    """Waits until a VM says these things of itself."""
    wait_for(lambda: fields.items() <= state(desk, host).items())


def take_away(desk: Desk, watch: subprocess.Popen, *hosts: int) -> None:
    """Takes the machines away. The run on each of them was told in time, and has saved.

    The watch is held meanwhile, for it would make new ones at once.
    """
    watch.send_signal(signal.SIGSTOP)
    desk.cloud.preempt("w")
    assert [state(desk, host)["exit"] for host in hosts] == [143] * len(hosts)
    assert not (desk.cloud.folder / "vms" / "w").exists()
    watch.send_signal(signal.SIGCONT)


def steps(desk: Desk) -> list[int]:
    file = desk.object("w/run/metrics.jsonl")
    return [json.loads(line)["step"] for line in file.read_text().splitlines()] if file.exists() else []


def log(desk: Desk, host: int, attempt: int = 1) -> str:
    file = desk.object(f"w/hosts/{host}/log-{attempt}.txt")
    return file.read_text() if file.exists() else ""


def set_file(desk: Desk, name: str, text: str = "") -> None:
    """Tells the stand-in for train what to do, by a file in its run folder."""
    desk.object("w/run").mkdir(parents=True, exist_ok=True)
    desk.object(f"w/run/{name}").write_text(text)


def test_a_run_survives_the_loss_of_its_machines(desk):
    """Preempted in mid-run; `watch` deletes, makes new ones, and the run goes on where it was."""
    set_file(desk, "hold")
    desk.environment["HF_TOKEN"] = secret = "hf_a_secret_of_the_laptop"
    desk.cloud.plan("PROVISIONING ACTIVE", "WAITING_FOR_RESOURCES ACTIVE", delete_looks=1)
    made = desk.start("up", "w", "--type=v6e-8", *WHERE, "--spot", "--", *HOSTILE)
    made.communicate(timeout=200)
    assert made.returncode == 0
    watch = desk.start("watch", "w", "--delete", "--every=0.5")
    comes(desk, attempt=1, phase="running")
    wait_for(lambda: "train begins" in desk.object("w/hosts/0/log-1.txt").read_text())
    take_away(desk, watch, 0)
    desk.object("w/run/hold").unlink()
    out, err = watch.communicate(timeout=200)
    assert watch.returncode == 0, err
    said = [line.partition(" ")[2] for line in out.splitlines()]
    order = ["the machines were taken away", "no machines: asks for some", "done: the run has ended"]
    places = [next(at for at, line in enumerate(said) if line.startswith(start)) for start in order]
    assert places == sorted(places)
    assert steps(desk) == [0, 1, 2]
    ours = [*HOSTILE, f"--run_dir={BUCKET}/atgrpo/w/run"]
    assert json.loads(desk.object("w/run/arguments.json").read_text()) == ours
    assert desk.cloud.resources() == {}
    # The second machines installed the versions of the first ones.
    installs = [
        line for line in (desk.cloud.folder / "uv.txt").read_text().splitlines() if "pip install" in line
    ]
    assert ["--constraints" in line for line in installs] == [False, True, True]
    assert all(line.endswith("[tpu,gcs]") for line in installs)
    assert desk.object("w/constraints.txt").read_text() == "jax==0.10.2\n"
    # Both logs are there, and no secret is anywhere.
    logs = [desk.object(f"w/hosts/0/log-{attempt}.txt").read_text() for attempt in (1, 2)]
    assert "stopped by SIGTERM" in logs[0] and "done" in logs[1]
    written = [file.read_text(errors="replace") for file in desk.cloud.folder.rglob("*") if file.is_file()]
    assert not any(secret in text for text in [*written, out, err])


def test_a_run_that_crashes_and_one_that_people_must_mend(desk):
    """134 starts again by itself; 2 does not, and its line is shown; `run` starts the mended one."""
    set_file(desk, "fail", "134")
    up(desk, "--steps=1000")
    wait_for(lambda: len(steps(desk)) >= 2)
    set_file(desk, "fail", "2")
    comes(desk, phase="ended", exit=2, line="error: Experiment.steps = 0: must be positive")
    assert state(desk)["failures"] >= 1
    begun = desk.object("w/hosts/0/log-1.txt").read_text().count("train begins")
    watch = desk.start("watch", "w", "--every=0.5")
    out, _ = watch.communicate(timeout=200)
    assert watch.returncode == 2
    assert "starting again cannot help: error: Experiment.steps = 0: must be positive" in out
    # Not even after a boot of the VM.
    desk.call("ssh", "w", "--", "bash", "/opt/atgrpo/host.sh")
    assert desk.object("w/hosts/0/log-1.txt").read_text().count("train begins") == begun
    assert state(desk)["exit"] == 2
    desk.object("w/run/fail").unlink()
    reached = len(steps(desk))
    assert desk.call("run", "w", "--", f"--steps={reached + 1}")[0] == 0
    comes(desk, number=2, phase="ended", exit=0, step=reached)
    assert "done" in desk.call("logs", "w")[1]
    assert "done" in desk.call("logs", "w", "--live")[1]
    code, out, _ = desk.call("logs", "w", "--follow")
    assert code == 0 and out.endswith("done\n")
    assert f"host 0: ended, exit code 0, step {reached}, " in desk.call("status", "w")[1]


def test_stop_saves_and_run_goes_on(desk):
    """And a model folder of the job is on the VM's disk, where the run finds it as models/tiny."""
    set_file(desk, "hold")
    model = desk.cloud.storage.path(f"{BUCKET}/models/tiny")
    model.mkdir(parents=True)
    (model / "config.json").write_text("{}")
    up(desk, "--steps=2", flags=(f"--model={BUCKET}/models/tiny",))
    comes(desk, phase="running")
    assert list((desk.cloud.folder / "vms/w/0/opt/atgrpo").glob("*/code/models/tiny/config.json"))
    wait_for(lambda: desk.object("w/run/arguments.json").exists())
    assert desk.call("stop", "w")[0] == 0
    assert (state(desk)["phase"], state(desk)["exit"]) == ("ended", 143)
    code, out, _ = desk.call("watch", "w")
    assert code == 0 and "stopped; `run` goes on with it" in out
    desk.object("w/run/hold").unlink()
    assert desk.call("run", "w")[0] == 0
    comes(desk, phase="ended", exit=0, step=1)
    desk.call("delete", "w")
    assert desk.cloud.resources() == {}
    assert "no machines" in desk.call("list")[1]
    assert steps(desk) == [0, 1]


def test_a_stop_while_the_vm_is_prepared_is_heard(desk):
    """There is no unit to stop yet, and what the VM has read of the job says that the run is wanted."""
    (desk.cloud.folder / "hold_packages").write_text("")
    up(desk, "--steps=1")
    comes(desk, phase="setup")
    code, out, err = desk.call("stop", "w")
    assert code == 0, err
    assert "or it had not begun and will not" in out
    assert desk.call("watch", "w")[0] == 0  # nobody looks any more
    (desk.cloud.folder / "hold_packages").unlink()
    comes(desk, phase="ready")
    assert not desk.object("w/run/arguments.json").exists()
    assert desk.call("run", "w")[0] == 0
    comes(desk, phase="ended", exit=0)


def test_a_vm_without_network_says_so(desk):
    (desk.cloud.folder / "no_network").write_text("")
    up(desk, "--steps=1")
    comes(desk, phase="setup failed")
    assert state(desk)["line"].startswith(
        "error: no network: uv could not be fetched; leave out --internal-ips"
    )
    (desk.cloud.folder / "no_network").unlink()
    (desk.cloud.folder / "no_packages").write_text("")
    watch = desk.start("watch", "w", "--every=0.5")  # it has the VM prepared again
    out, _ = watch.communicate(timeout=200)
    assert watch.returncode == 2
    assert "tries again: error: no network" in out
    assert "cannot be prepared: error: the packages could not be installed; the lines above say why" in out
    (desk.cloud.folder / "no_packages").unlink()
    assert desk.call("run", "w")[0] == 0
    comes(desk, phase="ended", exit=0)


def test_a_bucket_that_the_vm_may_not_read(desk):
    """Nothing can be told through the bucket; `logs --live` shows it over ssh."""
    about = desk.cloud.folder / "bucket-runs-of-a-team.json"
    up(desk, "--steps=1")
    desk.cloud.gcloud(["compute", "tpus", "queued-resources", "delete", "w", "--zone=us-east5-a", "--force"])
    about.write_text(about.read_text().replace('"closed": ""', '"closed": "vm"'))
    desk.call("up", "w", "--type=v6e-8", *WHERE, "--resume")
    desk.call("status", "w")
    log = desk.cloud.folder / "vms/w/0/opt/atgrpo/log.txt"
    wait_for(lambda: log.exists() and "error" in log.read_text())
    out = desk.call("logs", "w", "--live")[1]
    assert (
        "error: cannot read gs://runs-of-a-team/atgrpo/w/job.json: ERROR: (gcloud.storage.cp) HTTPError 403"
        in out
    )


def test_several_vms_have_the_same_versions_and_are_probed(desk, tmp_path):
    """They install at the same time; one of them writes the versions."""
    assert desk.call("create", "w", "--type=v6e-16", *WHERE)[0] == 0
    for host in range(4):
        comes(desk, host, phase="ready", exit=None)
    writers = desk.cloud.calls("storage cp .*/constraints.txt .*--if-generation-match=0", vm=True)
    assert 1 <= len(writers) <= 4
    installs = [
        line for line in (desk.cloud.folder / "uv.txt").read_text().splitlines() if "pip install" in line
    ]
    assert sum("--constraints" in line for line in installs) == 4
    code, out, err = desk.call("probe", "w", f"--out={tmp_path}/probe", "--", "--size=all")
    assert code == 0, err
    assert out.startswith("a page\nexit code 1\n" * 4)
    for host in range(4):
        found = (tmp_path / "probe" / "results" / f"host-{host}" / "probe.json").read_text()
        *own, address = ast.literal_eval(found)
        assert own == [f"--bucket={BUCKET}/atgrpo/w/probe/speed", "--size=all", "--hosts=4", f"--host={host}"]
        assert address.startswith("--coordinator=")


def test_two_vms_make_one_run(desk):
    """A process that dies is started again by its VM, and so is the other one, which ends for it."""
    set_file(desk, "hold")
    up(desk, "--steps=3", kind="v5p-16")
    for host in (0, 1):
        comes(desk, host, phase="running")
        wait_for(lambda host=host: "all hosts are there" in log(desk, host))
    words = [json.loads(desk.object(f"w/run/arguments{host or ''}.json").read_text()) for host in (0, 1)]
    port = words[0][-1].rpartition(":")[2]
    ours = ["--steps=3", f"--run_dir={BUCKET}/atgrpo/w/run", "--hosts=2"]
    assert words == [[*ours, f"--host={host}", f"--coordinator=127.0.0.1:{port}"] for host in (0, 1)]
    desk.cloud.kill("w", 1)
    for host in (0, 1):
        wait_for(lambda host=host: log(desk, host).count("all hosts are there") >= 2)
        comes(desk, host, phase="running")
    assert "a host is dead" in log(desk, 0)
    assert state(desk, 0)["failures"] <= 3  # of which `watch` does nothing before the fourth
    out = desk.call("status", "w")[1]
    assert "host 0: running" in out and "host 1: running" in out
    # A stop of one VM is a stop of both: the last step is saved.
    assert desk.call("stop", "w")[0] == 0
    for host in (0, 1):
        comes(desk, host, phase="ended", exit=143)
    desk.object("w/run/hold").unlink()
    assert desk.call("run", "w")[0] == 0
    watch = desk.start("watch", "w", "--delete", "--every=0.5")
    out, err = watch.communicate(timeout=200)
    assert watch.returncode == 0, err
    assert steps(desk) == [0, 1, 2]
    assert desk.cloud.calls("queued-resources create|ssh")[1:] == desk.cloud.calls("ssh")  # made once
    lines = desk.call("logs", "w", "--host=all")[1].splitlines()
    assert "[host 0] done" in lines and "[host 1] done" in lines


def test_two_vms_that_are_taken_away_are_made_again(desk):
    set_file(desk, "hold")
    up(desk, "--steps=3", kind="v5p-16")
    watch = desk.start("watch", "w", "--delete", "--every=0.5")
    for host in (0, 1):
        wait_for(lambda host=host: "all hosts are there" in log(desk, host))
    take_away(desk, watch, 0, 1)
    desk.object("w/run/hold").unlink()
    out, err = watch.communicate(timeout=200)
    assert watch.returncode == 0, err
    assert "the machines were taken away" in out and "done: the run has ended" in out
    assert steps(desk) == [0, 1, 2]
    assert desk.cloud.resources() == {}
    assert ["done" in log(desk, host, attempt=2) for host in (0, 1)] == [True, True]
