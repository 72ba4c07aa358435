"""Stands in for what a planned run names and this machine lacks: models, tokenizers, files of problems.

A plan needs the sizes of a model, which are known if it is a published one, and how many tokens
prompts have. What was taken in place of what is noted, so that the plan can say it.
"""

import dataclasses
import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from atgrpo_jax.common.buckets import is_url
from atgrpo_jax.common.copies import local_file, local_folder
from atgrpo_jax.common.errors import ConfigError
from atgrpo_jax.common.types import Message
from atgrpo_jax.models.config import PRESETS, Architecture, preset, published
from atgrpo_jax.models.hf.config_json import architecture
from atgrpo_jax.run import gin_config
from atgrpo_jax.run.experiment import Experiment
from atgrpo_jax.run.gin_values import UNSET, Instead
from atgrpo_jax.tokens.tokens import FolderTokenizer

# A model that files leave open, as those of gin/paper do without one of a size.
OPEN = {"MODEL": "Qwen3-8B"}
# Fields of tasks that name files of problems, or say how to use them. Without all of them problems
# are made up.
FILES = ("files", "levels", "corpus", "pool")
# On the prompts of the shipped files this gives what SmolLM2's tokenizer gives, within 4 %, and 25
# to 61 tokens more than Qwen's, whose template is shorter.
AROUND = 30
_PIECE = re.compile(r" ?[^\W\d_]{1,7}|\d| ?[^\w\s]{1,2}|\s+|_")


@dataclasses.dataclass(frozen=True)
class Pieces:
    """A tokenizer that cuts texts into about as many pieces as the tokenizers of models do.

    A piece is one to seven letters, a digit, one or two signs, or white space. A prompt has
    ``AROUND`` tokens more. Every text round-trips, but ids mean nothing to any model.
    """

    vocab_size: int

    @property
    def stop_ids(self) -> tuple[int, ...]:
        return (0,)

    @functools.cached_property
    def _ids(self) -> dict[str, int]:
        return {"": 0}

    @functools.cached_property
    def _pieces(self) -> list[str]:
        return [""]

    def prompt_ids(self, messages: Sequence[Message]) -> tuple[int, ...]:
        ids = [0] * AROUND
        for message in messages:
            ids += self._encode(message["content"])
        return tuple(ids)

    def answer_ids(self, text: str) -> tuple[int, ...]:
        return (*self._encode(text), 0)

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(self._pieces[i] for i in ids)

    def digest(self) -> str:
        return repr(self)

    def _encode(self, text: str) -> Iterator[int]:
        for piece in _PIECE.findall(text):
            if piece not in self._ids:
                self._ids[piece] = len(self._pieces)
                self._pieces.append(piece)
            yield self._ids[piece]


class StandIns:
    """Reads configs, and makes what their models, tokenizers and files would be if they are not here.

    ``told`` says what stands in for what. ``unread`` says whether problems were made up instead of
    read.
    """

    def __init__(self, name: str | None):
        """Takes the preset of this ``name``, if there is one, for every model that is not here."""
        self._preset = name
        self.told: dict[str, str] = {}
        self.unread = False

    def load(self, gin_files: Sequence[str], bindings: Sequence[str]) -> Experiment:
        """Returns what a run would read, or what stands in for it. Raises ConfigError."""
        experiment, values = gin_config.read(gin_files, bindings, Instead(self._make, OPEN))
        for name, setting in values.macros.items():
            if setting.source == UNSET:
                self.told[f"{name}, which nothing sets"] = self._preset or setting.value
        return experiment

    def report(self, longest: int | None) -> Sequence[str]:
        """Returns the lines about what stands in for what.

        ``longest`` is the tokens of the longest prompt, if that of the made-up problems is not taken.
        """
        lines = [f"  {name}: {what}" for name, what in self.told.items()]
        if longest is not None:
            lines.append(f"  longest prompt, which no made-up problem shows: {longest}, as the engine takes")
        return ["taken in place of what is not here:", *lines] if lines else []

    def _make(self, maker: Any, given: Mapping[str, Any]) -> Any:
        folder = given.get("folder")
        if maker in (architecture, FolderTokenizer) and isinstance(folder, str) and not _is_folder(folder):
            model = self._model(folder)
            if maker is architecture:
                return model
            self.told[f"tokenizer of {folder}"] = (
                f"tokens of one to seven letters, a digit or one or two signs, and {AROUND} for the template"
            )
            assert model.vocab_size is not None
            return Pieces(model.vocab_size)
        if isinstance(maker, type) and hasattr(maker, "instance"):
            given = self._without_files(given)
        return maker(**given)

    def _model(self, folder: str) -> Architecture:
        name = self._preset or published(folder)
        if name is None:
            raise ConfigError(
                f"{folder}: there is no such folder, and it is called after no published model; say which "
                f"one is meant: --preset=NAME, one of {', '.join(PRESETS)}"
            )
        self.told[folder] = f"the published sizes of {name}"
        return preset(name)

    def _without_files(self, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """Returns the values of a task without its files of problems, if one of them is not there."""
        files = [path for name in FILES for path in _paths(given.get(name))]
        missing = [path for path in files if not is_url(path) and not local_file(path).is_file()]
        if not missing:
            return given
        self.unread = True
        self.told[" ".join(missing)] = "made-up problems"
        return {name: value for name, value in given.items() if name not in FILES}


def _is_folder(folder: str) -> bool:
    return is_url(folder) or local_folder(folder).is_dir()


def _paths(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _paths(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _paths(item)
