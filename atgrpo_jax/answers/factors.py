"""Reads the factors of a product: numbers, names, functions, brackets, and their powers."""

from fractions import Fraction

import sympy
from sympy import I, Rational, Symbol

from atgrpo_jax.answers.brackets import OPEN, PAIRED, Brackets
from atgrpo_jax.answers.names import (
    ANGLES,
    CONSTANTS,
    DEGREE,
    FIELDS,
    FUNCTIONS,
    INVERSES,
    JOIN_NAMES,
    LISTS,
    PERCENT,
    RELATION_NAMES,
    power,
    root_of,
)
from atgrpo_jax.answers.parts import Joined, Relation, Unreadable, Word, interval, matrix_of, scalar
from atgrpo_jax.answers.spelling import GREEK
from atgrpo_jax.answers.tokens import Token

OVER = ("/", "\\div", "//")
_UNKNOWN = "fgFGPQ"  # names of functions in problems; with other names, n(n+1) is a product
_STACKED = ("frac", "binom", "dbinom", "tbinom")


class Factors(Brackets):
    """Reads factors. Which sums and lists are in their brackets, a subclass reads."""

    def __init__(self, tokens: list[Token]):
        super().__init__(tokens)
        self.sign = 1  # how \\pm is read
        self.signed = False  # whether there was one

    def beside(self, left) -> bool:
        """Returns whether another factor follows without a sign."""
        token = self.next
        if not isinstance(left, (sympy.Expr, sympy.MatrixBase)):
            return False
        if token.kind in ("number", "name", "matrix") or token.text in ("(", "{", "["):
            return True
        if token.text in PAIRED and token.text != "\\vert":
            return token.text != "|" or not self.bars
        return token.kind == "command" and self.known(token)

    @staticmethod
    def known(token: Token) -> bool:
        name = token.text[1:]
        return name in (*_STACKED, *FUNCTIONS, *CONSTANTS) or name.lower() in GREEK

    def signed_power(self):
        if self.next.text in ("+", "-"):
            return self.direction() * scalar(self.signed_power())
        return self.power()

    def direction(self) -> int:
        sign = self.take().text
        self.signed |= sign in ("\\pm", "\\mp")
        return {"+": 1, "-": -1, "\\pm": self.sign, "\\mp": -self.sign}[sign]

    def power(self):
        base = self.postfix()
        if self.took("^", "**"):
            return power(scalar(base), scalar(self.signed_power()))
        return base

    def postfix(self):
        value = self.atom()
        while True:
            if self.next.text == "!" and self.next.kind == "sign":
                self.take()
                value = FUNCTIONS["factorial"](scalar(value))
            elif self.took("%", "\\%"):
                value = scalar(value) * PERCENT
            else:
                return value

    def atom(self):
        token = self.take()
        if token.text in OPEN:
            return self.bracket(token.text)
        if token.text in PAIRED and token.kind in ("sign", "command"):
            return self.between(token.text)
        if token.kind == "number":
            return self.number(token.text)
        if token.kind == "matrix":
            return self.matrix()
        if token.kind == "field":
            return CONSTANTS[FIELDS[token.text]]
        if token.kind == "word":
            return self.symbol(token.text)
        if token.kind == "name":
            return self.named(token.text)
        if token.text in ("\\ldots", "\\dots", "\\cdots", "..."):
            return Word("...")
        if token.kind == "command":
            return self.command(token.text[1:])
        raise Unreadable(f"{token.text!r}")

    def number(self, text: str) -> sympy.Expr:
        if self.next.text == "_":
            raise Unreadable("a numeral in a sum")
        if self.next.text == "j" and not self.next.spaced:
            self.take()
            return self.number(text) * I
        found = Fraction(text)
        return Rational(found.numerator, found.denominator)

    def command(self, name: str):
        if name in _STACKED:
            one = scalar(self.argument())
            other = scalar(self.argument())
            return one / other if name == "frac" else FUNCTIONS["binom"](one, other)
        if name in ("sqrt", "cbrt"):
            return self.root(name)
        if name in FUNCTIONS or name in CONSTANTS or name.lower() in GREEK:
            return self.named(name)
        raise Unreadable(f"\\{name}")

    def argument(self):
        """Reads a command's argument: a group, or one digit, letter or command, as TeX takes it."""
        token = self.next
        if token.text in ("{", "("):
            return self.atom()
        if token.kind == "number" and token.text.isdigit():
            self.tokens[self.position : self.position + 1] = [Token("number", digit) for digit in token.text]
            return self.number(self.take().text)
        if token.kind == "name":
            self.tokens[self.position : self.position + 1] = [Token("name", letter) for letter in token.text]
        return self.atom()

    def root(self, name: str):
        degree = sympy.Integer(3 if name == "cbrt" else 2)
        if self.took("["):
            degree = scalar(self.sum())
            self.need("]")
        value = scalar(self.atom())
        return sympy.sqrt(value) if degree == 2 else root_of(value, degree)

    def named(self, name: str):
        called = self.next.text == "(" and self.next.kind == "sign"
        if name in LISTS and called:
            return self.listed(name)
        if name in RELATION_NAMES and called:
            return Relation(tuple(self.arguments()), (RELATION_NAMES[name],))
        if name in JOIN_NAMES and called:
            parts = self.arguments()
            return parts[0] if len(parts) == 1 else Joined(JOIN_NAMES[name], tuple(parts))
        if name.startswith("Interval") and called:
            return interval(name.partition(".")[2], self.arguments())
        if name in ("Matrix", "ImmutableMatrix") and called:
            return matrix_of(self.arguments()[-1])
        indexed = name in ("e", "E") and self.next.text == "_"
        if name in _UNKNOWN and called and not self.next.spaced:
            return sympy.Function(name)(*map(scalar, self.arguments()))
        if name in FUNCTIONS and (called or name not in ("re", "im", "S", "arg", "det")):
            return self.applied(name)
        return self.symbol(name) if indexed else CONSTANTS[name] if name in CONSTANTS else self.symbol(name)

    def symbol(self, name: str) -> Symbol:
        """Reads a symbol with its index: ``a_{n+1}``, and ``x1`` for ``x_1``."""
        if self.next.kind == "number" and not self.next.spaced and len(name) == 1 and name.isalpha():
            return Symbol(f"{name}_{self.take().text}")
        if self.took("_"):
            start = self.position
            if self.next.text == "{":
                self.bracket(self.take().text)
            else:
                self.take()
            index = "".join(token.text for token in self.tokens[start : self.position])
            return Symbol(f"{name}_{index.strip('{}')}")
        return Symbol(name)

    def applied(self, name: str):
        """Reads a function with its arguments in brackets, or with the product that follows."""
        base = exponent = None
        for _ in range(2):
            if self.took("_"):
                base = scalar(self.postfix())
            elif self.took("^", "**"):
                exponent = scalar(self.signed_power())
        if exponent == -1 and name in INVERSES:
            name = INVERSES[name]
            exponent = None
        given = self.arguments() if self.next.text == "(" else [self.operand(name)]
        given = [*map(scalar, given), *([base] if base is not None else [])]
        if name in ANGLES:
            given = [part.subs(DEGREE, sympy.pi / 180) for part in given]
        value = FUNCTIONS[name](*given)
        return value if exponent is None else power(value, exponent)

    def operand(self, function: str):
        """Reads a function's product without brackets; after sin etc. a number may divide it."""
        value = scalar(self.signed_power())
        while self.beside(value) and self.next.text[self.next.kind == "command" :] not in FUNCTIONS:
            value *= scalar(self.power())
        after = self.tokens[self.position + 1 : self.position + 2]
        if function in ANGLES and after and after[0].kind == "number" and self.took(*OVER):
            value /= scalar(self.power())
        return value
