"""Splits an answer into tokens."""

import dataclasses
import re

from atgrpo_jax.answers.names import CALLED, NAMES
from atgrpo_jax.answers.spelling import MARK

_PREFIX = r"(?:(?:np|numpy|sympy|sp|math|fractions|decimal)\.)?"
_TOKEN = re.compile(
    rf"(?P<space>\s+)|(?P<number>(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d{{1,4}}(?!\d))?)"
    rf"|{_PREFIX}(?P<name>(?:float64|int64|log10|log2|atan2|Naturals0)(?![A-Za-z0-9])|Interval(?:\.[A-Za-z]+)?|[A-Za-z]+)"
    r"|(?P<matrix>\\begin\s*\{[a-zA-Z]*(?:matrix|array)\*?\}(?:\{[lcr|\s]*\})?)|(?P<end>\\end\s*\{[a-zA-Z*]*\})"
    r"|(?P<row>\\\\(?:\[[^\]]{0,9}(?:pt|em|ex|mm|cm)\])?)|\\mathbb\s*\{?(?P<field>[RZQCN])\}?"
    rf"|(?P<command>\\[a-zA-Z]+)|{MARK[0]}(?P<word>[^{MARK[1]}]*){MARK[1]}"
    r"|(?P<sign>\*\*|<=|>=|==|!=|//|\.\.\.|\\[{}%|]|.)"
)


@dataclasses.dataclass(frozen=True)
class Token:
    kind: str
    text: str
    spaced: bool = False  # whether white space is before it


END = Token("end of text", "")


def tokens_of(text: str) -> list[Token]:
    found = []
    spaced = False
    for match in _TOKEN.finditer(text):
        kind = match.lastgroup or ""
        if kind == "space":
            spaced = True
            continue
        parts = _split(match[kind]) if kind == "name" and text[match.end() : match.end() + 1] != "(" else None
        for part in parts or _called(match[kind], kind):
            found.append(Token(kind, part, spaced))
            spaced = False
    return found


def _called(text: str, kind: str) -> list[str]:
    """Returns the pieces of a token; a name is a known function, or the letters of a product."""
    return [text] if kind != "name" or text in CALLED or "." in text else _split(text)


def _split(name: str) -> list[str]:
    """Splits letters into known names and symbols; at most three unknown letters are symbols."""
    if name in NAMES or name in CALLED or len(name) == 1:
        return [name]
    for known in NAMES:
        before, here, after = name.partition(known)
        if here and len(known) > 1:
            return [part for piece in (before, known, after) if piece for part in _split(piece)]
    return list(name) if len(name) <= 3 else [name]
