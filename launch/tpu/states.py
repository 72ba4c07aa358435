"""What gcloud says, as tables: states of queued resources, states of VMs, and faults."""

from __future__ import annotations

import re

from tpu.shell import Failed, Problem

# What a queued resource's state means. All others are "unknown".
RESOURCES = {
    "CREATING": "coming",
    "ACCEPTED": "coming",
    "WAITING_FOR_RESOURCES": "coming",
    "PROVISIONING": "coming",
    "ACTIVE": "active",
    "FAILED": "failed",
    "SUSPENDING": "lost",
    "SUSPENDED": "lost",
    "DELETING": "lost",
}
# The same for its node, which is all of its VMs. All others are "lost": not READY is the only safe test.
NODES = {
    "READY": "ready",
    "CREATING": "coming",
    "STARTING": "coming",
    "RESTARTING": "coming",
    "REIMAGING": "coming",
    "REPAIRING": "coming",
}


def there(resource: str, node: str) -> bool:
    """Returns whether machines are there, and cost something, by the states of a resource and its node."""
    return RESOURCES.get(resource) == "active" and node in NODES


# What a person is told while a resource is in a state.
WAITING = {
    "CREATING": "Google looks at the request",
    "ACCEPTED": "in the queue",
    "WAITING_FOR_RESOURCES": "in the queue until machines are free; this may take hours",
    "PROVISIONING": "machines were found and are started",
    "ACTIVE": "the machines are there",
    "FAILED": "the request failed",
    "SUSPENDING": "the machines are being taken away",
    "SUSPENDED": "the machines were taken away",
    "DELETING": "it is being deleted",
}

# A fault's kind, how gcloud says it, and what to do. The first that fits counts.
FAULTS = (
    ("credentials", r"gcloud auth login|reauthenticat|invalid_grant|do not currently have an active account|"
     r"UNAUTHENTICATED|\b401\b", "gcloud's credentials have expired or are missing: run `gcloud auth login`"),
    ("quota", r"\bquota\b(?! project)",
     "no quota for it: ask for more at Google (IAM & Admin, Quotas), or take another type, zone or --spot"),
    ("capacity", r"no more capacity|no capacity|not enough resources|insufficient.*capacity|stockout|"
     r"RESOURCE_POOL_EXHAUSTED|RESOURCE_EXHAUSTED", "no machine of this type is free there now"),
    ("changed", r"HTTPError 412|conditionNotMet", "somebody else has just changed it: try again"),
    ("taken", r"ALREADY_EXISTS|already exists", "the name is taken"),
    ("absent", r"NOT_FOUND|not found|\b404\b|matched no objects", "there is no such thing"),
    ("rights", r"PERMISSION_DENIED|does not have .*(access|permission)|\b403\b|forbidden",
     "this account has no right to do that"),
    ("network", r"UNAVAILABLE|\b50[0234]\b|unreachable|connection (refused|reset|timed out)|"
     r"could not resolve|failed to establish a new connection", "Google or the network did not answer"),
)  # fmt: skip


class Fault(Problem):
    """What gcloud refused, in one line. ``kind`` is one of FAULTS, "late" or "other"."""

    def __init__(self, line: str, kind: str):
        super().__init__(line)
        self.kind = kind


def kind_of(said: str) -> tuple[str, str]:
    """Returns the kind of what gcloud said, and what to do about it."""
    for kind, pattern, advice in FAULTS:
        if re.search(pattern, said, re.IGNORECASE):
            return kind, advice
    return "other", "gcloud refused"


def fault(failed: Failed, what: str) -> Fault:
    """Returns the fault behind a command that failed, as "what: advice (what gcloud said)"."""
    said = last_line(failed.said)
    if failed.late:
        return Fault(f"{what}: {said}; try again", "late")
    kind, advice = kind_of(failed.said)
    return Fault(f"{what}: {advice} ({said})", kind)


def last_line(text: str) -> str:
    """Returns the line of gcloud's words that says most: the first that begins with ERROR, or the last."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR")]
    return (errors or lines[-1:] or ["it said nothing"])[0][:300]
