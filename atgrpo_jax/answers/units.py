"""Brings units into one spelling each."""

import re

from atgrpo_jax.answers.names import FUNCTIONS, NAMES
from atgrpo_jax.answers.spelling import MARK

_SPELLINGS = {
    "mm": ("millimeter", "millimetre"), "cm": ("centimeter", "centimetre"), "m": ("meter", "metre"),
    "km": ("kilometer", "kilometre"), "in": ("inch", "inche"), "ft": ("foot", "feet"), "yd": ("yard",),
    "mi": ("mile",), "mg": ("milligram",), "g": ("gram",), "kg": ("kilogram", "kilo"), "lb": ("pound",),
    "oz": ("ounce",), "s": ("second", "sec"), "min": ("minute",), "h": ("hour", "hr"), "day": (),
    "ml": ("milliliter", "millilitre"), "l": ("liter", "litre"), "km/h": ("kph", "kmph", "kmh"), "mph": (),
    "hz": ("hertz",), "n": ("newton",), "j": ("joule",), "kj": (), "w": ("watt",), "v": ("volt",), "ohm": (),
    "mol": (), "cc": (), "rad": ("radian",), "am": (), "pm": (), "unit": (),
    "dollar": ("usd", "buck"), "cent": (), "euro": ("eur",), "gbp": (), "yen": (),
}  # fmt: skip
_UNITS = {name: unit for unit, names in _SPELLINGS.items() for name in (unit, *names)}
CURRENCIES = {"\\dollar": "dollar", "\\euro": "euro", "\\pound": "gbp", "\\yen": "yen"}
_RAISED = {"square": "^2", "sq": "^2", "cubic": "^3", "cu": "^3"}


def unit_of(text: str) -> str:
    """Returns a unit in its one spelling; "" if the text is not a unit."""
    said = MARK[0] in text
    text = re.sub(rf"[{MARK[0]}{MARK[1]}{{}}]", " ", text).lower().replace("**", "^")
    text = re.sub(r"\s*\^\s*", "^", text)
    parts = [_product(part, said) for part in re.split(r"/|\bper\b", text)]
    return "/".join(parts) if all(parts) else ""


def _product(text: str, said: bool) -> str:
    """Reads a unit without "per"; returns "" if it is none.

    A single unknown word of up to three letters is symbols, unless ``said``: it was in \\text{...}.
    """
    words = re.findall(r"[a-z][a-z'-]*(?:\^\d)?|\d+", text)
    if not words or any(word in NAMES or word in FUNCTIONS for word in words):
        return ""
    raised = _RAISED.get(words[0], "") if len(words) > 1 else ""
    names = list(map(_named, words[bool(raised) :]))
    few = not said and len(names) == 1 and len(words[-1].partition("^")[0]) < 4
    return "" if few and names[0].partition("^")[0] not in _UNITS else " ".join(names) + raised


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
