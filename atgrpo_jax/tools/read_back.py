"""Checks that ``transformers``, through which most tools read model folders, reads ours."""

import logging
from pathlib import Path
from typing import Any

from atgrpo_jax.common.errors import RunError, one_line
from atgrpo_jax.tokens.folder import TELLING, TokenizerFolder


def check_read_back(folder: Path) -> str | None:
    """Reads the config and the tokenizer of a model folder, but not its weights.

    Returns a line for people if ``transformers`` gives other token ids than tokenizer.json: some
    versions rebuild a tokenizer from the name of its class. Returns None if the ids are the same,
    or the folder has no tokenizer. Raises RunError if ``transformers`` cannot read the folder.
    """
    transformers = _transformers()
    version = transformers.__version__
    has_tokenizer = (folder / "tokenizer.json").is_file()
    theirs = None
    try:
        transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
        if has_tokenizer:
            theirs = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # it may raise errors of any class
        raise RunError(f"transformers {version} cannot read {folder}: {one_line(error)}") from error
    if theirs is None:
        return None
    ours = TokenizerFolder(folder)
    for text in TELLING:
        if tuple(theirs(text, add_special_tokens=False)["input_ids"]) != tuple(ours.plain(text)):
            return (
                f"note: transformers {version} gives other ids for {text!r} than {folder}/tokenizer.json, by "
                "which the policy was trained; give other tools ids and not texts, or use another version"
            )
    return None


def _transformers() -> Any:
    """Returns the library, without its advice to install PyTorch: what is read here needs none."""

    def other(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith("PyTorch was not found")

    logger = logging.getLogger("transformers")
    logger.addFilter(other)
    try:
        import transformers
    finally:
        logger.removeFilter(other)
    return transformers
