"""Says whether a program printed the right thing, by our own rule or by that of three judges.

Each rule takes time linear in the texts, whatever they contain. docs/data.md says where the judges'
original rules differ from these.
"""

import itertools
import math
import re
from collections.abc import Callable, Sequence
from decimal import Decimal

# Quantifiers are possessive: a text that is no number is refused without reading any digit twice.
_NUMBER = re.compile(r"[-+]?(?:[0-9]++(?:\.[0-9]*+)?|\.[0-9]++)(?:[eE][-+]?[0-9]{1,4})?")
_WHOLE = re.compile(r"[-+]?[0-9]+")
_CODECONTESTS = 1e-5  # absolute difference
# The defaults of NumPy's ``allclose``, which APPS calls.
_RELATIVE = 1e-5
_ABSOLUTE = 1e-8
_DECIMALS = 3  # decimals to which APPS rounds

Near = Callable[[float, float], bool]


def same_output(
    printed: str, expected: str, tolerance: float = 0.0, ignore_case: bool = False, judge: str = "tokens"
) -> bool:
    """Returns whether one of the ``JUDGES`` accepts ``printed`` where ``expected`` is right.

    ``tolerance`` (of numbers, absolute or relative) and ``ignore_case`` apply to our own rule,
    "tokens".
    """
    if judge == "tokens":
        return _tokens(printed, expected, tolerance, ignore_case)
    return JUDGES[judge](printed, expected)


def _tokens(printed: str, expected: str, tolerance: float = 0.0, ignore_case: bool = False) -> bool:
    """Compares token by token and ignores white space. Numbers are equal if their values are, or
    are within the tolerance."""
    if ignore_case:
        printed = printed.lower()
        expected = expected.lower()

    def near(a: float, b: float) -> bool:
        return tolerance > 0 and abs(a - b) <= tolerance * max(1.0, abs(b))

    return _same(printed.split(), expected.split(), near)


def _codecontests(printed: str, expected: str) -> bool:
    """Compares token by token and ignores the case of ASCII letters. Integers must have the same
    value; other numbers may differ by less than 1e-5."""

    def tokens(text: str) -> list[str]:
        found = text.encode(errors="surrogatepass").lower().split()
        return [token.decode(errors="surrogatepass") for token in found]

    return _same(tokens(printed), tokens(expected), lambda a, b: abs(a - b) < _CODECONTESTS, exact=True)


def _apps(printed: str, expected: str) -> bool:
    """Compares line by line; ignores empty lines and white space. If all tokens are numbers,
    integers must have the same value, and others must be equal when they are rounded to three
    decimals. If each number has a line of its own, it is enough that they are close as in
    ``allclose``."""
    one = _rows(printed)
    other = _rows(expected)
    if list(map(len, one)) != list(map(len, other)):
        return False
    if one == other:
        return True
    tokens = list(itertools.chain(*one))
    wanted = list(itertools.chain(*other))
    if not all(map(_NUMBER.fullmatch, tokens + wanted)):
        return False
    alone = len(wanted) == len(other)

    def near(a: float, b: float) -> bool:
        close = alone and abs(a - b) <= _ABSOLUTE + _RELATIVE * abs(b)
        return close or round(a, _DECIMALS) == round(b, _DECIMALS)

    return _same(tokens, wanted, near, exact=True)


def _livecodebench(printed: str, expected: str) -> bool:
    """Compares line by line and ignores the space around a line. Lines that differ are equal if
    they are equal lists of decimals."""
    one = _lines(printed.strip())
    other = _lines(expected.strip())
    return len(one) == len(other) and all(map(_same_line, one, other))


def _same_line(one: str, other: str) -> bool:
    if one == other:
        return True
    try:
        return list(map(Decimal, one.split())) == list(map(Decimal, other.split()))
    except ArithmeticError:  # not a decimal, or a NaN that cannot be compared
        return False


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.split("\n")]


def _rows(text: str) -> list[list[str]]:
    """Returns the tokens of each line that has any."""
    return [line.split() for line in _lines(text) if line]


def _same(printed: Sequence[str], expected: Sequence[str], near: Near, exact: bool = False) -> bool:
    """Returns whether all tokens are the same text, numbers of the same value, or ``near``.

    With ``exact``, two integers need the same value. The judges themselves compare floats, and so
    accept large integers with wrong last digits.
    """
    return len(printed) == len(expected) and all(
        one == other or _equal(one, other, near, exact) for one, other in zip(printed, expected, strict=True)
    )


def _equal(one: str, other: str, near: Near, exact: bool) -> bool:
    if not (_NUMBER.fullmatch(one) and _NUMBER.fullmatch(other)):
        return False
    if Decimal(one) == Decimal(other):  # floats of different integers may be equal
        return True
    if exact and _WHOLE.fullmatch(one) and _WHOLE.fullmatch(other):
        return False
    a = float(one)
    b = float(other)
    return math.isfinite(b) and near(a, b)


JUDGES: dict[str, Callable[[str, str], bool]] = {
    "tokens": _tokens,
    "apps": _apps,
    "codecontests": _codecontests,
    "livecodebench": _livecodebench,
}
