"""What an answer may consist of, beside sympy's numbers, functions of symbols and matrices."""

import dataclasses

import sympy
from sympy import Symbol


class Unreadable(Exception):
    """No grammar of ours."""


@dataclasses.dataclass(frozen=True)
class Word:
    text: str


@dataclasses.dataclass(frozen=True)
class Items:
    """A tuple, list, set, vector or interval, by its brackets; none around what only commas hold together."""

    opened: str
    items: tuple
    closed: str


@dataclasses.dataclass(frozen=True)
class Relation:
    """``sides`` with a sign between each two: = ≠ < ≤ > ≥."""

    sides: tuple
    signs: tuple


@dataclasses.dataclass(frozen=True)
class Joined:
    """Sets, or inequalities, that ∪, ∩ or ∖ holds together."""

    sign: str
    parts: tuple


@dataclasses.dataclass(frozen=True)
class Quantity:
    """``otherwise``: the product of symbols that it may be instead."""

    value: object
    unit: str
    otherwise: object = None


@dataclasses.dataclass(frozen=True)
class Numeral:
    """``52_8``: digits that are asked for in a base. No number: asked for it, nobody would take "42"."""

    digits: str
    base: str


def bracketed(opened: str, items: list, parted: bool, closed: str, group: bool):
    """What brackets around items are. Raises Unreadable.

    Args:
      parted: there was a comma.
      group: these are braces, which in LaTeX only hold together.
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
    ]  # of a dict
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
    """Makes a matrix of a list of rows, or of a column."""
    if not isinstance(node, Items):
        raise Unreadable("no rows")
    rows = [row.items if isinstance(row, Items) else (row,) for row in node.items]
    return sympy.ImmutableMatrix([list(map(scalar, row)) for row in rows])
