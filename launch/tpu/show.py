"""Status, lists and logs."""

from __future__ import annotations

import time
from typing import Callable

from tpu import job as jobs
from tpu.cloud import Cloud
from tpu.job import HostState, Job
from tpu.machines import machine
from tpu.shell import Problem
from tpu.states import RESOURCES, WAITING, Fault

STOPPED = 143  # the exit code of a run after SIGTERM


def status(cloud: Cloud, job: Job, now: float) -> list[str]:
    """Returns what there is to know of a job, a line each."""
    resource = cloud.resource(job.name, job.zone)
    lines = [f"{job.name}: {job.type} in {job.zone}, {job.tier}, attempt {job.attempt}, wanted: {job.wanted}"]
    if resource is None:
        lines.append("  machines: none, so nothing is paid for but the bucket")
    else:
        lines.append(f"  machines: {resource.state} ({WAITING.get(resource.state, 'not known here')})")
        node = cloud.node(job.name, job.zone)
        if node is not None:
            lines.append(f"  VMs: {node.state}, {node.health or 'health is not known yet'}")
        if resource.error:
            lines.append(f"  reason: {resource.error}")
    for host, state in enumerate(jobs.host_states(cloud, job, machine(job.type).vms)):
        lines.append(f"  host {host}: {_host(job, state, now)}")
    hours = f"{job.used_hours:.1f} of at most {job.max_hours:g}"
    lines.append(f"  hours: {hours}, as far as `watch` and `delete` have seen")
    lines.append(f"  run folder: {job.run_dir}")
    return lines


def _host(job: Job, state: HostState | None, now: float) -> str:
    if state is None:
        return "has said nothing yet"
    old = (
        "" if (state.number, state.attempt) == (job.number, job.attempt) else " (of machines or a run before)"
    )
    code = "" if state.exit is None else f", exit code {state.exit}"
    step = f", step {state.step}" if state.step >= 0 else ""
    line = f": {state.line}" if state.line else ""
    return f"{state.phase}{code}{step}, {max(0.0, now - state.time):.0f} s ago{old}{line}"


def listing(cloud: Cloud, bucket: str, zone: str | None) -> list[str]:
    """Returns a line for each job in the bucket, and one for each of our resources without a job there."""
    found = [
        jobs.read(cloud, bucket, url.split("/")[-2]) for url in cloud.listed(f"{bucket}/atgrpo/*/job.json")
    ]
    known = [job for job in found if job is not None]
    zones = sorted({job.zone for job in known} | ({zone} if zone else set()))
    resources = {(place, item.name): item for place in zones for item in cloud.resources(place)}
    lines = []
    for job in known:
        item = resources.pop((job.zone, job.name), None)
        state = item.state if item is not None and item.ours else "no machines"
        what = f"{job.name}  {job.type}  {job.zone}  {state}"
        lines.append(f"{what}  wanted: {job.wanted}  step {job.step}{_holds(state)}")
    for (place, name), item in sorted(resources.items()):
        if item.ours:
            lines.append(
                f"{name}  {item.type}  {place}  {item.state}  no job in {bucket}{_holds(item.state)}"
            )
    return lines or [f"no jobs in {bucket}" + ("" if zones else "; give --zone to look for machines, too")]


def _holds(state: str) -> str:
    return "  (holds quota until it is deleted)" if RESOURCES.get(state) in ("lost", "failed") else ""


def chosen(job: Job, host: str) -> list[int]:
    """Returns the numbers of the VMs that --host means. Raises Problem if there are no such VMs."""
    vms = machine(job.type).vms
    if host == "all":
        return list(range(vms))
    if not host.isdigit() or int(host) >= vms:
        raise Problem(f"--host={host}: {job.name} has {vms} VMs; expected a number from 0, or all")
    return [int(host)]


def logs(cloud: Cloud, job: Job, hosts: list[int], attempt: int | None) -> str:
    """Returns the logs of VMs, one after the other. Of several, each line begins with its host."""
    if len(hosts) == 1:
        return newest_log(cloud, job, hosts[0], attempt)
    lines = []
    for host in hosts:
        try:
            text = newest_log(cloud, job, host, attempt)
        except Fault:
            raise
        except Problem as problem:
            text = str(problem)
        lines += [f"[host {host}] {line}\n" for line in text.splitlines()]
    return "".join(lines)


def newest_log(cloud: Cloud, job: Job, host: int, attempt: int | None) -> str:
    """Returns the text of a VM's log. Raises Problem if there is none."""
    number = job.attempt if attempt is None else attempt
    text = cloud.get(f"{job.folder}/hosts/{host}/log-{number}.txt")
    if text is None:
        raise Problem(
            f"no log of host {host}, attempt {number} yet; `logs {job.name} --live` reads it over ssh"
        )
    return text


def follow(
    cloud: Cloud, job: Job, host: int, every: float, sleep: Callable[[float], None] = time.sleep
) -> int:
    """Prints a log as it grows, until the run has ended for good. Returns the run's exit code."""
    shown = ""
    while True:
        newest = jobs.read(cloud, job.bucket, job.name)
        if newest is None:
            raise Problem(f"{job.bucket} has no job {job.name} any more")
        job = newest
        state = jobs.host_states(cloud, job, host + 1)[host]
        try:
            text = newest_log(cloud, job, host, None).rstrip("\ufffd")  # half of a character may come last
        except Fault:
            raise
        except Problem:
            text = ""
        print(added(shown, text), end="", flush=True)
        shown = text
        code = ended(cloud, job, state)
        if code is not None:
            return code
        sleep(every)


def added(shown: str, text: str) -> str:
    """Returns what a log has more than what was shown of it; all of it, if it is another log.

    Of a long log the bucket has the end only (on_vm.MOST), so that what was shown is not all there.
    """
    if text.startswith(shown):
        return text[len(shown) :]
    last = shown[-200:]
    at = text.find(last)
    while at >= 0:
        end = at + len(last)
        if shown.endswith(text[4:end]):  # a character that was cut in two may have become up to three
            return text[end:]
        at = text.find(last, at + 1)
    return text


def ended(cloud: Cloud, job: Job, state: HostState | None) -> int | None:
    """Returns the exit code of a run that has ended and does not go on by itself, or None."""
    code = state.exit if state is not None and state.number == job.number else None
    if code in (0, 2):
        return code
    if job.wanted != "stop":
        return None
    waits = state is not None and state.number == job.number and state.phase in ("setup", "running")
    if waits and cloud.resource(job.name, job.zone) is not None:
        return None  # it hears of the stop soon
    return STOPPED if code is None else code
