"""The only place where text becomes ids and back."""

import dataclasses
import functools
import re
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from atgrpo_jax.checks import check_types, require
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
