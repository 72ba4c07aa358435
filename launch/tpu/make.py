"""Jobs and machines that are new: `up` and `create`."""

from __future__ import annotations

import argparse
import shlex

from tpu import checks, code
from tpu import job as jobs
from tpu.ask import ask
from tpu.cloud import Cloud
from tpu.flags import needed
from tpu.job import Job, check_bucket, check_models, check_name
from tpu.machines import machine
from tpu.shell import Problem
from tpu.states import Fault


def new_job(flags: argparse.Namespace, before: Job | None) -> Job:
    """Returns the job that flags describe, without its code.

    What they do not say is as in the job before, whose run it goes on with.
    """
    name, bucket = check_name(needed(flags, "name")), check_bucket(flags.bucket)
    base = before or Job(name, bucket, zone="", type="")
    return Job(
        name=name,
        bucket=bucket,
        zone=flags.zone or base.zone or needed(flags, "zone"),
        type=flags.type or base.type or needed(flags, "type"),
        tier=flags.tier or base.tier,
        arguments=tuple(flags.after) if flags.after else base.arguments,
        models=check_models(flags.model or base.models),
        number=base.number + 1 if before else 1,
        attempt=base.attempt + 1,
        max_hours=base.max_hours if flags.max_hours is None else flags.max_hours,
        hours=base.hours,
        step=base.step,
        project=base.project if flags.project is None else flags.project,
        network=network(flags, base.network),
    )


def network(flags: argparse.Namespace, before: tuple[str, ...]) -> tuple[str, ...]:
    """Returns flags for `queued-resources create`: those before, but for what is given. Empty ones go."""
    found = {flag.partition("=")[0]: flag for flag in before}
    for name in ("network", "subnetwork", "service_account", "internal_ips", "valid_until"):
        value = getattr(flags, name)
        flag = "--valid-until-duration" if name == "valid_until" else "--" + name.replace("_", "-")
        if value is not None:
            found[flag] = "" if not value else flag if value is True else f"{flag}={value}"
    return tuple(flag for flag in found.values() if flag)


def job_before(cloud: Cloud, flags: argparse.Namespace) -> Job | None:
    """Returns the job that --resume goes on with. Raises Problem if there is none."""
    name, bucket = check_name(needed(flags, "name")), check_bucket(flags.bucket)
    before = jobs.read(cloud, bucket, name)
    if cloud.shell.dry:
        print("a dry run does not read the job: a real one takes from it what is not given here")
    elif before is None:
        raise Problem(
            f"--resume: {bucket} has no job {name}; `list` shows all, and without --resume it is made"
        )
    return before


def say_what_changes(before: Job, job: Job) -> None:
    """Prints on what machines a job goes on, and what is not as it was."""
    project = f", project {job.project}" if job.project else ""
    print(f"{job.name} goes on: {' '.join([f'{job.type} in {job.zone}, {job.tier}', *job.network])}{project}")
    for field in ("type", "zone", "tier", "network", "project", "models", "max_hours", "arguments", "code"):
        old, new = ((shlex.join(value) if isinstance(value, tuple) else str(value or "")) or "none"
                    for value in (getattr(before, field), getattr(job, field)))  # fmt: skip
        if old != new:
            print(f"  {field.replace('_', '-')}: {old} before, {new} now")


def make(cloud: Cloud, flags: argparse.Namespace) -> Job:
    """Checks everything that can be checked for nothing, then asks for machines. Returns the job."""
    before = job_before(cloud, flags) if flags.resume else None
    job = new_job(flags, before)
    which = machine(job.type)
    checks.region(job.zone)
    cloud.go_to(job.project)
    digest, archive = code.pack(flags.dirty, cloud.shell.root)
    job = job.but(code=digest)
    if flags.plan and job.arguments:
        checks.check_plan(which, job.arguments, cloud.shell.root)
    checks.check_type_is_there(cloud, which, job.zone)
    checks.check_bucket_place(cloud, job.bucket, job.zone)
    checks.check_name_is_free(cloud, job.name, job.zone)
    if before is not None:
        checks.check_nothing_is_left(cloud.shell, before, job)
    elif jobs.read(cloud, job.bucket, job.name) is not None:
        raise Problem(
            f"{job.bucket} has a job {job.name}: go on with --resume (or `watch`), or choose another name"
        )
    if flags.command == "up" and job.arguments is None:
        raise Problem("`up` needs what to train after --, e.g. -- --gin_file=plan.gin")
    checks.check_hours(job)
    if before is not None:
        say_what_changes(before, job)
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
