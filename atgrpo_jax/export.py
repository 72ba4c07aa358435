"""Writes a trained team for other tools, a folder OUT/<policy> for every policy.

python -m atgrpo_jax.export --run_dir=runs/plan_model --out=trained [--step=N] [--mesh=...] [--merge]
    [--dtype=float32]

A folder holds a Hugging Face model, or a PEFT adapter if the policy is one, and README.md, a model card.
``--merge`` writes adapters merged into their base. Without it, a base that was not read from a model
folder, that is not there any more, that a warm start has changed, or that came from another run is written
as well, as OUT/base_of_adapters. A policy that did not start from a folder gets no tokenizer files,
but for that of a TinyTokenizer, which `evaluate --model` reads.

One line for each policy says how many of its weights differ from those of step 0, once they are rounded as
``--dtype`` says. Small updates are less than a step of bfloat16; float32 keeps all of them.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from absl import flags

from atgrpo_jax.arrays.finite_trees import check_tree
from atgrpo_jax.arrays.mesh import parse_mesh
from atgrpo_jax.common.cli import mesh_flag, refuse_arguments, run_main
from atgrpo_jax.common.errors import ConfigError, RunError
from atgrpo_jax.models.hf import hf
from atgrpo_jax.models.hf.adapters import digest_of, save_adapter
from atgrpo_jax.models.hf.rounded import rounding
from atgrpo_jax.models.lora import merge
from atgrpo_jax.models.transformer import PolicyWeights
from atgrpo_jax.rollout.team import BASE
from atgrpo_jax.run.card import card
from atgrpo_jax.run.kept_files import came_from
from atgrpo_jax.run.saved import SavedRun
from atgrpo_jax.tokens import tiny_file
from atgrpo_jax.tokens.tokens import FolderTokenizer, TinyTokenizer
from atgrpo_jax.tools.read_back import check_read_back

_RUN_DIR = flags.DEFINE_string("run_dir", None, "The run folder. E.g. --run_dir=runs/plan_model")
_OUT = flags.DEFINE_string("out", None, "The folder to write, which must not exist yet. E.g. --out=trained")
_MESH = mesh_flag()
_STEP = flags.DEFINE_string(
    "step",
    None,
    "Which checkpoint: a number, or best, by validation; the newest if it is not given. E.g. --step=30",
)
_MERGE = flags.DEFINE_bool("merge", False, "Write adapters merged into their base. E.g. --merge")
_DTYPE = flags.DEFINE_enum(
    "dtype",
    "stored",
    ["stored", *hf.DTYPES],
    "The type of the numbers; stored is that of the folder that the policy started from, and float32 for "
    "adapters. E.g. --dtype=float32",
)
UNDER = "base_of_adapters"


def main(argv: list[str]) -> None:
    refuse_arguments(argv)
    if _RUN_DIR.value is None or _OUT.value is None:
        raise ConfigError("--run_dir and --out are needed")
    out = Path(_OUT.value).expanduser()
    if out.exists():
        raise RunError(f"{out} exists; give another --out")
    saved = SavedRun(_RUN_DIR.value, _MESH.value and parse_mesh(_MESH.value))
    step = saved.step_of(_STEP.value)
    dtype = None if _DTYPE.value == "stored" else _DTYPE.value
    _Export(saved, step, out, _MERGE.value, dtype).write()


@dataclasses.dataclass(frozen=True)
class _Export:
    """What is to be written: a step of a run, where, and how."""

    saved: SavedRun
    step: int
    out: Path
    merged: bool
    dtype: str | None  # None is the stored one

    def write(self) -> None:
        before = self._start()
        everything = self.saved.weights(self.step)
        adapted = self.saved.learner.adapted
        if adapted and not self.merged and self._base_is_new:
            name = next(iter(adapted))
            self._write(UNDER, self.saved.learner.source(name), everything[name].params)
        on = ""  # the digest of the base, which all adapters share
        for name, weights in everything.items():
            adapter = weights.adapter is not None and not self.merged
            on = on or (digest_of(weights.params) if adapter else "")
            tree = _content(weights, self.merged)
            if weights.adapter is not None and self.merged:
                check_tree(tree, f"{name}, merged", "write the adapter itself, without --merge")
            dtype = self._write(name, self.saved.learner.source(name), tree, on if adapter else "")
            if name in before:
                said = rounding(before[name], tree, dtype)
                print(f"{name}, step {self.step} against step 0: {said}")

    def _start(self) -> Mapping[str, Any]:
        """Returns what would be written of step 0, on the host; nothing if that is what is written."""
        if self.step == 0:
            return {}
        first = self.saved.weights(0)
        return {name: jax.device_get(_content(weights, self.merged)) for name, weights in first.items()}

    @property
    def _base_is_new(self) -> bool:
        """Returns whether no model folder holds the base of the adapters."""
        x = self.saved.experiment
        source = x.folder(BASE) if x.pretrained is not None else None
        changed = x.warm_start is not None or x.origin is not None
        return changed or source is None or not hf.has_weights(came_from(source))

    def _write(self, name: str, source: str | dict[str, Any], tree: Any, on: str = "") -> str:
        """Writes one folder: a model, or an adapter, and then ``on`` is the digest of its base.

        Returns the type of the numbers in it.
        """
        x, folder = self.saved.experiment, self.out / name
        given = x.folder(BASE if on or name == UNDER else x.initial_name(name))
        origin = "" if given is None else came_from(given)
        base = ""
        if on:
            dtype = self.dtype or "float32"
            base = f"../{UNDER}" if self._base_is_new else origin
            family = self.saved.learner.models[name].family
            save_adapter(str(folder), tree, x.lora, family, base, dtype, on)
            if isinstance(source, str):
                hf.copy_beside(source, folder)
        else:
            dtype = self.dtype or hf.dtype_of(source)
            hf.save(str(folder), tree, source, dtype)
        if isinstance(x.tokenizer, FolderTokenizer) and x.tokenizer.chat_template is not None:
            (folder / "chat_template.jinja").write_text(x.tokenizer.template, encoding="utf-8")
        if isinstance(x.tokenizer, TinyTokenizer):
            tiny_file.write(x.tokenizer, folder)
        what = card(self.saved, self.step, name, dtype, Path(origin).name, Path(base).name)
        (folder / "README.md").write_text(what, encoding="utf-8")
        print(f"wrote {folder} (step {self.step})")
        if not on and (note := check_read_back(folder)):
            print(note)
        return dtype


def _content(weights: PolicyWeights, merged: bool) -> Any:
    """Returns what is written of a policy: its parameters, or its adapter."""
    if weights.adapter is None:
        return weights.params
    return merge(weights.params, weights.adapter, weights.scale) if merged else weights.adapter


if __name__ == "__main__":
    run_main(main)
