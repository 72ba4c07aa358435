"""Defines the tokenizers. Text becomes token ids, and ids become text, only here."""

import dataclasses
import datetime
import functools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from atgrpo_jax.common.checks import check_types, require
from atgrpo_jax.common.copies import absolute, existing_folder, local_folder
from atgrpo_jax.common.errors import RunError
from atgrpo_jax.common.literals import literal, told
from atgrpo_jax.common.types import Message, hash_bytes
from atgrpo_jax.tokens.chat import GIVEN, ChatTemplate, marks, trial
from atgrpo_jax.tokens.folder import TokenizerFolder, parts_of, rows_of, turn_end
from atgrpo_jax.tokens.folder_files import is_template, own_template


@runtime_checkable
class Tokenizer(Protocol):
    @property
    def vocab_size(self) -> int: ...

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Returns the ids that end a sample."""
        ...

    def prompt_ids(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """Returns the chat template's ids, up to where the assistant starts to speak."""
        ...

    def answer_ids(self, text: str) -> tuple[int, ...]:
        """Returns the ids of a finished answer, with the stop id.

        This is for demonstrations. Samples are never encoded: they are ids already.
        """
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of sampled ids, without special ids and without stop ids."""
        ...

    def digest(self) -> str:
        """Returns a digest, which changes whenever some text would get other ids."""
        ...


def whole(text: str) -> str:
    """Returns a text that can be encoded: halves of surrogate pairs are replaced by question marks.

    JSON may contain such halves.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").replace("\ufffd", "?")
    return text


# Each of these has one id, so that the prompts of the built-in tasks stay short for a tiny model.
WORDS = (
    "scout", "mover", "at", " goal", " ends at", " the goal", " hits at",
    "list cells in brackets", "list moves U D L R in brackets", " blocked",
    *(f" {row}{column}" for row in range(10) for column in range(10)),
)  # fmt: skip
SPECIALS = ("<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>")


@dataclasses.dataclass(frozen=True)
class TinyTokenizer:
    """A tokenizer of bytes, a fixed list of longer pieces, and special ids that no text produces.

    Every text round-trips. At each place the longest piece that fits is taken, so encoding is
    deterministic. The chat template is ``<|role|>content<|end|>`` for each message, then
    ``<|assistant|>``.
    """

    words: tuple[str, ...] = WORDS  # pieces that are one token each; all else is bytes

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
        for piece in self._pieces.findall(whole(text)):
            ids += [self._ids[piece]] if piece in self._ids else piece.encode()
        return ids


@dataclasses.dataclass(frozen=True)
class FolderTokenizer:
    """The tokenizer and chat template of a Hugging Face folder.

    The content of a message never becomes control tokens: words like ``<|im_end|>`` in it are
    ordinary pieces. Some templates write the date. It is ``date`` (YYYY-MM-DD). If that is None, it
    is the day on which a run starts, and the run's config.gin then names that day.
    """

    folder: str  # of a model, with its tokenizer.json
    date: str | None = None
    # Whether the model is asked to think first (enable_thinking); None leaves that to the template.
    thinking: bool | None = False
    # Further values that the template uses, by their names. E.g. {"reasoning_effort": "low"}
    template_values: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)
    # A .jinja file, or the text of a template (it has {{ or {%), in place of the folder's own.
    chat_template: str | None = None

    def __post_init__(self):
        check_types(self)
        root = existing_folder(self.folder)
        object.__setattr__(self, "folder", absolute(self.folder))
        there = (root / "tokenizer.json").is_file()
        require(self, "folder", there, "there is no tokenizer.json, so no fast tokenizer")
        require(self, "date", _is_day(self.date), "expected a day as YYYY-MM-DD")
        if self.chat_template is not None and not is_template(self.chat_template):
            object.__setattr__(self, "chat_template", absolute(self.chat_template))
        require(self, "template_values", literal(self.template_values) is not None, "expected plain values")
        rule = "its tokenizer has no chat template; give one (a .jinja file or its text) as chat_template"
        require(self, "folder", bool(self._chat.source), rule)
        self._check_values()
        require(
            self,
            "folder",
            bool(self.stop_ids),
            "neither generation_config.json nor the tokenizer name a stop",
        )
        self._check_template()

    def __repr__(self) -> str:
        """Tells the later fields only if they are set: runs from before them are known by this text."""
        return told(self, {"thinking": False, "template_values": {}, "chat_template": None})

    @functools.cached_property
    def _files(self) -> TokenizerFolder:
        return TokenizerFolder(local_folder(self.folder))

    @functools.cached_property
    def _chat(self) -> ChatTemplate:
        source, name = self._files.template(), f"the chat template of {self.folder}"
        if self.chat_template is not None:
            source, name = own_template(self.chat_template)
        day = self.date or datetime.date.today().isoformat()
        thinks = {} if self.thinking is None else {"enable_thinking": self.thinking}
        values = json.dumps({**thinks, **self.template_values}, sort_keys=True)
        return ChatTemplate(source, self._files.template_tokens(source), day, name, values)

    @property
    def template(self) -> str:
        """Returns the text of the chat template."""
        return self._chat.source

    def dated(self, like: "Tokenizer | None" = None) -> "FolderTokenizer":
        """Returns this tokenizer with its date set, if its template may write the date.

        The date is that of ``like``, the tokenizer of the run that goes on, or else today.
        """
        if self.date is not None or not self._chat.dated:
            return self
        known = like.date if isinstance(like, FolderTokenizer) else None
        return dataclasses.replace(self, date=known or self._chat.date)

    @property
    def shows_messages(self) -> bool:
        """Returns whether the template writes a user's message into the prompt."""
        return not trial(self._chat, ("user",), True)[1]

    @functools.cached_property
    def vocab_size(self) -> int:
        return self._files.size

    @functools.cached_property
    def least_rows(self) -> int:
        """Returns how many rows a model needs; fewer than ``vocab_size`` if nothing makes the last ids."""
        return rows_of(self._files, self._chat, self.stop_ids)

    @functools.cached_property
    def stop_ids(self) -> tuple[int, ...]:
        """Returns the ids that end a sample. A model may end with any of them.

        The first one ends demonstrations: it is the template's end of a turn, or else the
        tokenizer's end of sequence. Then come those of generation_config.json, then the
        tokenizer's.
        """
        return self._files.ends(turn_end(self._files, self._chat))

    def prompt_ids(self, messages: Sequence[Message]) -> tuple[int, ...]:
        def render(contents: list[str]) -> str:
            return self._chat.render([{**m, "content": c} for m, c in zip(messages, contents, strict=True)])

        ids = self._files.prompt(render, [whole(message["content"]) for message in messages])
        if not ids:
            raise RunError(f"{self._chat.name} makes nothing of a message")
        return ids

    def answer_ids(self, text: str) -> tuple[int, ...]:
        return (*self._files.plain(whole(text)), self.stop_ids[0])

    def decode(self, ids: Sequence[int]) -> str:
        said = [i for i in ids if i not in self.stop_ids]
        return self._files.library.decode(said, skip_special_tokens=True)

    def digest(self) -> str:
        return hash_bytes(json.dumps(self.parts(), sort_keys=True)).hex()

    def parts(self) -> dict[str, Any]:
        return parts_of(self._files, self._chat, self.stop_ids)

    def _check_values(self) -> None:
        """Raises ValueError for a value that the template would not see."""
        lacks = "its chat template does not use"
        for name in self.template_values:
            free = name.isidentifier() and name not in GIVEN
            require(self, "template_values", free, f"{name!r} is no name, or is set elsewhere")
            require(self, "template_values", self._chat.uses(name), f"{lacks} {name!r}")
        rule = f"{lacks} enable_thinking; if it has another word for it, set that in template_values"
        require(self, "thinking", not self.thinking or self._chat.uses("enable_thinking"), rule)

    def _check_template(self) -> None:
        """Raises RunError if the template makes no prompt, or one with wrong ids."""
        self._files.check(self._chat.render(marks(("user",))))
        self.prompt_ids(marks(("user",)))


def _is_day(date: str | None) -> bool:
    try:
        return date is None or datetime.date.fromisoformat(date).isoformat() == date
    except ValueError:
        return False
