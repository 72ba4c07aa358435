"""The table of `launch/tpu.py watch`, row by row."""

import dataclasses

import pytest
from shared_tpu import BUCKET, HOST
from tpu.cloud import Node, Resource
from tpu.job import HostState, Job
from tpu.table import TABLE, Patience, Seen, decide

JOB = Job("w", BUCKET, "us-east5-a", "v6e-8", arguments=("--gin_file=plan.gin",), attempt=1)
ENDED = dataclasses.replace(HOST, phase="ended")


def resource(state: str, error: str = "") -> Resource:
    return Resource("w", state, True, 1, error, "v6e-8")


READY = {"resource": resource("ACTIVE"), "node": Node("READY", "HEALTHY", "")}


def seen(job: Job = JOB, **what) -> Seen:
    hosts = what.get("hosts", (None,))
    silent = (0.0,) * len(hosts)
    fields = {"resource": None, "node": None, "hosts": hosts, "waited": 0.0, "silent": silent, "stopped": 0.0}
    return Seen(job, **(fields | what))


def host(**changes) -> tuple[HostState]:
    return (dataclasses.replace(HOST, **changes),)


def two(first: dict, second: dict) -> tuple[HostState, HostState]:
    """Two VMs, on which the run goes on but for these changes."""
    return (*host(**first), *host(host=1, **second))


STOPPED = {"phase": "ended", "exit": 143}


CASES = [
    (seen(**READY, hosts=(dataclasses.replace(ENDED, exit=0),)), "end", "done"),
    (seen(hosts=(dataclasses.replace(ENDED, exit=0),)), "end", "done"),  # and the machines are gone
    (seen(**READY, hosts=host(exit=2, line="error: no x.gin")), "end", "cannot help: error: no x.gin"),
    (seen(JOB.but(wanted="stop"), **READY), "end", "stopped"),
    (seen(JOB.but(hours={"1": 20.0, "2": 4.0}), **READY), "give up", "24.0 hours of --max-hours=24"),
    (seen(), "create", "no machines"),
    (seen(resource=resource("FAILED", "Quota 'TPUV6E' exceeded")), "give up", "refused: Quota 'TPUV6E'"),
    (seen(resource=resource("FAILED", "no more capacity")), "recreate", "no machines yet: no more capacity"),
    (seen(resource=resource("FAILED")), "recreate", "no machines yet: FAILED"),
    (seen(resource=resource("SUSPENDING")), "recreate", "were taken away (SUSPENDING)"),
    (seen(resource=resource("SUSPENDED")), "recreate", "were taken away (SUSPENDED)"),
    (seen(resource=resource("DELETING")), "recreate", "were taken away (DELETING)"),
    (seen(resource=resource("ACTIVE")), "recreate", "were taken away (ACTIVE)"),  # without VMs
    (seen(resource=resource("ACTIVE"), node=Node("PREEMPTED", "", "")), "recreate", "VMs PREEMPTED"),
    (seen(resource=resource("ACTIVE"), node=Node("TERMINATED", "", "")), "recreate", "VMs TERMINATED"),
    (seen(resource=resource("ACTIVE"), node=Node("NEVER_SEEN", "", "")), "recreate", "VMs NEVER_SEEN"),
    (seen(resource=resource("CREATING")), "wait", "CREATING: Google looks at the request"),
    (seen(resource=resource("ACCEPTED")), "wait", "ACCEPTED: in the queue"),
    (seen(resource=resource("WAITING_FOR_RESOURCES")), "wait", "until machines are free"),
    (seen(resource=resource("PROVISIONING")), "wait", "machines were found"),
    (seen(resource=resource("DANCING"), waited=601.0), "recreate", "not known here (DANCING)"),
    (seen(resource=resource("DANCING"), waited=599.0), "wait", "DANCING: not known here, so it waits"),
    (seen(resource=resource("")), "wait", "without a state: not known here"),
    (seen(resource=resource("ACTIVE"), node=Node("REPAIRING", "", ""), waited=1201.0), "recreate", "ready"),
    (seen(resource=resource("ACTIVE"), node=Node("CREATING", "", "")), "wait", "VMs CREATING: the VMs start"),
    (seen(**READY, hosts=host(phase="setup failed", line="error: no network")), "prepare", "tries again"),
    (seen(JOB.but(rescues=1), **READY, hosts=host(phase="setup failed", line="x")), "end", "prepared: x"),
    (seen(**READY, hosts=host(exit=143), stopped=301.0), "end", "somebody stopped the run"),
    (seen(**READY, hosts=host(exit=143), stopped=10.0), "wait", "stopped by SIGTERM"),
    (seen(**READY, silent=(901.0,)), "prepare", "the VMs tell nothing: their service account"),
    (seen(**READY, hosts=host(exit=134, failures=4, line="Aborted")), "prepare", "an hour: Aborted"),
    (seen(JOB.but(rescues=1), **READY, silent=(901.0,)), "recreate", "tell nothing"),
    (seen(JOB.but(rescues=2), **READY, silent=(901.0,)), "end", "(on other VMs, too)"),
    (seen(**READY), "wait", "begin to prepare themselves"),
    (seen(**READY, hosts=(HOST,)), "wait", "READY: running, step 3"),
    (seen(**READY, hosts=host(exit=134, failures=1)), "wait", "READY: running"),  # systemd starts it again
    # Several VMs.
    (seen(**READY, hosts=two({"phase": "ended", "exit": 0}, {})), "end", "done"),  # host 0 ends last
    (seen(**READY, hosts=two({}, {"phase": "ended", "exit": 0})), "wait", "ended on 1 of 2 VMs"),
    (seen(**READY, hosts=two({"line": "error: a"}, {"exit": 2, "line": "b"})), "end", "help: host 1: b"),
    (seen(**READY, hosts=two({}, {"phase": "setup failed", "line": "x"})), "prepare", "again: host 1: x"),
    (seen(**READY, hosts=two(STOPPED, STOPPED), stopped=301.0), "end", "somebody stopped the run"),
    (seen(**READY, hosts=two(STOPPED, {}), stopped=299.0), "wait", "stopped by SIGTERM"),
    (seen(**READY, hosts=two(STOPPED, {}), stopped=301.0), "prepare", "begun again on others"),
    (seen(**READY, hosts=two({}, {}), silent=(0.0, 901.0)), "prepare", "host 1 tells nothing new"),
    (seen(**READY, hosts=two({"failures": 1, "line": "host 1 is gone"}, {"failures": 4, "line": "error: y"})),
     "prepare", "failed 4 times within an hour: host 1: error: y"),
    (seen(**READY, hosts=(HOST, None)), "wait", "nothing said yet on 1 of 2 VMs, running on 1 of 2"),
    (seen(**READY, hosts=two({}, {"step": 4})), "wait", "READY: running on 2 of 2 VMs, step 4"),
]  # fmt: skip


@pytest.mark.parametrize(("what", "do", "says"), CASES)
def test_the_table(what, do, says):
    row = decide(what, Patience())
    assert row.do == do and says in row.says(what)


def test_every_row_of_the_table_has_a_case():
    assert {decide(what, Patience()) for what, _, _ in CASES} == set(TABLE)
