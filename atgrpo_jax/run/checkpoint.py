"""Saves and restores all policies and optimizers together, and checks digests when reading."""

import base64
import itertools
from collections.abc import Callable, Collection, Mapping, Set
from typing import Any

from atgrpo_jax.arrays import trees
from atgrpo_jax.arrays.trees import Damaged
from atgrpo_jax.common.errors import RunError
from atgrpo_jax.common.files import Place, make_folder, names_in
from atgrpo_jax.common.hosts import ALONE, Hosts
from atgrpo_jax.common.progress import say
from atgrpo_jax.rollout import wire
from atgrpo_jax.rollout.curriculum import NO_LESSONS, Lesson, Lessons
from atgrpo_jax.rollout.rollouts import Played
from atgrpo_jax.update.learner import PolicyState


class Checkpoints:
    """The numbered checkpoints in one folder. It keeps the newest ``keep`` ones, step 0, and what ``stays``.

    A checkpoint is there whole or not at all. No random state and no position in the data is
    stored: both follow from the step and the config's seed.
    """

    def __init__(
        self,
        path: Place,
        identity: str,
        keep: int = 2,
        read_only: bool = False,
        hosts: Hosts = ALONE,
        earlier: Collection[str] = (),
        stays: Callable[[Set[int]], Set[int]] = lambda steps: set(),
    ):
        """Opens the folder ``path``, and makes it if it is not there.

        ``identity`` names the config, and ``earlier`` what it was before it changed in this run;
        checkpoints of another config are refused. With ``read_only`` nothing in the folder is
        changed, so that a run may be going on in it. All ``hosts`` of a run save and restore
        together; only host 0 looks for what is there. ``stays`` is given all steps and returns those to
        keep.
        """
        self._path = path
        self._identity = identity
        self._known = {identity, *earlier}
        self._keep = keep
        self._stays = stays
        self._base = path.with_name("base")
        self._base_digest: str | None = None
        self._base_params: Any = None  # once they are read
        self._hosts = hosts
        self._checked: set[int] = set()  # steps whose files were found to be whole
        if not read_only and hosts.index == 0:
            make_folder(path)
            trees.clean(path)
            trees.clean(path.parent)

    def steps(self) -> list[int]:
        """Returns the steps of all checkpoints, in ascending order, damaged ones included."""
        return sorted(steps_in(self._path))

    def latest(self) -> int | None:
        return max(self.steps(), default=None)

    def newest(self) -> int | None:
        """Returns the newest step whose checkpoint is not damaged; None if there is no checkpoint.

        Damaged ones that are newer are reported and moved aside. Raises RunError if all are damaged,
        or if the one that is taken belongs to another config.
        """
        damaged: dict[int, Damaged] = {}
        for step in reversed(self.steps()):
            try:
                self._about(step)
            except Damaged as error:
                damaged[step] = error
                continue
            for bad, fault in damaged.items():
                say(f"{fault}; moved to {self.put_aside(bad, 'damaged').name}, step {step} is taken instead")
            self.forget_old()
            return step
        if damaged:
            say("\n".join(map(str, damaged.values())))
            raise RunError(f"no checkpoint in {self._path} is whole; start the run anew in another folder")
        return None

    def save(
        self,
        step: int,
        tree: Any,
        base: Any = None,
        version: int = 0,
        memory: Mapping[str, float] | None = None,
        lessons: Lessons = NO_LESSONS,
        ahead: Played | None = None,
    ) -> None:
        """Writes a checkpoint, which is on disk when this returns. Raises OSError or RunError.

        ``version`` is that of the weights, ``memory`` that of the rule of credit, and ``lessons`` are what
        instances taught. ``ahead`` is the rollout of the next step, if it is played already: the weights
        that drew it are gone. ``base`` holds the weights that adapters are on. They never change, so they are
        written once, beside the checkpoints.
        """
        hosts = self._hosts
        if base is not None and self._base_digest is None:
            self._base_digest = trees.write_tree(self._base, base, {"identity": self._identity}, hosts=hosts)
        about = {"identity": self._identity, "step": step, "version": version, "base": self._base_digest}
        about |= {"memory": dict(memory)} if memory else {}  # JSON keeps every bit of a number
        about |= {"lessons": {str(index): own for index, own in lessons.items()}} if lessons else {}
        if ahead is not None:
            episodes = base64.b64encode(wire.encode(ahead.episodes)).decode()
            about["ahead"] = {"episodes": episodes, "metrics": ahead.metrics}
        trees.write_tree(self._path / str(step), tree, about, hosts=hosts)
        if hosts.index == 0:
            self.forget_old()

    def forget_old(self) -> None:
        """Removes all checkpoints that are not to be kept; folders that hold none stay."""
        steps = steps_in(self._path)
        older = sorted(steps - {0})[: -self._keep]
        for step in sorted(set(older) - self._stays(steps)) if older else ():
            if trees.is_tree(self._path / str(step)):
                trees.remove_tree(self._path / str(step))

    def restore_base(self, shapes: Any, step: int | None = None) -> Any:
        """Reads the weights that adapters are on, once. Raises RunError if missing or damaged.

        If a ``step`` is given, they must be those of its checkpoint.
        """
        if self._base_params is None:
            try:
                _, self._base_digest = trees.about_tree(self._base)
                self._base_params = trees.read_tree(self._base, shapes, self._hosts)
            except RunError as error:
                why = f"the base of the adapters cannot be read: {error}; start the run anew"
                raise RunError(why) from error
        if step is not None:
            self._check_base(step, self._about(step))
        return self._base_params

    def restore(self, step: int, shapes: Any) -> tuple[Any, int]:
        """Reads the tree of ``step``, with the shapes and shardings of ``shapes``, and its version.

        If there are adapters, call ``restore_base`` first. Raises RunError if the checkpoint is
        missing or belongs to another config or base, and Damaged if it is damaged.
        """
        about = self._about(step)
        self._check_base(step, about)
        return trees.read_tree(self._path / str(step), shapes, self._hosts), about["version"]

    def memory(self, step: int) -> dict[str, float]:
        """Returns what the rule of credit remembers after ``step``. Raises as ``restore`` does."""
        return self._about(step).get("memory", {})

    def lessons(self, step: int) -> dict[int, Lesson]:
        """Returns what instances taught up to ``step``. Raises as ``restore`` does."""
        return {int(index): Lesson(*own) for index, own in self._about(step).get("lessons", {}).items()}

    def ahead(self, step: int) -> Played | None:
        """Returns the rollout of the step after ``step``, if that was played by then.

        What other settings have drawn (``earlier``) does not count. Raises as ``restore`` does.
        """
        about = self._about(step)
        found = about.get("ahead")
        if found is None or about["identity"] != self._identity:
            return None
        return Played(wire.decode(base64.b64decode(found["episodes"])), found["metrics"])

    def _check_base(self, step: int, about: Mapping[str, Any]) -> None:
        if about["base"] != self._base_digest:
            where = f"checkpoint {step} in {self._path}"
            raise RunError(f"{where} belongs to another base than {self._base}; put its own back")

    def restore_part(self, step: int, shapes: Any) -> Any:
        """Reads a part of the tree of ``step``; see ``trees.read_part``. Raises as ``restore`` does."""
        self._about(step)
        return trees.read_part(self._path / str(step), shapes, self._hosts)

    def restore_params(self, step: int, shapes: Mapping[str, Any]) -> dict[str, Any]:
        """Reads the parameters of policies, without their optimizers. Raises as ``restore`` does."""
        part = self.restore_part(step, {name: PolicyState(own, None) for name, own in shapes.items()})
        return {name: part[name]["params"] for name in shapes}

    def digest(self, step: int) -> str:
        """Returns a digest of all that is in the checkpoint of ``step``. Raises as ``restore`` does."""
        self._about(step)
        return trees.about_tree(self._path / str(step), files=False)[1]

    def _about(self, step: int) -> dict[str, Any]:
        """Returns what a checkpoint says about itself. Its files are checked, the first time only.

        Raises as ``restore`` does.
        """
        where = f"checkpoint {step} in {self._path}"
        if step not in self.steps():
            there = ", ".join(map(str, self.steps())) or "none"
            raise RunError(f"there is no {where} (steps: {there})")
        try:
            whole = step in self._checked or self._hosts.index > 0  # host 0 has checked it for all
            about, _ = trees.about_tree(self._path / str(step), files=not whole)
        except Damaged as error:
            raise Damaged(f"{where} is damaged: {error}") from error
        if about["identity"] not in self._known:
            raise RunError(f"{where} belongs to another config; move it away")
        if about.get("step") != step:
            raise Damaged(f"{where} is damaged: it is not of that step, but of {about.get('step')}")
        self._checked.add(step)
        return about

    def put_aside(self, step: int, why: str) -> Place:
        """Moves a checkpoint that counts no more. It is not deleted: somebody may want to look at it."""
        there = names_in(self._path)
        names = (f"{step}.{why}{number or ''}" for number in itertools.count())
        aside = self._path / next(name for name in names if name not in there)
        trees.move_tree(self._path / str(step), aside)
        return aside


def steps_in(path: Place) -> set[int]:
    """Returns the steps of the checkpoints in the folder ``path``, damaged ones included."""
    names = trees.names_of_trees(path)
    return {int(name) for name in names if name.isdecimal() and name.isascii() and str(int(name)) == name}
