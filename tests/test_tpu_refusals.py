"""What launch/tpu.py refuses before it spends, and what Google refuses: one line, and nothing is made."""

import subprocess
import sys

import pytest
from shared_tpu import BUCKET, WHERE, Desk
from tpu.states import kind_of

TYPE = "--type=v6e-8"
AFTER = ["--", "--gin_file=plan.gin"]


@pytest.fixture
def desk(tmp_path):
    return Desk(tmp_path)


def refused(desk: Desk, *words: str) -> str:
    """Returns the one line of a command that is refused, and that has asked for no machines."""
    code, _, err = desk.call(*words)
    lines = [line for line in err.splitlines() if not line.startswith("$ ")]
    assert code == 2 and len(lines) == 1, err
    assert desk.cloud.calls("create$|delete") == []
    return lines[0]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((TYPE, *WHERE, *AFTER), "`up` needs a NAME"),
        (("Run_1", TYPE, *WHERE, *AFTER), "'Run_1' is no name"),
        (("a" * 41, TYPE, *WHERE, *AFTER), "is no name"),
        (("w", "--type=v6e-3", *WHERE, *AFTER), "--type=v6e-3: unknown; the types are v4-8"),
        (("w", "--type=tpu7x-8", *WHERE, *AFTER), "GKE only"),
        (("w", TYPE, "--bucket=runs", "--zone=us-east5-a", *AFTER), "expected gs://BUCKET"),
        (("w", TYPE, "--bucket=gs://runs/x", "--zone=us-east5-a", *AFTER), "without a folder"),
        (("w", TYPE, f"--bucket={BUCKET}", "--zone=us", *AFTER), "expected a zone, e.g. us-east5-a"),
        (("w", TYPE, f"--bucket={BUCKET}", *AFTER), "`up` needs --zone"),
        (("w", *WHERE, *AFTER), "`up` needs --type"),
        (("w", TYPE, *WHERE), "needs what to train after --"),
        (("w", TYPE, *WHERE, "--max-hours=0", *AFTER), "--max-hours=0: expected a number above 0"),
        (("w", "--type=v5litepod-8", *WHERE, *AFTER), "has no v5litepod-8: it has none of this kind"),
        (("w", "--type=v6e-8", f"--bucket={BUCKET}", "--zone=us-west4-a", *AFTER), "has no v6e-8"),
        (
            ("w", TYPE, f"--bucket={BUCKET}", "--zone=us-east9-z", *AFTER),
            "the types of us-east9-z: there is no",
        ),
        (
            ("w", TYPE, "--bucket=gs://nobodys", "--zone=us-east5-a", *AFTER),
            "the bucket gs://nobodys: there is no",
        ),
    ],
)
def test_up_refuses(desk, words, says):
    assert says in refused(desk, "up", *words)


def test_no_bucket_at_all(desk, monkeypatch):
    monkeypatch.delenv("ATGRPO_BUCKET", raising=False)
    assert "give --bucket=gs://BUCKET, or set ATGRPO_BUCKET" in refused(desk, "watch", "w", "--bucket=")


@pytest.mark.parametrize(
    ("location", "fits"),
    [
        ("US-EAST5", True),
        ("US", True),
        ("us-east5", True),
        ("US-CENTRAL1", False),
        ("EU", False),
        ("NAM4", False),
    ],
)
def test_the_bucket_is_where_the_machines_are(desk, location, fits):
    desk.cloud.storage.make("other", location)
    words = ("up", "w", TYPE, "--zone=us-east5-a", "--bucket=gs://other", *AFTER)
    if fits:
        assert desk.call(*words)[0] == 0
    else:
        assert f"gs://other is in {location} and the machines would be in us-east5" in refused(desk, *words)


def test_a_name_that_is_taken(desk):
    assert desk.call("up", "w", TYPE, *WHERE, *AFTER)[0] == 0
    made = desk.cloud.resources()
    code, _, err = desk.call("up", "w", TYPE, *WHERE, *AFTER)
    assert (code, desk.cloud.resources().keys()) == (2, made.keys())
    assert "w exists in us-east5-a (ACTIVE, made by this program)" in err
    desk.call("delete", "w")
    code, _, err = desk.call("up", "w", TYPE, *WHERE, *AFTER)
    assert code == 2 and "has a job w: go on with --resume" in err
    assert desk.call("up", "w", TYPE, *WHERE, "--resume")[0] == 0
    assert desk.cloud.resources()["w"]["node"]["labels"] == {"atgrpo": "w", "atgrpo-attempt": "2"}
    desk.end()


def test_uncommitted_changes(desk):
    (desk.checkout / "new.gin").write_text("")
    assert "uncommitted changes, e.g. new.gin: commit them, or give --dirty" in refused(
        desk, "up", "w", TYPE, *WHERE, *AFTER
    )
    assert desk.call("up", "w", TYPE, *WHERE, "--dirty", *AFTER)[0] == 0
    packed = desk.object("w").glob("code-*.tar.gz")
    listed = subprocess.run(["tar", "-tzf", *packed], capture_output=True, text=True, check=True).stdout
    assert "launch/tpu_host.sh" in listed.split()
    assert "new.gin" not in listed  # git does not track it: it may be a secret
    desk.end()


def test_the_same_files_have_the_same_digest(tmp_path):
    digests = set()
    for number in ("1", "2"):
        desk = Desk(tmp_path / number)
        desk.call("up", "w", TYPE, *WHERE, *AFTER)
        digests.add(next(desk.object("w").glob("code-*")).read_bytes())
        desk.end()
    assert len(digests) == 1


def test_what_is_no_git_checkout(desk):
    (desk.checkout / ".git").rename(desk.checkout / "git")
    assert "is no git checkout" in refused(desk, "up", "w", TYPE, *WHERE, *AFTER)


def test_hours_that_are_used_up(desk):
    desk.call("up", "w", TYPE, *WHERE, "--max-hours=2", *AFTER)
    desk.call("delete", "w")
    job = desk.object("w/job.json")
    job.write_text(job.read_text().replace('"hours": {}', '"hours": {"1": 1.5, "2": 0.5}'))
    calls = len(desk.cloud.calls("create"))
    code, _, err = desk.call("up", "w", TYPE, *WHERE, "--resume")
    assert code == 2 and "w has had machines for 2.0 of its 2 hours: give a larger --max-hours" in err
    assert len(desk.cloud.calls("create")) == calls
    assert desk.call("up", "w", TYPE, *WHERE, "--resume", "--max-hours=3")[0] == 0
    desk.end()


PLAN = """
import sys
print("plan", sys.argv[1:])
if "--gin_file=wrong.gin" in sys.argv:
    print("error: no file wrong.gin", file=sys.stderr)
sys.exit({"--gin_file=large.gin": 1, "--gin_file=wrong.gin": 2}.get(sys.argv[-1], 0))
"""


def test_plan(desk):
    """With a stand-in for the package's plan; its exit codes are in tests/test_footprint.py."""
    (desk.checkout / "atgrpo_jax" / "plan.py").write_text("import a_package_that_is_not_installed")
    words = ("up", "w", TYPE, *WHERE, "--plan", "--dirty", "--")
    assert "--plan needs the package" in refused(desk, *words, "--gin_file=plan.gin")
    (desk.checkout / "atgrpo_jax" / "plan.py").write_text(PLAN)
    large = refused(desk, *words, "--run_dir", "gs://x/y", "--gin_file=large.gin")
    assert "does not fit into 32 GB of a v6e-8's chip" in large
    assert "plan refuses the config: error: no file wrong.gin" in refused(
        desk, *words, "--gin_file=wrong.gin"
    )
    code, out, _ = desk.call(*words, "--gin_file=small.gin", "--run_dir=gs://x/y")
    assert (code, out.splitlines()[0]) == (0, "plan ['--device=v6e', '--gin_file=small.gin']")
    desk.end()


@pytest.mark.parametrize(
    ("says", "line"),
    [
        (
            "ERROR: (gcloud.x) RESOURCE_EXHAUSTED: Quota limit 'TPUV6EPerProject' has been exceeded.",
            "no quota",
        ),
        ("ERROR: (gcloud.x) There is no more capacity in the zone", "no machine of this type is free"),
        ("ERROR: (gcloud.x) PERMISSION_DENIED: Permission 'tpu.nodes.create' denied", "no right to do that"),
        (
            "ERROR: (gcloud.x) You do not currently have an active account selected.",
            "run `gcloud auth login`",
        ),
        ("ERROR: (gcloud.x) Something that nobody has seen", "gcloud refused (ERROR: (gcloud.x) Something"),
    ],
)
def test_google_refuses_to_make_machines(desk, says, line):
    desk.cloud.break_calls({"match": "queued-resources create", "says": says, "times": 1})
    code, _, err = desk.call("up", "w", TYPE, *WHERE, *AFTER)
    assert code == 2 and line in err and "no machines were made" in err
    assert desk.cloud.resources() == {}
    assert desk.call("up", "w", TYPE, *WHERE, *AFTER)[0] == 0  # the name is free
    desk.end()


def test_credentials_that_have_expired(desk):
    says = "ERROR: (gcloud.compute) There was a problem refreshing your current auth tokens: invalid_grant"
    desk.cloud.break_calls({"match": ".", "says": says, "times": 1})
    assert "gcloud's credentials have expired" in refused(desk, "up", "w", TYPE, *WHERE, *AFTER)


def test_a_bucket_without_rights(desk):
    desk.cloud.storage.make("closed", "US-EAST5", closed="laptop")
    words = ("up", "w", TYPE, "--zone=us-east5-a", "--bucket=gs://closed", *AFTER)
    assert "the bucket gs://closed: this account has no right to do that" in refused(desk, *words)


def test_kinds_of_faults():
    assert kind_of("429 Quota exceeded for quota metric")[0] == "quota"
    assert kind_of("API requires a quota project, which is not set")[0] != "quota"
    assert kind_of("HTTPError 503: UNAVAILABLE")[0] == "network"
    assert kind_of("The following URLs matched no objects or files")[0] == "absent"


def test_no_gcloud(desk):
    desk.environment["PATH"] = str(desk.checkout)
    done = desk.start("list")
    _, err = done.communicate(timeout=40)
    assert done.returncode == 2 and err.splitlines()[-1] == "error: gcloud is not installed or not on PATH"


def test_a_command_that_hangs_is_killed(desk):
    """By its deadline: ssh is given a short one."""
    from tpu.shell import Failed, Shell

    with pytest.raises(Failed, match=r"no answer within 0\.2 s"):
        Shell().run([sys.executable, "-c", "import time; time.sleep(60)"], 0.2)


def test_every_command_has_a_deadline(desk):
    """Commands without one wait for ever; but for an ssh session that a person sits at."""
    shell = desk.shell(False)
    deadlines = []
    execute = shell.execute

    def noted(words, deadline_s, stdin):
        deadlines.append(deadline_s)
        return execute(words, deadline_s, stdin)

    shell.execute = noted
    from tpu import cli

    for words in (
        ["up", "w", TYPE, *WHERE, *AFTER],
        ["status", "w", *WHERE],
        ["delete", "w", *WHERE, "--every=0"],
    ):
        assert cli.main(words, lambda dry: shell) == 0
    assert len(deadlines) > 10 and max(deadlines) <= 600


@pytest.mark.parametrize("command", ["delete", "stop", "watch", "ssh", "probe"])
def test_what_is_not_ours_is_left_alone(desk, command):
    """A job of this name is in the bucket, and meanwhile somebody else made machines of the name."""
    desk.call("up", "w", TYPE, *WHERE, *AFTER)
    desk.call("delete", "w")
    foreign = ["--labels=team=others", "--metadata=a=b", "--metadata-from-file=s=launch/tpu_host.sh"]
    flags = ["--accelerator-type=v6e-8", "--runtime-version=x", "--node-id=w", "--zone=us-east5-a"]
    create = ["compute", "tpus", "queued-resources", "create", "w", *flags, *foreign]
    desk.cloud.plan(boots=False)
    desk.cloud.gcloud(create, cwd=desk.checkout)
    before = len(desk.cloud.calls("delete|ssh|create"))
    code, _, err = desk.call(command, "w")
    assert code == 2 and "was not made by this program: it is left alone" in err
    assert len(desk.cloud.calls("delete|ssh|create")) == before
    assert "w" in desk.cloud.resources()


@pytest.mark.parametrize("words", [["frobnicate"], ["up", "--typo=1"], ["up", "--spot", "--reserved"]])
def test_flags_that_there_are_not(desk, words):
    done = desk.start(*words)
    _, err = done.communicate(timeout=40)
    assert done.returncode == 2 and "error: " in err and "Traceback" not in err
