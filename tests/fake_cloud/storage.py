"""gcloud storage, on a folder: the object gs://BUCKET/a/b is the file BUCKETS/BUCKET/a/b."""

from __future__ import annotations

import fcntl
import fnmatch
import json
import os
import shutil
import tempfile
from pathlib import Path

from fake_cloud.commands import Refused


class Storage:
    """The buckets of one fake cloud. ``vm`` says whether a VM asks, whose rights may be others'."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._buckets = folder / "buckets"
        self._counts = folder / "writes"  # how often each object was written

    def make(self, bucket: str, location: str, closed: str = "") -> None:
        """Makes a bucket that is closed to "vm", to "laptop" or to nobody."""
        (self._buckets / bucket).mkdir(parents=True)
        self._about(bucket).write_text(json.dumps({"location": location, "closed": closed}))

    def _about(self, bucket: str) -> Path:
        return self._folder / f"bucket-{bucket}.json"

    def path(self, url: str) -> Path:
        return self._buckets / url.removeprefix("gs://")

    def _enter(self, url: str, vm: bool, verb: str) -> Path:
        bucket = url.removeprefix("gs://").partition("/")[0]
        if not self._about(bucket).exists():
            raise Refused(f"ERROR: (gcloud.storage.{verb}) gs://{bucket} not found: 404.")
        who = "vm" if vm else "laptop"
        if json.loads(self._about(bucket).read_text())["closed"] == who:
            permission = "storage.objects.create" if verb == "cp" else "storage.objects.get"
            raise Refused(
                f"ERROR: (gcloud.storage.{verb}) HTTPError 403: {who}@example.com does not have {permission} "
                "access to the Google Cloud Storage object. Permission denied."
            )
        return self.path(url)

    def describe(self, url: str, vm: bool) -> str:
        self._enter(url, vm, "buckets.describe")
        about = json.loads(self._about(url.removeprefix("gs://").strip("/")).read_text())
        return json.dumps({"name": url, "location": about["location"], "location_type": "region"})

    def cat(self, url: str, part: str | None, vm: bool) -> bytes:
        if "*" in url:
            return b"".join(self.cat(found, part, vm) for found in self.list(url, vm).split())
        file = self._enter(url, vm, "cat")
        if not file.is_file():
            raise Refused(
                f"ERROR: (gcloud.storage.cat) The following URLs matched no objects or files:\n-{url}"
            )
        content = file.read_bytes()
        if part is None:
            return content
        start, _, end = part.partition("-")
        return content[-int(end) :] if not start else content[int(start) : int(end) + 1 if end else None]

    def list(self, url: str, vm: bool) -> str:
        top = self._enter(url, vm, "ls")
        bucket = url.removeprefix("gs://").partition("/")[0]
        files = (file for file in (self._buckets / bucket).rglob("*") if file.is_file())
        # * stands for a part of one name, as gcloud has it.
        found = [
            file
            for file in files
            if len(file.parts) == len(top.parts) and fnmatch.fnmatch(str(file), str(top))
        ]
        if not found:
            raise Refused("ERROR: (gcloud.storage.ls) One or more URLs matched no objects.")
        return "".join(f"gs://{file.relative_to(self._buckets)}\n" for file in sorted(found))

    def copy(self, places: list[str], flags: dict, stdin: bytes, vm: bool) -> None:
        *sources, target = places
        for source in self._expanded(sources, vm):
            if flags.get("--recursive"):
                shutil.copytree(
                    self._enter(source, vm, "cp"), Path(target) / source.rstrip("/").rpartition("/")[2]
                )
                continue
            content = stdin if source == "-" else self._source(source, vm)
            if not target.startswith("gs://"):
                local = Path(target)
                (local / source.rpartition("/")[2] if local.is_dir() else local).write_bytes(content)
                continue
            inside = source.rpartition("/")[2] if target.endswith("/") else ""
            file = self._enter(target + inside, vm, "cp")
            self._write(file, content, flags.get("--if-generation-match"))

    def _expanded(self, sources: list[str], vm: bool) -> list[str]:
        found = []
        for source in sources:
            found += self.list(source, vm).split() if "*" in source else [source]
        return found

    def _source(self, source: str, vm: bool) -> bytes:
        if not source.startswith("gs://"):
            return Path(source).read_bytes()
        file = self._enter(source, vm, "cp")
        if not file.is_file():
            raise Refused(
                f"ERROR: (gcloud.storage.cp) The following URLs matched no objects or files:\n-{source}"
            )
        return file.read_bytes()

    def _write(self, file: Path, content: bytes, only_over: str | None) -> None:
        """Writes an object as buckets do: whole, or not at all, and if asked to only over one version."""
        file.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=self._folder)
        with os.fdopen(handle, "wb") as beside:
            beside.write(content)
        with open(self._folder / "writes.lock", "a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if only_over not in (None, self._generation(file)):
                os.unlink(name)
                raise Refused(
                    "ERROR: (gcloud.storage.cp) HTTPError 412: At least one of the pre-conditions you "
                    "specified did not hold."
                )
            count = self._counts / file.relative_to(self._buckets)
            count.parent.mkdir(parents=True, exist_ok=True)
            count.write_text(str(int(count.read_text()) + 1 if count.exists() else 1))
            os.replace(name, file)

    def _generation(self, file: Path) -> str:
        """Returns a number that is another one after each write, or "0" for what is not there.

        A file that a test has written itself has the number 0.5, which no object has.
        """
        count = self._counts / file.relative_to(self._buckets)
        return "0" if not file.is_file() else count.read_text() if count.exists() else "0.5"

    def describe_object(self, url: str, vm: bool) -> str:
        file = self._enter(url, vm, "objects.describe")
        if not file.is_file():
            raise Refused(f"ERROR: (gcloud.storage.objects.describe) {url} not found: 404.")
        return json.dumps({"name": file.name, "generation": self._generation(file), "storage_url": url})

    def remove(self, url: str, vm: bool) -> None:
        file = self._enter(url, vm, "rm")
        if not file.is_file():
            raise Refused(
                f"ERROR: (gcloud.storage.rm) The following URLs matched no objects or files:\n-{url}"
            )
        file.unlink()
