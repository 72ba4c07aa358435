"""What is refused before anything is paid for."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tpu.cloud import Cloud
from tpu.job import Job
from tpu.machines import Machine
from tpu.shell import Problem, Shell

# Places of buckets that lie in several regions, and the regions that are near.
WIDE = {
    "US": ("us-",),
    "EU": ("europe-",),
    "ASIA": ("asia-",),
    "NAM4": ("us-central1", "us-east1"),
    "EUR4": ("europe-north1", "europe-west4"),
    "ASIA1": ("asia-northeast1", "asia-northeast2"),
}


def region(zone: str) -> str:
    """Returns a zone's region: us-east5 of us-east5-a. Raises Problem for anything else."""
    place, _, letter = zone.rpartition("-")
    if place.count("-") != 1 or not letter:
        raise Problem(f"--zone={zone}: expected a zone, e.g. us-east5-a")
    return place


def check_bucket_place(cloud: Cloud, bucket: str, zone: str) -> None:
    """Raises Problem unless the bucket exists and lies in the zone's region or around it."""
    here = region(zone)
    place = cloud.bucket_location(bucket, assumed=here)
    if place == here.upper() or here.startswith(WIDE.get(place, ())):
        return
    raise Problem(
        f"{bucket} is in {place} and the machines would be in {here}: every checkpoint would cross regions, "
        f"slowly and at a price; take a bucket in {here}"
    )


def check_type_is_there(cloud: Cloud, machine: Machine, zone: str) -> None:
    """Raises Problem if the zone does not have the type."""
    types = cloud.types(zone, assumed=machine.type)
    if machine.type not in types:
        near = sorted(name for name in types if name.partition("-")[0] == machine.type.partition("-")[0])
        has = f"of this kind it has {', '.join(near)}" if near else "it has none of this kind"
        raise Problem(f"--zone={zone} has no {machine.type}: {has}; see `gcloud compute tpus locations list`")


def check_name_is_free(cloud: Cloud, name: str, zone: str) -> None:
    """Raises Problem if there are machines of this name."""
    found = cloud.resource(name, zone)
    if found is not None:
        whose = "made by this program" if found.ours else "not made by this program"
        raise Problem(f"{name} exists in {zone} ({found.state}, {whose}): choose another name, or delete it")
    if cloud.node(name, zone) is not None:
        raise Problem(f"{name} exists in {zone} as a TPU VM without a queued resource: choose another name")


def check_nothing_is_left(shell: Shell, before: Job, job: Job) -> None:
    """Raises Problem if a job that goes on in another zone or project has machines where it was before."""
    if (before.zone, before.project) == (job.zone, job.project):
        return
    cloud = Cloud(shell, before.project)
    found = cloud.resource(job.name, before.zone)
    if (found is not None and found.ours) or cloud.nodes_labelled(job.name, before.zone):
        raise Problem(
            f"{job.name} still has machines in {before.zone}, which nothing would delete later: "
            f"`delete {job.name}` first"
        )


def check_hours(job: Job) -> None:
    """Raises Problem if the machines were already there for as long as they may be."""
    if job.max_hours <= 0:
        raise Problem(f"--max-hours={job.max_hours:g}: expected a number above 0")
    if job.used_hours >= job.max_hours:
        raise Problem(
            f"{job.name} has had machines for {job.used_hours:.1f} of its {job.max_hours:g} hours: "
            "give a larger --max-hours"
        )


def check_plan(machine: Machine, arguments: Sequence[str], root: Path) -> None:
    """Raises Problem if ``python -m atgrpo_jax.plan`` does not say that the run fits into a chip's memory."""
    kept = []
    skip = False
    for word in arguments:
        flag = word.lstrip("-").partition("=")[0]
        if not skip and not (word.startswith("-") and flag == "run_dir"):
            kept.append(word)
        skip = word.startswith("-") and flag == "run_dir" and "=" not in word
    words = [sys.executable, "-m", "atgrpo_jax.plan", f"--device={machine.device}", *kept]
    done = subprocess.run(words, cwd=root, capture_output=True, text=True, check=False, timeout=900)
    if "No module named" in done.stderr:
        raise Problem(
            "--plan needs the package: call this with the Python of an environment that has it, e.g. "
            ".venv/bin/python launch/tpu.py, or leave --plan out"
        )
    print(done.stdout, end="")
    if done.returncode == 1 and "Traceback" not in done.stderr:
        raise Problem(
            f"the run does not fit into {machine.memory_gb} GB of a {machine.type}'s chip (see above)"
        )
    if done.returncode:
        raise Problem(f"plan refuses the config: {(done.stderr.strip().splitlines() or ['no reason'])[-1]}")
