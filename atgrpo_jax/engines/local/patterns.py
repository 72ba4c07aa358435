"""Turns regular expressions into tables over tokens, which a device reads for every token."""

import re
from collections.abc import Callable, Sequence

import numpy as np

from atgrpo_jax.common.errors import RunError
from atgrpo_jax.common.rounding import power_of_two


def automaton(
    pattern: str, decode: Callable[[Sequence[int]], str], vocab_size: int, stop_ids: Sequence[int]
) -> np.ndarray:
    """Returns [T, V] int32: the state that follows each of T pattern states after each token.

    It is -1 where the token is not allowed. The first state is 0; T is a power of two. A sample may
    stop where its whole text matches. Tokens whose text is not whole characters are never allowed.

    Raises RunError if outlines-core is missing, if it cannot combine pattern and tokens, or if some
    state allows no token.
    """
    try:
        import outlines_core
    except ImportError as error:
        raise RunError("Sampling.pattern needs outlines-core: pip install 'atgrpo_jax[patterns]'") from error
    ids: dict[str, list[int]] = {}
    for token in set(range(vocab_size)) - set(stop_ids):
        text = decode([token])
        if text and "\ufffd" not in text:
            ids.setdefault(text, []).append(token)
    end = vocab_size  # an id that no token has
    try:
        index = outlines_core.Index(pattern, outlines_core.Vocabulary(end, ids))
    except (ValueError, TypeError) as error:
        raise RunError(f"Sampling.pattern = {pattern!r}: {error}") from error
    transitions = index.get_transitions()
    final = index.get_final_states()
    first = index.get_initial_state()
    targets = (target for ways in transitions.values() for target in ways.values())
    rest = sorted({*transitions, *targets, *final} - {first})
    number = {state: i for i, state in enumerate([first, *rest])}
    table_TV = np.full((power_of_two(len(number)), vocab_size), -1, np.int32)
    for state, ways in transitions.items():
        for token, target in ways.items():
            if token != end:
                table_TV[number[state], token] = number[target]
    for state in final:
        table_TV[number[state], list(stop_ids)] = number[state]
    if (table_TV[: len(number)] < 0).all(-1).any():
        raise RunError(f"Sampling.pattern = {pattern!r}: the tokenizer has no id that ends a sample")
    return table_TV


def check_match(pattern: str, text: str) -> None:
    """Raises RunError if the text of a whole sample does not match."""
    if not re.fullmatch(pattern, text):
        raise RunError(
            f"Sampling.pattern = {pattern!r} gave {text!r}: this tokenizer's tokens have another text alone "
            f"than among others, so patterns cannot be used with it"
        )
