"""Checkpoints: one atomic step over all policies and optimizers, compared with their digests when read."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from atgrpo_jax.arrays import trees
from atgrpo_jax.arrays.trees import Damaged
from atgrpo_jax.common.errors import RunError
from atgrpo_jax.common.progress import say


class Checkpoints:
    """Numbered checkpoints in one folder: the newest ``keep``, and step 0, where training started.

    A checkpoint is there whole or not at all. The step is the data cursor and, with the seed in the config,
    all randomness: nothing else is stored.
    """

    def __init__(self, path: Path, identity: str, keep: int = 2, read_only: bool = False):
        """``identity`` names the config; a checkpoint with another one is refused.

        A ``read_only`` one leaves the folder alone, so that a run may be going on in it.
        """
        self._path, self._identity, self._keep = path, identity, keep
        self._base = path.with_name("base")
        self._base_digest: str | None = None
        if not read_only:
            path.mkdir(parents=True, exist_ok=True)
            trees.clean(path)
            trees.clean(path.parent)

    def steps(self) -> list[int]:
        """From the first, damaged ones included."""
        return sorted(steps_in(self._path))

    def latest(self) -> int | None:
        return max(self.steps(), default=None)

    def newest(self, restore: Callable[[int], Any]) -> tuple[int, Any] | None:
        """The newest step that is not damaged, and what ``restore`` makes of it; None if there is no step.

        Damaged ones after it are told, and moved aside. Raises RunError if all are damaged.
        """
        damaged: dict[int, Damaged] = {}
        for step in reversed(self.steps()):
            try:
                found = restore(step)
            except Damaged as error:
                damaged[step] = error
                continue
            for bad, fault in damaged.items():
                say(f"{fault}; moved to {self._move_aside(bad).name}, step {step} is taken instead")
            self.forget_old()
            return step, found
        if damaged:
            say("\n".join(map(str, damaged.values())))
            raise RunError(f"no checkpoint in {self._path} is whole; start the run anew in another folder")
        return None

    def save(self, step: int, tree: Any) -> None:
        """Returns when the checkpoint is on disk. Raises OSError or RunError if it cannot be written."""
        about = {"identity": self._identity, "step": step, "base": self._base_digest}
        trees.write_tree(self._path / str(step), tree, about)
        self.forget_old()

    def forget_old(self) -> None:
        """Removes all but those that are kept; folders that hold no checkpoint stay."""
        for step in sorted(steps_in(self._path) - {0})[: -self._keep]:
            if trees.is_tree(self._path / str(step)):
                trees.remove_tree(self._path / str(step))

    def save_base(self, params: Any) -> None:
        """The weights that adapters are on, once for all steps, beside them."""
        self._base_digest = trees.write_tree(self._base, params, {"identity": self._identity})

    def restore_base(self, shapes: Any) -> Any:
        """Raises RunError if it is missing or damaged."""
        try:
            _, self._base_digest = trees.about_tree(self._base)
            return trees.read_tree(self._base, shapes)
        except RunError as error:
            raise RunError(f"the base of the adapters cannot be read: {error}; start the run anew") from error

    def restore(self, step: int, shapes: Any) -> Any:
        """The tree of ``step`` with the shapes and shardings of ``shapes``. Where there are adapters
        ``restore_base`` comes first. Raises RunError if it is missing, damaged (Damaged), or of another
        config or base."""
        where = f"checkpoint {step} in {self._path}"
        if step not in self.steps():
            there = ", ".join(map(str, self.steps())) or "none"
            raise RunError(f"there is no {where} (steps: {there})")
        try:
            about, _ = trees.about_tree(self._path / str(step))
        except Damaged as error:
            raise Damaged(f"{where} is damaged: {error}") from error
        if about["identity"] != self._identity:
            raise RunError(f"{where} belongs to another config; move it away")
        if about.get("step") != step:
            raise Damaged(f"{where} is damaged: it is not of that step, but of {about.get('step')}")
        if about["base"] != self._base_digest:
            raise RunError(f"{where} belongs to another base than {self._base}; put its own back")
        return trees.read_tree(self._path / str(step), shapes)

    def _move_aside(self, step: int) -> Path:
        """Nothing is deleted that somebody may want to look at."""
        names = (self._path / f"{step}.damaged{number or ''}" for number in itertools.count())
        return (self._path / str(step)).rename(next(name for name in names if not name.exists()))


def steps_in(path: Path) -> set[int]:
    """Of the checkpoints in the folder ``path``, damaged ones included."""
    try:
        names = [found.name for found in path.iterdir() if found.is_dir()]
    except FileNotFoundError:
        return set()
    return {int(name) for name in names if name.isdecimal() and name.isascii() and str(int(name)) == name}
