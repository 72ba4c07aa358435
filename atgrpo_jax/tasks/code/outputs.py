"""Whether a program has printed what it should: by our own rule, or by those of three judges of contests.

Each takes time linear in the texts, whatever is in them. docs/data.md says where the judges' own rules are
others.
"""

import itertools
import math
import re
from collections.abc import Callable, Sequence
from decimal import Decimal

# Possessive: a text that is no number is refused without a second look at any digit.
_NUMBER = re.compile(r"[-+]?(?:[0-9]++(?:\.[0-9]*+)?|\.[0-9]++)(?:[eE][-+]?[0-9]{1,4})?")
_WHOLE = re.compile(r"[-+]?[0-9]+")
_CODECONTESTS = 1e-5  # absolute
_RELATIVE, _ABSOLUTE = 1e-5, 1e-8  # the defaults of NumPy's ``allclose``, which APPS calls
_DECIMALS = 3  # to which APPS rounds numbers that stand side by side

Near = Callable[[float, float], bool]


def same_output(
    printed: str, expected: str, tolerance: float = 0.0, ignore_case: bool = False, judge: str = "tokens"
) -> bool:
    """Whether one of the ``JUDGES`` takes what is printed for what is expected.

    ``tolerance`` (of numbers, absolute or relative) and ``ignore_case`` are for our own rule, "tokens".
    """
    if judge == "tokens":
        return _tokens(printed, expected, tolerance, ignore_case)
    return JUDGES[judge](printed, expected)


def _tokens(printed: str, expected: str, tolerance: float = 0.0, ignore_case: bool = False) -> bool:
    """Token by token, whatever the white space; numbers by their value, or within the tolerance."""
    if ignore_case:
        printed, expected = printed.lower(), expected.lower()

    def near(a: float, b: float) -> bool:
        return tolerance > 0 and abs(a - b) <= tolerance * max(1.0, abs(b))

    return _same(printed.split(), expected.split(), near)


def _codecontests(printed: str, expected: str) -> bool:
    """Token by token, in any case of ASCII's letters; integers by their value, others within 1e-5."""

    def tokens(text: str) -> list[str]:
        found = text.encode(errors="surrogatepass").lower().split()
        return [token.decode(errors="surrogatepass") for token in found]

    return _same(tokens(printed), tokens(expected), lambda a, b: abs(a - b) < _CODECONTESTS, exact=True)


def _apps(printed: str, expected: str) -> bool:
    """Line by line, empty ones aside, whatever the white space within. Where all is numbers, integers by
    their value, and others nearly: as ``allclose`` says if each has a line of its own, or rounded."""
    one, other = _rows(printed), _rows(expected)
    if list(map(len, one)) != list(map(len, other)):
        return False
    if one == other:
        return True
    tokens, wanted = list(itertools.chain(*one)), list(itertools.chain(*other))
    if not all(map(_NUMBER.fullmatch, tokens + wanted)):
        return False
    alone = len(wanted) == len(other)

    def near(a: float, b: float) -> bool:
        close = alone and abs(a - b) <= _ABSOLUTE + _RELATIVE * abs(b)
        return close or round(a, _DECIMALS) == round(b, _DECIMALS)

    return _same(tokens, wanted, near, exact=True)


def _livecodebench(printed: str, expected: str) -> bool:
    """Line by line, without the space around each; lines that differ are equal as lists of decimals."""
    one, other = _lines(printed.strip()), _lines(expected.strip())
    return len(one) == len(other) and all(map(_same_line, one, other))


def _same_line(one: str, other: str) -> bool:
    if one == other:
        return True
    try:
        return list(map(Decimal, one.split())) == list(map(Decimal, other.split()))
    except ArithmeticError:  # no decimal, or one that equals nothing
        return False


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.split("\n")]


def _rows(text: str) -> list[list[str]]:
    """The tokens of each line that has any."""
    return [line.split() for line in _lines(text) if line]


def _same(printed: Sequence[str], expected: Sequence[str], near: Near, exact: bool = False) -> bool:
    """Of tokens: the same text, or numbers of the same value, or ``near``; but not two integers if those are
    to be ``exact``: the judges compare floats, so that large ones are right with wrong last digits."""
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
    a, b = float(one), float(other)
    return math.isfinite(b) and near(a, b)


JUDGES: dict[str, Callable[[str, str], bool]] = {
    "tokens": _tokens,
    "apps": _apps,
    "codecontests": _codecontests,
    "livecodebench": _livecodebench,
}
