"""launch/tpu/on_vm.py and tpu_host.sh: what runs on a VM, piece by piece."""

import json
import os
import subprocess
import sys
import threading

import pytest
from shared_tpu import ROOT  # it puts launch/ on the path
from tpu import on_vm


@pytest.fixture
def base(tmp_path):
    job = {
        "number": 1,
        "train": ["--gin_file=x"],
        "wanted": "run",
        "run_dir": str(tmp_path / "run"),
        "name": "w",
    }
    (tmp_path / "job.json").write_text(json.dumps(job | {"bucket": "gs://b"}))
    (tmp_path / "vm.json").write_text(json.dumps({"host": 3, "attempt": 2, "python": sys.executable}))
    return tmp_path


@pytest.mark.parametrize(
    ("status", "code", "failures"), [("0", 0, 0), ("2", 2, 0), ("143", 143, 0), ("1", 1, 1), ("134", 134, 1),
                                     ("KILL", 137, 1), ("ABRT", 134, 1), ("TERM", 143, 0)],
)  # fmt: skip
def test_how_a_run_ended(base, status, code, failures):
    (base / "log.txt").write_text("step 1\nerror: no file\nTraceback\n")
    phase = on_vm.ended(base, status)
    noted = json.loads((base / "ended.json").read_text())
    assert (noted["exit"], len(noted["failures"])) == (code, failures)
    assert phase == {"phase": "ended", "line": "" if code == 0 else "error: no file"}


@pytest.mark.parametrize(
    "endpoints",
    ["10.0.0.5,10.0.0.6", "unknown:unknown:10.0.0.5,unknown:unknown:10.0.0.6", "10.0.0.5, 10.0.0.6"],
)
def test_vms_find_each_other(endpoints):
    vm = {"host": 1, "endpoints": endpoints}
    assert on_vm.hosts_flags(vm, 2) == ["--hosts=2", "--host=1", "--coordinator=10.0.0.5:8482"]
    assert on_vm.hosts_flags({"host": 0}, 1) == []  # and older files of one VM
    with pytest.raises(SystemExit, match="error: the metadata server names 2 VMs .*, and not 4"):
        on_vm.hosts_flags(vm, 4)


@pytest.mark.parametrize(
    ("log", "line"),
    [
        ("step 1\nerror: no file\nhint\n", "error: no file"),
        ("error: old\nF1129 07:54 client.h:80] a task died\nFatal Python error: Aborted\nThread 1\n",
         "F1129 07:54 client.h:80] a task died"),
        ("step 1\nFatal Python error: Bus error\n  File a\n", "Fatal Python error: Bus error"),
        ("Traceback\nValueError: x\n\n", "ValueError: x"),
        ("", ""),
    ],
)  # fmt: skip
def test_the_line_that_says_what_went_wrong(base, log, line):
    (base / "log.txt").write_text(log)
    assert on_vm.last_line(base / "log.txt") == line


def test_failures_of_the_last_hour_count_and_those_of_another_run_do_not(base):
    for _ in range(3):
        on_vm.ended(base, "1")
    ended = json.loads((base / "ended.json").read_text())
    ended["failures"][0] -= 3601
    (base / "ended.json").write_text(json.dumps(ended))
    on_vm.ended(base, "1")
    assert len(json.loads((base / "ended.json").read_text())["failures"]) == 3
    job = json.loads((base / "job.json").read_text())
    (base / "job.json").write_text(json.dumps(job | {"number": 2}))
    on_vm.ended(base, "1")
    assert len(json.loads((base / "ended.json").read_text())["failures"]) == 1


@pytest.mark.parametrize(
    ("changes", "ended", "phase"),
    [
        ({}, None, "running"),
        ({}, {"number": 1, "exit": 134}, "running"),
        ({}, {"number": 1, "exit": 143}, "running"),  # a boot after a stop that nobody asked for
        ({}, {"number": 1, "exit": 2}, "ended"),
        ({}, {"number": 1, "exit": 0}, "ended"),
        ({"number": 2}, {"number": 1, "exit": 2}, "running"),  # mended
        ({"wanted": "stop"}, None, "ready"),
        ({"train": None}, None, "ready"),
    ],
)
def test_whether_a_boot_starts_the_run(base, changes, ended, phase):
    job = json.loads((base / "job.json").read_text())
    (base / "job.json").write_text(json.dumps(job | changes))
    if ended:
        (base / "ended.json").write_text(json.dumps(ended))
    assert on_vm.settled(base)["phase"] == phase


def test_what_is_wanted_now_counts_when_a_vm_is_prepared(base):
    """job.json was read before the long installation."""
    (base / "newest.json").write_text(json.dumps({"wanted": "stop", "number": 7}))
    assert on_vm.settled(base)["phase"] == "ready"
    job = json.loads((base / "job.json").read_text())
    (base / "job.json").write_text(json.dumps(job | {"wanted": "stop"}))
    (base / "newest.json").write_text(json.dumps({"wanted": "run"}))
    assert on_vm.settled(base)["phase"] == "running"


def test_the_newest_step(tmp_path):
    assert on_vm.newest_step(str(tmp_path)) == -1
    (tmp_path / "metrics.jsonl").write_text('{"step": 4}\n{"step": 5, "loss": NaN}\n{"st')
    assert on_vm.newest_step(str(tmp_path)) == 5


def test_a_lock_that_nobody_holds_is_removed(tmp_path, capfd):
    lock = tmp_path / "libtpu_lockfile"
    chip = tmp_path / "accel0"
    chip.write_text("")
    devices = f"{tmp_path}/(accel|vfio/)[0-9]+"
    on_vm.unlock(lock, devices)  # there is none
    lock.write_text("")
    with chip.open():
        on_vm.unlock(lock, devices)
        assert lock.exists()
        assert f"process {os.getpid()} holds {chip}" in capfd.readouterr().out
    on_vm.unlock(lock, devices)
    assert not lock.exists()


def test_a_full_disk_is_told_although_it_takes_no_note(base, capsys, limited_file_size):
    """Nothing can be written; what is said to the bucket comes from memory."""
    said = {}

    def storage(*words, stdin=b""):
        said[words[-1]] = stdin
        return subprocess.CompletedProcess(words, 0, b"", b"")

    with limited_file_size(0):
        on_vm.Reporter(base, storage).say({"phase": "setup failed", "line": "error: no space"})
    state = json.loads(said["gs://b/atgrpo/w/hosts/3/state.json"])
    assert (state["phase"], state["line"], state["attempt"]) == ("setup failed", "error: no space", 2)
    assert on_vm.full(base) == ""
    assert on_vm.full(base, least=10**18).startswith("error: the VM's disk is full (")
    assert "cannot write" in capsys.readouterr().out


def test_an_older_state_does_not_come_after_the_end_of_the_run(base):
    """The unit that reports and the one that has ended are two processes, which stop at the same time."""
    on_vm.write(base / "phase.json", {"phase": "running", "line": "", "since": 0.0})
    copying, go_on, said = threading.Event(), threading.Event(), []

    def slow(*words, stdin):
        copying.set()
        assert go_on.wait(10)
        return storage(*words, stdin=stdin)

    def storage(*words, stdin):
        if words[-1].endswith("state.json"):
            said.append(json.loads(stdin)["exit"])
        return subprocess.CompletedProcess(words, 0, b"", b"")

    reports = threading.Thread(target=on_vm.Reporter(base, slow).report)
    reports.start()
    assert copying.wait(10)
    ends = threading.Thread(target=lambda: on_vm.Reporter(base, storage).say(on_vm.ended(base, "TERM")))
    ends.start()
    ends.join(timeout=0.3)
    go_on.set()
    reports.join(timeout=10)
    ends.join(timeout=10)
    assert said == [None, 143]


def test_a_report_that_hangs_holds_no_other_one_up(base, monkeypatch):
    monkeypatch.setattr(on_vm, "TURN_S", 0.1)
    with on_vm.in_turn(base / "report.lock"), on_vm.in_turn(base / "report.lock"):
        pass


def test_a_cut_file_counts_as_none(tmp_path):
    (tmp_path / "x.json").write_text('{"a"')
    assert on_vm.read(tmp_path / "x.json") == on_vm.read(tmp_path / "y.json") == {}


def function_of(name):
    """Returns a function of launch/tpu_host.sh."""
    script = (ROOT / "launch" / "tpu_host.sh").read_text()
    if f"\n{name}() {{ " in script:  # in one line
        return next(line for line in script.splitlines() if line.startswith(f"{name}() {{ "))
    return f"{name}() {{" + script.partition(f"{name}() {{")[2].partition("\n}\n")[0] + "\n}"


# What starts the run, alone. Each word of ``looks`` is what one more look at the job in the bucket finds.
START_RUN = """\
set -eEuo pipefail
base=opt code=code place=place units=units root="" folder=gs://b/atgrpo/w
mkdir -p opt units
fail() {{ echo "fail: $1"; exit 1; }}
on_vm() {{ [ "$1 $(field wanted newest.json)" = "mayrun run" ]; }}
id() {{ true; }}
chown() {{ true; }}
systemctl() {{ echo "$*"; }}
looks=({looks})
fetch() {{
  said="an error"
  local look="${{looks[0]}}"
  looks=("${{looks[@]:1}}")
  [ "$look" != none ] && printf '{{"wanted": "%s"}}' "$look" > "$2"
}}
{functions}
start_run
"""


@pytest.mark.parametrize(
    ("looks", "said"),
    [
        ("run run", "restart atgrpo"),
        ("stop", ""),
        ("run stop", "restart atgrpo\nstop atgrpo"),  # between the look and the start
        ("run none", "restart atgrpo\ncannot read gs://b/atgrpo/w/job.json once more, so a stop just now has "
         "no effect: an error"),
        ("none", "fail: cannot read gs://b/atgrpo/w/job.json: an error"),
    ],
)  # fmt: skip
def test_a_run_that_is_not_wanted_any_more_is_not_started(tmp_path, looks, said):
    functions = "\n".join(map(function_of, ("field", "get_newest", "start_run")))
    done = subprocess.run(
        ["bash", "-c", START_RUN.format(looks=looks, functions=functions)],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout == f"daemon-reload\n{said}\n".replace("\n\n", "\n"), done.stderr
    assert done.returncode == said.startswith("fail")


# The function of launch/tpu_host.sh alone, with its options, and a gcloud that copies from ./buckets.
GET_MODELS = """\
set -eEuo pipefail
fail() {{ echo "error: $1"; exit 1; }}
trap 'fail "stopped in line $LINENO"' ERR
field() {{ [ "$1" = models ] && printf '%s\\n' {models}; }}
gcloud() {{ echo "$5" >> asked; if [ "$(cat fails 2> /dev/null)" = "$5" ]; then touch "$6/half"; return 1; fi
  cp -r "buckets/${{5#gs://}}" "$6"; }}
base=opt code=code
mkdir -p code
{function}
get_models
"""


class Models:
    """A VM that gets the models of a job, and folders of models in a bucket, with a file each."""

    def __init__(self, folder):
        self.folder = folder
        self.function = function_of("get_models")
        for name in ("x/final", "y/final", "x/a b"):
            (folder / "buckets" / "b" / name).mkdir(parents=True)
            (folder / "buckets" / "b" / name / "weights").write_text(name)

    def get(self, *models):
        """Returns the exit code, what was said, and the addresses that were asked for this time."""
        (self.folder / "asked").write_text("")
        words = " ".join(f"'{model}'" for model in models or [""])
        done = subprocess.run(
            ["bash", "-c", GET_MODELS.format(models=words, function=self.function)],
            cwd=self.folder, capture_output=True, text=True, check=False,
        )  # fmt: skip
        return done.returncode, done.stdout + done.stderr, (self.folder / "asked").read_text().splitlines()

    def weights(self, name):
        return (self.folder / "opt" / "models" / name / "weights").read_text()


def test_models_are_copied_once_whatever_slashes_they_end_with(tmp_path):
    vm = Models(tmp_path)
    assert vm.get() == (0, "", [])
    code, said, asked = vm.get("gs://b/x/final//", "gs://b/x/a b/")
    assert (code, asked) == (0, ["gs://b/x/final", "gs://b/x/a b"]), said
    assert (vm.weights("final"), vm.weights("a b")) == ("x/final", "x/a b")
    assert vm.get("gs://b/x/final", "gs://b/x/a b/")[2] == []


def test_another_model_of_the_same_name_takes_its_place(tmp_path):
    """A later run on the same machines names another folder: it must not get the weights of the first."""
    vm = Models(tmp_path)
    vm.get("gs://b/x/final")
    assert vm.get("gs://b/y/final")[::2] == (0, ["gs://b/y/final"])
    assert vm.weights("final") == "y/final"


def test_two_models_of_one_name_are_refused(tmp_path):
    code, said, _ = Models(tmp_path).get("gs://b/x/final", "gs://b/y/final/")
    assert code == 1
    assert "gs://b/x/final and gs://b/y/final would both be models/final: give one of them another" in said


def test_a_model_that_was_copied_by_half_is_copied_again(tmp_path):
    vm = Models(tmp_path)
    (tmp_path / "fails").write_text("gs://b/x/final")
    code, said, _ = vm.get("gs://b/x/final")
    assert code == 1 and "error: cannot copy gs://b/x/final to local disk" in said
    (tmp_path / "fails").unlink()
    assert vm.get("gs://b/x/final")[::2] == (0, ["gs://b/x/final"])
    assert vm.weights("final") == "x/final"
