"""Keeps saved trees in a bucket.

A bucket renames nothing. Orbax writes under a name of this save's own, and ``saved.json``, which is
written last and says that name, makes the tree be there: at once, and with all its files. A digest is
the CRC32C that the store itself computed of an object, so nothing is read twice. In a tree that was
copied from a disk it is a SHA-256, and its objects are read to be checked.
"""

import contextlib
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from etils import epath

from atgrpo_jax.arrays.tree_folders import ABOUT, STATE, Damaged, is_sha256, size_and_digest, state_in
from atgrpo_jax.common import buckets
from atgrpo_jax.common.errors import RunError
from atgrpo_jax.common.files import Place

ABANDONED_S = 24 * 3600.0  # no save takes a day


class TreeObjects:
    """A tree under the name ``place``."""

    def __init__(self, place: epath.Path):
        self.place = place
        self.file = place / ABOUT

    def exists(self) -> bool:
        return buckets.is_object(self.file)

    def about(self) -> bytes:
        try:
            return buckets.read(self.file)
        except FileNotFoundError as error:
            raise Damaged(f"{self.file} cannot be read ({error.strerror})") from error

    @contextlib.contextmanager
    def writing(self, size: int, by_others: bool = False) -> Iterator["Draft"]:
        """Yields a new name below the place. Removes what is below it, unless it was put.

        Any process may write there, also without ``by_others``.
        """
        draft = Draft(self.place, self.place / f"{STATE}.{uuid.uuid4().hex[:12]}")
        try:
            yield draft
        except BaseException:
            with contextlib.suppress(RunError):  # the first error is the one to report
                _remove_all(draft.state)
            raise

    @contextlib.contextmanager
    def reading(self, files: Mapping[str, Any]) -> Iterator[epath.Path]:
        """Yields the path that Orbax reads."""
        yield self.place / state_in(files)

    def check(self, files: Mapping[str, Any]) -> None:
        """Raises Damaged if an object is not what was saved."""
        there = buckets.found(self.place)
        for name, saved in files.items():
            now = there.get(name)
            if now is None or self._seen(name, now, saved[1]) != saved:
                raise Damaged(f"{self.place / name} is not what was saved")

    def _seen(self, name: str, now: buckets.Found, kind: str) -> list[Any]:
        """Returns the size of an object, and its digest of the same kind as the digest ``kind``."""
        if not is_sha256(kind):
            return [now.size, now.checksum]
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / "object"
            buckets.download(self.place / name, copy)
            return size_and_digest(copy, kind)

    def remove(self) -> None:
        buckets.remove(self.file)  # first: without it, there is no tree
        _remove_all(self.place)

    def move(self, target: Place) -> None:
        assert isinstance(target, epath.Path)
        buckets.move(self.place, target)


class Draft(NamedTuple):
    """A tree that is being written below ``place``. Orbax writes in ``state``."""

    place: epath.Path
    state: epath.Path

    def files(self) -> dict[str, list[Any]]:
        """Returns size and digest of all objects."""
        there = sorted(buckets.found(self.state).items())
        return {f"{self.state.name}/{name}": [now.size, now.checksum] for name, now in there}

    def put(self, about: bytes, stays: Callable[[], bool]) -> None:
        """Makes this the tree of its place. What is there is replaced, unless it ``stays``."""
        if stays():
            _remove_all(self.state)
            return
        buckets.write(self.place / ABOUT, about)
        for name in buckets.found(self.place):
            if name != ABOUT and not name.startswith(f"{self.state.name}/"):
                buckets.remove(self.place / name)


def names_of_trees(folder: epath.Path) -> set[str]:
    """Returns the names of all trees in a folder. What has no ``saved.json`` is none yet."""
    return {
        name.removesuffix(f"/{ABOUT}")
        for name in buckets.found(folder)
        if name.count("/") == 1 and name.endswith(f"/{ABOUT}")
    }


def clean(folder: epath.Path) -> None:
    """Removes what no ``saved.json`` names and nobody has written to for a day.

    Nothing shows whether the process that wrote it is alive, but for its age.
    """
    there = buckets.found(folder)
    for name, now in there.items():
        place, _, below = name.partition("/")
        if below.startswith(f"{STATE}.") and now.age_s > ABANDONED_S and f"{place}/{ABOUT}" not in there:
            buckets.remove(folder / name)


def _remove_all(folder: epath.Path) -> None:
    for name in buckets.found(folder):
        buckets.remove(folder / name)
