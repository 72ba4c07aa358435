"""Brings units into one spelling each."""

import re

from atgrpo_jax.answers.names import FUNCTIONS, NAMES
from atgrpo_jax.answers.spelling import MARK

_SPELLINGS = {
    "mm": ("millimeter", "millimetre"), "cm": ("centimeter", "centimetre"), "m": ("meter", "metre"),
    "km": ("kilometer", "kilometre"), "in": ("inch", "inche"), "ft": ("foot", "feet"), "yd": ("yard",),
    "mi": ("mile",), "mg": ("milligram",), "g": ("gram",), "kg": ("kilogram", "kilo"), "lb": ("pound",),
    "oz": ("ounce",), "s": ("second", "sec"), "min": ("minute",), "h": ("hour", "hr"), "day": (),
    "ml": ("milliliter", "millilitre"), "l": ("liter", "litre", "L"), "km/h": ("kph", "kmph", "kmh"),
    "mi/h": ("mph",), "hz": ("hertz",), "n": ("newton", "N"), "j": ("joule", "J"), "kj": (),
    "w": ("watt", "W"), "v": ("volt", "V"), "ohm": (), "mol": (), "cc": (), "rad": ("radian",), "am": (),
    "pm": (), "unit": (), "degree": ("deg",), "percent": ("percentage",),
    "dollar": ("usd", "buck"), "cent": (), "euro": ("eur",), "gbp": (), "yen": (),
}  # fmt: skip
_UNITS = {name: unit for unit, names in _SPELLINGS.items() for name in (unit, *names)}
CURRENCIES = {"\\dollar": "dollar", "\\euro": "euro", "\\pound": "gbp", "\\yen": "yen"}
_RAISED = {"square": "^2", "sq": "^2", "squared": "^2", "cubic": "^3", "cu": "^3", "cubed": "^3"}
_SCALES = {
    "dozen": 12, "hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12,
}  # fmt: skip
_NUMBERS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty", "thirty",
    "forty", "fifty", "sixty", "seventy", "eighty", "ninety", "half", "halves",
)  # fmt: skip
_PARTS = {
    "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth", "eleventh", "twelfth",
    "twentieth", "hundredth", "thousandth", "millionth",
}  # fmt: skip
_MONTHS = (
    "january", "february", "march", "april", "may", "june", "july", "august", "september", "october",
    "november", "december",
)  # fmt: skip
# With one of these words a number is another number, or a part of a date.
_NO_UNITS = {
    *_SCALES, *_NUMBERS, *_MONTHS,
    "plus", "minus", "negative", "below", "least", "most", "squared", "cubed", "power", "factorial",
}  # fmt: skip
# After these words, more must follow.
_OPEN = {"to", "of", "out", "or", "and", "per", "by", "from", "but", "not", "than", "with"}
_LETTERS = set("mgshlLNJWV")  # units of one letter
_WORD = re.compile(r"(?:[A-Za-z]+(?:-[A-Za-z]{2,})*'?[a-z]*|[A-Za-z]-[A-Za-z]{4,})(?:\^-?\d)?")
_SCALE = re.compile(rf"[\s{MARK[0]}]*({'|'.join(_SCALES)})s?(?![A-Za-z-])[\s{MARK[1]}]*", re.IGNORECASE)


def scaled(text: str) -> tuple[int, str]:
    """Returns the number that the first words of a unit stand for, as in "million dollars", and the
    other words."""
    factor = 1
    said = MARK[0] in text
    while found := _SCALE.match(text):
        factor *= _SCALES[found[1].lower()]
        text = text[found.end() :]
    return factor, MARK[0] + text if said and factor > 1 and text else text


def unit_of(text: str, apart: bool = True) -> str:
    """Returns a unit in its one spelling; "" if the text is not a unit.

    A text with a number in it is none, but for exponents.

    Args:
      apart: whether white space is before the text. If not, an unknown word is symbols.
    """
    said = MARK[0] in text
    text = re.sub(rf"[{MARK[0]}{MARK[1]}{{}}]", " ", text).replace("**", "^")
    text = re.sub(r"\s*\^\s*", "^", text)
    parts = [re.split(r"[\s.*]+", part.strip(" \n.*")) for part in re.split(r"/|\bper\b", text)]
    if not said and not apart and not _known(parts[0][0]):
        return ""
    found = [_product(words, said) for words in parts]
    bare = parts[0] == [""] and len(parts) > 1  # e.g. per hour
    return "/".join(found) if all(found[bare:]) else ""


def _product(words: list[str], said: bool) -> str:
    """Reads the words of a unit without "per"; returns "" if they are none.

    Unknown words of up to three letters are symbols, unless a longer word is with them or they are
    ``said``: in \\text{...}.
    """
    if not all(map(_WORD.fullmatch, words)):
        return ""
    words = [word if len(_name(word)) == 1 else word.lower() for word in words]
    before = _RAISED.get(words[0], "") if len(words) > 1 else ""
    after = _RAISED.get(words[-1], "") if len(words) > 1 and not before else ""
    words = words[bool(before) : len(words) - bool(after)]
    if not all(map(_may_be_in_unit, words, [False] * (len(words) - 1) + [True])):
        return ""
    if not said and all(len(_name(word)) < 4 and not _known(word) for word in words):
        return ""
    return " ".join(map(_named, words)) + before + after


def _may_be_in_unit(word: str, last: bool) -> bool:
    name = _name(word).rpartition("-")[2]
    if _known(word):
        return last or name not in NAMES  # "5 min", but not "5 min x"
    if name in NAMES or name in FUNCTIONS or name in _NO_UNITS:
        return False
    if name.removesuffix("s") in _PARTS and (last or name.endswith("s")):  # not: fifth graders
        return False
    return not (last and name in _OPEN) if len(name) > 1 else name == "a" and not last


def _name(word: str) -> str:
    return word.partition("^")[0]


def _known(word: str) -> bool:
    name = _name(word)
    return name in _LETTERS if len(name) == 1 else name in _UNITS or name.removesuffix("s") in _UNITS


def _named(word: str) -> str:
    name, raised, exponent = word.partition("^")
    one = name.removesuffix("s")
    found = _UNITS.get(name) or _UNITS.get(one) or (one if len(name) > 3 else name)
    return found + raised + exponent


def certain(text: str) -> bool:
    """Returns whether a unit, by a word or known abbreviation, cannot be a product of symbols."""
    if MARK[0] in text:
        return True
    words = re.findall(r"[A-Za-z]+", text)
    known = (len(word) > 3 or word.lower().removesuffix("s") in _UNITS for word in words)
    return all(len(word) > 1 for word in words) and any(known)


def number_follows(text: str) -> bool:
    """Returns whether a number comes after a word, as in "hours 20": the two are no product."""
    words = re.findall(r"([A-Za-z]+)\s+\d+(?![\d.]*\s*\^|\d)", text)  # n 2^k is a product
    return any(word not in NAMES and word not in FUNCTIONS for word in words)
