"""Writes the folders of a trained team: a model or an adapter for each policy, with its card."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from atgrpo_jax.arrays.finite_trees import check_tree
from atgrpo_jax.common.copies import local_folder
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
from atgrpo_jax.tokens.folder_files import FolderFiles
from atgrpo_jax.tokens.tokens import FolderTokenizer, TinyTokenizer, Tokenizer

UNDER = "base_of_adapters"


@dataclasses.dataclass(frozen=True)
class Export:
    """What is to be written: a step of a run, where, and how."""

    saved: SavedRun
    step: int
    out: Path
    merged: bool
    dtype: str | None  # None is the stored one
    check: Callable[[Path], str | None]  # looks at a model folder once it is written; returns a note

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
            hf.save(str(folder), tree, source, dtype, x.tokenizer.stop_ids)
        _write_tokenizer(folder, x.tokenizer)
        what = card(self.saved, self.step, name, dtype, Path(origin).name, Path(base).name)
        (folder / "README.md").write_text(what, encoding="utf-8")
        print(f"wrote {folder} (step {self.step})")
        if not on and (note := self.check(folder)):
            print(note)
        return dtype


def _write_tokenizer(folder: Path, own: Tokenizer) -> None:
    """Writes the tokenizer of the run, unless it is in no folder, and the ids at which its samples end."""
    new = False
    if isinstance(own, TinyTokenizer):
        tiny_file.write(own, folder)
    if isinstance(own, FolderTokenizer):
        if not (folder / "tokenizer.json").is_file():
            hf.copy_tokenizer(own.folder, folder)
        if own.chat_template is not None or not FolderFiles(folder).template():
            (folder / "chat_template.jinja").write_text(own.template, encoding="utf-8")
        new = (local_folder(own.folder) / hf.GENERATION).is_file()  # it may name ends that no other file does
    hf.write_ends(folder, own.stop_ids, new)


def _content(weights: PolicyWeights, merged: bool) -> Any:
    """Returns what is written of a policy: its parameters, or its adapter.

    Merged ones are float32, whatever the base is: they are rounded once, when they are written.
    """
    if weights.adapter is None:
        return weights.params
    if not merged:
        return weights.adapter
    return merge(weights.params, weights.adapter, weights.scale, "float32")
