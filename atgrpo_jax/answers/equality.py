"""Decides whether two answers to a problem are equal."""

import json
import re
from collections.abc import Sequence

import sympy
from sympy import Expr, MatrixBase, Rational, Symbol
from sympy.core.function import AppliedUndef

from atgrpo_jax.answers.names import DEGREE, PERCENT
from atgrpo_jax.answers.numbers import Numbers
from atgrpo_jax.answers.parts import ODD, Compound, Items, Joined, Numeral, Quantity, Relation, Word
from atgrpo_jax.answers.reading import read
from atgrpo_jax.answers.sets import is_set, joined_parts, may_be_interval, same_sets

NEAR = Rational(1, 10**6)  # relative tolerance where one answer has a decimal fraction
_OPPOSITE = {"<": ">", ">": "<", "≤": "≥", "≥": "≤"}
_MATCHED = ("(", ")"), ("[", "]"), ("<", ">")


def main() -> None:
    """Reads the arguments of ``equal`` as a JSON list, and prints 1 or 0."""
    print(int(equal(*json.loads(input()))))


def equal(truth: str, answer: str, tolerance: str = "0", several: bool = False) -> bool:
    """Returns whether an answer is equal to the truth. If that cannot be decided, it is not.

    Args:
      tolerance: the absolute tolerance of numbers: a whole number, a decimal fraction or p/q.
      several: whether both are lists, whose order does not matter.
    """
    one = read(truth, several)
    other = read(answer, several)
    if isinstance(one.value, Items) and not isinstance(other.value, Items):
        other = read(answer, several=True)  # 100,200 may be two numbers
    if (
        isinstance(one.value, Word)
        and one.text.casefold() == other.text.casefold()
        and not one.text.isdigit()
    ):
        return True  # e.g. "June 20", read once as words and once as a product
    near = NEAR if one.decimal or other.decimal else Rational(0)
    try:
        return Comparison(Numbers(near, Rational(tolerance))).same(one.value, other.value)
    except ODD:  # e.g. an inequality that sympy cannot solve
        return False


class Comparison:
    """A comparison of truths with answers. The truth is always the first argument."""

    def __init__(self, numbers: Numbers):
        self._numbers = numbers

    def same(self, one, other) -> bool:
        if isinstance(one, Compound) or isinstance(other, Compound):
            both = isinstance(one, Compound) and isinstance(other, Compound)
            return both and self._any_order(one.parts, other.parts)
        if isinstance(one, Quantity) or isinstance(other, Quantity):
            return self._quantities(one, other)
        if isinstance(one, (Word, Numeral)) or isinstance(other, (Word, Numeral)):
            return _same_words(one, other)
        if isinstance(one, (Relation, Joined)) and one == other:
            return True
        if isinstance(one, Relation) or isinstance(other, Relation):
            return self._relations(one, other)
        if is_set(one) or is_set(other):
            return self._sets(one, other)
        if isinstance(one, MatrixBase) or isinstance(other, MatrixBase):
            return self._vectors(one, other)
        if isinstance(one, Items) or isinstance(other, Items):
            return self._items(one, other)
        return isinstance(one, Expr) and isinstance(other, Expr) and self._numbers.same(one, other)

    def _quantities(self, one, other) -> bool:
        """Compares quantities. One side may leave the unit out, but two units must be the same.

        If only the truth has a unit, and that may be a product of symbols, it is read as the
        product. If only the answer has, it is read as the product unless the truth is a number. The
        signs of percent and of degrees are units, too, and radians are numbers.
        """
        if isinstance(one, Quantity) and isinstance(other, Quantity):
            return one.unit == other.unit and self.same(one.value, other.value)
        quantity, plain = (one, other) if isinstance(one, Quantity) else (other, one)
        if quantity.unit == "rad" and isinstance(plain, Expr):
            plain = plain.subs(DEGREE, sympy.pi / 180)
            return self.same(quantity.value, plain)
        if _sign(plain) and _sign(plain) != _sign(quantity.value):
            return False
        if isinstance(one, Quantity):
            return self.same(one.value if one.otherwise is None else one.otherwise, other)
        product = other.otherwise is not None and not getattr(one, "is_number", False)
        return self.same(one, other.otherwise if product else other.value)

    def _relations(self, one, other) -> bool:
        ours = _named(one)
        theirs = _named(other)
        if ours and theirs and ours[0] == theirs[0]:
            return self._all(ours[1], theirs[1])
        if isinstance(one, Relation) and isinstance(other, Relation):
            return self._chains(one, other) or self._equations(one, other) or same_sets(one, other)
        if ours or theirs:
            return self._all(ours[1] if ours else [one], theirs[1] if theirs else [other])
        relation = one if isinstance(one, Relation) else other
        if set(relation.signs) != {"="}:
            return same_sets(one, other)
        return self._all(one.sides if relation is one else [one], [other] if relation is one else other.sides)

    def _all(self, ours: Sequence, theirs: Sequence) -> bool:
        """Returns whether each side of one chain of equations is the same as each of the other."""
        pairs = ((one, other) for one in ours for other in theirs)
        return all(self.same(one, other) for one, other in pairs)

    def _chains(self, one: Relation, other: Relation) -> bool:
        """Compares chains of relations side by side; a < b < c is the same as c > b > a."""
        turned = tuple(_OPPOSITE.get(sign, sign) for sign in reversed(other.signs))
        if one.signs == other.signs and self._in_order(one.sides, other.sides):
            return True
        return one.signs == turned and self._in_order(one.sides, other.sides[::-1])

    def _equations(self, one: Relation, other: Relation) -> bool:
        """Compares relations of two sides, up to a factor, which is positive for inequalities."""
        if len(one.sides) != 2 or len(other.sides) != 2:
            return False
        if not all(isinstance(side, Expr) for side in (*one.sides, *other.sides)):
            return False
        ours = one.sides[0] - one.sides[1]
        theirs = other.sides[0] - other.sides[1]
        sign = other.signs[0]
        if sign != one.signs[0]:
            sign = _OPPOSITE.get(sign, "")
            theirs = -theirs
        if sign != one.signs[0] or 0 in (ours, theirs):
            return False
        factor = sympy.simplify(ours / theirs)
        return bool(factor.is_number and factor.is_finite and (sign in "=≠" or factor.is_positive))

    def _sets(self, one, other) -> bool:
        alike = isinstance(one, Joined) and isinstance(other, Joined) and one.sign == other.sign != "∖"
        return (alike and self._any_order(joined_parts(one), joined_parts(other))) or same_sets(one, other)

    def _items(self, one, other) -> bool:
        if not isinstance(one, Items):
            return len(other.items) == 1 and self.same(one, other.items[0])
        if not isinstance(other, Items):
            return len(one.items) == 1 and self.same(one.items[0], other)
        ordered = _in_which_order(one, other)
        if ordered is None:
            return False
        return (self._in_order if ordered else self._any_order)(one.items, other.items)

    def _in_order(self, ours: Sequence, theirs: Sequence) -> bool:
        return len(ours) == len(theirs) and all(map(self.same, ours, theirs))

    def _any_order(self, ours: Sequence, theirs: Sequence) -> bool:
        left = list(theirs)
        for part in ours:
            place = next((place for place, other in enumerate(left) if self.same(part, other)), None)
            if place is None:
                return False
            del left[place]
        return not left

    def _vectors(self, one, other) -> bool:
        """Compares two matrices, a matrix and a list of rows, or a row or column and a tuple."""
        if isinstance(one, MatrixBase) and isinstance(other, MatrixBase):
            return one.shape == other.shape and self._in_order(list(one), list(other))
        matrix, items = (one, other) if isinstance(one, MatrixBase) else (other, one)
        if not isinstance(items, Items) or items.opened not in ("(", "[", "<"):
            return False
        rows = [row.items for row in items.items if isinstance(row, Items)]
        if rows:
            return len(rows) == len(items.items) == matrix.rows and all(
                map(self._in_order, matrix.tolist(), rows)
            )
        return 1 in matrix.shape and self._in_order(list(matrix), items.items)


def _in_which_order(one: Items, other: Items) -> bool | None:
    """Returns True if lists are to be compared in order, False for any order, None if they differ.

    A truth without brackets has no order. An answer without brackets has the order of the truth. An
    interval is not a set, and an open interval is not a closed one. A Python list may stand for
    anything but an interval.
    """
    brackets = [(items.opened, items.closed) for items in (one, other)]
    openings = one.opened, other.opened
    if openings[0] == ":" or openings[1] == ":":
        return True if openings == (":", ":") else None
    if openings[0] == "":
        return False
    if brackets[0] == brackets[1]:
        return one.opened != "{"
    if openings[1] == "":
        return None if one.opened == "[" and may_be_interval(one) else one.opened != "{"
    if set(openings) == {"(", "<"}:
        return True
    if may_be_interval(one) or may_be_interval(other):
        return None
    if "{" in openings:
        return False if "[" in openings else None
    return True if brackets[0] in _MATCHED and brackets[1] in _MATCHED else None


def _same_words(one, other) -> bool:
    """Compares words or numerals. An answer may leave out the base, which is in the question."""
    if isinstance(one, Numeral) and not isinstance(other, Numeral):
        plain = re.fullmatch(r"[-\d.]+", one.digits) and other == Rational(one.digits)
        return bool(plain) or _letters(other) == one.digits
    if isinstance(one, Numeral) or isinstance(other, Numeral):
        return one == other
    ours = _letters(one)
    theirs = _letters(other)
    if ours is None or theirs is None:
        return False
    return ours == theirs or (len(ours) > 1 and ours.casefold() == theirs.casefold())


def _letters(node) -> str | None:
    """Returns the letters of words or of a symbol. Choices like (C), C. and C) are their letter."""
    if isinstance(node, Word):
        found = "".join(node.text.split())
        if len(found) == 3 and found[0] + found[2] == "()":
            return found[1]
        return found.rstrip(".)") if len(found) == 2 else found
    if node == sympy.E:
        return "E"
    if node == sympy.I:
        return "I"
    return str(node) if isinstance(node, Symbol) else None


def _sign(node) -> set:
    return node.free_symbols & {DEGREE, PERCENT} if isinstance(node, Expr) else set()


def _named(node) -> tuple | None:
    """Splits ``x = 1 = ...`` into the name and its values; returns None for anything else."""
    if not isinstance(node, Relation) or set(node.signs) != {"="}:
        return None
    name = node.sides[0]
    if isinstance(name, Items) and all(isinstance(part, Symbol) for part in name.items):
        return name, node.sides[1:]
    product = isinstance(name, Expr) and name.is_Mul and all(part.is_Symbol for part in name.args)
    return (name, node.sides[1:]) if isinstance(name, (Symbol, AppliedUndef)) or product else None
