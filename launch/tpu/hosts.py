"""What is done on the VMs over ssh. Every command here has a deadline."""

from __future__ import annotations

import shlex

from tpu.cloud import Cloud
from tpu.job import Job
from tpu.machines import machine

BASE = "/opt/atgrpo"  # as in tpu_host.sh
# The script prepares the VM again and starts the run. As a unit of its own it outlives the ssh session.
PREPARE = f"sudo systemd-run --collect --unit=atgrpo-setup bash {BASE}/host.sh"
STOP = "sudo systemctl stop atgrpo || [ $? -eq 5 ]"  # 5: no such unit, since the VM is not prepared yet
STOP_S = 120.0  # the run has 25 s to save; then its last state is copied


def prepare(cloud: Cloud, job: Job) -> None:
    """Makes all VMs read the job again and start its run."""
    cloud.on_vms(job.name, job.zone, PREPARE)


def stop(cloud: Cloud, job: Job) -> None:
    """Stops the run on all VMs by SIGTERM. Returns when it has ended.

    A VM that is still prepared starts none, if the job in the bucket says so by now (tpu_host.sh).
    """
    cloud.on_vms(job.name, job.zone, STOP, deadline_s=STOP_S)


def live_log(cloud: Cloud, job: Job, host: str) -> str:
    """Returns the end of the log as it is on a VM, for one that cannot write to the bucket."""
    return cloud.on_vms(job.name, job.zone, f"sudo tail -n 200 {BASE}/log.txt", host)


def probe(cloud: Cloud, job: Job, deadline_s: float, more: list[str]) -> str:
    """Runs the probe on all VMs together, as the user of the run. Returns the pages that it prints.

    Each VM copies its results to the bucket, also if a part of the probe failed: the page says which.
    """
    code = f"{BASE}/{job.code}"
    out = f"{BASE}/home/probe"
    words = [
        "python3",
        f"{code}/code/launch/tpu/on_vm.py",
        BASE,
        "probe",
        f"--out={out}",
        f"--bucket={job.folder}/probe/speed",
        *more,
    ]
    number = rf"$(sed 's/[^0-9]*\([0-9]*\).*/\1/' {BASE}/vm.json)"
    found = f"{out}/host-{number}" if machine(job.type).vms > 1 else out
    return cloud.on_vms(
        job.name,
        job.zone,
        f'cd {code}/code && {{ sudo -H -u atgrpo {shlex.join(words)} || echo "exit code $?"; }} && '
        f'sudo gcloud storage cp {found}/probe.json {found}/probe.md "{results(job)}/host-{number}/"',
        deadline_s=deadline_s,
    )


def results(job: Job) -> str:
    """Returns where the probe's results are."""
    return f"{job.folder}/probe/results"
