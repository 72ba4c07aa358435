"""Reads the tokenizer of a Hugging Face folder: pieces, chat template, ids that end a sample.

The ids are those of tokenizer.json, as the library that wrote it (``tokenizers``) gives them, and
not those of a ``transformers`` class that rebuilds a tokenizer from its name. The other files may
add flags of tokens and names of special tokens.
"""

import functools
import json
import re
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tokenizers

from atgrpo_jax.common.errors import RunError
from atgrpo_jax.common.jsonfile import Fields, read_object, read_text, short

# The names by which a template may use special tokens, if the folder defines them.
_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
# Tokenizer classes that define no special tokens where tokenizer_config.json names none.
_PLAIN_CLASSES = ("PreTrainedTokenizerFast", "TokenizersBackend", "PreTrainedTokenizer")
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
# Texts that different tokenizers split differently: spaces, digits, code, letters beyond ASCII,
# lines.
TELLING = (
    "Hello, world!", " two  spaces   three", "12345 + 67 = 89.0", "def f(x):\n\treturn x['a , b'] != 3\r\n\n",
    "naïve café 数学 🙂 e\u0301 ﬁ", "don't . $ @ ! ?", "[ 03 04 14]#### 1", "a", "\n",
)  # fmt: skip


class TokenizerFolder:
    """The tokenizer of a model folder.

    Raises RunError that names the file and the field if it cannot do what a file asks for.
    """

    def __init__(self, root: Path):
        self.root = root
        about = read_object(root / "tokenizer.json")
        self.config = self._beside("tokenizer_config.json")
        self._legacy = (
            {} if "added_tokens_decoder" in self.config.raw else self._beside("special_tokens_map.json").raw
        )
        if self.config.flag("split_special_tokens", False):
            raise self.config.refuse("split_special_tokens", True, "false")
        self._model = _model(root / "tokenizer.json", about)
        self.added = self._added(about)
        about |= {"added_tokens": self.added, "truncation": None, "padding": None}
        self.library = _library(root, about)
        self._about = about
        for text in TELLING:
            self._check(text, self.plain(text), text)

    def _beside(self, name: str) -> Fields:
        path = self.root / name
        return Fields(path, read_object(path) if path.exists() else {})

    # Pieces

    @functools.cached_property
    def size(self) -> int:
        """Returns one more than the largest id."""
        return max(self.library.get_vocab(with_added_tokens=True).values()) + 1

    def _added(self, about: dict[str, Any]) -> list[dict[str, Any]]:
        """Returns the tokens that are cut out of a text before anything else, from all files."""
        path = self.root / "tokenizer.json"
        listed = Fields(path, about).given("added_tokens", [])
        if type(listed) is not list:
            raise RunError(f"{path}: added_tokens = {short(listed)} is not supported; expected a list")
        added = {entry["content"]: entry for entry in (_entry(path, e, None) for e in listed)}
        more = self.config.part("added_tokens_decoder")
        for number, value in more.items():
            entry = _entry(self.config.path, value, number)
            self._known(added, entry["content"], entry["id"], "added_tokens_decoder")
            added[entry["content"]] = entry
        if not more:
            for text, number in self._beside("added_tokens.json").raw.items():
                self._known(added, text, number, "added_tokens.json")
        for name, text in self.named().items():
            self._special(added, name, text)
        for text in self._extra():
            self._special(added, "extra_special_tokens", text)
        return sorted(added.values(), key=lambda entry: entry["id"])

    def _known(self, added: dict[str, Any], text: str, number: Any, where: str) -> None:
        own = added[text]["id"] if text in added else self._model.get(text)
        if own != number:
            raise RunError(
                f"{self.root}: {where} says that {short(text)} is {short(number)}, but to tokenizer.json it "
                f"is {'unknown' if own is None else own}; load the folder with transformers and save it again"
            )

    def _special(self, added: dict[str, Any], name: str, text: str) -> None:
        if text in added:
            return
        if text not in self._model:
            raise RunError(
                f"{self.config.path}: {name} = {short(text)} is not in tokenizer.json; load the folder with "
                "transformers and save it again"
            )
        flags = dict.fromkeys(_FLAGS, False) | {"special": True}
        added[text] = {"id": self._model[text], "content": text} | flags

    def named(self) -> dict[str, str]:
        """Returns the special tokens by the names that a template uses."""
        said = {**self.config.raw, **self._legacy}
        values = {name: said.get(name) for name in _NAMED}
        return {name: _content(self.config, name, v) for name, v in values.items() if v is not None}

    def _extra(self) -> list[str]:
        said = {**self.config.raw, **self._legacy}
        lists = [said.get("additional_special_tokens"), said.get("extra_special_tokens")]
        values = [v for given in lists if given for v in (given.values() if type(given) is dict else given)]
        return [_content(self.config, "extra_special_tokens", value) for value in values]

    @functools.cached_property
    def _control(self) -> tuple[dict[str, str], re.Pattern[str], re.Pattern[str]]:
        """Returns secret names for control words, a pattern for the words and one for the names.

        A control word is an added token that is special, or that is not only letters, digits and
        spaces. The names are random, so nobody can write one.
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
        model = _renamed(self._about["model"], names)
        return _library(self.root, self._about | {"added_tokens": added, "model": model})

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
                f"{self.root}: tokenizer.json gives other ids to {what!r} once control words are kept apart"
            )

    def control_at(self, text: str) -> int | None:
        """Returns the id of the control word with which a text begins, or None."""
        match = self._control[1].match(text)
        return self.library.token_to_id(match[0]) if match else None

    def state(self) -> dict[str, Any]:
        """Returns everything that ids depend on, by part, in the library's normal form."""
        about = json.loads(self.library.to_str())
        return {name: about[name] for name in about if name not in ("version", "truncation", "padding")}

    # Templates and ends

    def template(self) -> str:
        """Returns the chat template, or "" if the folder has none.

        Raises RunError if it is neither a text nor a list with a default.
        """
        path = self.root / "chat_template.jinja"
        if path.exists():
            return read_text(path)
        given = self.config.given("chat_template", "")
        if type(given) is list:
            given = {e.get("name"): e.get("template") for e in given if type(e) is dict}.get("default")
        if type(given) is not str:
            raise self.config.refuse(
                "chat_template", self.config.raw["chat_template"], "a text, or a list with a default"
            )
        return given

    def template_tokens(self, template: str) -> tuple[tuple[str, str], ...]:
        """Returns the names and texts of special tokens, for a template.

        Raises RunError if the template uses a name that no file defines and that only a tokenizer
        class might define.
        """
        named, kind = self.named(), self.config.given("tokenizer_class", None)
        for name in _NAMED:
            silent = name not in self.config.raw and name not in self._legacy and kind not in _PLAIN_CLASSES
            if silent and re.search(rf"\b{name}\b", template):
                raise RunError(
                    f"{self.config.path}: {name} is missing, and the chat template uses it; say it, or null"
                )
        return tuple(named.items())

    def ends(self, turn_end: int | None) -> tuple[int, ...]:
        """Returns the ids that end a sample.

        First comes ``turn_end``, or else the tokenizer's end of sequence; then all ids that
        generation_config.json names; then the tokenizer's end of sequence. None occurs twice.

        Args:
          turn_end: the id that the template puts at the end of a turn, if there is one.
        """
        said = self._beside("generation_config.json").ids("eos_token_id", self.size)
        text = self.named().get("eos_token")
        own = [] if text is None else [self.library.token_to_id(text)]
        turn = own if turn_end is None else [turn_end]
        return tuple(dict.fromkeys([*turn, *said, *own]))


def _ordinary(word: str) -> bool:
    return all(letter.isalnum() or letter.isspace() for letter in word)


def _model(path: Path, about: dict[str, Any]) -> dict[str, int]:
    """Returns the vocabulary of tokenizer.json. Raises RunError if it uses dropout.

    With dropout the same text may get different ids.
    """
    model = Fields(path, about).part("model")
    if model.get("dropout"):
        raise RunError(f"{path}: dropout = {short(model['dropout'])} is not supported; expected null")
    vocab = model.get("vocab")
    if type(vocab) is list:  # a Unigram model has pairs of a piece and its score
        return {
            pair[0]: i for i, pair in enumerate(vocab) if type(pair) is list and pair and type(pair[0]) is str
        }
    return vocab if type(vocab) is dict else {}


def _entry(path: Any, value: Any, number: str | None) -> dict[str, Any]:
    """Returns an added token with its id and all its flags.

    Args:
      number: the token's key in tokenizer_config.json, which is its id; None for tokenizer.json.
    """
    if type(value) is not dict or type(value.get("content")) is not str or not value["content"]:
        raise RunError(f"{path}: {short(value)} is no added token")
    said = Fields(path, value)
    if number is None and (missing := [name for name in _FLAGS if value.get(name) is None]):
        raise RunError(f"{path}: added token {short(value['content'])} has no {missing[0]}")
    special = said.flag("special", False)
    flags = {name: said.flag(name, name == "normalized" and not special) for name in _FLAGS[:-1]}
    own = (
        value.get("id")
        if number is None
        else int(number)
        if number.isascii() and number.isdigit() and len(number) < 10
        else None
    )
    if type(own) is not int or not 0 <= own < 2**31:
        raise RunError(f"{path}: added token {short(value['content'])} has no id")
    return {"id": own, "content": value["content"]} | flags | {"special": special}


def _content(config: Fields, name: str, value: Any) -> str:
    text = value.get("content") if type(value) is dict else value
    if type(text) is not str:
        raise config.refuse(name, value, "a text, or an object with its content")
    return text


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
        reason = " ".join(str(error).split())[:200]
        raise RunError(f"{root / 'tokenizer.json'} cannot be used ({reason})") from error
