"""Makes the tokenizer of a Hugging Face folder: pieces, control words, ids that end a sample.

The ids are those of tokenizer.json, as the library that wrote it (``tokenizers``) gives them, and
not those of a ``transformers`` class that rebuilds a tokenizer from its name. The other files may
add flags of tokens and names of special tokens.
"""

import functools
import json
import re
import secrets
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import tokenizers

from atgrpo_jax.common.errors import RunError, one_line
from atgrpo_jax.tokens.chat import THINKS_NOT, ChatTemplate, marks, trial
from atgrpo_jax.tokens.folder_files import FolderFiles

# Texts that different tokenizers split differently: spaces, digits, code, letters beyond ASCII,
# lines.
TELLING = (
    "Hello, world!", " two  spaces   three", "12345 + 67 = 89.0", "def f(x):\n\treturn x['a , b'] != 3\r\n\n",
    "naïve café 数学 🙂 e\u0301 ﬁ", "don't . $ @ ! ?", "[ 03 04 14]#### 1", "a", "\n",
)  # fmt: skip

# What SentencePiece writes for a space. Gemma has added tokens of several.
_SPACE = "\u2581"


class TokenizerFolder(FolderFiles):
    """The tokenizer of a model folder, made of what its files say.

    Raises RunError that names the file and the field if it cannot do what a file asks for.
    """

    def __init__(self, root: Path):
        super().__init__(root)
        self.library = _library(root, self.about)
        for word in self._control[0]:
            if not self.plain(word):
                raise RunError(
                    f"{root}: {word!r} is a control word and the only piece that spells these characters, so "
                    "texts that hold them would lose them; give another word as end, start or padding"
                )
        for text in TELLING:
            self._check(text, self.plain(text), text)

    @functools.cached_property
    def size(self) -> int:
        """Returns one more than the largest id."""
        return max(self.library.get_vocab(with_added_tokens=True).values()) + 1

    def rows(self, used: Collection[int]) -> int:
        """Returns how many rows a model must have for all ids but those that nothing makes.

        These are special tokens, as a placeholder for images. No message becomes one of them.

        Args:
          used: special ids that are made all the same, by a template or at the end of a sample.
        """
        model = self.about["model"]
        unknown = model.get("unk_id"), self.library.token_to_id(model.get("unk_token") or "")
        idle = {e["id"] for e in self.added if e["special"]} - {*used, *unknown}
        return max(set(self.library.get_vocab(with_added_tokens=True).values()) - idle) + 1

    @functools.cached_property
    def _control(self) -> tuple[dict[str, str], re.Pattern[str], re.Pattern[str]]:
        """Returns secret names for control words, a pattern for the words and one for the names.

        A control word is an added token that is special, or that is not only letters, digits and
        spaces (or the sign that stands for a space). The names are random, so nobody can write one.
        """
        words = [e["content"] for e in self.added if e["special"] or not _ordinary(e["content"])]
        secret = "".join(chr(0xF0000 + byte) for byte in secrets.token_bytes(12))
        names = {word: f"{secret}{chr(0xF1000 + place)}\U000ffffd" for place, word in enumerate(words)}
        longest = sorted(words, key=len, reverse=True)
        found = re.compile("|".join(map(re.escape, longest)) or r"(?!)")
        return names, found, re.compile(f"{secret}.\U000ffffd")

    @functools.cached_property
    def _unforgeable(self) -> tokenizers.Tokenizer:
        """Returns the same tokenizer, with the secret names in place of the control words."""
        names = self._control[0]
        added = [entry | {"content": names.get(entry["content"], entry["content"])} for entry in self.added]
        model = _renamed(self.about["model"], names)
        return _library(self.root, self.about | {"added_tokens": added, "model": model})

    def hide(self, text: str) -> str:
        """Replaces control words by their secret names, which a template does not know."""
        names, found, _ = self._control
        return found.sub(lambda match: names[match[0]], text)

    def swap(self, rendered: str) -> str:
        """Exchanges control words and secret names in a text that a template made of hidden texts.

        The template's own control words become names, which ``plain`` takes for control. The names
        in the hidden texts become words again, which ``plain`` takes for ordinary text.
        """
        names, found, hidden = self._control
        words = {name: word for word, name in names.items()}
        either = re.compile(f"{hidden.pattern}|{found.pattern}")
        return either.sub(lambda match: words.get(match[0]) or names[match[0]], rendered)

    def plain(self, text: str) -> tuple[int, ...]:
        """Returns the ids of a text. Only names that ``swap`` put there become control tokens."""
        return tuple(_encoded(self._unforgeable, self.root, text))

    def prompt(self, render: Callable[[list[str]], str], contents: Sequence[str]) -> tuple[int, ...]:
        """Returns the ids of the text that ``render`` makes of the contents.

        The template's words may become control tokens; words in the contents never do.
        """
        return self.plain(self.swap(render([self.hide(text) for text in contents])))

    def check(self, rendered: str) -> None:
        """Raises RunError if a rendered conversation gets other ids than the library gives it.

        The messages of the conversation must contain no control words.
        """
        self._check(rendered, self.plain(self.swap(rendered)), "the chat template's own words")

    def _check(self, text: str, ids: tuple[int, ...], what: str) -> None:
        if self._control[1].search(text) and what == text:
            return
        if ids != tuple(_encoded(self.library, self.root, text)):
            raise RunError(
                f"{self.root}: tokenizer.json gives other ids to {what!r} once control words are kept apart; "
                + self._instead(what == text)
            )

    def _instead(self, ordinary: bool) -> str:
        """Returns what to do about words that count as control and change the ids of other text."""
        if not ordinary:
            return "give another one: FolderTokenizer.chat_template"
        words = [e["content"] for e in self.added if not e["special"] and e["content"] in self._control[0]]
        if not words:
            return "ordinary text needs one of its special tokens, so take another model"
        more = f" and {len(words) - 3} more" if len(words) > 3 else ""
        return (
            f"of its added tokens that are not special, {', '.join(map(repr, words[:3]))}{more} count as "
            "control words; take those that ordinary text needs out of added_tokens, or take another model"
        )

    def control_in(self, text: str) -> set[int]:
        """Returns the ids of all control words in a text."""
        found = map(self.library.token_to_id, self._control[1].findall(text))
        return {i for i in found if i is not None}

    def control_at(self, text: str) -> int | None:
        """Returns the id of the control word with which a text begins, or None."""
        match = self._control[1].match(text)
        return self.library.token_to_id(match[0]) if match else None

    def state(self) -> dict[str, Any]:
        """Returns everything that ids depend on, by part, in the library's normal form."""
        about = json.loads(self.library.to_str())
        return {name: about[name] for name in about if name not in ("version", "truncation", "padding")}

    def ends(self, turn_end: int | None) -> tuple[int, ...]:
        """Returns the ids that end a sample.

        First comes ``turn_end``, or else the tokenizer's end of sequence; then all ids that
        generation_config.json names; then the tokenizer's end of sequence. None occurs twice.

        Args:
          turn_end: the id that the template puts at the end of a turn, if there is one.
        """
        said = self.beside("generation_config.json").ids("eos_token_id", self.size)
        text = self.named().get("eos_token")
        own = [] if text is None else [self.library.token_to_id(text)]
        turn = own if turn_end is None else [turn_end]
        return tuple(dict.fromkeys([*turn, *said, *own]))


def _ordinary(word: str) -> bool:
    return all(letter.isalnum() or letter.isspace() or letter == _SPACE for letter in word)


def _renamed(model: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    """Returns the model with new names for some pieces, without the merges that involve them."""
    vocab = model.get("vocab")
    if type(vocab) is list:
        changed: Any = [[names.get(pair[0], pair[0]), *pair[1:]] for pair in vocab]
    elif type(vocab) is dict:
        changed = {names.get(piece, piece): i for piece, i in vocab.items()}
    else:
        return model
    model = model | {"vocab": changed}
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    if model.get("merges"):
        pairs = (tuple(m.split(" ", 1)) if type(m) is str else tuple(m) for m in model["merges"])
        model["merges"] = [list(p) for p in pairs if not names.keys() & {*p, "".join(p)}]
    return model


def _library(root: Path, about: dict[str, Any]) -> tokenizers.Tokenizer:
    return _guarded(root, lambda: tokenizers.Tokenizer.from_str(json.dumps(about)))


def _encoded(library: tokenizers.Tokenizer, root: Path, text: str) -> list[int]:
    return _guarded(root, lambda: library.encode(text, add_special_tokens=False).ids)


def _guarded(root: Path, work: Callable[[], Any]) -> Any:
    """Calls ``work``, and turns errors of the library into RunError.

    The library raises bare exceptions. Its panics are BaseExceptions, not Exceptions.
    """
    try:
        return work()
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        raise RunError(f"{root / 'tokenizer.json'} cannot be used ({one_line(error)})") from error


def turn_end(files: TokenizerFolder, chat: ChatTemplate) -> int | None:
    """Returns the id of the control word that the template puts after an answer, if any."""
    said = marks(("user", "assistant"))
    text, _, failed = trial(chat, ("user", "assistant"), False)
    _, found, after = text.rpartition(said[1]["content"])
    return files.control_at(after.lstrip()) if found and not failed else None


def rows_of(files: TokenizerFolder, chat: ChatTemplate, stop_ids: tuple[int, ...]) -> int:
    """Returns how many rows a model must have for all ids that messages, the template and ends make."""
    tried = (("user",), True), (("user", "assistant"), False), (("system", "user"), True)
    rendered = (trial(chat, roles, opened)[0] for roles, opened in tried)
    named = (text for name, text in chat.tokens if chat.uses(name))
    written = "\n".join((chat.source, *named, *rendered))
    return files.rows({*files.control_in(written), *stop_ids})


def parts_of(files: TokenizerFolder, chat: ChatTemplate, stop_ids: tuple[int, ...]) -> dict[str, Any]:
    """Returns everything that ids depend on, with a name for each part."""
    template = {"chat template": chat.source, "special tokens": chat.tokens, "stop ids": stop_ids}
    values = {} if chat.values == THINKS_NOT else {"template values": chat.values}
    return files.state() | template | values | ({"date": chat.date} if chat.dated else {})
