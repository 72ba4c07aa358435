"""The flags of launch/tpu.py."""

from __future__ import annotations

import argparse
import os

from tpu.shell import Problem

COMMANDS = ("up", "watch", "status", "logs", "stop", "delete", "list", "create", "run", "probe", "ssh")
HELP = """\
python launch/tpu.py up NAME --type=v6e-8 --zone=ZONE --bucket=gs://BUCKET [--spot] -- --gin_file=plan.gin
python launch/tpu.py watch NAME

up       packs the checkout, asks for machines, and they train by themselves; what follows -- goes to train
watch    makes machines again whenever they are taken away, until the run is done
status   what machines and run do now        logs     the run's log, from the bucket
stop     saves the last step and ends the run; the machines stay
delete   deletes the machines; what the run wrote stays in the bucket
list     all jobs of the bucket, and what still holds quota
create   machines without a run              run      a run (or another one) on machines that are there
probe    measures what this project assumes of the machines
ssh      a shell on a VM

@FILE among the words stands for the lines of a file, a flag each. docs/tpu.md is the guide.
"""


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="launch/tpu.py",
        description=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        fromfile_prefix_chars="@",
        allow_abbrev=False,
    )
    add = made.add_argument
    add("command", choices=COMMANDS)
    add("name", nargs="?", help="the name of machines, job and folder in the bucket")
    add("--bucket", default=os.environ.get("ATGRPO_BUCKET"), help="gs://BUCKET; or set ATGRPO_BUCKET")
    add("--project", help="if it is not gcloud's own")
    add("--dry-run", action="store_true", help="prints every command and runs none")
    every = float(os.environ.get("ATGRPO_EVERY", "30"))
    add("--every", type=float, default=every, help="seconds between two looks (30)")
    up = made.add_argument_group("up, create")
    add = up.add_argument
    add("--type", help="e.g. v6e-8")
    add("--zone", help="e.g. us-east5-a")
    tier = up.add_mutually_exclusive_group()
    tier.add_argument(
        "--spot", dest="tier", action="store_const", const="spot", help="cheap; may be taken away"
    )
    tier.add_argument(
        "--reserved", dest="tier", action="store_const", const="reserved", help="from a reservation"
    )
    tier.add_argument(
        "--on-demand", dest="tier", action="store_const", const="on-demand", help="neither (the default)"
    )
    add("--max-hours", type=float, help="of machines in all; then `watch` deletes them (24)")
    add(
        "--model",
        action="append",
        default=[],
        help="gs://... folder, copied to models/NAME of each VM; repeatable",
    )
    add("--dirty", action="store_true", help="takes tracked files as they are, not as committed")
    add("--plan", action="store_true", help="refuses what python -m atgrpo_jax.plan says does not fit")
    add(
        "--resume",
        action="store_true",
        help="goes on with a job of this name that has no machines, as it was but for other flags",
    )
    add("--valid-until", help="how long it may wait in the queue, e.g. 6h")
    for name in ("network", "subnetwork", "service-account"):
        add(f"--{name}", help=f"as of gcloud; --resume --{name}= goes on without it")
    add(
        "--internal-ips",
        action=argparse.BooleanOptionalAction,
        help="VMs without external addresses; they need Cloud NAT",
    )
    other = made.add_argument_group("other commands")
    add = other.add_argument
    add("--delete", action="store_true", help="watch: deletes the machines at the end")
    add("--host", default="0", help="logs, ssh: the number of a VM (0), or all")
    add("--attempt", type=int, help="logs: of machines before")
    add("--follow", action="store_true", help="logs: prints what comes, until the run ends")
    add("--live", action="store_true", help="logs: over ssh, for VMs that cannot write to the bucket")
    add("--deadline", type=float, default=3600.0, help="probe: seconds (3600)")
    add("--out", default="probe", help="probe: a folder for its results (probe)")
    return made


def needed(flags: argparse.Namespace, name: str) -> str:
    value = getattr(flags, name)
    if not value:
        raise Problem(f"`{flags.command}` needs " + ("a NAME" if name == "name" else f"--{name}"))
    return value
