"""The commands of launch/tpu.py."""

from __future__ import annotations

import argparse
import os
import sys
import time
from typing import Callable

from tpu import code, hosts, show
from tpu import job as jobs
from tpu.ask import give_back
from tpu.cloud import Cloud, Resource
from tpu.flags import needed, parser
from tpu.job import Job, check_bucket, check_models, check_name
from tpu.make import make, send_code
from tpu.shell import Problem, Shell
from tpu.states import WAITING, there
from tpu.table import Patience
from tpu.watch import Watcher


def main(words: list[str], make_shell: Callable[[bool], Shell] = Shell) -> int:
    """Runs one command. Returns its exit code: 2 for an error that a person can act on."""
    try:
        return command(words, make_shell)
    except Problem as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; machines and runs go on, and `watch` may be started again", file=sys.stderr)
        return 130


def command(words: list[str], make_shell: Callable[[bool], Shell]) -> int:
    ours, dashes, theirs = words, False, []
    if "--" in words:
        at = words.index("--")
        ours, dashes, theirs = words[:at], True, words[at + 1 :]
    flags = parser().parse_intermixed_args(ours)
    if dashes and flags.command not in ("up", "run", "probe", "ssh"):
        raise Problem(f"`{flags.command}` takes nothing after --")
    flags.after = theirs
    shell = make_shell(flags.dry_run)
    result = COMMANDS[flags.command](Cloud(shell, flags.project or ""), flags)
    if shell.dry:
        print("a dry run: nothing was run")
    return result


def found_job(cloud: Cloud, flags: argparse.Namespace) -> Job:
    """Returns the job of the name. A dry run assumes one with the flags that are given."""
    name = check_name(needed(flags, "name"))
    bucket = check_bucket(flags.bucket)
    job = jobs.read(cloud, bucket, name, assumed_job(cloud, flags))
    if job is None:
        raise Problem(f"{bucket} has no job {name}; `list` shows all")
    cloud.go_to(job.project)
    return job


def assumed_job(cloud: Cloud, flags: argparse.Namespace) -> Job | None:
    if not cloud.shell.dry:
        return None
    zone = flags.zone or "ZONE"
    tier = flags.tier or "on-demand"
    return Job(
        flags.name, check_bucket(flags.bucket), zone, flags.type or "v6e-8", tier, "DIGEST", (), attempt=1
    )


def ours(cloud: Cloud, job: Job) -> Resource | None:
    """Returns the job's machines, or None. Raises Problem if others have the name."""
    resource = cloud.resource(job.name, job.zone, assumed="ACTIVE" if cloud.shell.dry else "")
    if resource is not None and not resource.ours:
        raise Problem(f"{job.name} in {job.zone} was not made by this program: it is left alone")
    return resource


def up(cloud: Cloud, flags: argparse.Namespace) -> int:
    job = make(cloud, flags)
    print(f"{job.name}: asked for {job.type} in {job.zone}; the run folder is {job.run_dir}")
    print(f"keep it going: python launch/tpu.py watch {job.name} --bucket={job.bucket}")
    return 0


def create(cloud: Cloud, flags: argparse.Namespace) -> int:
    if flags.after:
        raise Problem("`create` makes machines without a run; `up` takes arguments after --")
    job = make(cloud, flags)
    said = ""
    while not cloud.shell.dry:
        resource = cloud.resource(job.name, job.zone)
        state = resource.state if resource else "gone"
        line = f"{job.name}: {state} ({WAITING.get(state, 'not known here')})"
        if line != said:
            print(line, flush=True)
            said = line
        if state == "ACTIVE":
            break
        if resource is None or state in ("FAILED", "SUSPENDED"):
            reason = resource.error if resource else "it is gone"
            raise Problem(f"no machines ({reason or state}): `delete {job.name}`, and try again")
        time.sleep(flags.every)
    print(f"a run: python launch/tpu.py run {job.name} --bucket={job.bucket} -- --gin_file=plan.gin")
    return 0


def run(cloud: Cloud, flags: argparse.Namespace) -> int:
    job = found_job(cloud, flags)
    digest, archive = code.pack(flags.dirty, cloud.shell.root)
    arguments = tuple(flags.after) if flags.after else job.arguments
    if arguments is None:
        raise Problem("`run` needs what to train after --, e.g. -- --gin_file=plan.gin")
    models = check_models(flags.model or job.models)
    there = ours(cloud, job)
    send_code(cloud, job.but(code=digest), archive)
    changes = {"code": digest, "arguments": arguments, "models": models, "number": job.number + 1}
    job = jobs.update(cloud, job, wanted="run", rescues=0, **changes)
    if there:
        hosts.prepare(cloud, job)
        print(f"{job.name}: the VMs start the run; `logs {job.name}` shows it")
    else:
        print(f"{job.name} has no machines: `watch {job.name}` makes some, and they start the run")
    return 0


def watch(cloud: Cloud, flags: argparse.Namespace) -> int:
    name = check_name(needed(flags, "name"))
    watcher = Watcher(cloud, Patience(every=flags.every))
    return watcher.watch(check_bucket(flags.bucket), name, flags.delete, assumed_job(cloud, flags))


def status(cloud: Cloud, flags: argparse.Namespace) -> int:
    if not flags.name:
        return listing(cloud, flags)
    print("\n".join(show.status(cloud, found_job(cloud, flags), time.time())))
    return 0


def listing(cloud: Cloud, flags: argparse.Namespace) -> int:
    print("\n".join(show.listing(cloud, check_bucket(flags.bucket), flags.zone)))
    return 0


def logs(cloud: Cloud, flags: argparse.Namespace) -> int:
    job = found_job(cloud, flags)
    chosen = show.chosen(job, flags.host)
    if flags.live:
        print(hosts.live_log(cloud, job, flags.host), end="")
    elif flags.follow and len(chosen) > 1:
        raise Problem("--follow shows the log of one VM: give its number by --host")
    elif flags.follow and not cloud.shell.dry:
        return show.follow(cloud, job, chosen[0], flags.every)
    else:
        print(show.logs(cloud, job, chosen, flags.attempt), end="")
    return 0


def ssh(cloud: Cloud, flags: argparse.Namespace) -> int:
    job = found_job(cloud, flags)
    chosen = show.chosen(job, flags.host)
    ours(cloud, job)
    if flags.after:
        print(cloud.on_vms(job.name, job.zone, " ".join(flags.after), flags.host), end="")
    elif len(chosen) > 1:
        raise Problem("a shell is on one VM: give its number by --host, or a command after --")
    else:
        cloud.shell_on_vm(job.name, job.zone, flags.host)
    return 0


def stop(cloud: Cloud, flags: argparse.Namespace) -> int:
    job = jobs.update(cloud, found_job(cloud, flags), wanted="stop")  # first: `watch` must not make it again
    if ours(cloud, job):
        hosts.stop(cloud, job)
        print(
            f"{job.name}: the run has stopped and its last step is saved, or it had not begun and will not; "
            "the machines stay until `delete`"
        )
    else:
        print(f"{job.name} has no machines, and `watch` will make none")
    return 0


def delete(cloud: Cloud, flags: argparse.Namespace) -> int:
    job = jobs.update(cloud, found_job(cloud, flags), wanted="stop")
    resource = ours(cloud, job)
    if resource is not None:
        node = cloud.node(job.name, job.zone)
        if node is not None and there(
            resource.state, node.state
        ):  # perhaps no `watch` has counted their hours
            seen = {str(resource.attempt): jobs.hours_since(node.created, time.time())}
            job = jobs.update(cloud, job, hours=job.counted(seen).hours)
        give_back(cloud, job, flags.every, time.sleep, print)
    left = cloud.nodes_labelled(job.name, job.zone)
    if left:
        raise Problem(
            f"{', '.join(left)} in {job.zone} still there, with our label: give `delete` again in a while"
        )
    print(
        f"{job.name}: no machines are left; {job.folder} stays, and `up {job.name} --resume` goes on with it"
    )
    return 0


def probe(cloud: Cloud, flags: argparse.Namespace) -> int:
    job = found_job(cloud, flags)
    ours(cloud, job)
    print(hosts.probe(cloud, job, flags.deadline, flags.after), end="")
    if not cloud.shell.dry:
        os.makedirs(flags.out, exist_ok=True)
    cloud.copy(hosts.results(job), os.path.abspath(flags.out))
    print(f"the results are in {flags.out}/results/")
    return 0


COMMANDS: dict[str, Callable[[Cloud, argparse.Namespace], int]] = {
    "up": up, "create": create, "run": run, "watch": watch, "status": status, "list": listing, "logs": logs,
    "ssh": ssh, "stop": stop, "delete": delete, "probe": probe,
}  # fmt: skip
