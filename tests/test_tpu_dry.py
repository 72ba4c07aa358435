"""launch/tpu.py --dry-run: what a person reads before paying, a file for each type in tests/golden/tpu/.

``PYTHONPATH=. python tests/test_tpu_dry.py`` writes the files anew.
"""

import re
import sys
import tempfile
from pathlib import Path

import pytest
from shared_tpu import BUCKET, Desk
from tpu.machines import machine
from tpu.shell import Problem

GOLDEN = Path(__file__).parent / "golden" / "tpu"
TYPES = {
    "v4-8": "us-central2-b", "v4-16": "us-central2-b", "v5litepod-1": "us-west4-a",
    "v5litepod-4": "us-west4-a", "v5litepod-8": "us-west4-a", "v5litepod-16": "us-west4-a",
    "v5litepod-256": "us-west4-a", "v5p-8": "us-east5-a", "v5p-16": "us-east5-a", "v6e-1": "us-east5-a",
    "v6e-4": "us-east5-a", "v6e-8": "us-east5-a", "v6e-16": "us-east5-a",
}  # fmt: skip


def dry(desk: Desk, kind: str) -> str:
    """What `up --dry-run` prints for a type."""
    where = [f"--type={kind}", f"--zone={TYPES[kind]}", "--spot"]
    after = ["--", "--gin_file=plan.gin", "--gin_param=plan_path.PlanPath.size = 5"]
    code, out, err = desk.call("up", "scouts", *where, "--dry-run", *after)
    assert (code, err) == (0, ""), err
    # The digest is the checkout's, and another one after every change.
    return re.sub(r"\b[0-9a-f]{16}\b", "DIGEST", out)


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    return Desk(tmp_path_factory.mktemp("desk"))


@pytest.mark.parametrize("kind", TYPES)
def test_up_of_a_type(desk, kind):
    assert dry(desk, kind) == (GOLDEN / f"{kind}.txt").read_text()


@pytest.mark.parametrize(
    "command", ["watch", "status", "logs", "stop", "delete", "run", "probe", "list", "ssh"]
)
def test_the_other_commands(desk, command):
    after = ["--", "--gin_file=plan.gin"] if command == "run" else []
    code, out, err = desk.call(command, "scouts", "--zone=us-east5-a", "--dry-run", *after)
    assert (code, err) == (0, "")
    commands = [line for line in out.splitlines() if line.startswith("$ ")]
    assert commands and all(line.startswith("$ gcloud ") for line in commands)
    deletes = [line for line in commands if "delete" in line]
    assert len(deletes) == (command in ("watch", "delete"))


def test_a_dry_run_runs_nothing(desk):
    assert desk.cloud.calls() == []
    assert desk.cloud.resources() == {}


def test_flags_may_come_from_a_file_and_in_any_order(desk, tmp_path):
    (tmp_path / "pod.txt").write_text(f"--type=v6e-8\n--zone=us-east5-a\n--bucket={BUCKET}\n--reserved\n")
    code, out, _ = desk.call(
        "up", "--dry-run", f"@{tmp_path}/pod.txt", "scouts", "--internal-ips", "--", "x.gin"
    )
    assert code == 0
    create = next(line for line in out.splitlines() if "queued-resources create" in line)
    assert " --reserved " in create and " --internal-ips " in create and "--spot" not in create


def test_the_table_of_machines():
    """Chips, VMs and memory as Google's tables have them."""
    seen = {kind: (machine(kind).chips, machine(kind).vms, machine(kind).memory_gb) for kind in TYPES}
    assert seen == {
        "v4-8": (4, 1, 32), "v4-16": (8, 2, 32), "v5litepod-1": (1, 1, 16), "v5litepod-4": (4, 1, 16),
        "v5litepod-8": (8, 1, 16), "v5litepod-16": (16, 4, 16), "v5litepod-256": (256, 64, 16),
        "v5p-8": (4, 1, 95), "v5p-16": (8, 2, 95), "v6e-1": (1, 1, 32), "v6e-4": (4, 1, 32),
        "v6e-8": (8, 1, 32), "v6e-16": (16, 4, 32),
    }  # fmt: skip


@pytest.mark.parametrize(
    "kind", ["v6e-2", "v6e", "v5p-9", "v4-4", "v5litepod-12", "tpu7x-8", "h100", "v6e-08", ""]
)
def test_types_that_there_are_not(kind):
    with pytest.raises(Problem, match=re.escape(f"--type={kind}: ")):
        machine(kind)


if __name__ == "__main__":
    GOLDEN.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for kind in TYPES:
            (GOLDEN / f"{kind}.txt").write_text(dry(Desk(Path(folder) / kind), kind))
    sys.exit()
