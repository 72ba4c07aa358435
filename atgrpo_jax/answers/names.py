"""Lists the names of functions, constants, relations and lists, in LaTeX, Python and sympy."""

import functools
from collections.abc import Callable

import sympy
from sympy import Expr, I, Integer, Symbol

from atgrpo_jax.answers.spelling import GREEK

DEGREE = Symbol("°")
PERCENT = Symbol("%")
LARGEST_BITS = 50_000  # most bits of a power or factorial that is computed
DEEPEST = 40  # most levels of brackets


LONG = "long "  # prefix of a symbol that stands for a number too long to compute


def _long(name: str) -> Symbol:
    return Symbol(LONG + name, positive=True)


def power(base: Expr, exponent: Expr) -> Expr:
    """Returns a power. If it is too long to compute, it is a symbol, which equals only itself."""
    if base.is_Rational and exponent.is_Rational and base not in (0, 1, -1):
        bits = max(abs(base.p).bit_length(), base.q.bit_length()) * abs(exponent)
        if bits > LARGEST_BITS or exponent.q > LARGEST_BITS:
            return _long(f"{hex(base.p)}/{hex(base.q)}^{hex(exponent.p)}/{hex(exponent.q)}")
    if base.is_number and base.args and exponent.is_Rational and 16 * abs(exponent) > LARGEST_BITS:
        return _long(f"({base})^({exponent})")
    return base**exponent


def root_of(value: Expr, degree: Expr) -> Expr:
    """Returns the root of a value. For a real number it is the real root."""
    return sympy.real_root(value, degree) if value.is_number and value.is_real else value ** (1 / degree)


def _product(function: Callable, *args: Expr) -> Expr:
    """Returns a factorial or a similar function; a symbol if it is too long to compute."""
    if all(arg.is_Rational for arg in args) and any(16 * abs(arg) > LARGEST_BITS for arg in args):
        return _long(f"{function.__name__}{args}")
    return function(*args)


def _log(value: Expr, base: Expr = sympy.E) -> Expr:
    return sympy.log(value) / sympy.log(base)


def _over(one: Expr, other: Expr = sympy.S.One) -> Expr:
    return one / other


def _first(value: Expr, *_: Expr) -> Expr:
    return value


_factorial = functools.partial(_product, sympy.factorial)
_binomial = functools.partial(_product, sympy.binomial)
_SAME_IN_SYMPY = (
    "sin", "cos", "tan", "cot", "sec", "csc", "asin", "acos", "atan", "acot", "asec", "acsc", "atan2",
    "sinh", "cosh", "tanh", "coth", "asinh", "acosh", "atanh", "exp", "sqrt", "floor", "ceiling", "gcd",
    "lcm", "Abs", "Max", "Min", "Add", "Mul", "re", "im", "conjugate", "sign", "arg", "zeta",
)  # fmt: skip
FUNCTIONS: dict[str, Callable] = {name: getattr(sympy, name) for name in _SAME_IN_SYMPY} | {
    "arcsin": sympy.asin, "arccos": sympy.acos, "arctan": sympy.atan, "arccot": sympy.acot,
    "abs": sympy.Abs, "ceil": sympy.ceiling, "max": sympy.Max, "min": sympy.Min,
    "Re": sympy.re, "Im": sympy.im,
    "log": _log, "ln": _log, "lg": functools.partial(_log, base=Integer(10)),
    "log10": functools.partial(_log, base=Integer(10)), "log2": functools.partial(_log, base=Integer(2)),
    "cbrt": functools.partial(root_of, degree=Integer(3)), "root": root_of, "Pow": power,
    "factorial": _factorial, "gamma": functools.partial(_product, sympy.gamma),
    "binomial": _binomial, "comb": _binomial, "binom": _binomial,
    "Rational": _over, "Fraction": _over, "Integer": _first, "Float": _first, "Decimal": _first,
    "mpf": _first, "float64": _first, "int64": _first, "S": _first, "det": lambda matrix: matrix.det(),
}  # fmt: skip
ANGLES = {"sin", "cos", "tan", "cot", "sec", "csc"}
INVERSES = {name: f"a{name}" for name in ANGLES}
CONSTANTS = {
    "pi": sympy.pi, "e": sympy.E, "E": sympy.E, "i": I, "I": I, "imath": I, "degree": DEGREE,
    "oo": sympy.oo, "inf": sympy.oo, "infty": sympy.oo, "infinity": sympy.oo,
    "zoo": sympy.zoo, "nan": sympy.nan,
    "GoldenRatio": sympy.GoldenRatio,
    "emptyset": sympy.EmptySet, "varnothing": sympy.EmptySet, "EmptySet": sympy.EmptySet,
    "Reals": sympy.S.Reals, "Integers": sympy.S.Integers, "Rationals": sympy.S.Rationals,
    "Complexes": sympy.S.Complexes, "Naturals": sympy.S.Naturals, "Naturals0": sympy.S.Naturals0,
}  # fmt: skip
FIELDS = {"R": "Reals", "Z": "Integers", "Q": "Rationals", "C": "Complexes", "N": "Naturals"}
RELATIONS = {
    "=": "=", "==": "=", "\\approx": "=", "\\equiv": "=", "!=": "≠", "\\ne": "≠", "\\neq": "≠",
    "<": "<", "\\lt": "<", ">": ">", "\\gt": ">", "<=": "≤", "\\le": "≤", "\\leq": "≤", "\\leqslant": "≤",
    ">=": "≥", "\\ge": "≥", "\\geq": "≥", "\\geqslant": "≥",
}  # fmt: skip
RELATION_NAMES = {"Eq": "=", "Ne": "≠", "Lt": "<", "Le": "≤", "Gt": ">", "Ge": "≥"}
JOINS = {
    "\\cup": "∪", "|": "∪", "\\lor": "∪", "\\vee": "∪", "\\cap": "∩", "&": "∩", "\\land": "∩", "\\wedge": "∩",
    "\\setminus": "∖", "\\backslash": "∖",
}  # fmt: skip
JOIN_NAMES = {"Union": "∪", "Or": "∪", "Intersection": "∩", "And": "∩", "Complement": "∖"}
LISTS = {
    "FiniteSet": "{}", "set": "{}", "frozenset": "{}", "Tuple": "()", "tuple": "()", "list": "[]",
    "array": "[]",
}  # fmt: skip
CALLED = {*FUNCTIONS, *RELATION_NAMES, *JOIN_NAMES, *LISTS, "Interval", "Matrix", "ImmutableMatrix"}
# The names that are found in letters without spaces between them.
NAMES = sorted({*FUNCTIONS, *CONSTANTS, *GREEK} - {"S", "re", "im", "arg", "det"}, key=len, reverse=True)
