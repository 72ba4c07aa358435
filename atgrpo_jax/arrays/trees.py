"""Saves and reads trees of arrays with Orbax. A tree on disk is whole, or it is refused.

A tree is a folder. Orbax writes ``state/`` in it. ``saved.json`` says what is in the tree, with the
digest of every file. The folder is written beside its place and then renamed, so it is there whole
or not at all, also after kill -9. Every file is compared with its digest before Orbax reads any:
damage is found here, and not by a parser.
"""

import concurrent.futures
import contextlib
import errno
import fcntl
import hashlib
import json
import logging
import os
import re
import shutil
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import orbax.checkpoint as ocp
from absl import logging as absl_logging

from atgrpo_jax.common.errors import RunError
from atgrpo_jax.common.files import naming, sync_folder

_ABOUT = "saved.json"
_STATE = "state"
_PARTIAL = ".partial"

T = TypeVar("T")


class Damaged(RunError):
    """Raised if the files of a tree are not the ones that were saved."""


def write_tree(place: Path, tree: Any, about: Mapping[str, Any], keep: bool = False) -> str:
    """Saves ``tree`` and the JSON object ``about`` as the folder ``place``. Returns their digest.

    A folder that is already at ``place`` is replaced. With ``keep`` it stays if it is an undamaged
    tree; the caller knows that it is the same one.

    Raises OSError or RunError if the tree cannot be written.
    """
    with _partial_folder(place) as (partial, descriptor):
        _check_room(place, tree)
        with _orbax(place, "written"):
            ocp.Checkpointer(ocp.StandardCheckpointHandler()).save(
                _plain(partial, descriptor) / _STATE, args=ocp.args.StandardSave(tree)
            )
        seen = {"about": dict(about), "leaves": _leaves(tree), "files": _digests(partial)}
        digest = _digest_of(seen)
        with naming(place / _ABOUT), open(partial / _ABOUT, "w", encoding="utf-8") as file:
            json.dump(seen | {"digest": digest}, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        for folder in (partial, *(path for path in partial.rglob("*") if path.is_dir())):
            sync_folder(folder)
        _put(partial, place, keep)
    sync_folder(place.parent)
    return digest


def read_tree(place: Path, shapes: Any) -> Any:
    """Returns the saved tree, with the shapes, dtypes and shardings of ``shapes``.

    Call ``about_tree`` first, which checks the files. Raises RunError if the saved shapes differ.
    """
    saved = json.loads((place / _ABOUT).read_bytes())["leaves"]
    wanted = _leaves(shapes)
    for path in sorted(saved.keys() | wanted.keys()):
        if saved.get(path) != wanted.get(path):
            raise RunError(f"{place} has other arrays: {path} is {saved.get(path)}, not {wanted.get(path)}")
    descriptor = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with _orbax(place, "read"):
            return ocp.Checkpointer(ocp.StandardCheckpointHandler()).restore(
                _plain(place, descriptor) / _STATE, args=ocp.args.StandardRestore(shapes)
            )
    finally:
        os.close(descriptor)


def about_tree(place: Path) -> tuple[dict[str, Any], str]:
    """Returns the ``about`` with which a tree was saved, and its digest. Checks the whole tree.

    Raises Damaged if any byte differs from what was saved, OSError if a file may not be read.
    """
    file = place / _ABOUT
    try:
        seen = json.loads(_reading(file, file.read_bytes))
        digest = seen.pop("digest")
        same = digest == _digest_of(seen)
        about = seen["about"]
        files = seen["files"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Damaged(f"{file} is not what was saved") from error
    if not same:
        raise Damaged(f"{file} is not what was saved")
    with concurrent.futures.ThreadPoolExecutor() as threads:
        paths = [place / name for name in files]
        found = threads.map(lambda path: _reading(path, lambda: _size_and_digest(path)), paths)
        for path, now, saved in zip(paths, found, files.values(), strict=True):
            if now != saved:
                raise Damaged(f"{path} is not what was saved")
    return about, digest


def is_tree(place: Path) -> bool:
    """Returns whether ``place`` is a tree that this module wrote, damaged or not."""
    return (place / _ABOUT).is_file()


def clean(folder: Path) -> None:
    """Removes trees that ended processes left half written or half removed in ``folder``."""
    for left in folder.glob(f".*{_PARTIAL}"):
        with contextlib.suppress(OSError):  # it belongs to a live process, or to another user
            descriptor = os.open(left, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(left)
            finally:
                os.close(descriptor)


def remove_tree(place: Path) -> None:
    """Removes a tree. No half of it is left at ``place``, even if this process is killed."""
    aside = _aside(place)
    os.rename(place, aside)
    shutil.rmtree(aside)


def _aside(place: Path) -> Path:
    return place.with_name(f".{place.name}.{uuid.uuid4().hex[:12]}{_PARTIAL}")


def _check_room(place: Path, tree: Any) -> None:
    """Raises OSError if the disk has no room for the tree. TensorStore's own errors are long."""
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(tree))
    if shutil.disk_usage(place.parent).free < size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(place))


@contextlib.contextmanager
def _partial_folder(place: Path) -> Iterator[tuple[Path, int]]:
    """Yields a new folder beside ``place``, and its descriptor. Removes the folder at the end.

    The folder is locked while this process lives, so that ``clean`` of other processes keeps it.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    while True:
        partial = _aside(place)
        partial.mkdir()
        descriptor = os.open(partial, os.O_RDONLY | os.O_DIRECTORY)
        # Where folders cannot be locked, ``clean`` cannot lock them either, and so removes none.
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if partial.exists():
            break
        os.close(descriptor)  # ``clean`` of another process was faster than the lock
    try:
        yield partial, descriptor
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        os.close(descriptor)


def _put(partial: Path, place: Path, keep: bool) -> None:
    while True:
        with contextlib.suppress(OSError):
            os.rename(partial, place)
            return
        if keep and _good(place):
            return
        if not place.exists():
            os.rename(partial, place)  # raises the error that was suppressed above
            return
        remove_tree(place)


def _good(place: Path) -> bool:
    try:
        about_tree(place)
    except (Damaged, OSError):
        return False
    return True


def _digests(folder: Path) -> dict[str, list[Any]]:
    """Returns size and digest of all files in a folder, after they were written to disk (fsync)."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    with concurrent.futures.ThreadPoolExecutor() as threads:
        found = threads.map(lambda file: _size_and_digest(file, sync=True), files)
        return {str(file.relative_to(folder)): digest for file, digest in zip(files, found, strict=True)}


def _leaves(tree: Any) -> dict[str, list[Any]]:
    """Returns dtype and shape by path. The leaves are arrays, or shapes of arrays."""
    return {
        jax.tree_util.keystr(path): [str(leaf.dtype), list(leaf.shape)]
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _reading(file: Path, read: Callable[[], T]) -> T:
    try:
        return read()
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EIO):
            raise  # this is no damage: another user may read it, or it can be read later
        raise Damaged(f"{file} cannot be read ({error.strerror})") from error


def _size_and_digest(file: Path, sync: bool = False) -> list[Any]:
    with naming(file), open(file, "rb") as opened:
        if sync:
            os.fsync(opened.fileno())
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
        return [opened.tell(), digest]


def _digest_of(seen: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(seen, sort_keys=True).encode()).hexdigest()


def _plain(path: Path, descriptor: int) -> Path:
    """Returns a path to the open folder through /proc, or ``path`` itself where there is no /proc.

    Orbax treats brackets and backslashes in a path as patterns; the new path has none.
    """
    plain = Path(f"/proc/self/fd/{descriptor}")
    return plain if plain.is_dir() else path


@contextlib.contextmanager
def _orbax(place: Path, done: str) -> Iterator[None]:
    """Turns errors of Orbax or TensorStore into a RunError or an OSError that names ``place``."""
    asyncio_logger = logging.getLogger("asyncio")
    level = asyncio_logger.level
    verbosity = absl_logging.get_verbosity()
    hook = sys.unraisablehook
    # Threads of Orbax log the same error before it is raised here, with tracebacks.
    absl_logging.set_verbosity(absl_logging.FATAL)
    asyncio_logger.setLevel(logging.CRITICAL)
    sys.unraisablehook = _without_closed_loops(hook)
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        told = re.search(r"os_error_code='([0-9]+)'", str(error))
        number = error.errno if isinstance(error, OSError) else told and int(told[1])
        if number:
            raise OSError(number, os.strerror(number), str(place)) from error
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise RunError(f"{place} cannot be {done} ({reason[:300]})") from error
    else:
        # After an error these two stay as set: abandoned threads report errors seconds later, or at
        # the end of the process.
        sys.unraisablehook = hook
        asyncio_logger.setLevel(level)
    finally:
        absl_logging.set_verbosity(verbosity)


def _without_closed_loops(hook: Callable) -> Callable:
    """Returns an unraisable hook that hides one error: "Event loop is closed".

    When Orbax fails, it closes its event loop. TensorStore's threads go on and print this error.
    """

    def shown(unraisable):
        if not (unraisable.exc_type is RuntimeError and str(unraisable.exc_value) == "Event loop is closed"):
            hook(unraisable)

    return shown
