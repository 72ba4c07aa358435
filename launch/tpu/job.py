"""The job file and the other objects in the bucket. All that must outlive this process is in them.

gs://BUCKET/atgrpo/NAME/job.json              the job: what runs, on what, with which code
                       /code-DIGEST.tar.gz    the checkout that it was made from
                       /constraints.txt       the packages' versions, written by the first VM that installed
                       /hosts/N/state.json    what VM number N does, every 30 s
                       /hosts/N/log-K.txt     its log, of the K-th machines
                       /run/                  the run folder
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import re
from collections.abc import Iterable
from typing import Any

from tpu.cloud import Cloud
from tpu.machines import machine
from tpu.shell import Problem
from tpu.states import Fault

EXTRAS = "tpu,gcs"
TRIES = 10  # to write a job that others write, too


@dataclasses.dataclass(frozen=True)
class Job:
    """What a name stands for."""

    name: str
    bucket: str  # "gs://BUCKET"
    zone: str
    type: str
    tier: str = "on-demand"  # or "spot", "reserved"
    code: str = ""  # the digest
    arguments: tuple[str, ...] | None = None  # of python -m atgrpo_jax.train; None: machines without a run
    models: tuple[str, ...] = ()  # folders in buckets that are copied to models/ of each VM
    number: int = 1  # counts the runs that were asked for by `up` and `run`
    wanted: str = "run"  # or "stop"
    attempt: int = 0  # counts the machines that were asked for
    max_hours: float = 24.0
    hours: dict[str, float] = dataclasses.field(
        default_factory=dict
    )  # that each attempt's machines were there
    rescues: int = 0  # what `watch` did about trouble since the run last came further
    rescued: float = 0.0  # phases of VMs that began until then were before they were prepared again
    excused: int = 0  # failures of the run on these machines that something was done about
    step: int = -1  # the newest one that `watch` saw
    project: str = ""
    network: tuple[str, ...] = ()  # more flags for `queued-resources create`

    @property
    def folder(self) -> str:
        return folder(self.bucket, self.name)

    @property
    def used_hours(self) -> float:
        return sum(self.hours.values())

    @property
    def run_dir(self) -> str:
        """The run folder: what the arguments name, or the one in the bucket."""
        given = given_run_dir(self.arguments or ())
        return given if given is not None else f"{self.folder}/run"

    @property
    def train(self) -> list[str]:
        """The arguments for train, with the run folder."""
        arguments = list(self.arguments or ())
        return (
            arguments if given_run_dir(arguments) is not None else [*arguments, f"--run_dir={self.run_dir}"]
        )

    def text(self) -> str:
        """Returns the job file. It holds names and numbers, and no secret."""
        fields = dataclasses.asdict(self)
        fields["extras"] = EXTRAS
        fields["run_dir"] = self.run_dir
        fields["train"] = None if self.arguments is None else self.train
        fields["vms"] = machine(self.type).vms
        return json.dumps(fields, indent=1, ensure_ascii=False) + "\n"

    def but(self, **changes: Any) -> Job:
        return dataclasses.replace(self, **changes)

    def counted(self, hours: dict[str, float]) -> Job:
        """Returns the job with more hours of attempts. No attempt has fewer hours than were known of it."""
        more = {attempt: found for attempt, found in hours.items() if found > self.hours.get(attempt, 0.0)}
        return self.but(hours={**self.hours, **more})


def hours_since(created: str, now: float) -> float:
    """Returns the hours since a time as Google writes it, or 0 if it is not one."""
    try:
        moment = datetime.datetime.strptime(created[:19], "%Y-%m-%dT%H:%M:%S")
    except ValueError:
        return 0.0
    return round(max(0.0, now - moment.replace(tzinfo=datetime.timezone.utc).timestamp()) / 3600, 2)


def folder(bucket: str, name: str) -> str:
    return f"{bucket}/atgrpo/{name}"


def given_run_dir(arguments: list[str] | tuple[str, ...]) -> str | None:
    """Returns the --run_dir among arguments, the last one if there are several, or None."""
    found = None
    for word, after in zip(arguments, [*arguments[1:], ""]):
        flag, equals, value = word.lstrip("-").partition("=")
        if word.startswith("-") and flag == "run_dir":
            found = value if equals else after
    return found


def read(cloud: Cloud, bucket: str, name: str, assumed: Job | None = None) -> Job | None:
    """Returns the job of a name, or None. Raises Problem if it cannot be read."""
    url = f"{folder(bucket, name)}/job.json"
    text = cloud.get(url, assumed=assumed.text() if assumed else "")
    if not text:
        return None
    try:
        fields = json.loads(text)
        known = {field.name for field in dataclasses.fields(Job)}
        kept = {key: value for key, value in fields.items() if key in known}
        for key in ("arguments", "models", "network"):
            kept[key] = None if kept[key] is None else tuple(kept[key])
        return Job(**kept)
    except (ValueError, TypeError, KeyError) as error:
        raise Problem(f"{url} is no job file of this version: {error}") from None


def write(cloud: Cloud, job: Job, generation: str = "") -> None:
    """Writes the job, if ``generation`` is given only over that version. See ``Cloud.put``."""
    cloud.put(f"{job.folder}/job.json", job.text().encode(), "the job", generation)
    if cloud.shell.dry:
        print(job.text(), end="")


def update(cloud: Cloud, job: Job, **changes: Any) -> Job:
    """Changes fields of the job in the bucket, which somebody else may have changed. Returns it.

    What somebody else writes between our reading and our writing is not lost: it is read, too.
    """
    left = TRIES
    while True:
        generation = cloud.generation(f"{job.folder}/job.json")  # first: what is read is no older than this
        newest = read(cloud, job.bucket, job.name) or job
        changed = newest.but(**changes)
        if changed == newest and not cloud.shell.dry:
            return changed
        try:
            write(cloud, changed, generation)
            return changed
        except Fault as found:
            left -= 1
            if found.kind != "changed" or not left:
                raise


def check_name(name: str) -> str:
    """Returns a name that Google and buckets take. Raises Problem for another one."""
    if not re.fullmatch(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?", name):
        raise Problem(f"{name!r} is no name: use small letters, digits and -, at most 40, a letter first")
    return name


def check_bucket(bucket: str | None) -> str:
    """Returns a bucket's address without a slash at its end. Raises Problem for anything else."""
    if not bucket:
        raise Problem("no bucket: give --bucket=gs://BUCKET, or set ATGRPO_BUCKET")
    if not re.fullmatch(r"gs://[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]/?", bucket):
        raise Problem(f"--bucket={bucket}: expected gs://BUCKET, without a folder")
    return bucket.rstrip("/")


def check_models(given: Iterable[str]) -> tuple[str, ...]:
    """Returns folders in buckets without slashes at their ends. Raises Problem for anything else.

    On the VMs each folder has the last name of its address (tpu_host.sh), so no two may have the same one.
    """
    names: dict[str, str] = {}
    for address in given:
        folder = address.rstrip("/")
        name = folder.rpartition("/")[2]
        if not re.fullmatch(r"gs://[^/*?\[\]\s][^*?\[\]\n]*", folder) or name.startswith("."):
            raise Problem(f"--model={address}: expected a folder, gs://BUCKET/FOLDER/NAME, without * or ?")
        if names.setdefault(name, folder) != folder:
            raise Problem(
                f"--model={names[name]} and --model={folder} would both be models/{name} on the VMs: "
                "copy one of them to a folder with another last name, and give that"
            )
    return tuple(names.values())


@dataclasses.dataclass(frozen=True)
class HostState:
    """What one VM last said (on_vm.py writes it)."""

    host: int  # the VM's number
    number: int  # the run's
    attempt: int  # of the machines that said it
    phase: str  # "setup", "setup failed", "ready", "running" or "ended"
    exit: int | None
    step: int
    line: str  # the error, if there is one
    failures: int  # of the run in the last hour
    since: float  # when this phase began, by the VM's clock
    time: float  # of this word, by the VM's clock


def host_states(cloud: Cloud, job: Job, vms: int) -> list[HostState | None]:
    """Returns what each VM last said, or None for those that have said nothing. It is one command."""
    text = cloud.get(f"{job.folder}/hosts/*/state.json") or ""
    told = {state.host: state for line in text.splitlines() if (state := _host_state(line)) is not None}
    return [told.get(host) for host in range(vms)]


def _host_state(line: str) -> HostState | None:
    try:
        fields = json.loads(line)
        return HostState(**{field.name: fields[field.name] for field in dataclasses.fields(HostState)})
    except (ValueError, KeyError, TypeError):
        return None  # another version wrote it
