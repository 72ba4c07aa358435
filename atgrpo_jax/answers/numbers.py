"""Decides whether two numbers, or two functions of symbols, are equal.

They are never equal by coincidence: exact numbers are compared exactly, or to so many digits that
numbers in so short a text cannot agree by chance.
"""

import dataclasses

import sympy
from sympy import Expr, Rational, S

from atgrpo_jax.answers.names import DEGREE, LONG, PERCENT

FIRST_DIGITS = 40
SURE_DIGITS = 300
MOST_DIGITS = 20_000
HIGHEST = 3  # height of the highest tower of powers that is computed
LARGEST_EXPONENT = 20_000
POINTS = 6  # positive points at which functions are compared; there are as many with negative ones


@dataclasses.dataclass(frozen=True)
class Numbers:
    """A comparison of numbers and functions, with its tolerances."""

    near: Rational  # relative tolerance; 0 for exact comparison
    tolerance: Rational  # absolute tolerance

    def same(self, one: Expr, other: Expr) -> bool:
        return any(self._same(*pair) for pair in _meanings(one, other))

    def _same(self, one: Expr, other: Expr) -> bool:
        if S.NaN in (one, other):
            return False
        if one == other:
            return True
        if one.has(*_INFINITIES) or other.has(*_INFINITIES):
            return False
        if max(_height(one), _height(other)) > HIGHEST:
            return False
        if one.is_number and other.is_number:
            return self._constants(one, other)
        return self._functions(one, other)

    def _constants(self, one: Expr, other: Expr) -> bool:
        difference = one - other
        if self.tolerance and _at_most(difference, self.tolerance):
            return True
        whole = one.is_Integer and other.is_Integer
        if self.near and not whole:
            return _close(one, other, self.near)
        if difference.is_Rational:
            return bool(difference == 0)
        return _close(one, other, Rational(1, 10**FIRST_DIGITS)) and _surely(one, other)

    def _functions(self, one: Expr, other: Expr) -> bool:
        """Compares functions at arbitrary points: analytic functions that agree there are the same.

        Points with negative numbers are left out if roots or logarithms are not real there, unless
        i itself is in one of the functions.
        """
        if sympy.expand(one - other) == 0:
            return True
        powers = one.atoms(sympy.Pow) | other.atoms(sympy.Pow)
        if any(part.exp.is_Rational and abs(part.exp) > LARGEST_EXPONENT for part in powers):
            return False  # the power would be computed at each point
        symbols = sorted(one.free_symbols | other.free_symbols, key=str)
        if any(str(symbol).startswith(LONG) for symbol in symbols):
            return False
        complex_ = one.has(sympy.I) or other.has(sympy.I)
        tried = 0
        for number in range(2 * POINTS):
            values = {symbol: _point(number, place) for place, symbol in enumerate(symbols)}
            ours = one.subs(values)
            theirs = other.subs(values)
            if not all(value.is_number and value.is_finite for value in (ours, theirs)):
                continue
            if number >= POINTS and not complex_ and not (ours.is_real and theirs.is_real):
                continue
            if not _close(ours, theirs, self.near or Rational(1, 10**FIRST_DIGITS)):
                return False
            if not self.near and not _surely(ours, theirs):
                return False
            tried += 1
        return tried >= POINTS // 2


_INFINITIES = S.Infinity, S.NegativeInfinity, S.ComplexInfinity


def _meanings(one: Expr, other: Expr) -> list[tuple[Expr, Expr]]:
    """Returns the pairs to compare. A % or ° sign that only one side has is 1, or its factor."""
    for sign, factor in ((PERCENT, Rational(1, 100)), (DEGREE, sympy.pi / 180)):
        if one.has(sign) != other.has(sign):
            pairs = ((one.subs(sign, value), other.subs(sign, value)) for value in (1, factor))
            return [meaning for pair in pairs for meaning in _meanings(*pair)]
    return [(one, other)]


def _point(number: int, place: int) -> Rational:
    value = Rational(2 * number + 3, 7) + Rational(5 * place + 1, 13 + number)
    return -value if number >= POINTS and (number + place) % 2 == 0 else value


def _height(expression: Expr) -> int:
    """Returns the height of the highest tower of powers in an expression."""
    base, exponent = expression.as_base_exp()
    above = 1 + _height(exponent) if exponent != 1 else 0
    return max([above, *map(_height, base.args)])


def _at_most(difference: Expr, limit: Rational) -> bool:
    if difference.is_Rational:
        return bool(abs(difference) <= limit)
    found = abs(difference.evalf(FIRST_DIGITS))
    return bool(found.is_Float and found <= limit)


def _close(one: Expr, other: Expr, near: Rational, digits: int = FIRST_DIGITS + 20) -> bool:
    """Returns whether two numbers differ by no more than ``near`` times the larger one."""
    first = one.evalf(digits)
    second = other.evalf(digits)
    apart = abs(first - second).evalf(digits)
    scale = max(abs(first).evalf(digits), abs(second).evalf(digits))
    if not (apart.is_comparable and scale.is_comparable):
        return False
    if scale < Rational(1, 10**FIRST_DIGITS):  # no digit is certain: may be 0
        return bool(sympy.simplify(one - other) == 0)
    return bool(apart <= near * scale)


def _surely(one: Expr, other: Expr) -> bool:
    """Compares two numbers to more digits than those of a text can agree in by chance."""
    rationals = one.atoms(Rational) | other.atoms(Rational)
    bits = sum(abs(number.p).bit_length() + number.q.bit_length() for number in rationals)
    digits = SURE_DIGITS + bits  # more than twice the digits that are written
    return digits <= MOST_DIGITS and _close(one, other, Rational(1, 10 ** (digits - 50)), digits)
