"""Checkpoints: one atomic step over all policies and optimizers, through Orbax."""

import json
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from atgrpo_jax.errors import RunError


class Checkpoints:
    """Numbered checkpoints in one folder: the newest ``keep``, and step 0, where training started.

    Orbax writes beside the final place and renames, so a checkpoint is there whole or not at all. The
    step is the data cursor and, with the seed in the config, all randomness: nothing else is stored.
    """

    def __init__(self, path: Path, identity: str, keep: int = 2, read_only: bool = False):
        """``identity`` names the config; a checkpoint with another one is refused.

        A ``read_only`` one leaves the folder alone, so that a run may be going on in it.
        """
        self._path, self._identity = path, identity
        self._base = path.with_name("base")
        policies = [checkpoint_managers.LatestN(keep), checkpoint_managers.CustomSteps([0])]
        self._manager = ocp.CheckpointManager(
            path,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=checkpoint_managers.AnyPreservationPolicy(policies),
                cleanup_tmp_directories=not read_only,
                read_only=read_only,
                create=not read_only,
                save_interval_steps=int(not read_only),
                enable_async_checkpointing=False,
            ),
            item_names=("state", "about"),
        )

    def latest(self) -> int | None:
        return self._manager.latest_step()

    def save(self, step: int, tree: Any) -> None:
        """Returns when the checkpoint is on disk."""
        about = {"identity": self._identity, "step": step}
        self._manager.save(
            step,
            args=ocp.args.Composite(state=ocp.args.StandardSave(tree), about=ocp.args.JsonSave(about)),
        )
        self._manager.wait_until_finished()

    def save_base(self, params: Any) -> None:
        """The weights that adapters are on, once for all steps, beside them."""
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(self._base, params, force=True)

    def restore_base(self, shapes: Any) -> Any:
        """Raises RunError if it is missing or damaged."""
        try:
            with ocp.StandardCheckpointer() as checkpointer:
                return checkpointer.restore(self._base, shapes)
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise RunError(f"{self._base} cannot be read ({_reason(error)}); start the run anew") from error

    def restore(self, step: int, shapes: Any) -> Any:
        """The tree of ``step`` with the shapes and shardings of ``shapes``. Raises RunError if it is missing,
        damaged, or of another config."""
        where = f"checkpoint {step} in {self._path}"
        if step not in self._manager.all_steps():
            there = ", ".join(map(str, self._manager.all_steps())) or "none"
            raise RunError(f"there is no {where} (steps: {there})")
        try:
            about = self._manager.restore(step, args=ocp.args.Composite(about=ocp.args.JsonRestore()))
            if about["about"]["identity"] != self._identity:
                raise RunError(f"{where} belongs to another config; move it away")
            args = ocp.args.Composite(state=ocp.args.StandardRestore(shapes))
            return self._manager.restore(step, args=args)["state"]
        except (ValueError, KeyError, TypeError, OSError, json.JSONDecodeError) as error:
            raise RunError(
                f"{where} cannot be read ({_reason(error)}); delete that step's folder to go on "
                "from an earlier one"
            ) from error

    def close(self) -> None:
        self._manager.close()


def _reason(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
