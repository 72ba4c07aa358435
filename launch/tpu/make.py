"""Jobs and machines that are new: `up` and `create`."""

from __future__ import annotations

import argparse

from tpu import checks, code
from tpu import job as jobs
from tpu.ask import ask
from tpu.cloud import Cloud
from tpu.flags import needed
from tpu.job import Job, check_bucket, check_models, check_name
from tpu.machines import machine
from tpu.shell import Problem
from tpu.states import Fault


def new_job(flags: argparse.Namespace, digest: str, before: Job | None) -> Job:
    """Returns the job that flags describe, which goes on where the one before was."""
    network = [f"--{name}={value}" for name in ("network", "subnetwork", "service_account")
               if (value := getattr(flags, name))]  # fmt: skip
    network = [flag.replace("service_account", "service-account", 1) for flag in network]
    if flags.internal_ips:
        network.append("--internal-ips")
    if flags.valid_until:
        network.append(f"--valid-until-duration={flags.valid_until}")
    arguments = tuple(flags.after) if flags.after else (before.arguments if before else None)
    return Job(
        name=check_name(needed(flags, "name")),
        bucket=check_bucket(flags.bucket),
        zone=needed(flags, "zone"),
        type=needed(flags, "type"),
        tier=flags.tier or "on-demand",
        code=digest,
        arguments=arguments,
        models=check_models(flags.model or (before.models if before else ())),
        number=before.number + 1 if before else 1,
        attempt=before.attempt + 1 if before else 1,
        max_hours=flags.max_hours if flags.max_hours is not None else (before.max_hours if before else 24.0),
        hours=before.hours if before else {},
        step=before.step if before else -1,
        project=flags.project or "",
        network=tuple(network),
    )


def make(cloud: Cloud, flags: argparse.Namespace) -> Job:
    """Checks everything that can be checked for nothing, then asks for machines. Returns the job."""
    which = machine(needed(flags, "type"))
    name = check_name(needed(flags, "name"))
    zone = needed(flags, "zone")
    bucket = check_bucket(flags.bucket)
    checks.region(zone)
    digest, archive = code.pack(flags.dirty, cloud.shell.root)
    if flags.plan and flags.after:
        checks.check_plan(which, flags.after, cloud.shell.root)
    checks.check_type_is_there(cloud, which, zone)
    checks.check_bucket_place(cloud, bucket, zone)
    before = checks.check_name_is_free(cloud, name, zone, bucket)
    if before is not None and not flags.resume:
        raise Problem(f"{bucket} has a job {name}: go on with --resume (or `watch`), or choose another name")
    job = new_job(flags, digest, before)
    if flags.command == "up" and job.arguments is None:
        raise Problem("`up` needs what to train after --, e.g. -- --gin_file=plan.gin")
    checks.check_hours(job)
    send_code(cloud, job, archive)
    jobs.write(cloud, job)
    try:
        ask(cloud, job)
    except Fault as found:
        if before is None and found.kind not in ("late", "network"):
            cloud.forget(f"{job.folder}/job.json")  # the name is free again
        raise Problem(f"{found}; no machines were made") from None
    return job


def send_code(cloud: Cloud, job: Job, archive: bytes) -> None:
    url = f"{job.folder}/code-{job.code}.tar.gz"
    cloud.put(
        url, archive, "the checkout" if cloud.shell.dry else f"the checkout, {len(archive) / 1e6:.1f} MB"
    )
