"""The gcloud commands that are used. Other files call these, and never gcloud itself."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from tpu.shell import Failed, Problem, Shell
from tpu.states import Fault, fault

LABEL = "atgrpo"  # of everything that this program makes: its value is the name
ATTEMPT = "atgrpo-attempt"  # how many times the name's machines were asked for
SOON_S = 90.0  # the deadline of a command that asks or asks for something
COPY_S = 600.0  # of one that copies files


@dataclasses.dataclass(frozen=True)
class Resource:
    """A queued resource, as ``describe`` shows it."""

    name: str
    state: str
    ours: bool
    attempt: int
    error: str  # why it failed; or ""
    type: str


@dataclasses.dataclass(frozen=True)
class Node:
    """The VMs of a resource, as ``describe`` shows them."""

    state: str
    health: str
    created: str  # a time as Google writes it; or ""


class Cloud:
    """gcloud, for one project."""

    def __init__(self, shell: Shell, project: str = ""):
        self.shell = shell
        self._project = [f"--project={project}"] if project else []

    def go_to(self, project: str) -> None:
        """Takes a job's project, unless one was given on the command line."""
        if project and not self._project:
            self._project = [f"--project={project}"]

    def _gcloud(self, what: str, *words: str, deadline_s: float = SOON_S, **more: Any) -> str:
        try:
            return self.shell.run(["gcloud", *words, *self._project], deadline_s, **more)
        except Failed as failed:
            raise fault(failed, what) from None

    def _read(self, what: str, *words: str, assumed: Any) -> Any:
        out = self._gcloud(what, *words, "--format=json", assumed=json.dumps(assumed))
        try:
            return json.loads(out)
        except ValueError:
            raise Problem(f"{what}: gcloud's answer is no JSON: {out[:80]!r}") from None

    def _described(self, what: str, *words: str, assumed: Any) -> Any:
        """Returns what is described, or None if it is not there."""
        try:
            return self._read(what, *words, assumed=assumed)
        except Fault as found:
            if found.kind == "absent":
                return None
            raise

    # Machines.

    def types(self, zone: str, assumed: str) -> set[str]:
        """Returns the types that a zone has."""
        words = ("compute", "tpus", "accelerator-types", "list", f"--zone={zone}")
        found = self._read(f"the types of {zone}", *words, assumed=[{"type": assumed}])
        return {item.get("type") or item.get("name", "").rpartition("/")[2] for item in found}

    def resource(self, name: str, zone: str, assumed: str = "") -> Resource | None:
        """Returns the resource of a name, or None. A dry shell assumes one in the state ``assumed``."""
        node = {"labels": {LABEL: name, ATTEMPT: "1"}}
        nodes = {"nodeSpec": [{"nodeId": name, "node": node}]}
        pretended = {"name": name, "state": {"state": assumed}, "tpu": nodes} if assumed else None
        words = ("compute", "tpus", "queued-resources", "describe", name, f"--zone={zone}")
        found = self._described(f"describing {name}", *words, assumed=pretended)
        return None if found is None else _resource(found)

    def node(self, name: str, zone: str, assumed: str = "") -> Node | None:
        """Returns the VMs of a name, or None. A dry shell assumes some in the state ``assumed``."""
        words = ("compute", "tpus", "tpu-vm", "describe", name, f"--zone={zone}")
        pretended = {"state": assumed} if assumed else None
        found = self._described(f"describing the VMs of {name}", *words, assumed=pretended)
        if found is None:
            return None
        return Node(found.get("state", ""), found.get("health", ""), found.get("createTime", ""))

    def resources(self, zone: str) -> list[Resource]:
        """Returns all queued resources of a zone, ours and others."""
        words = ("compute", "tpus", "queued-resources", "list", f"--zone={zone}")
        return [_resource(item) for item in self._read(f"the resources of {zone}", *words, assumed=[])]

    def nodes_labelled(self, name: str, zone: str) -> list[str]:
        """Returns the names of VMs of a zone that carry our label of a name."""
        words = ("compute", "tpus", "tpu-vm", "list", f"--zone={zone}", f"--filter=labels.{LABEL}={name}")
        found = self._read(f"the VMs of {zone}", *words, assumed=[])
        return [item["name"].rpartition("/")[2] for item in found]

    def create(self, name: str, zone: str, flags: list[str]) -> None:
        """Asks for machines. Returns at once."""
        words = ["compute", "tpus", "queued-resources", "create", name, f"--zone={zone}", *flags]
        self._gcloud(f"asking for {name}", *words, "--async", "--quiet", changes=True)

    def delete(self, name: str, zone: str) -> None:
        """Asks for a resource and its VMs to be deleted. Returns at once."""
        words = ("compute", "tpus", "queued-resources", "delete", name, f"--zone={zone}", "--force")
        try:
            self._gcloud(f"deleting {name}", *words, "--async", "--quiet", changes=True)
        except Fault as found:
            if found.kind != "absent":  # it is what was asked for
                raise

    def on_vms(
        self, name: str, zone: str, command: str, worker: str = "all", deadline_s: float = 60.0
    ) -> str:
        """Returns what a command prints on the VMs. ``worker`` is a number, or "all"."""
        words = (*self._ssh(name, zone, worker), f"--command={command}")
        return self._gcloud(f"ssh to {name}", *words, deadline_s=deadline_s, changes=True)

    def shell_on_vm(self, name: str, zone: str, worker: str) -> None:
        """Becomes an ssh session. Does not return."""
        self.shell.become(["gcloud", *self._ssh(name, zone, worker), *self._project])

    def _ssh(self, name: str, zone: str, worker: str) -> tuple[str, ...]:
        return ("compute", "tpus", "tpu-vm", "ssh", name, f"--zone={zone}", f"--worker={worker}", "--quiet")

    # The bucket.

    def bucket_location(self, bucket: str, assumed: str) -> str:
        """Returns where a bucket is, e.g. "US-CENTRAL1". Raises Fault if it cannot be seen."""
        words = ("storage", "buckets", "describe", bucket)
        return self._read(f"the bucket {bucket}", *words, assumed={"location": assumed})["location"].upper()

    def get(self, url: str, assumed: str = "", last: int = 0) -> str | None:
        """Returns the text of an object, or of its ``last`` bytes, or None if it is not there."""
        part = [f"--range=-{last}"] if last else []
        try:
            return self._gcloud(url, "storage", "cat", url, *part, assumed=assumed)
        except Fault as found:
            if found.kind == "absent":
                return None
            raise

    def generation(self, url: str) -> str:
        """Returns the number of an object's newest version, or "0" if it is not there."""
        words = ("storage", "objects", "describe", url)
        found = self._described(url, *words, assumed={"generation": "GENERATION"})
        return "0" if found is None else str(found["generation"])

    def put(self, url: str, content: bytes, note: str, generation: str = "") -> None:
        """Writes an object, from standard input. ``note`` says what it is.

        Raises Fault of the kind "changed" if ``generation`` is given and is not the newest version's.
        """
        words = ["storage", "cp", "-", url]
        words += [f"--if-generation-match={generation}"] if generation else []
        self._gcloud(f"writing {url}", *words, deadline_s=COPY_S, stdin=content, note=note, changes=True)

    def listed(self, url: str) -> list[str]:
        """Returns the objects that fit a pattern."""
        try:
            return self._gcloud(url, "storage", "ls", url).split()
        except Fault as found:
            if found.kind == "absent":
                return []
            raise

    def copy(self, url: str, folder: str) -> None:
        """Copies a folder of a bucket into one of this machine."""
        words = ("storage", "cp", "--recursive", url, folder)
        self._gcloud(f"copying {url}", *words, deadline_s=COPY_S, changes=True)

    def forget(self, url: str) -> None:
        """Deletes one object."""
        self._gcloud(f"deleting {url}", "storage", "rm", url, changes=True)


def _resource(found: dict[str, Any]) -> Resource:
    state = found.get("state", {})
    specs = found.get("tpu", {}).get("nodeSpec", [{}])
    node = specs[0].get("node", {})
    labels = node.get("labels", {})
    name = found.get("name", "").rpartition("/")[2]
    error = state.get("failedData", {}).get("error", {}).get("message", "")
    attempt = labels.get(ATTEMPT, "0")
    return Resource(
        name,
        state.get("state", ""),
        labels.get(LABEL) == name,
        int(attempt) if attempt.isdigit() else 0,
        error,
        node.get("acceleratorType", ""),
    )
