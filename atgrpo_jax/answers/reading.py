"""Reads a whole answer: words, numerals and thousands here, the rest as quantities."""

import dataclasses
import re

from atgrpo_jax.answers.names import CALLED, NAMES
from atgrpo_jax.answers.parts import Numeral, Word
from atgrpo_jax.answers.quantities import bare, quantity
from atgrpo_jax.answers.spelling import MARK, normal

_SAID = {"yes", "no", "true", "false", "none", "odd", "even"}
_BASES = {
    "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10,
    "eleven": 11, "twelve": 12, "sixteen": 16,
}  # fmt: skip
_NUMERAL = re.compile(r"\(?\s*(-?\d[\dA-Za-z]*(?:\.[\dA-Z]+)?)\s*\)?\s*_\s*\{?\s*(\d{1,2}|[a-z]+)\s*\}?")
_THOUSANDS = re.compile(r"(?<![\d,.])\d{1,3}(?:,\d{3})+(?!,?\d)")
_REPEATING = re.compile(r"(\d*)\.(\d*)\s*\\(?:overline|bar|dot)\s*(?:\{\s*(\d+)\s*\}|(\d))")
_OF_NUMPY = re.compile(r"\[\s*(-?[\d.]+(?:\s+-?[\d.]+)+)\s*\]")


@dataclasses.dataclass(frozen=True)
class Answer:
    """An answer that was read."""

    value: object  # a sympy expression, matrix or set, or an object of a class of ``parts``
    text: str
    decimal: bool  # whether it has a decimal fraction, which stands for numbers near it, too


def read(text: str, several: bool = False) -> Answer:
    """Reads an answer. With ``several`` it is a list, and a comma never groups thousands."""
    text = normal(text)
    return Answer(_value(text, several), bare(text), re.search(r"\.\d|\d[eE]-", text) is not None)


def _value(text: str, several: bool):
    whole = text.replace(MARK[0], "").replace(MARK[1], "").strip()
    if (numeral := _numeral(whole)) is not None:
        return numeral
    if _spoken(text, whole):
        return Word(whole)
    if not several:
        text = _without_thousands(text)
    text = _REPEATING.sub(_repeating, text.replace("\ue002", ""))
    return quantity(_OF_NUMPY.sub(lambda found: f"[{','.join(found[1].split())}]", text))


def _numeral(text: str) -> Numeral | None:
    found = _NUMERAL.fullmatch(text)
    if found is None:
        return None
    digits, name = found.groups()
    base = int(name) if name.isdigit() else _BASES.get(name, 0)
    if not 2 <= base <= 36 or any(int(digit, 36) >= base for digit in re.sub(r"[-.]", "", digits)):
        return None
    return Numeral(digits.upper().lstrip("0") or "0", str(base))


def _spoken(text: str, whole: str) -> bool:
    """Returns whether an answer is words, not a product of symbols: a name, a choice, yes or no."""
    if text.count(MARK[0]) == 1 and text.startswith(MARK[0]) and text.endswith(MARK[1]):
        return True
    if re.fullmatch(r"\(\s*[A-Za-z]\s*\)|[A-Z]\s*[.)]", whole) or whole.casefold() in _SAID:
        return True
    if not re.fullmatch(r"[A-Za-z][A-Za-z'.\-\s]*", whole):
        return False
    words = re.findall(r"[A-Za-z]+", whole)
    if any(word in NAMES or word in CALLED for word in words):
        return False
    return any(len(word) > 3 for word in words) or (len(whole) > 1 and whole.isupper())


def _without_thousands(text: str) -> str:
    """Removes the marks between thousands. Inside brackets, commas separate the items of a list."""
    if re.fullmatch(r"-?\d{1,3}(?:[ _]\d{3})+(?:\.\d+)?", text):
        return re.sub("[ _]", "", text)
    depth = 0
    pieces = []
    for piece in re.split(r"([(\[{)\]}])", text):
        depth += (piece in ("(", "[", "{")) - (piece in (")", "]", "}"))
        pieces.append(piece if depth else _THOUSANDS.sub(lambda found: found[0].replace(",", ""), piece))
    return "".join(pieces)


def _repeating(found: re.Match) -> str:
    whole = found[1] or "0"
    first = found[2]
    again = found[3] or found[4]
    top = int(whole + first + again) - int(whole + first)
    return f"(({top})/({10 ** len(first) * (10 ** len(again) - 1)}))"
