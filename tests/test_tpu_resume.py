"""`up NAME --resume`: a job goes on as it was, but for what is given. And folders of models."""

import subprocess

import pytest
from shared_tpu import BUCKET, WHERE, Desk
from tpu.cloud import Cloud
from tpu.job import Job, check_models, read
from tpu.shell import Problem

FIRST = ("--type=v6e-8", *WHERE, "--spot", "--internal-ips", "--network=mine", "--subnetwork=ours",
         "--project=p1", "--valid-until=6h", f"--model={BUCKET}/models/a", "--max-hours=7")  # fmt: skip
AFTER = ("--", "--gin_file=plan.gin")


@pytest.fixture
def desk(tmp_path):
    desk = Desk(tmp_path)
    desk.cloud.plan(boots=False)
    assert desk.call("up", "w", *FIRST, *AFTER)[0] == 0
    assert desk.call("delete", "w")[0] == 0
    return desk


def job(desk: Desk) -> Job:
    return read(Cloud(desk.shell(False)), BUCKET, "w")


def created(desk: Desk) -> list[str]:
    """The words of the newest request, without those that differ from attempt to attempt."""
    words = desk.cloud.calls("queued-resources create")[-1]
    return [word for word in words if not word.startswith(("--labels", "--metadata="))]


def test_what_delete_says_works_as_it_is_printed(desk):
    """The same machines, tier, network and project: on-demand ones without a network would cost more."""
    before = created(desk)
    assert {"--spot", "--internal-ips", "--network=mine", "--project=p1"} <= set(before)
    first = job(desk)
    words = desk.call("delete", "w")[1].partition("`")[2].partition("`")[0].split()
    assert words == ["up", "w", "--resume"]
    code, out, err = desk.call(*words)
    assert code == 0, err
    assert created(desk) == before
    assert job(desk) == first.but(wanted="run", number=2, attempt=2)
    assert out.splitlines()[0] == (
        "w goes on: v6e-8 in us-east5-a, spot --network=mine --subnetwork=ours --internal-ips "
        "--valid-until-duration=6h, project p1"
    )
    assert " before, " not in out
    # Each question goes to the job's project, too, but for the reading of the job.
    asked = desk.cloud.calls("compute tpus")
    assert all("--project=p1" in words for words in asked)


def test_what_is_given_counts_and_is_printed(desk):
    (desk.checkout / "new.txt").write_text("")
    subprocess.run(["git", "add", "new.txt"], cwd=desk.checkout, check=True)
    code, out, err = desk.call(
        "up", "w", "--resume", "--dirty", "--type=v6e-4", "--on-demand", "--no-internal-ips",
        "--network=other", "--subnetwork=", "--project=p2", "--max-hours=9", f"--model={BUCKET}/models/b",
        "--", "--gin_file=a b",
    )  # fmt: skip
    assert code == 0, err
    own = ["--accelerator-type=v6e-4", "--network=other", "--valid-until-duration=6h", "--project=p2"]
    assert set(own) <= set(created(desk))
    assert not {"--spot", "--on-demand", "--internal-ips", "--subnetwork=ours"} & set(created(desk))
    lines = out.splitlines()
    assert lines[0].startswith("w goes on: v6e-4 in us-east5-a, on-demand --network=other --valid-until")
    code_line = next(line for line in lines if line.startswith("  code: "))
    assert [line for line in lines if line.startswith("  ") and line != code_line] == [
        "  type: v6e-8 before, v6e-4 now",
        "  tier: spot before, on-demand now",
        "  network: --network=mine --subnetwork=ours --internal-ips --valid-until-duration=6h before, "
        "--network=other --valid-until-duration=6h now",
        "  project: p1 before, p2 now",
        f"  models: {BUCKET}/models/a before, {BUCKET}/models/b now",
        "  max-hours: 7.0 before, 9.0 now",
        "  arguments: --gin_file=plan.gin before, '--gin_file=a b' now",
    ]


def test_create_goes_on_as_before_too(desk):
    before = created(desk)
    assert desk.call("create", "w", "--resume")[0] == 0
    assert created(desk) == before


def test_a_job_that_there_is_not_is_not_made(desk):
    code, _, err = desk.call("up", "v", "--resume", "--type=v6e-8", "--zone=us-east5-a", *AFTER)
    assert code == 2 and f"error: --resume: {BUCKET} has no job v; `list` shows all" in err
    assert not desk.object("v").exists()


def test_machines_in_the_zone_before_are_deleted_first(desk):
    """The job would forget them, and they would cost for ever."""
    assert desk.call("up", "w", "--resume")[0] == 0
    there = ("up", "w", "--resume", "--zone=us-west4-a", "--type=v5litepod-8")
    desk.cloud.storage._about(BUCKET.removeprefix("gs://")).write_text('{"location": "US", "closed": ""}')
    code, _, err = desk.call(*there)
    assert code == 2 and "w still has machines in us-east5-a, which nothing would delete later" in err
    assert job(desk).zone == "us-east5-a" and len(desk.cloud.calls("queued-resources create")) == 2
    desk.call("delete", "w")
    code, out, err = desk.call(*there)
    assert code == 0, err
    assert "  zone: us-east5-a before, us-west4-a now" in out


def test_the_plan_is_asked_about_arguments_of_before(desk):
    (desk.checkout / "atgrpo_jax" / "plan.py").write_text(
        "import sys\nsys.exit(sys.argv[-1][-8:] == 'plan.gin')"
    )
    code, _, err = desk.call("up", "w", "--resume", "--plan", "--dirty")
    assert code == 2 and "does not fit into 32 GB of a v6e-8's chip" in err


def test_a_dry_run_says_that_it_does_not_know_the_job(desk):
    code, out, _ = desk.call("up", "w", "--resume", "--dry-run", *FIRST[:2], *AFTER)
    assert code == 0
    assert "a dry run does not read the job: a real one takes from it what is not given here" in out


@pytest.mark.parametrize("command", ["up", "run"])
def test_two_models_of_one_name(desk, command):
    """The VMs would have one folder for both."""
    more = ("--resume",) if command == "up" else ()
    calls = len(desk.cloud.calls("create|cp"))
    two = (f"--model={BUCKET}/x/final", f"--model={BUCKET}/y/final/")
    code, _, err = desk.call(command, "w", *more, *two)
    both = f"--model={BUCKET}/x/final and --model={BUCKET}/y/final would both be models/final on the VMs"
    assert code == 2 and both in err and "another last name" in err
    assert len(desk.cloud.calls("create|cp")) == calls
    one = (f"--model={BUCKET}/x/final/", f"--model={BUCKET}/x/final")
    assert desk.call(command, "w", *more, *one)[0] == 0
    assert job(desk).models == (f"{BUCKET}/x/final",)


@pytest.mark.parametrize(
    "wrong", ["", "/data/final", "gs://", "gs:///final", "gs://b/models/*", "gs://b/x/..", "gs://b/a\nb"]
)
def test_what_is_no_folder_of_a_model(wrong):
    with pytest.raises(Problem, match="expected a folder, gs://BUCKET/FOLDER/NAME"):
        check_models([wrong])


def test_folders_of_models():
    given = ["gs://b/models/qwen3 8b@1/", "gs://b//", "gs://b/final"]
    assert check_models(given) == ("gs://b/models/qwen3 8b@1", "gs://b", "gs://b/final")
