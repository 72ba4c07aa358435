"""Reads a text of mathematics with its units: one quantity, several of them, or no unit at all."""

import re

import sympy

from atgrpo_jax.answers.grammar import Grammar
from atgrpo_jax.answers.names import DEGREE, PERCENT
from atgrpo_jax.answers.parts import ODD, Compound, Items, Quantity, Relation, Unreadable, Word
from atgrpo_jax.answers.spelling import MARK
from atgrpo_jax.answers.tokens import tokens_of
from atgrpo_jax.answers.units import CURRENCIES, certain, number_follows, scaled, unit_of

_TAIL = re.compile(
    rf"(?P<value>.*?[\d}}\s)%!\]])(?P<unit>[A-Za-z{MARK[0]}][A-Za-z.\-'/^{{}}\d\s{MARK[0]}{MARK[1]}*]*)",
    re.DOTALL,
)
_NEXT = re.compile(  # between 3 hours and 20 minutes
    rf"(?:(?<=[A-Za-z{MARK[1]}])|(?<=[A-Za-z]\.))\s*(?=\.?\d|\\frac)"
)
_LABEL = re.compile(rf"(?=.*[A-Za-z])[A-Za-z_0-9(),{{}}\\\s{MARK[0]}{MARK[1]}]*")
_SIGNS = {"percent": PERCENT, "degree": DEGREE}


def bare(text: str) -> str:
    return re.sub(rf"[\s{MARK[0]}{MARK[1]}]", "", text)


def quantity(text: str):
    """Reads a text. The value has its unit; it has none if there is none, or if it is no unit."""
    pieces, either = _listed(text)
    if len(pieces) > 1 and (found := _list(list(map(quantity, pieces)), either)) is not None:
        return found
    for sign, unit in CURRENCIES.items():
        before, here, after = text.partition(sign)
        if here and (before.strip() in ("", "-") or not after.strip()):
            return _of_money(quantity(before + after), unit)
    pieces = _NEXT.split(text)
    if len(pieces) > 1 and (found := _compound(list(map(quantity, pieces)))) is not None:
        return found
    value = _parsed(text)
    if isinstance(value, Word) or (isinstance(value, Relation) and value.signs == ("=",)):
        name, _, rest = text.partition("=")
        if rest and _LABEL.fullmatch(name) and _plain(right := quantity(rest)):  # e.g. x = 3 cm
            left = value.sides[0] if isinstance(value, Relation) else sympy.Symbol(bare(name))
            return Relation((left, right), ("=",))
    time = isinstance(value, Items) and value.opened == ":"
    if not (time or isinstance(value, Word) or (isinstance(value, sympy.Expr) and value.free_symbols)):
        return value
    tail = _TAIL.fullmatch(text)
    return value if tail is None else _with_unit(value, text, tail["value"], tail["unit"])


def _listed(text: str) -> tuple[list[str], bool]:
    """Returns the pieces of a text between commas, and whether "or" is between them. Commas in
    brackets and in words separate nothing."""
    pieces = [""]
    depth = 0
    either = False
    for letter in text:
        depth += (letter in "([{" + MARK[0]) - (letter in ")]}" + MARK[1])
        if letter in ",;" and not depth:
            pieces.append("")
            either |= letter == ";"
        else:
            pieces[-1] += letter
    return [piece for piece in pieces if piece.strip()], either  # "1, and 2" has two commas


def _list(values: list, either: bool):
    """Returns items of the same unit, or quantities of different units; None for anything else."""
    units = [value.unit for value in values if isinstance(value, Quantity)]
    if not all(map(_plain, values)) or all(isinstance(value, sympy.Expr) for value in values):
        return None
    if len(units) == len(values) and not either and len(set(units)) > 1:
        return _compound(values)
    return Items("", tuple(values), "") if len(set(units)) < 2 else None


def _compound(values: list) -> Compound | None:
    """Returns quantities of different units as one; None if they are none."""
    units = {value.unit for value in values if isinstance(value, Quantity)}
    return Compound(tuple(values)) if len(units) == len(values) else None


def _plain(value) -> bool:
    """Returns whether a value is a number, or has a unit that cannot be a product of symbols."""
    if isinstance(value, Quantity):
        return value.otherwise is None
    number = isinstance(value, sympy.Expr) and not value.free_symbols - {PERCENT, DEGREE}
    return number or isinstance(value, Compound)


def _of_money(value, unit: str) -> Quantity:
    if not isinstance(value, Quantity):
        return Quantity(value, unit)
    if value.otherwise is not None:
        return Quantity(value.otherwise, unit)
    rest = value.unit if value.unit.startswith("/") else f" {value.unit}"
    return Quantity(value.value, unit if value.unit == unit else unit + rest)


def _with_unit(value, text: str, number: str, tail: str):
    """Returns the quantity of a number and a tail. Without a unit it is ``value``, or words."""
    factor, rest = scaled(tail)
    unit = unit_of(rest, number[-1:].isspace() or factor > 1)
    if not unit and (rest or factor == 1):
        return Word(bare(text)) if number_follows(tail) else value
    inner = _parsed(number)
    if isinstance(inner, Items) and inner.opened == ":" and factor == 1:  # e.g. 3:20 pm
        return Quantity(inner, unit)
    if not isinstance(inner, sympy.Expr) or inner.free_symbols - {PERCENT, DEGREE}:
        return value
    sign, _, others = unit.partition(" ")
    if sign in _SIGNS:
        factor *= _SIGNS[sign]
        unit = others
    if not unit:
        return inner * factor
    sure = factor != 1 or isinstance(value, Word) or certain(tail)
    return Quantity(inner * factor, unit, None if sure else value)


def _parsed(text: str):
    try:
        return _labelled(Grammar(tokens_of(text)).whole())
    except (Unreadable, *ODD):
        name, equals, rest = text.partition("=")
    if equals and _LABEL.fullmatch(name):  # e.g. f(x, y), or the angle ABC
        value = _parsed(rest)
        if not isinstance(value, (Word, Relation)):
            return Relation((sympy.Symbol(bare(name)), value), ("=",))
    return Word(bare(text))


def _labelled(node):
    """Turns both ``x = 1, 2`` and ``x = 1, x = 2`` into one relation of the name and its values."""
    if not isinstance(node, Items) or node.opened != "":
        return node
    relations = [part for part in node.items if isinstance(part, Relation)]
    if not relations or node.items[0] is not relations[0] or len(relations) not in (1, len(node.items)):
        return node
    name = relations[0].sides[0]
    if any(part.signs != ("=",) or part.sides[0] != name for part in relations):
        return node
    values = (part.sides[1] if isinstance(part, Relation) else part for part in node.items)
    return Relation((name, Items("", tuple(values), "")), ("=",))
