"""How machines are asked for and given back."""

from __future__ import annotations

from collections.abc import Callable

from tpu import job as jobs
from tpu.cloud import ATTEMPT, LABEL, Cloud
from tpu.job import Job
from tpu.machines import machine

LOOKS = 20  # after which it is asked for again


def ask_again(cloud: Cloud, job: Job) -> None:
    """Asks for machines for a job that has none.

    The attempt is counted first: if this process is killed in between, a number is left out, and
    what an older VM said is never taken for what a new one says. Somebody may `stop` or `delete` the
    job at any time, and sees no machines then: those that are asked for all the same are given back.
    """
    job = jobs.update(cloud, job, attempt=job.attempt + 1)
    if job.wanted == "stop":
        return
    ask(cloud, job)
    newest = jobs.read(cloud, job.bucket, job.name)
    if newest is not None and newest.wanted == "stop":
        cloud.delete(job.name, job.zone)


def give_back(
    cloud: Cloud, job: Job, every: float, sleep: Callable[[float], None], tell: Callable[[str], None]
) -> None:
    """Deletes the job's machines, whatever state they are in, and waits until they are gone."""
    while True:
        cloud.delete(job.name, job.zone)
        for _ in range(LOOKS):
            found = cloud.resource(job.name, job.zone)
            if found is None and (cloud.shell.dry or cloud.node(job.name, job.zone) is None):
                return
            tell(f"waits until {job.name} is gone ({found.state if found else 'its VMs are left'})")
            sleep(every)


def ask(cloud: Cloud, job: Job) -> None:
    """Asks for machines. The job in the bucket has this attempt already."""
    cloud.create(job.name, job.zone, create_flags(job))


def create_flags(job: Job) -> list[str]:
    which = machine(job.type)
    tier = [] if job.tier == "on-demand" else [f"--{job.tier}"]
    return [
        f"--node-id={job.name}",
        f"--accelerator-type={job.type}",
        f"--runtime-version={which.runtime}",
        *tier,
        *job.network,
        f"--labels={LABEL}={job.name},{ATTEMPT}={job.attempt}",
        f"--metadata=atgrpo-folder={job.folder},atgrpo-attempt={job.attempt}",
        "--metadata-from-file=startup-script=launch/tpu_host.sh",
    ]
