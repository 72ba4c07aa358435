"""Saves and reads trees of arrays with Orbax. A saved tree is whole, or it is refused.

A tree is a folder, on a disk or in a bucket. Orbax writes arrays in it, and ``saved.json`` says what is
in the tree, with the digest of every file. Every file is compared with its digest before Orbax reads
any: damage is found here, and not by a parser. ``tree_folders.py`` and ``tree_objects.py`` say how a
tree comes to its place whole.
"""

import contextlib
import hashlib
import json
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging as absl_logging
from etils import epath

from atgrpo_jax.arrays import tree_folders, tree_objects
from atgrpo_jax.arrays.tree_folders import Damaged, TreeFolder, check_no_pattern
from atgrpo_jax.arrays.tree_objects import TreeObjects
from atgrpo_jax.common.errors import RunError, Unreachable
from atgrpo_jax.common.files import Place
from atgrpo_jax.common.hosts import ALONE, Hosts

__all__ = [
    "Damaged",
    "about_tree",
    "check_no_pattern",
    "clean",
    "is_tree",
    "move_tree",
    "names_of_trees",
    "read_part",
    "read_tree",
    "remove_tree",
    "write_tree",
]


def write_tree(
    place: Place, tree: Any, about: Mapping[str, Any], keep: bool = False, hosts: Hosts = ALONE
) -> str:
    """Saves ``tree`` and the JSON object ``about`` as the folder ``place``. Returns their digest.

    A folder that is already at ``place`` is replaced. With ``keep`` it stays if it is an undamaged
    tree; the caller knows that it is the same one. All ``hosts`` call this; each writes its own part
    of the arrays, and host 0 all the rest.

    Raises OSError or RunError if the tree cannot be written.
    """
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(tree))
    draft: Any = None
    with contextlib.ExitStack() as opened:

        def begin() -> bytes:
            nonlocal draft
            draft = opened.enter_context(_stored(place).writing(size, hosts.count > 1))
            return os.fspath(draft.state).encode()

        def finish() -> bytes:
            seen = {"about": dict(about), "leaves": _leaves(tree), "files": draft.files()}
            digest = _digest_of(seen)
            draft.put(json.dumps(seen | {"digest": digest}, indent=1).encode(), lambda: keep and _good(place))
            return digest.encode()

        state = epath.Path(hosts.told(f"{place.name}: draft", begin).decode())
        with _orbax(place, "written"):
            _checkpointer(hosts).save(state, args=ocp.args.StandardSave(tree))
        return hosts.told(f"{place.name}: saved", finish).decode()


def read_tree(place: Place, shapes: Any, hosts: Hosts = ALONE) -> Any:
    """Returns the saved tree, with the shapes, dtypes and shardings of ``shapes``.

    All ``hosts`` call this; each reads its own part.

    Call ``about_tree`` first, which checks the files. Raises RunError if the saved shapes differ.
    """
    stored = _stored(place)
    seen = json.loads(stored.about())
    saved = seen["leaves"]
    wanted = _leaves(shapes)
    for path in sorted(saved.keys() | wanted.keys()):
        if saved.get(path) != wanted.get(path):
            raise RunError(f"{place} has other arrays: {path} is {saved.get(path)}, not {wanted.get(path)}")
    with stored.reading(seen["files"]) as state, _orbax(place, "read"):
        return _checkpointer(hosts).restore(state, args=ocp.args.StandardRestore(shapes))


def read_part(place: Place, shapes: Any, hosts: Hosts = ALONE) -> Any:
    """Returns a part of the saved tree, as ``read_tree`` does.

    ``shapes`` is the tree with None in place of all that is not wanted. What comes back has dicts in
    place of named tuples, and no None.
    """
    stored = _stored(place)
    seen = json.loads(stored.about())
    for path, wanted in _leaves(shapes).items():
        if seen["leaves"].get(path) != wanted:
            raise RunError(f"{place} has other arrays: {path} is {seen['leaves'].get(path)}, not {wanted}")
    part = _as_dicts(shapes)
    how = ocp.args.PyTreeRestore(
        part, restore_args=ocp.checkpoint_utils.construct_restore_args(part), partial_restore=True
    )
    with stored.reading(seen["files"]) as state, _orbax(place, "read"):
        return _checkpointer(hosts, ocp.PyTreeCheckpointHandler).restore(state, args=how)


def _as_dicts(tree: Any) -> Any:
    fields = tree._asdict() if hasattr(tree, "_asdict") else tree
    if not isinstance(fields, Mapping):
        return tree
    return {name: _as_dicts(value) for name, value in fields.items() if value is not None}


def about_tree(place: Place, files: bool = True) -> tuple[dict[str, Any], str]:
    """Returns the ``about`` with which a tree was saved, and its digest. Checks the whole tree.

    Without ``files``, only saved.json is checked.

    Raises Damaged if any byte differs from what was saved, OSError if a file may not be read.
    """
    stored = _stored(place)
    try:
        seen = json.loads(stored.about())
        digest = seen.pop("digest")
        same = digest == _digest_of(seen)
        about = seen["about"]
        digests = seen["files"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Damaged(f"{stored.file} is not what was saved") from error
    if not same:
        raise Damaged(f"{stored.file} is not what was saved")
    if files:
        stored.check(digests)
    return about, digest


def is_tree(place: Place) -> bool:
    """Returns whether ``place`` is a tree that this module wrote, damaged or not."""
    return _stored(place).exists()


def names_of_trees(folder: Place) -> set[str]:
    """Returns the names of all trees in a folder, damaged ones included; none if it is not there."""
    if isinstance(folder, Path):
        return tree_folders.names_of_trees(folder)
    return tree_objects.names_of_trees(folder)


def clean(folder: Place) -> None:
    """Removes trees that ended processes left half written or half removed in ``folder``."""
    if isinstance(folder, Path):
        tree_folders.clean(folder)
    else:
        tree_objects.clean(folder)


def remove_tree(place: Place) -> None:
    """Removes a tree. No half of it is left at ``place``, even if this process is killed."""
    _stored(place).remove()


def move_tree(place: Place, target: Place) -> None:
    """Moves a tree, whole or not, to a place where nothing is."""
    _stored(place).move(target)


def _stored(place: Place) -> TreeFolder | TreeObjects:
    return TreeFolder(place) if isinstance(place, Path) else TreeObjects(place)


def _good(place: Place) -> bool:
    try:
        about_tree(place)
    except (Damaged, OSError):
        return False
    return True


def _leaves(tree: Any) -> dict[str, list[Any]]:
    """Returns dtype and shape by path. The leaves are arrays, or shapes of arrays."""
    return {
        jax.tree_util.keystr(path): [str(leaf.dtype), list(leaf.shape)]
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _digest_of(seen: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(seen, sort_keys=True).encode()).hexdigest()


def _checkpointer(hosts: Hosts, handling: Any = ocp.StandardCheckpointHandler) -> ocp.Checkpointer:
    """Returns Orbax's writer. It waits for other hosts with a deadline if they are named."""
    several = set(range(hosts.count)) if hosts.count > 1 else None
    options = ocp.options.MultiprocessingOptions(active_processes=several)
    handler = handling(multiprocessing_options=options)
    return ocp.Checkpointer(handler, multiprocessing_options=options)


@contextlib.contextmanager
def _orbax(place: Place, done: str) -> Iterator[None]:
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
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if not isinstance(place, Path):
            raise Unreachable(f"{place} cannot be {done} ({reason[:300]})") from error
        told = re.search(r"os_error_code='([0-9]+)'", str(error))
        number = error.errno if isinstance(error, OSError) else told and int(told[1])
        if number:
            raise OSError(number, os.strerror(number), str(place)) from error
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
