"""Reads and writes objects of Cloud Storage. All that talks to buckets is here, but for Orbax's own files.

A path is ``gs://BUCKET/NAME``, as an ``etils.epath.Path``, of which only the name is used. An object
is there whole or not at all, and it has a generation, which is another one after each write.
"""

import contextlib
import datetime
import functools
import importlib.util
import os
import re
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from etils import epath

from atgrpo_jax.common.errors import RunError, Unreachable, one_line

SCHEME = "gs://"
_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]")


class Changed(Exception):
    """Raised if an object is not of the generation that a write asked for."""


class Found(NamedTuple):
    """What a listing says of an object. ``checksum`` is its CRC32C, as the store writes it."""

    size: int
    checksum: str
    generation: int
    age_s: float  # by this machine's clock


def is_url(text: str | os.PathLike) -> bool:
    return os.fspath(text).startswith(SCHEME)


def bucket_path(text: str | os.PathLike) -> epath.Path:
    """Returns the path of a URL. Raises ValueError with a readable message if it can have none."""
    url = os.fspath(text).rstrip("/")
    bucket, _, name = url.removeprefix(SCHEME).partition("/")
    if not _BUCKET.fullmatch(bucket):
        raise ValueError(f"names no bucket ({bucket!r} cannot be one; expected {SCHEME}BUCKET/FOLDER)")
    if not name or any(part in ("", ".", "..") for part in name.split("/")):
        raise ValueError(f"names no folder in bucket {bucket} (expected {SCHEME}{bucket}/FOLDER)")
    if any(ord(letter) < 32 for letter in name) or set(name) & set("#[]*?\\"):
        raise ValueError("has a letter in it that names in buckets should not have")
    missing = [name for name in ("gcsfs", "google.cloud.storage") if not _installed(name)]
    if missing:
        raise ValueError(f"is in a bucket, which needs {missing[0]}: pip install 'atgrpo_jax[gcs]'")
    return epath.Path(url)


def _installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # of a package above it
        return False


def read(path: epath.Path) -> bytes:
    """Returns an object's content. Raises FileNotFoundError, or RunError if it may not be read."""
    return read_version(path)[0]


def read_version(path: epath.Path) -> tuple[bytes, int]:
    """Returns an object's content and its generation. Raises as ``read`` does."""
    with _told(path):
        blob = _blob(path)
        data = blob.download_as_bytes(checksum="crc32c")
        return data, int(blob.generation)


def download(path: epath.Path, target: Path) -> None:
    """Copies an object to a file of this disk, which is there whole or not at all."""
    partial = target.with_name(f".{target.name}.partial")
    with _told(path):
        _blob(path).download_to_filename(partial, checksum="crc32c")
    os.replace(partial, target)


def write(path: epath.Path, data: bytes, generation: int | None = None) -> int:
    """Writes an object, and returns its generation.

    If ``generation`` is given, the object there must be of it (0: there must be none). Raises Changed
    if it is not, and RunError or Unreachable if nothing can be written.
    """
    from google.cloud.storage.retry import DEFAULT_RETRY

    with _told(path):
        blob = _blob(path)
        # The whole object is written, so the same request may be sent again after a fault.
        blob.upload_from_string(
            data,
            content_type="application/octet-stream",
            checksum="crc32c",
            if_generation_match=generation,
            retry=DEFAULT_RETRY,
        )
        return int(blob.generation)


def append(path: epath.Path, data: bytes, check: Callable[[], None] = lambda: None) -> None:
    """Writes an object anew with ``data`` at its end. Nothing that others write meanwhile is lost.

    ``check`` is called before each try. It raises if this process may not write any more.
    """
    wanted = None
    while True:
        check()
        before = b""
        generation = 0
        with contextlib.suppress(FileNotFoundError):
            before, generation = read_version(path)
        if before == wanted:
            return  # the write had succeeded, and only its answer was lost
        wanted = before + data
        with contextlib.suppress(Changed):
            write(path, wanted, generation)
            return


def found(folder: epath.Path) -> dict[str, Found]:
    """Returns all objects below a folder, by their names relative to it."""
    bucket, name = _parts(folder)
    now = datetime.datetime.now(datetime.UTC)
    with _told(folder):
        blobs = list(_client().list_blobs(bucket, prefix=f"{name}/"))
    return {
        blob.name[len(name) + 1 :]: Found(
            blob.size, blob.crc32c, int(blob.generation), (now - blob.updated).total_seconds()
        )
        for blob in blobs
    }


def is_object(path: epath.Path) -> bool:
    with _told(path):
        return _blob(path).exists()


def age_s(path: epath.Path) -> float:
    """Returns the seconds since an object was written. Raises as ``read`` does."""
    with _told(path):
        blob = _blob(path)
        blob.reload()
        return (datetime.datetime.now(datetime.UTC) - blob.updated).total_seconds()


def remove(path: epath.Path, generation: int | None = None) -> None:
    """Removes an object, if it is there. Raises Changed if it is not of ``generation``."""
    with contextlib.suppress(FileNotFoundError), _told(path):
        _blob(path).delete(if_generation_match=generation)


def check_writable(folder: epath.Path) -> None:
    """Writes an object and removes it. Raises RunError or Unreachable if that cannot be done."""
    probe = folder / f".probe-{uuid.uuid4().hex[:12]}"
    remove(probe, write(probe, b""))


def move(folder: epath.Path, target: epath.Path) -> None:
    """Moves all objects below a folder to another one."""
    for name in found(folder):
        with _told(folder / name):
            source, copy = _blob(folder / name), _blob(target / name)
            token, *_ = copy.rewrite(source)
            while token is not None:  # a large object takes several requests
                token, *_ = copy.rewrite(source, token=token)
        remove(folder / name)


@functools.cache
def _client() -> Any:
    import google.auth.credentials
    from google.cloud import storage

    if os.environ.get("STORAGE_EMULATOR_HOST"):
        return storage.Client(project="none", credentials=google.auth.credentials.AnonymousCredentials())
    credentials, project = google.auth.default(
        scopes=["https://www.googleapis.com/auth/devstorage.read_write"]
    )
    return storage.Client(project=project or "none", credentials=credentials)  # objects need no project


def _blob(path: epath.Path) -> Any:
    bucket, name = _parts(path)
    return _client().bucket(bucket).blob(name)


def _parts(path: epath.Path) -> tuple[str, str]:
    bucket, _, name = os.fspath(path).removeprefix(SCHEME).partition("/")
    return bucket, name


@contextlib.contextmanager
def _told(path: epath.Path) -> Iterator[None]:
    """Turns the store's errors into ours, which name the path and say what to do."""
    import google.api_core.exceptions as api
    import google.auth.exceptions as auth
    import requests
    from google.cloud.storage.exceptions import DataCorruption

    outside = (api.GoogleAPIError, auth.GoogleAuthError, requests.RequestException, DataCorruption)
    try:
        yield
    except api.NotFound as error:
        if "bucket does not exist" in str(error):
            raise RunError(f"{path}: there is no such bucket; make it, or give another one") from error
        raise FileNotFoundError(2, "No such object", str(path)) from error
    except api.PreconditionFailed as error:
        raise Changed(str(path)) from error
    except (api.Forbidden, api.Unauthorized) as error:
        raise RunError(
            f"{path}: this machine's account may not do that ({error.message[:200]}); give it the role "
            "Storage Object User on the bucket (docs/tpu.md)"
        ) from error
    except auth.DefaultCredentialsError as error:
        raise RunError(
            f"{path}: no credentials for buckets; on a laptop: gcloud auth application-default login"
        ) from error
    except auth.RefreshError as error:
        raise RunError(f"{path}: the credentials are no longer good ({one_line(error)})") from error
    except (*outside, ConnectionError, TimeoutError) as error:
        raise Unreachable(f"{path}: the bucket cannot be reached ({one_line(error)})") from error
