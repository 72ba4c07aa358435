"""Defines parts of answers that sympy's numbers, functions of symbols and matrices do not cover."""

import dataclasses

import sympy
from sympy import Symbol

# What sympy raises for texts that make no sense, and for questions that it cannot decide.
ODD = (
    ArithmeticError, AttributeError, LookupError, NotImplementedError, RecursionError, TypeError, ValueError,
)  # fmt: skip


class Unreadable(Exception):
    """Raised if the grammar cannot read a text."""


@dataclasses.dataclass(frozen=True)
class Word:
    text: str


@dataclasses.dataclass(frozen=True)
class Items:
    """A tuple, list, set, vector or interval, as its brackets say.

    Brackets are "" around items that only commas join.
    """

    opened: str
    items: tuple
    closed: str


@dataclasses.dataclass(frozen=True)
class Relation:
    """A relation, or a chain of several."""

    sides: tuple
    signs: tuple  # one of = ≠ < ≤ > ≥ between each two sides


@dataclasses.dataclass(frozen=True)
class Joined:
    """Sets or inequalities that are joined by ∪, ∩ or ∖."""

    sign: str
    parts: tuple


@dataclasses.dataclass(frozen=True)
class Quantity:
    """A value with a unit."""

    value: object
    unit: str
    otherwise: object = None  # the product of symbols that it may be instead


@dataclasses.dataclass(frozen=True)
class Compound:
    """Quantities with different units that are one answer together, e.g. 3 hours 20 minutes."""

    parts: tuple[Quantity, ...]


@dataclasses.dataclass(frozen=True)
class Numeral:
    """A numeral in a base, e.g. ``52_8``. It is not a number: its value, "42", would be wrong."""

    digits: str
    base: str


def bracketed(opened: str, items: list, parted: bool, closed: str, group: bool):
    """Returns the value of brackets around items. Raises Unreadable.

    Args:
      parted: whether there was a comma.
      group: whether these are braces that in LaTeX only group.
    """
    if (opened in "([") != (closed in ")]") or (opened == "<") != (closed == ">"):
        raise Unreadable("brackets that do not match")
    if len(items) == 1 and isinstance(items[0], sympy.MatrixBase):
        return items[0]
    if not items:
        if opened == "(":
            raise Unreadable("nothing in brackets")
        return sympy.EmptySet
    entries = [
        opened == "{" and isinstance(item, Items) and item.opened == ":" for item in items
    ]  # whether each item is an entry of a dict
    if len(items) == 1 and not parted and not entries[0] and (group or (opened == "(" and closed == ")")):
        return items[0]
    pairs = zip(items, entries, strict=True)
    return Items(opened, tuple(Relation(i.items, ("=",)) if entry else i for i, entry in pairs), closed)


def scalar(node):
    if isinstance(node, (sympy.Expr, sympy.MatrixBase)):
        return node
    if isinstance(node, Items) and (node.opened, node.closed, len(node.items)) == ("[", "]", 1):
        return scalar(node.items[0])
    raise Unreadable(f"{node!r} is no number")


def interval(kind: str, given: list) -> Items:
    left = kind in ("open", "Lopen") or (len(given) > 2 and given[2] == Symbol("True"))
    right = kind in ("open", "Ropen") or (len(given) > 3 and given[3] == Symbol("True"))
    start, end = given[:2]
    return Items(
        "(" if left or start == -sympy.oo else "[", (start, end), ")" if right or end == sympy.oo else "]"
    )


def matrix_of(node) -> sympy.ImmutableMatrix:
    """Makes a matrix from a list of rows or from a column."""
    if not isinstance(node, Items):
        raise Unreadable("no rows")
    rows = [row.items if isinstance(row, Items) else (row,) for row in node.items]
    return sympy.ImmutableMatrix([list(map(scalar, row)) for row in rows])
