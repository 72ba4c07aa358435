"""The file of a model folder that holds a tiny tokenizer. No other package reads it."""

import dataclasses
import json
from pathlib import Path

from atgrpo_jax.common.errors import RunError
from atgrpo_jax.common.jsonfile import read_object
from atgrpo_jax.tokens.tokens import TinyTokenizer

NAME = "tiny_tokenizer.json"


def write(tokenizer: TinyTokenizer, folder: Path) -> None:
    text = json.dumps(dataclasses.asdict(tokenizer), ensure_ascii=False, indent=1)
    (folder / NAME).write_text(text + "\n", encoding="utf-8")


def read(folder: Path) -> TinyTokenizer | None:
    """Returns the tokenizer of a folder, if it holds a tiny one. Raises RunError for a file that is none."""
    if not (path := folder / NAME).is_file():
        return None
    fields = read_object(path)
    words = fields.pop("words", None)
    if fields or not isinstance(words, list):
        raise RunError(f"{path}: this is no tiny tokenizer; export the policy again")
    try:
        return TinyTokenizer(tuple(words))
    except ValueError as error:
        raise RunError(f"{path}: {error}; export the policy again") from error
