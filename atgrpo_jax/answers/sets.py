"""Compares sets of numbers: intervals, inequalities, unions, and items in braces."""

import sympy
from sympy import Expr, S, Symbol

from atgrpo_jax.answers.parts import Items, Joined, Relation

_JOIN = {"∪": sympy.Union, "∩": sympy.Intersection, "∖": sympy.Complement}
_INEQUALITY = {"<": sympy.Lt, "≤": sympy.Le, ">": sympy.Gt, "≥": sympy.Ge}
_REAL = Symbol("real", real=True)


def is_set(node) -> bool:
    return isinstance(node, (Joined, sympy.Set))


def same_sets(one, other) -> bool:
    """Returns whether two sets of real numbers are the same. They may have at most one symbol."""
    if len(_symbols(one) | _symbols(other)) > 1:
        return False
    ours = _set_of(one)
    theirs = _set_of(other)
    if ours is None or theirs is None:
        return False
    return bool(ours == theirs or ours.symmetric_difference(theirs).is_empty is True)


def joined_parts(node) -> list:
    """Returns the parts that one sign joins, e.g. all three of A ∪ B ∪ C."""
    if not isinstance(node, Joined):
        return [node]
    sides = (joined_parts(side) if _sign(side) == node.sign else [side] for side in node.parts)
    return [part for side in sides for part in side]


def _sign(node) -> str:
    return node.sign if isinstance(node, Joined) else ""


def may_be_interval(node: Items) -> bool:
    return (
        len(node.items) == 2
        and node.opened in ("(", "[")
        and node.closed in (")", "]")
        and all(
            (isinstance(part, Expr) and part.is_real is not False) or part in _ENDS for part in node.items
        )
    )


_ENDS = S.Infinity, S.NegativeInfinity


def _symbols(node) -> set:
    if isinstance(node, (Joined, Relation, Items)):
        inside = {Joined: "parts", Relation: "sides", Items: "items"}[type(node)]
        return set().union(*map(_symbols, getattr(node, inside)))
    return set(getattr(node, "free_symbols", set()))


def _set_of(node):
    """Returns a sympy set, or None if ``node`` is not a set."""
    if isinstance(node, sympy.Set):
        return node
    if isinstance(node, Expr):
        return sympy.FiniteSet(node)
    if isinstance(node, Relation):
        return _of(sympy.Intersection, map(_solved, node.sides, node.signs, node.sides[1:]))
    if isinstance(node, Joined):
        return _of(_JOIN[node.sign], map(_set_of, node.parts))
    if not isinstance(node, Items):
        return None
    if node.opened in ("", "{"):
        return _of(sympy.Union, map(_set_of, node.items))
    if may_be_interval(node):
        return sympy.Interval(*node.items, node.opened == "(", node.closed == ")")
    return None


def _of(made, sets):
    found = list(sets)
    return None if None in found else made(*found)


def _solved(left, sign: str, right):
    """Returns the real numbers for which a relation is true; None unless it has one symbol."""
    if not (isinstance(left, Expr) and isinstance(right, Expr)):
        return None
    symbols = left.free_symbols | right.free_symbols
    if len(symbols) != 1:
        return None
    difference = (left - right).subs(symbols.pop(), _REAL)
    if sign in "=≠":
        found = sympy.solveset(difference, _REAL, S.Reals)
        return found if sign == "=" else S.Reals - found
    return sympy.solve_univariate_inequality(_INEQUALITY[sign](difference, 0), _REAL, relational=False)
