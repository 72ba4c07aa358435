"""The only place where text becomes ids and back."""

import dataclasses
import functools
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from atgrpo_jax.checks import check_types, require
from atgrpo_jax.errors import RunError
from atgrpo_jax.types import Message, hash_bytes


@runtime_checkable
class Tokenizer(Protocol):
    @property
    def vocab_size(self) -> int: ...

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Ids that end a sample."""
        ...

    def prompt_ids(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """The chat template's ids up to where the assistant begins to speak."""
        ...

    def answer_ids(self, text: str) -> tuple[int, ...]:
        """Ids of a finished answer, stop id included. For demonstrations; samples are never encoded."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Text of sampled ids, special ids left out."""
        ...

    def digest(self) -> str:
        """Changes whenever any text would get other ids."""
        ...


# One id each, so that the prompts of the built-in tasks stay short for a tiny model.
WORDS = (
    "scout", "mover", "at", " goal", " ends at", " the goal", " hits at",
    "list cells in brackets", "list moves U D L R in brackets", " blocked",
    *(f" {row}{column}" for row in range(10) for column in range(10)),
)  # fmt: skip
SPECIALS = ("<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>")


@dataclasses.dataclass(frozen=True)
class TinyTokenizer:
    """Bytes, a fixed list of longer pieces, and special ids that no text can produce.

    Every text round-trips. The longest piece wins at each place, so encoding is deterministic. The chat
    template is ``<|role|>content<|end|>`` for each message, then ``<|assistant|>``.
    """

    words: tuple[str, ...] = WORDS

    def __post_init__(self):
        check_types(self)
        require(self, "words", all(self.words), "an empty piece")
        require(self, "words", len(set(self.words)) == len(self.words), "a piece is named twice")

    @functools.cached_property
    def _ids(self) -> dict[str, int]:
        return {word: 256 + i for i, word in enumerate(self.words)}

    @functools.cached_property
    def _special(self) -> dict[str, int]:
        return {name: 256 + len(self.words) + i for i, name in enumerate(SPECIALS)}

    @functools.cached_property
    def _pieces(self) -> re.Pattern[str]:
        longest_first = sorted(self.words, key=lambda word: (-len(word), word))
        return re.compile("|".join([*map(re.escape, longest_first), "."]), re.DOTALL)

    @property
    def vocab_size(self) -> int:
        return 256 + len(self.words) + len(SPECIALS)

    @property
    def stop_ids(self) -> tuple[int, ...]:
        return (self._special["<|end|>"],)

    def prompt_ids(self, messages: Sequence[Message]) -> tuple[int, ...]:
        ids: list[int] = []
        for message in messages:
            ids.append(self._special[f"<|{message['role']}|>"])
            ids += self._encode(message["content"])
            ids.append(self._special["<|end|>"])
        return (*ids, self._special["<|assistant|>"])

    def answer_ids(self, text: str) -> tuple[int, ...]:
        return (*self._encode(text), self._special["<|end|>"])

    def decode(self, ids: Sequence[int]) -> str:
        parts = (
            bytes([i]) if i < 256 else self.words[i - 256].encode() for i in ids if i < 256 + len(self.words)
        )
        return b"".join(parts).decode("utf-8", errors="replace")

    def digest(self) -> str:
        return hash_bytes(repr((self.words, SPECIALS))).hex()

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = []
        for piece in self._pieces.findall(text):
            ids += [self._ids[piece]] if piece in self._ids else piece.encode()
        return ids


def check_same_ids(tokenizer: Tokenizer, folder: str) -> None:
    """Raises RunError if a model folder's own tokenizer gives other ids than ``tokenizer``, which its model
    would be played with. A folder without one, or a tokenizer of no folder, leaves nothing to compare."""
    if not isinstance(tokenizer, FolderTokenizer):
        return
    own, ours = (Path(f).expanduser() / "tokenizer.json" for f in (folder, tokenizer.folder))
    if own.is_file() and own != ours and _ids(own) != _ids(ours):
        raise RunError(f"{own} gives other ids than {ours}; models of a team must share a tokenizer")


def _ids(path: Path) -> tuple[Any, Any]:
    about = json.loads(path.read_text(encoding="utf-8"))
    return about["model"], about["added_tokens"]


@dataclasses.dataclass(frozen=True)
class FolderTokenizer:
    """The tokenizer and chat template of a Hugging Face folder, through ``transformers``. Fast ones only."""

    folder: str

    def __post_init__(self):
        check_types(self)
        object.__setattr__(self, "folder", str(Path(self.folder).expanduser().absolute()))
        there = (self._root / "tokenizer.json").is_file()
        require(self, "folder", there, "there is no tokenizer.json, so no fast tokenizer")
        require(self, "folder", bool(self._tokenizer.chat_template), "its tokenizer has no chat template")
        require(
            self,
            "folder",
            bool(self.stop_ids),
            "neither generation_config.json nor the tokenizer name a stop",
        )

    @property
    def _root(self) -> Path:
        return Path(self.folder)

    @functools.cached_property
    def _tokenizer(self) -> Any:
        import transformers  # takes seconds, and runs with the tiny tokenizer do without

        return transformers.AutoTokenizer.from_pretrained(self._root, use_fast=True, local_files_only=True)

    @functools.cached_property
    def vocab_size(self) -> int:
        return len(self._tokenizer)

    @functools.cached_property
    def stop_ids(self) -> tuple[int, ...]:
        """Those of generation_config.json; without that file, the tokenizer's end of sequence."""
        path = self._root / "generation_config.json"
        stop = json.loads(path.read_text()).get("eos_token_id") if path.is_file() else None
        stop = self._tokenizer.eos_token_id if stop is None else stop
        return tuple(stop) if isinstance(stop, list) else () if stop is None else (stop,)

    def prompt_ids(self, messages: Sequence[Message]) -> tuple[int, ...]:
        # Templates that know no thinking ignore the last argument.
        return tuple(
            self._tokenizer.apply_chat_template(
                list(messages), add_generation_prompt=True, return_dict=False, enable_thinking=False
            )
        )

    def answer_ids(self, text: str) -> tuple[int, ...]:
        return (*self._tokenizer.encode(text, add_special_tokens=False), self.stop_ids[0])

    def decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(list(ids), skip_special_tokens=True)

    def digest(self) -> str:
        names = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json")
        files = (self._root / name for name in names)
        return hash_bytes("".join(file.read_text() for file in files if file.is_file())).hex()
