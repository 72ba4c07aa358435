"""Reads what the files of a Hugging Face folder say of its tokenizer, and checks that they agree."""

import re
from pathlib import Path
from typing import Any

from atgrpo_jax.common.copies import local_file
from atgrpo_jax.common.errors import RunError
from atgrpo_jax.common.jsonfile import Fields, read_object, read_text, short

# The names by which a template may use special tokens, if the folder defines them.
_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
# Tokenizer classes that define no special tokens where tokenizer_config.json names none.
_PLAIN_CLASSES = ("PreTrainedTokenizerFast", "TokenizersBackend", "PreTrainedTokenizer")
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


class FolderFiles:
    """The files of a tokenizer: tokenizer.json, and others that add to it.

    Raises RunError that names the file and the field if they contradict each other, or ask for what
    is not supported.
    """

    def __init__(self, root: Path):
        self.root = root
        about = read_object(root / "tokenizer.json")
        self.config = self.beside("tokenizer_config.json")
        self._legacy = (
            {} if "added_tokens_decoder" in self.config.raw else self.beside("special_tokens_map.json").raw
        )
        if self.config.flag("split_special_tokens", False):
            raise self.config.refuse("split_special_tokens", True, "false")
        self._model = _model(root / "tokenizer.json", about)
        self.added = self._added(about)
        # tokenizer.json with the added tokens of all files.
        self.about = about | {"added_tokens": self.added, "truncation": None, "padding": None}

    def beside(self, name: str) -> Fields:
        """Returns the fields of a file beside tokenizer.json; none if the file is not there."""
        path = self.root / name
        return Fields(path, read_object(path) if path.exists() else {})

    def _added(self, about: dict[str, Any]) -> list[dict[str, Any]]:
        """Returns the tokens that are cut out of a text before anything else, from all files."""
        path = self.root / "tokenizer.json"
        listed = Fields(path, about).given("added_tokens", [])
        if type(listed) is not list:
            raise RunError(f"{path}: added_tokens = {short(listed)} is not supported; expected a list")
        entries = [_entry(path, raw, None) for raw in listed]
        added = {entry["content"]: entry for entry in entries}
        more = self.config.part("added_tokens_decoder")
        for number, value in more.items():
            entry = _entry(self.config.path, value, number)
            self._known(added, entry["content"], entry["id"], "added_tokens_decoder")
            added[entry["content"]] = entry
        if not more:
            for text, number in self.beside("added_tokens.json").raw.items():
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
            added[text]["special"] = True  # a token with such a name is, whatever is said of it elsewhere
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
        named = self.named()
        kind = self.config.given("tokenizer_class", None)
        for name in _NAMED:
            silent = name not in self.config.raw and name not in self._legacy and kind not in _PLAIN_CLASSES
            if silent and re.search(rf"\b{name}\b", template):
                raise RunError(
                    f"{self.config.path}: {name} is missing, and the chat template uses it; say it, or null"
                )
        return tuple(named.items())


def is_template(text: str) -> bool:
    """Returns whether a text is a template itself, and not the path of one."""
    return "{{" in text or "{%" in text


def own_template(given: str) -> tuple[str, str]:
    """Returns a template that a person gave as a text or as a file, and what to call it in errors.

    Raises RunError if the file cannot be read, or holds no template.
    """
    if is_template(given):
        return given, "the chat template that was given"
    source = read_text(local_file(given))
    if not is_template(source):
        raise RunError(f"{given} holds no chat template: it has neither {{{{ nor {{%")
    return source, f"the chat template {given}"


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
