"""Parses answers in LaTeX, Python and sympy, since any role may write in any of them."""

from fractions import Fraction

import sympy
from sympy import I, Rational, Symbol

from atgrpo_jax.answers.names import (
    ANGLES,
    CONSTANTS,
    DEEPEST,
    DEGREE,
    FIELDS,
    FUNCTIONS,
    INVERSES,
    JOIN_NAMES,
    JOINS,
    LISTS,
    PERCENT,
    RELATION_NAMES,
    RELATIONS,
    power,
    root_of,
)
from atgrpo_jax.answers.parts import (
    Items,
    Joined,
    Relation,
    Unreadable,
    Word,
    bracketed,
    interval,
    matrix_of,
    scalar,
)
from atgrpo_jax.answers.spelling import GREEK
from atgrpo_jax.answers.tokens import END, Token

_TIMES, _OVER = ("*", "\\cdot", "\\times"), ("/", "\\div", "//")
_OPEN = {"(": "(", "[": "[", "{": "{", "\\{": "{", "\\lbrace": "{", "\\langle": "<", "\\lbrack": "["}
_CLOSE = {")": ")", "]": "]", "}": "}", "\\}": "}", "\\rbrace": "}", "\\rangle": ">", "\\rbrack": "]"}
_PAIRED = {"|": "|", "\\vert": "\\vert", "\\lvert": "\\rvert", "\\lfloor": "\\rfloor", "\\lceil": "\\rceil"}
_UNKNOWN = "fgFGPQ"  # names of functions in problems; with other names, n(n+1) is a product
_STACKED = ("frac", "binom", "dbinom", "tbinom")
_ROUNDED = {"\\lfloor": sympy.floor, "\\lceil": sympy.ceiling}


class Grammar:
    """A recursive descent parser of tokens. Raises Unreadable, or any error that sympy raises."""

    def __init__(self, tokens: list[Token]):
        self.tokens, self.place = tokens, 0
        self.sign, self.signed = 1, False  # how \\pm is read; whether there was one
        self.depth = self.bars = self.cells = 0
        self.either = False  # whether "or" is between the items

    @property
    def next(self) -> Token:
        return self.tokens[self.place] if self.place < len(self.tokens) else END

    def take(self) -> Token:
        token = self.next
        self.place += 1
        return token

    def took(self, *texts: str) -> bool:
        if self.next.text in texts and self.next.kind in ("sign", "command", "row"):
            self.place += 1
            return True
        return False

    def need(self, *texts: str) -> None:
        if not self.took(*texts):
            raise Unreadable(f"expected {texts}, found {self.next.text!r}")

    def whole(self):
        items, _ = self.items(both=True)
        if self.next is not END:
            raise Unreadable(f"what follows {self.next.text!r}")
        unequal = [isinstance(item, Relation) and set(item.signs).isdisjoint("=≠") for item in items]
        if len(items) > 1 and all(unequal):
            return Joined("∪" if self.either else "∩", tuple(items))
        return items[0] if len(items) == 1 else Items("", tuple(items), "")

    def items(self, both: bool = False) -> tuple[list, bool]:
        """Reads items, and whether they have commas. With ``both``, an item with \\pm is two."""
        items, parted = [], False
        while self.next is not END and self.next.text not in _CLOSE:
            start, outside = self.place, self.signed
            self.signed = False
            items.append(self.relation())
            if self.signed and both:
                end, self.place, self.sign = self.place, start, -1
                items.append(self.relation())
                assert self.place == end
                self.sign, self.signed = 1, False
            self.signed |= outside
            if self.next.text not in (",", ";"):
                break
            parted = True
            self.either |= self.next.text == ";"
            while self.took(",", ";"):  # "1, and 2"
                pass
        return items, parted

    def relation(self):
        left = self.join()
        if self.took("\\in"):
            if not isinstance(left, (Symbol, Items)):
                raise Unreadable("only a symbol is in a set")
            return self.join()
        sides, signs = [left], []
        while self.next.text in RELATIONS and self.next.kind in ("sign", "command"):
            signs.append(RELATIONS[self.take().text])
            sides.append(self.join())
        if signs:
            return Relation(tuple(sides), tuple(signs))
        while self.took(":"):
            sides.append(self.join())
        return Items(":", tuple(sides), ":") if len(sides) > 1 else left

    def join(self):
        left = self.sum()
        while self.next.text in JOINS and not (
            (self.bars and self.next.text == "|") or (self.cells and self.next.text == "&")
        ):
            left = Joined(JOINS[self.take().text], (left, self.sum()))
        return left

    def sum(self):
        total = self.product()
        while self.next.text in ("+", "-", "\\pm", "\\mp"):
            sign = self.direction()
            total = scalar(total) + sign * scalar(self.product())
        return total

    def direction(self) -> int:
        sign = self.take().text
        self.signed |= sign in ("\\pm", "\\mp")
        return {"+": 1, "-": -1, "\\pm": self.sign, "\\mp": -self.sign}[sign]

    def product(self):
        if self.next.text in ("+", "-", "\\pm", "\\mp"):
            return self.direction() * scalar(self.product())
        result = self.mixed()
        if result is None:
            result = self.power()
        while True:
            if self.took(*_TIMES):
                result = scalar(result) * scalar(self.signed_power())
            elif self.took(*_OVER):
                result = scalar(result) / scalar(self.signed_power())
            elif self.beside(result):
                if self.next.kind == "number" and self.tokens[self.place - 1].kind == "number":
                    raise Unreadable("two numbers side by side")
                result = scalar(result) * scalar(self.power())
            else:
                return result

    def mixed(self):
        """Reads a mixed number, ``1 1/2`` or ``1\\frac12``; returns None if there is none."""
        start = self.place
        whole = self.take()
        if whole.kind == "number" and whole.text.isdigit():
            if self.next.text == "\\frac":
                fraction = self.power()
                if fraction.is_Rational and 0 < fraction < 1 and not self.took("^", "**"):
                    return sympy.Integer(whole.text) + fraction
            elif [t.kind for t in self.tokens[self.place : self.place + 3]] == ["number", "sign", "number"]:
                top, over, bottom = (self.take() for _ in range(3))
                if (
                    over.text == "/"
                    and top.spaced
                    and (top.text + bottom.text).isdigit()
                    and int(top.text) < int(bottom.text)
                ):
                    return sympy.Integer(whole.text) + Rational(int(top.text), int(bottom.text))
        self.place = start
        return None

    def beside(self, left) -> bool:
        """Returns whether another factor follows without a sign."""
        token = self.next
        if not isinstance(left, (sympy.Expr, sympy.MatrixBase)):
            return False
        if token.kind in ("number", "name", "matrix") or token.text in ("(", "{", "["):
            return True
        if token.text in _PAIRED and token.text != "\\vert":
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
        if token.text in _OPEN:
            return self.bracket(token.text)
        if token.text in _PAIRED and token.kind in ("sign", "command"):
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
            one, other = scalar(self.argument()), scalar(self.argument())
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
            self.tokens[self.place : self.place + 1] = [Token("number", digit) for digit in token.text]
            return self.number(self.take().text)
        if token.kind == "name":
            self.tokens[self.place : self.place + 1] = [Token("name", letter) for letter in token.text]
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
            start = self.place
            if self.next.text == "{":
                self.bracket(self.take().text)
            else:
                self.take()
            index = "".join(token.text for token in self.tokens[start : self.place])
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
            name, exponent = INVERSES[name], None
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
        after = self.tokens[self.place + 1 : self.place + 2]
        if function in ANGLES and after and after[0].kind == "number" and self.took(*_OVER):
            value /= scalar(self.power())
        return value

    def arguments(self) -> list:
        self.need("(")
        self.deeper()
        items, _ = self.items()
        self.need(")")
        self.depth -= 1
        return items

    def deeper(self) -> None:
        self.depth += 1
        if self.depth > DEEPEST:
            raise Unreadable("brackets in brackets")

    def bracket(self, opened: str):
        self.deeper()
        bars, cells, self.bars, self.cells = self.bars, self.cells, 0, 0
        items, parted = self.items(both=_OPEN[opened] == "{")
        self.bars, self.cells = bars, cells
        closed = self.take().text
        if closed not in _CLOSE or (opened in "{" and closed != "}"):
            raise Unreadable("a bracket that is not closed")
        self.depth -= 1
        return bracketed(_OPEN[opened], items, parted, _CLOSE[closed], group=opened == "{")

    def between(self, opened: str):
        """Reads |x|, and floor and ceiling brackets."""
        self.deeper()
        self.bars += opened == "|"
        value = scalar(self.sum())
        self.need(_PAIRED[opened])
        self.bars -= opened == "|"
        self.depth -= 1
        return _ROUNDED.get(opened, sympy.Abs)(value)

    def matrix(self) -> sympy.ImmutableMatrix:
        self.deeper()
        self.cells += 1
        rows: list[list] = [[]]
        while self.next.kind != "end":
            if self.next.kind == "row":
                self.take()
                rows.append([])
                continue
            rows[-1].append(scalar(self.sum()))
            if self.next.kind not in ("end", "row"):
                self.need("&")
        self.take()
        self.cells -= 1
        self.depth -= 1
        return sympy.ImmutableMatrix([row for row in rows if row])

    def listed(self, name: str):
        opened, closed = tuple(LISTS[name])
        items = self.arguments()
        if len(items) == 1 and name != "FiniteSet" and items[0] == sympy.EmptySet:
            return sympy.EmptySet
        if len(items) == 1 and name != "FiniteSet" and isinstance(items[0], Items):
            return Items(opened, items[0].items, closed)
        return Items(opened, tuple(items), closed) if items else sympy.EmptySet
