"""Refuses a model folder whose own tokenizer gives other ids than the run's."""

import dataclasses

from atgrpo_jax.common.copies import local_folder
from atgrpo_jax.common.errors import RunError
from atgrpo_jax.tokens.folder import TokenizerFolder, parts_of
from atgrpo_jax.tokens.tokens import FolderTokenizer, TinyTokenizer, Tokenizer


def check_same_ids(tokenizer: Tokenizer, folder: str) -> None:
    """Raises RunError if a model folder's own tokenizer gives other ids than ``tokenizer``.

    The folder's model is to be used with ``tokenizer``. Nothing is compared if the folder has no
    tokenizer, or if ``tokenizer`` is one of yours. If the folder has no chat template, only
    the pieces are compared.
    """
    root = local_folder(folder)
    if not (root / "tokenizer.json").is_file():
        return
    if isinstance(tokenizer, TinyTokenizer):
        raise RunError(
            f"{root / 'tokenizer.json'} gives other ids than the run's TinyTokenizer: the model would read "
            f'nonsense; set Experiment.tokenizer = @tokens.FolderTokenizer(), whose folder = "{folder}"'
        )
    if not isinstance(tokenizer, FolderTokenizer) or root == local_folder(tokenizer.folder):
        return
    files = TokenizerFolder(root)
    ours = tokenizer.parts()
    theirs = parts_of(files, tokenizer._chat, tokenizer.stop_ids)
    if files.template():
        theirs = dataclasses.replace(tokenizer, folder=folder, date=tokenizer._chat.date).parts()
    for name in ours | theirs:
        if ours.get(name) != theirs.get(name):
            raise RunError(
                f"{root / 'tokenizer.json'} gives other ids than {tokenizer.folder}/tokenizer.json (its "
                f"{name.replace('_', ' ')} is another); models of a team must share a tokenizer, but a model "
                "that is not trained may be a partner, on a server (docs/partners.md)"
            )
