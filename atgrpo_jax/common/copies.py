"""Copies folders and files of buckets to this disk: models, problem files, and modules to import.

Of a folder only the files right in it are copied, and only kinds that are read. A copy is kept, and compared
with the bucket by the generations of the objects, so only what changed is copied again.
"""

import fcntl
import functools
import json
import os
import re
from pathlib import Path

from etils import epath

from atgrpo_jax.common import buckets
from atgrpo_jax.common.errors import RunError
from atgrpo_jax.common.files import make_folder, naming, sync_folder, write_atomically
from atgrpo_jax.common.progress import counted, say

_KINDS = (".json", ".safetensors", ".jinja", ".txt", ".model", ".py")
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")  # owner/name
_COPIED = ".copied.json"  # the generation of each file that is here
_LARGE = 100e6  # bytes; a line is printed before more are copied


def local_folder(text: str | os.PathLike) -> Path:
    """Returns a folder's absolute path, or for one in a bucket that of its copy on this disk.

    A process copies a folder once. Raises RunError if there is no such folder in the bucket or it
    cannot be read, and ValueError if the URL names none.
    """
    if buckets.is_url(text):
        return _copied_once(buckets.bucket_path(text))
    return Path(text).expanduser().absolute()


def existing_folder(text: str) -> Path:
    """Returns what ``local_folder`` does. Raises RunError if there is no such folder on this disk, too.

    A text that may be the name of a model on a hub is answered with the command that fetches it.
    """
    folder = local_folder(text)
    if folder.is_dir():
        return folder
    if _HUB_NAME.fullmatch(text):
        raise RunError(
            f"{text} is no folder here, and names of a hub are not looked up; fetch it first: "
            f"hf download {text} --local-dir {text}"
        )
    raise RunError(f"{folder}: there is no such folder")


def local_file(text: str | os.PathLike) -> Path:
    """Returns a file's absolute path, or for one in a bucket that of its copy on this disk.

    Raises as ``local_folder`` does.
    """
    if not buckets.is_url(text):
        return Path(text).expanduser().absolute()
    path = buckets.bucket_path(text)
    return copied(path.parent, only=path.name) / path.name


def absolute(text: str) -> str:
    """Returns an absolute path as a text; a URL as it is."""
    return text if buckets.is_url(text) else str(Path(text).expanduser().absolute())


@functools.cache
def _copied_once(folder: epath.Path) -> Path:
    return copied(folder)


def copied(folder: epath.Path, only: str | None = None) -> Path:
    """Returns a folder on this disk with the same files as one in a bucket has now.

    With ``only``, that file is looked at, and the others are left as they are.
    """
    there = {
        name: found
        for name, found in buckets.found(folder).items()
        if (name == only if only else "/" not in name and name.endswith(_KINDS))
    }
    if not there:
        what = f"{folder}/{only}: there is no such file" if only else f"{folder}: there is no such folder"
        raise RunError(f"{what} in the bucket, or it is empty")
    local = Path("~/.cache/atgrpo_jax/buckets").expanduser() / str(folder).removeprefix(buckets.SCHEME)
    make_folder(local)
    with naming(local), open(local / ".lock", "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another process may copy the same one
        have = _have(local)
        wanted = {name: found.generation for name, found in there.items()}
        missing = [name for name in wanted if have.get(name) != wanted[name]]
        size = sum(there[name].size for name in missing)
        if size > _LARGE:
            say(f"copying {counted(len(missing), 'file')} ({size / 1e9:.1f} GB) of {folder} to {local}")
        for name in missing:
            buckets.download(folder / name, local / name)
        if only:
            wanted = have | wanted
        for name in have.keys() - wanted.keys():
            (local / name).unlink(missing_ok=True)
        sync_folder(local)
        write_atomically(local / _COPIED, json.dumps(wanted).encode())
    return local


def _have(local: Path) -> dict[str, int]:
    try:
        kept = json.loads((local / _COPIED).read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    return {name: generation for name, generation in kept.items() if (local / name).is_file()}
