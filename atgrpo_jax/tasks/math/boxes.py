"""Finds the answer, or the verdict, that a text puts into a box, as answers of MATH are."""

import re

from atgrpo_jax.tasks.math.math_problems import LONGEST

ACCEPT, REJECT = "accept", "reject"
_VERDICT = re.compile(rf"(?:\\text\s*\{{)?\s*({ACCEPT}|{REJECT})(?:s|ed)?[\s.]*\}}?", re.IGNORECASE)
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)  # an escaped brace does not count
_BOX = re.compile(r"\\(?:boxed|fbox)(?![a-zA-Z])\s*")
_BARE = re.compile(r"(?:(?!\\boxed|\\fbox)[^$\n])*(?=\$)|(?:(?!\\[\])]|\\boxed|\\fbox)\S)*")
_BETWEEN = re.compile(r"(?:[\s$,;.()]|\\[()\[\]]|\\text\s*\{|\}|\band\b|\bor\b)*")


def boxed(text: str, several: bool = False) -> str | None:
    r"""Returns the content of the last box in a text: ``\boxed{...}``, ``\boxed ...`` or
    ``\fbox{...}``.

    A box that is empty or not closed is ignored. Returns None if there is no other box, or if the
    content is too long for an answer. With ``several``, the last boxes that have only "and", "or"
    or commas between them are joined to a list.
    """
    closed = _braces(text)
    parts: list[str] = []
    after = 0  # where the next box begins
    for box in reversed(list(_BOX.finditer(text))):
        end, content = _content(text, box.end(), closed)
        if not content:
            continue
        if parts and not (
            several and end <= after and _BETWEEN.fullmatch(text, end, min(after, end + LONGEST))
        ):
            break
        parts.append(content)
        after = box.start()
        if not several or sum(map(len, parts)) > LONGEST:
            break
    return short_enough(", ".join(reversed(parts)))


def verdict(text: str) -> str | None:
    """Returns ``ACCEPT`` or ``REJECT``, if the last box in a text holds that word; else None."""
    found = _VERDICT.fullmatch(boxed(text) or "")
    return found and found[1].lower()


def _braces(text: str) -> dict[int, int]:
    """Returns position of an opening brace -> position of its closing brace."""
    opened: list[int] = []
    closed = {}
    for mark in _BRACE.finditer(text):
        if mark[0] == "{":
            opened.append(mark.start())
        elif mark[0] == "}" and opened:
            closed[opened.pop()] = mark.start()
    return closed


def _content(text: str, place: int, closed: dict[int, int]) -> tuple[int, str]:
    """Returns the end and the content of a box whose content begins at ``place``."""
    if text[place : place + 1] == "{":
        end = closed.get(place, place)
        return end + 1, text[place + 1 : end].strip()
    found = _BARE.match(text[place : place + LONGEST + 1])
    assert found is not None
    return place + found.end(), found[0].strip().rstrip(".,;:")


def short_enough(text: str) -> str | None:
    """Returns a text without white space around it; None if it is empty, or too long for an answer."""
    text = text.strip()
    return text if 0 < len(text) <= LONGEST else None
