"""Checks that a server serves the model and the tokenizer that we have."""

import dataclasses
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from atgrpo_jax.common.errors import RunError
from atgrpo_jax.engines.sglang.replies import Unusable, get
from atgrpo_jax.engines.sglang.secrets import plain, shown
from atgrpo_jax.engines.sglang.servers import ASK_S, Server
from atgrpo_jax.models.hf import hf
from atgrpo_jax.models.transformer import Transformer

_DECODED = 256  # about how many token ids are decoded on both sides and compared


def has_config(path: str) -> bool:
    """Returns whether a path is that of a model's folder here."""
    try:
        return (Path(path) / "config.json").is_file()
    except (OSError, ValueError):  # the path cannot be the name of a file
        return False


def check_model(url: str, path: str, name: str, model: Transformer, stop_ids: Collection[int]) -> None:
    """Raises RunError if a server's model has other shapes or more end ids than ours.

    Weights of other shapes would kill the server, because it keeps the config that it was
    started on.

    Args:
      path: the folder of the server's model.
      name: the fleet's.
    """
    named = shown(path)
    try:
        theirs = hf.architecture(path)
        ends = hf.end_ids(path)
    except (RunError, OSError, ValueError) as error:
        raise RunError(
            f"{url} serves {named}, of which nobody here knows whether the weights of {name} "
            f"fit ({plain(str(error))}); start it on a folder that both can read"
        ) from error
    ours = dataclasses.replace(model.architecture, vocab_size=model.vocab_size)
    for field in dataclasses.fields(ours):
        own = getattr(ours, field.name)
        other = getattr(theirs, field.name)
        if own != other:
            raise RunError(f"{url} serves {named} with {field.name} = {other!r}; {name} has {own!r}")
    more = ends - set(stop_ids)
    if more:
        raise RunError(
            f"{url} serves {named}, whose eos_token_id would also end samples with "
            f"{sorted(more)}; ours end with {sorted(stop_ids)}: make the two the same"
        )


async def check_tokenizer(
    server: Server, vocab_size: int, decode: Callable[[Sequence[int]], str], stop_ids: Collection[int]
) -> None:
    """Raises RunError if a server decodes tokens otherwise than ``decode`` does.

    ``stop_ids`` are left out: they have no text here, and there perhaps one. Raises Unusable if its
    answer is not that of sglang.
    """
    ids = [i for i in range(0, vocab_size, max(1, vocab_size // _DECODED)) if i not in stop_ids]
    answer = await server.post("/detokenize", {"tokens": [[i] for i in ids]}, 4 * ASK_S)
    theirs = get(answer, "text", list)
    if len(theirs) != len(ids):
        raise Unusable(f"answered {len(theirs)} texts for {len(ids)} tokens")
    for i, text in zip(ids, theirs, strict=True):
        own = decode([i])
        if text != own:
            raise RunError(
                f"{server.url} has another tokenizer: token {i} is {shown(text)} there and {own!r} here"
            )
