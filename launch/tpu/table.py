"""What `watch` sees, and what it does about it, as a table."""

from __future__ import annotations

import dataclasses
from typing import Callable

from tpu.cloud import Node, Resource
from tpu.job import HostState, Job
from tpu.states import NODES, RESOURCES, WAITING, kind_of


@dataclasses.dataclass(frozen=True)
class Patience:
    """How long is waited for what, in seconds."""

    every: float = 30.0  # between two looks
    coming: float = 1200.0  # for VMs that are there and not READY
    unknown: float = 600.0  # in a state that this program does not know
    silent: float = 900.0  # for a VM that says nothing: installing the first time takes minutes
    stopped: float = 300.0  # after a SIGTERM that nobody asked for: machines are often taken away soon after
    longest: float = 900.0  # between two attempts that found no machines
    failures: int = 4  # of a run in an hour, after which the VMs are prepared again


@dataclasses.dataclass(frozen=True)
class Seen:
    """One look at everything."""

    job: Job
    resource: Resource | None
    node: Node | None
    hosts: tuple[HostState | None, ...]  # of this run on these machines; None: nothing yet
    waited: float  # seconds that the states of resource and node have been the same
    silent: tuple[float, ...]  # seconds since each VM said something new
    stopped: float  # seconds that a VM has said that its run was stopped

    @property
    def what(self) -> str:
        """What the machines are: "gone", "coming", "active", "ready", "lost", "failed" or "unknown"."""
        if self.resource is None:
            return "gone"
        kind = RESOURCES.get(self.resource.state, "unknown")
        if kind != "active":
            return kind
        if self.node is None:
            return "lost"
        return {"ready": "ready", "coming": "active"}.get(NODES.get(self.node.state, ""), "lost")

    @property
    def states(self) -> str:
        """The states as Google calls them."""
        if self.resource is None:
            return "gone"
        vms = f", VMs {self.node.state}" if self.node else ""
        return f"{self.resource.state or 'without a state'}{vms}"

    @property
    def state(self) -> str:
        return self.resource.state if self.resource else ""

    @property
    def error(self) -> str:
        """Why Google could not make the machines."""
        return self.resource.error if self.resource else ""

    @property
    def exits(self) -> set[int]:
        return {host.exit for host in self.told if host.exit is not None}

    @property
    def done(self) -> bool:
        """Whether the run is: its host 0 writes what it leaves, and ends last or with the others."""
        return self.hosts[0] is not None and self.hosts[0].exit == 0

    @property
    def halved(self) -> bool:
        """Whether some VMs have stopped the run and others have begun it again, e.g. after a boot."""
        return 143 in self.exits and any(host.phase == "running" and host.exit is None for host in self.told)

    @property
    def told(self) -> list[HostState]:
        return [host for host in self.hosts if host is not None]

    def line(self, of: Callable[[HostState], bool]) -> str:
        """Returns what one of these VMs tells, best one that names an error."""
        lines = [self._named(host) + host.line for host in self.told if host.line and of(host)]
        errors = [line for line in lines if "error:" in line]
        return (errors or lines or ["no reason is known"])[0]

    def _named(self, host: HostState) -> str:
        return f"host {host.host}: " if len(self.hosts) > 1 else ""

    @property
    def hours_over(self) -> bool:
        return self.job.used_hours >= self.job.max_hours

    def phase(self, name: str) -> bool:
        return any(host.phase == name for host in self.told)


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table: if ``when`` holds, a person is told ``says`` and ``do`` is done.

    ``do`` is "wait", "create", "recreate", "prepare", "end" (nothing is deleted unless that was asked
    for) or "give up" (the machines are deleted). ``code`` is the exit code of an end.
    """

    when: Callable[[Seen, Patience], bool]
    do: str
    says: Callable[[Seen], str]
    code: int = 2


def _unprepared(host: HostState) -> bool:
    return host.phase == "setup failed"


def _quota(seen: Seen) -> bool:
    return kind_of(seen.error)[0] in ("quota", "rights")


def _troubled(seen: Seen, patience: Patience) -> bool:
    """Whether the VMs are there and the run is not: it fails again and again, a VM says nothing, or it
    waits for VMs on which it was stopped."""
    most = patience.failures + seen.job.excused
    fails = any(host.failures >= most for host in seen.told)
    waits = seen.halved and seen.stopped > patience.stopped
    return seen.what == "ready" and (fails or waits or max(seen.silent) > patience.silent)


def _trouble(seen: Seen) -> str:
    failures = max((host.failures for host in seen.told), default=0)
    if failures:
        return f"the run failed {failures} times within an hour: {seen.line(lambda host: host.failures > 0)}"
    if seen.halved:
        return "the run was stopped on some of the VMs, and has begun again on others"
    if seen.told:
        return f"host {seen.silent.index(max(seen.silent))} tells nothing new"
    return "the VMs tell nothing: their service account may have no right to write to the bucket"


# The first row that holds counts.
TABLE = (
    Row(lambda s, p: s.done, "end", lambda s: "done: the run has ended with exit code 0", code=0),
    Row(lambda s, p: 2 in s.exits, "end", 
        lambda s: f"exit code 2, starting again cannot help: {s.line(lambda host: host.exit == 2)}"),
    Row(lambda s, p: s.job.wanted == "stop", "end", lambda s: "stopped; `run` goes on with it", code=0),
    Row(lambda s, p: s.hours_over, "give up",
        lambda s: f"the machines have had {s.job.used_hours:.1f} hours of --max-hours={s.job.max_hours:g}"),
    Row(lambda s, p: s.what == "gone", "create", lambda s: "no machines: asks for some"),
    Row(lambda s, p: s.what == "failed" and _quota(s), "give up", lambda s: f"refused: {s.error}"),
    Row(lambda s, p: s.what == "failed", "recreate",
        lambda s: f"no machines yet: {s.error or s.states}"),
    Row(lambda s, p: s.what == "lost", "recreate", lambda s: f"the machines were taken away ({s.states})"),
    Row(lambda s, p: s.what == "coming", "wait", lambda s: f"{s.states}: {WAITING[s.state]}"),
    Row(lambda s, p: s.what == "unknown" and s.waited > p.unknown, "recreate",
        lambda s: f"still in a state that is not known here ({s.states})"),
    Row(lambda s, p: s.what == "unknown", "wait", lambda s: f"{s.states}: not known here, so it waits"),
    Row(lambda s, p: s.what == "active" and s.waited > p.coming, "recreate",
        lambda s: f"the VMs do not become ready ({s.states})"),
    Row(lambda s, p: s.what == "active", "wait", lambda s: f"{s.states}: the VMs start"),
    # From here on the VMs are READY.
    Row(lambda s, p: s.phase("setup failed") and s.job.rescues == 0, "prepare",
        lambda s: f"the VMs could not be prepared, tries again: {s.line(_unprepared)}"),
    Row(lambda s, p: s.phase("setup failed"), "end",
        lambda s: f"the VMs cannot be prepared: {s.line(_unprepared)}"),
    Row(lambda s, p: 143 in s.exits and s.stopped <= p.stopped, "wait",
        lambda s: "the run was stopped by SIGTERM: looks what happens"),
    Row(lambda s, p: 143 in s.exits and not s.halved, "end",
        lambda s: "somebody stopped the run on the VM: leaves it"),
    Row(lambda s, p: _troubled(s, p) and s.job.rescues == 0, "prepare", _trouble),
    Row(lambda s, p: _troubled(s, p) and s.job.rescues == 1, "recreate", _trouble),
    Row(_troubled, "end", lambda s: f"{_trouble(s)} (on other VMs, too)"),
    Row(lambda s, p: True, "wait", lambda s: progress(s)),
)  # fmt: skip


def decide(seen: Seen, patience: Patience) -> Row:
    """Returns the row of the table for what is seen."""
    return next(row for row in TABLE if row.when(seen, patience))


def progress(seen: Seen) -> str:
    """Returns what the VMs do, with their numbers if there are several."""
    if not seen.told:
        return "READY: the VMs begin to prepare themselves"
    phases = sorted(host.phase if host else "nothing said yet" for host in seen.hosts)
    if len(phases) > 1:
        phases = [f"{phase} on {phases.count(phase)} of {len(phases)} VMs" for phase in sorted(set(phases))]
    step = max(host.step for host in seen.told)
    return f"READY: {', '.join(phases)}" + (f", step {step}" if step >= 0 else "")
