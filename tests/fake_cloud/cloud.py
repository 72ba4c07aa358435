"""A fake Google Cloud in a folder: queued resources that follow scripts, buckets, and VMs that really run.

FOLDER/calls.jsonl           every call of gcloud: who made it, and its words
      /buckets/B/OBJECT      the buckets
      /resources/NAME.json   the queued resources
      /plans.json            what happens to the resources that are made next
      /faults.json           calls that fail, or hang
      /vms/NAME/N/           the root of VM number N of a resource
"""

import json
import os
import re
import subprocess
import time
from pathlib import Path

from fake_cloud import vms
from fake_cloud.commands import Refused, parsed
from fake_cloud.storage import Storage

ZONES = {
    "us-east5-a": ["v6e-1", "v6e-4", "v6e-8", "v6e-16", "v5p-8", "v5p-16"],
    "us-west4-a": ["v5litepod-1", "v5litepod-4", "v5litepod-8", "v5litepod-16", "v5litepod-256"],
    "us-central2-b": ["v4-8", "v4-16"],
}


class FakeCloud:
    """All state is in the folder, so that many processes see one cloud."""

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        self.storage = Storage(self.folder)

    def make(self) -> "FakeCloud":
        (self.folder / "resources").mkdir(parents=True)
        self.plan()
        self.break_calls()
        return self

    # What tests set and ask.

    def plan(self, *plans: str, delete_looks: int = 0, boots: bool = True) -> None:
        """Says what is seen of the resources that are made next, a plan for each, a word for each look.

        "WAITING_FOR_RESOURCES ACTIVE": after two looks. "ACTIVE/REPAIRING": the state of its VMs.
        "FAILED:no_capacity": with that message (_ for spaces). The last word stays. A delete is seen
        as DELETING for ``delete_looks`` looks. ``boots`` says whether the startup script runs.
        """
        what = {"plans": [plan.split() for plan in plans], "delete_looks": delete_looks, "boots": boots}
        self._write("plans.json", what)

    def break_calls(self, *faults: dict) -> None:
        """Lets calls fail: {"match": a pattern, "says": its error, "times": how often, "hangs": bool}."""
        self._write("faults.json", list(faults))

    def calls(self, pattern: str = "", vm: bool = False) -> list[list[str]]:
        """Returns the calls of the laptop, or of VMs, whose words fit a pattern."""
        file = self.folder / "calls.jsonl"
        found = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        return [
            call["words"]
            for call in found
            if call["vm"] == vm and re.search(pattern, " ".join(call["words"]))
        ]

    def resources(self) -> dict[str, dict]:
        return {
            file.stem: json.loads(file.read_text()) for file in (self.folder / "resources").glob("*.json")
        }

    def preempt(self, name: str, grace_s: float = vms.GRACE_S) -> None:
        """Takes the machines away: SIGTERM, then SIGKILL, and their disks are gone."""
        vms.destroy(self.folder / "vms" / name, grace_s)
        resource = self.resources()[name]
        resource.update(state="SUSPENDED", plan=[], vm_state="PREEMPTED")
        self._write(f"resources/{name}.json", resource)

    def kill(self, name: str, host: int) -> None:
        """Kills the run's process on one VM."""
        vms.kill_newest(self.folder / "vms" / name / str(host))

    # gcloud.

    def gcloud(self, words: list[str], stdin: bytes = b"", vm: bool = False, cwd: str = ".") -> bytes:
        """Returns what gcloud prints. Raises Refused with what it writes on standard error."""
        with (self.folder / "calls.jsonl").open("a") as calls:
            calls.write(json.dumps({"vm": vm, "words": words, "time": time.time()}) + "\n")
        self._fail_if_told(" ".join(words))
        name, places, flags = parsed(words)
        if name == "projects describe":
            return b"123456789012\n"
        if not name.startswith(("compute", "storage")):
            return b""  # accounts and settings of the laptop
        if name.startswith("storage"):
            return self._storage(name, places, flags, stdin, vm)
        if vm:
            raise Refused(f"ERROR: (gcloud.{name.replace(' ', '.')}) PERMISSION_DENIED: not for VMs")
        zone = flags.get("--zone", "")
        if zone not in ZONES:
            raise Refused(
                f"ERROR: (gcloud.{name.replace(' ', '.')}) NOT_FOUND: Location {zone} was not found."
            )
        method = "_" + name.removeprefix("compute tpus ").replace(" ", "_").replace("-", "_")
        if "--metadata-from-file" in flags:
            flags["--metadata-from-file"] = flags["--metadata-from-file"].replace("=", f"={cwd}/", 1)
        out = getattr(self, method)(*places, zone=zone, flags=flags)
        return out.encode() if isinstance(out, str) else json.dumps(out).encode()

    def _storage(self, name: str, places: list[str], flags: dict, stdin: bytes, vm: bool) -> bytes:
        if name == "storage cat":
            return b"".join(self.storage.cat(place, flags.get("--range"), vm) for place in places)
        if name == "storage cp":
            self.storage.copy(places, flags, stdin, vm)
        elif name == "storage objects describe":
            return self.storage.describe_object(places[0], vm).encode()
        elif name == "storage buckets create":
            self.storage.make(places[0].removeprefix("gs://"), flags["--location"].upper())
        elif name == "storage buckets add-iam-policy-binding":
            self.storage.describe(places[0], vm)  # it is there
        elif name == "storage ls":
            return "".join(self.storage.list(place, vm) for place in places).encode()
        elif name == "storage rm":
            for place in places:
                self.storage.remove(place, vm)
        else:
            return self.storage.describe(places[0], vm).encode()
        return b""

    def _accelerator_types_list(self, zone, flags):
        return [
            {"name": f"projects/p/locations/{zone}/acceleratorTypes/{name}", "type": name}
            for name in ZONES[zone]
        ]

    def _queued_resources_create(self, name, zone, flags):
        if name in self.resources():
            raise Refused(
                "ERROR: (gcloud.compute.tpus.queued-resources.create) ALREADY_EXISTS: Resource "
                f"'projects/p/locations/{zone}/queuedResources/{name}' already exists"
            )
        if flags["--accelerator-type"] not in ZONES[zone]:
            raise Refused(
                "ERROR: (gcloud.compute.tpus.queued-resources.create) INVALID_ARGUMENT: accelerator type"
            )
        key, _, script = flags["--metadata-from-file"].partition("=")
        metadata = _pairs(flags["--metadata"]) | {key: Path(script).read_text()}
        plans = json.loads((self.folder / "plans.json").read_text())
        plan = plans["plans"].pop(0) if plans["plans"] else ["ACTIVE"]
        self._write("plans.json", plans)
        node = {
            "acceleratorType": flags["--accelerator-type"],
            "runtimeVersion": flags["--runtime-version"],
            "labels": _pairs(flags["--labels"]),
            "metadata": metadata,
        }
        what = {"zone": zone, "node": node, "node_id": flags["--node-id"], "plan": plan, "state": "CREATING"}
        extra = {
            "vm_state": "CREATING",
            "boots": plans["boots"],
            "created": time.time(),
            "error": "",
            "deleting": -1,
        }
        self._write(f"resources/{name}.json", what | extra)
        return ""

    def _queued_resources_delete(self, name, zone, flags):
        resource = self._found(name, zone, "queued-resources.delete")
        if resource["state"] not in ("FAILED", "SUSPENDED", "CREATING") and "--force" not in flags:
            raise Refused(
                "ERROR: (gcloud.compute.tpus.queued-resources.delete) FAILED_PRECONDITION: not suspended"
            )
        vms.destroy(self.folder / "vms" / name)
        looks = json.loads((self.folder / "plans.json").read_text())["delete_looks"]
        if looks == 0:
            (self.folder / "resources" / f"{name}.json").unlink()
        else:
            resource.update(state="DELETING", vm_state="", deleting=looks, plan=[])
            self._write(f"resources/{name}.json", resource)
        return ""

    def _queued_resources_describe(self, name, zone, flags):
        return self._shown(name, self._look(name, zone))

    def _queued_resources_list(self, zone, flags):
        return [
            self._shown(name, item) for name, item in sorted(self.resources().items()) if item["zone"] == zone
        ]

    def _tpu_vm_describe(self, name, zone, flags):
        resource = self.resources().get(name)
        if resource is None or not resource["vm_state"] or resource["state"] != "ACTIVE":
            raise Refused(
                "ERROR: (gcloud.compute.tpus.tpu-vm.describe) NOT_FOUND: Resource "
                f"'projects/p/locations/{zone}/nodes/{name}' was not found"
            )
        created = time.strftime("%Y-%m-%dT%H:%M:%S.000000000Z", time.gmtime(resource["created"]))
        return {"name": name, "state": resource["vm_state"], "health": "HEALTHY", "createTime": created}

    def _tpu_vm_list(self, zone, flags):
        key, _, value = flags.get("--filter", "labels.=").removeprefix("labels.").partition("=")
        return [
            {"name": f"projects/p/locations/{zone}/nodes/{name}"}
            for name, item in self.resources().items()
            if item["zone"] == zone and item["state"] == "ACTIVE" and item["node"]["labels"].get(key) == value
        ]

    def _tpu_vm_ssh(self, name, zone, flags):
        self._found(name, zone, "tpu-vm.ssh")
        roots = sorted((self.folder / "vms" / name).iterdir())
        chosen = roots if flags["--worker"] == "all" else [roots[int(flags["--worker"])]]
        return "".join(vms.run(root, flags["--command"]) for root in chosen)

    def _look(self, name: str, zone: str) -> dict:
        """Returns a resource after one more step of its plan."""
        resource = self._found(name, zone, "queued-resources.describe")
        if resource["deleting"] >= 0:
            if resource["deleting"] == 0:
                (self.folder / "resources" / f"{name}.json").unlink()
                return self._found(name, zone, "queued-resources.describe")
            resource["deleting"] -= 1
        elif resource["plan"]:
            word = resource["plan"].pop(0)
            state, _, error = word.partition(":")
            resource["state"], _, vm_state = state.partition("/")
            resource["error"] = error.replace("_", " ")
            resource["vm_state"] = vm_state or "READY"
        self._write(f"resources/{name}.json", resource)
        folder = self.folder / "vms" / name
        if resource["state"] == "ACTIVE" and resource["vm_state"] == "READY" and not folder.exists():
            vms.boot(self.folder, folder, resource["node"], resource["boots"])
        if resource["state"] in ("SUSPENDING", "SUSPENDED"):
            vms.destroy(folder)
        return resource

    def _found(self, name: str, zone: str, verb: str) -> dict:
        resource = self.resources().get(name)
        if resource is None or resource["zone"] != zone:
            raise Refused(
                f"ERROR: (gcloud.compute.tpus.{verb}) NOT_FOUND: Resource "
                f"'projects/p/locations/{zone}/queuedResources/{name}' was not found"
            )
        return resource

    def _shown(self, name: str, resource: dict) -> dict:
        state = {"state": resource["state"]}
        if resource["error"]:
            state["failedData"] = {"error": {"code": 8, "message": resource["error"]}}
        spec = {"nodeId": resource["node_id"], "node": resource["node"]}
        place = f"projects/p/locations/{resource['zone']}/queuedResources/{name}"
        return {"name": place, "state": state, "tpu": {"nodeSpec": [spec]}}

    def _fail_if_told(self, line: str) -> None:
        faults = json.loads((self.folder / "faults.json").read_text())
        for fault in faults:
            if fault["times"] > 0 and re.search(fault["match"], line):
                fault["times"] -= 1
                self._write("faults.json", faults)
                if fault.get("hangs"):
                    subprocess.run(["sleep", "60"], check=False)
                raise Refused(fault["says"])

    def _write(self, name: str, content) -> None:
        beside = self.folder / f"new-{os.getpid()}.json"
        beside.write_text(json.dumps(content))
        os.replace(beside, self.folder / name)


def _pairs(text: str) -> dict[str, str]:
    return dict(part.split("=", 1) for part in text.split(","))
