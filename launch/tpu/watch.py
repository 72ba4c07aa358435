"""Keeps a job going until it is done: looks, decides by table.py, acts, again and again.

All that must outlive this process is in the bucket, so it may be killed anywhere and started again.
"""

from __future__ import annotations

import time
from typing import Callable

from tpu import hosts
from tpu import job as jobs
from tpu.ask import ask_again, give_back
from tpu.cloud import Cloud, Node, Resource
from tpu.job import HostState, Job
from tpu.machines import machine
from tpu.shell import Problem
from tpu.states import RESOURCES, Fault, there
from tpu.table import Patience, Row, Seen, decide

# Asking again later may help with these, and nothing is wrong with the job. "taken" is another `watch`.
PASSING = ("credentials", "network", "late", "capacity", "taken", "changed", "other")
MOST_STRANGE = 10  # errors in a row that no table knows, after which it is a person's turn
WORTH_H = 0.1  # hours of machines after which they are written down: else the file would change at every look


class Watcher:
    """Looks, decides and acts, again and again."""

    def __init__(
        self,
        cloud: Cloud,
        patience: Patience,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.time,
        say: Callable[[str], None] = print,
    ):
        self._cloud = cloud
        self._patience = patience
        self._sleep = sleep
        self._clock = clock
        self._say = say
        self._said = ""
        self._same: dict[str, tuple[object, float]] = {}  # what was seen last, and since when
        self._strange = 0  # errors in a row that no table knows
        self._refused = 0  # attempts in a row that found no machines
        self._hours: dict[str, float] = {}  # of each attempt whose machines were seen

    def watch(self, bucket: str, name: str, delete: bool, assumed: Job | None = None) -> int:
        """Goes on until the job is over. Returns the exit code, and deletes the machines if asked to."""
        pretended = "SUSPENDED" if assumed else ""  # what a dry run finds at its first look
        while True:
            try:
                row, job = self._look_and_act(bucket, name, assumed, pretended)
            except Fault as found:
                self._strange = self._strange + 1 if found.kind == "other" else 0
                if found.kind not in PASSING or self._strange > MOST_STRANGE:
                    raise
                self._tell(f"{found}; the run itself goes on, and this looks again")
                self._sleep(self._patience.every)
                continue
            self._strange = 0
            pretended = ""
            if row.do == "give up" or (row.do == "end" and delete):
                self._remove(job)
            if row.do in ("end", "give up"):
                if row.do == "end" and not delete:
                    self._say(f"the machines are not deleted: python launch/tpu.py delete {name} does that")
                return row.code
            if self._cloud.shell.dry and row.do == "create":
                return 0
            self._sleep(self._patience.every if row.do == "wait" else 0)

    def _look_and_act(self, bucket: str, name: str, assumed: Job | None, pretended: str) -> tuple[Row, Job]:
        job = jobs.read(self._cloud, bucket, name, assumed)
        if job is None:
            raise Problem(f"{bucket} has no job {name}; `up` makes one")
        self._cloud.go_to(job.project)
        seen = self._look(job, pretended)
        if seen.resource is not None and not seen.resource.ours:
            raise Problem(f"{name} in {job.zone} was not made by this program: it is left alone")
        row = decide(seen, self._patience)
        self._tell(row.says(seen))
        if row.do == "create":
            ask_again(self._cloud, seen.job)
        elif row.do == "recreate":
            self._recreate(seen)
        elif row.do == "prepare":
            self._prepare(seen)
        return row, seen.job

    def _look(self, job: Job, assumed: str) -> Seen:
        resource = self._cloud.resource(job.name, job.zone, assumed)
        kind = RESOURCES.get(resource.state, "unknown") if resource else "gone"
        node = self._cloud.node(job.name, job.zone) if kind == "active" else None
        vms = machine(job.type).vms
        told: list[HostState | None] = [None] * vms
        if resource is not None and not self._cloud.shell.dry:
            told = [
                state if state and state.number == job.number and state.attempt == resource.attempt else None
                for state in jobs.host_states(self._cloud, job, vms)
            ]
        job = self._noted(job, resource, node, told)
        # What a VM said before it was prepared again counts no more.
        now = tuple(state if state and state.since > job.rescued else None for state in told)
        states = (resource and (resource.state, resource.attempt), node and node.state)
        heard = [(states, state and state.time) for state in told]
        stopped = any(state is not None and state.exit == 143 for state in now)
        return Seen(
            job,
            resource,
            node,
            now,
            waited=self._since("states", states),
            silent=tuple(self._since(f"host {host}", what) for host, what in enumerate(heard)),
            stopped=self._since("stopped", (states, stopped)) if stopped else 0.0,
        )

    def _since(self, key: str, value: object) -> float:
        """Returns for how many seconds a value has been the same."""
        before, when = self._same.get(key, (None, 0.0))
        if before != value or key not in self._same:
            when = self._clock()
            self._same[key] = (value, when)
        return self._clock() - when

    def _noted(
        self, job: Job, resource: Resource | None, node: Node | None, told: list[HostState | None]
    ) -> Job:
        """Returns the job with the hours that the machines have been there, and the step that was reached.

        Hours are written down every few minutes, whatever the run does, and once more when the machines
        are gone: nothing else tells a later `watch` of them.
        """
        alive = False
        if resource is not None and node is not None and there(resource.state, node.state):
            alive = True
            self._hours[str(resource.attempt)] = jobs.hours_since(node.created, self._clock())
        counted = job.counted(self._hours)
        grown = counted.used_hours - job.used_hours
        changes: dict[str, object] = {}
        if grown >= WORTH_H or (not alive and grown > 0):
            changes["hours"] = counted.hours
        step = max((state.step for state in told if state is not None), default=-1)
        if step > job.step:
            changes.update(step=step, rescues=0, hours=counted.hours)
            self._refused = 0
        return jobs.update(self._cloud, counted, **changes) if changes else counted

    def _recreate(self, seen: Seen) -> None:
        """Deletes what is there, and waits until it is gone. The next look finds nothing, and creates."""
        job = seen.job
        rescues = job.rescues + 1 if seen.what == "ready" else job.rescues
        jobs.update(self._cloud, job, hours=job.hours, rescues=rescues, excused=0)
        self._gone(job)
        if seen.what == "failed":
            self._refused += 1
            pause = min(self._patience.every * 2**self._refused, self._patience.longest)
            self._tell(f"asks again in {pause:g} s")
            self._sleep(pause)

    def _gone(self, job: Job) -> None:
        give_back(self._cloud, job, self._patience.every, self._sleep, self._tell)

    def _prepare(self, seen: Seen) -> None:
        """Has the VMs prepared again over ssh. What they said so far counts no more."""
        newest = max((state.since for state in seen.hosts if state is not None), default=seen.job.rescued)
        failures = max((state.failures for state in seen.hosts if state is not None), default=0)
        changes = {"rescues": seen.job.rescues + 1, "rescued": newest, "excused": failures}
        job = jobs.update(self._cloud, seen.job, **changes)
        if job.wanted == "stop":  # somebody has said so since the look
            return
        self._same = {key: since for key, since in self._same.items() if not key.startswith("host ")}
        try:
            hosts.prepare(self._cloud, job)
        except Fault as found:
            if found.kind != "absent":  # else they went away since the look, and the next one sees it
                raise

    def _remove(self, job: Job) -> None:
        jobs.update(self._cloud, job, hours=job.hours, wanted="stop")
        self._gone(job)
        self._say(f"{job.name}'s machines are deleted; what it wrote is in {job.folder}")

    def _tell(self, line: str) -> None:
        """Prints a line with the time, unless it is what was said last."""
        if line != self._said:
            self._said = line
            moment = time.strftime("%H:%M:%S", time.gmtime(self._clock()))
            self._say(f"{moment} {line}")
