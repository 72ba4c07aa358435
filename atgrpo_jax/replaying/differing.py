"""Says in words how an episode that was played again differs from its record."""

from collections.abc import Sequence
from typing import NamedTuple

from atgrpo_jax.common.literals import shortened
from atgrpo_jax.common.progress import counted
from atgrpo_jax.common.types import Candidate, Episode, Group
from atgrpo_jax.run.nodes import Node
from atgrpo_jax.tokens.tokens import Tokenizer


class Finding(NamedTuple):
    """What was found at a group, or about the end of the episode."""

    same: bool
    words: str


def findings(node: Node, recorded: Episode, played: Episode, tokenizer: Tokenizer) -> list[Finding]:
    """Compares all groups that were drawn again with the record, and the ends.

    Samples are the same if their tokens and the logprobs of these are, to the last bit. If the node is
    one candidate, its siblings are not looked at.
    """
    before = {group.origin.key: group for group in recorded.groups}
    found = []
    begun = False
    for group in played.groups:
        key = group.origin.key
        here = node.holds({"turn": key.turn, "stage": key.stage, "role": key.role, "seat": key.seat})
        begun = begun or here
        if begun:
            found.append(_group(before.get(key), group, node.k if here else None, tokenizer))
    own = f"{played.end} after {counted(played.turns, 'turn')}"
    was = f"{recorded.end} after {counted(recorded.turns, 'turn')}"
    found.append(Finding(own == was, f"end: {own}" + ("" if own == was else f"; recorded: {was}")))
    return found


def _group(was: Group | None, group: Group, k: int | None, tokenizer: Tokenizer) -> Finding:
    key = group.origin.key
    where = f"turn {key.turn}, stage {key.stage}, {key.speaker}: "
    if was is None:
        return Finding(False, where + "nobody spoke here in the record")
    if was.origin.prompt_ids != group.origin.prompt_ids:
        return Finding(False, where + "another prompt than recorded, because of what came before")
    pairs = list(zip(was.candidates, group.candidates, strict=False))
    numbers = range(len(pairs)) if k is None else [k]
    different = {i: words for i in numbers if (words := _candidate(*pairs[i], tokenizer))}
    said = [f"candidate {i}: {words}" for i, words in list(different.items())[:1]]
    if was.chosen != group.chosen and len(was.candidates) == len(group.candidates):
        said.append(f"candidate {group.chosen} is executed, {was.chosen} is recorded")
    if not said:
        count = len(numbers)
        return Finding(True, where + (f"{count} candidates, same bytes" if count > 1 else "same bytes"))
    alike = len(numbers) - len(different)
    return Finding(False, where + f"{alike} of {len(numbers)} candidates the same; " + "; ".join(said))


def _candidate(was: Candidate, now: Candidate, tokenizer: Tokenizer) -> str:
    """Returns the first thing in which two candidates differ; "" if they are the same."""
    old, new = was.sample, now.sample
    for i, (before, after) in enumerate(zip(old.tokens, new.tokens, strict=False)):
        if before != after:
            return f"token {i} is {_shown(after, tokenizer)}, {_shown(before, tokenizer)} is recorded"
    if len(old.tokens) != len(new.tokens):
        return (
            f"{counted(len(new.tokens), 'token')}, and {len(old.tokens)} in the record; the first ones agree"
        )
    for i, (recorded, found) in enumerate(zip(old.logprobs, new.logprobs, strict=True)):
        if recorded != found:
            return f"same tokens; the logprob of token {i} is {found!r}, {recorded!r} is recorded"
    if was.outcome != now.outcome:
        return f"same tokens; the outcome is {now.outcome.value}, {was.outcome.value} is recorded"
    if was.reward != now.reward:
        return f"same tokens; the reward is {now.reward}, {was.reward} is recorded"
    if was.text != now.text:  # of a partner, whose tokens are not known
        recorded_text, text = shortened(was.text, now.text)
        return f"the text is {text}, {recorded_text} is recorded"
    return ""


def _shown(token: int, tokenizer: Tokenizer) -> str:
    return f"{tokenizer.decode([token])!r} ({token})"


def first_that_differs(found: Sequence[Finding]) -> str | None:
    """Returns the words of the first finding that is not the same; None if all are."""
    return next((finding.words for finding in found if not finding.same), None)
