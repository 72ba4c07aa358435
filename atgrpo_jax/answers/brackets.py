"""Reads what is in brackets: groups, sets, intervals, arguments, absolute values, matrices."""

from abc import ABC, abstractmethod

import sympy

from atgrpo_jax.answers.cursor import Cursor
from atgrpo_jax.answers.names import DEEPEST, LISTS
from atgrpo_jax.answers.parts import Items, Unreadable, bracketed, scalar
from atgrpo_jax.answers.tokens import Token

OPEN = {"(": "(", "[": "[", "{": "{", "\\{": "{", "\\lbrace": "{", "\\langle": "<", "\\lbrack": "["}
CLOSE = {")": ")", "]": "]", "}": "}", "\\}": "}", "\\rbrace": "}", "\\rangle": ">", "\\rbrack": "]"}
PAIRED = {"|": "|", "\\vert": "\\vert", "\\lvert": "\\rvert", "\\lfloor": "\\rfloor", "\\lceil": "\\rceil"}
_ROUNDED = {"\\lfloor": sympy.floor, "\\lceil": sympy.ceiling}


class Brackets(Cursor, ABC):
    """Reads brackets. A subclass reads what is in them."""

    def __init__(self, tokens: list[Token]):
        super().__init__(tokens)
        self.depth = 0
        self.bars = 0  # brackets |...| that are open
        self.cells = 0  # matrices that are open

    @abstractmethod
    def items(self, both: bool = False) -> tuple[list, bool]:
        """Reads a list; see ``Grammar.items``."""

    @abstractmethod
    def sum(self):
        """Reads products with signs between them."""

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
        bars = self.bars
        cells = self.cells
        self.bars = 0
        self.cells = 0
        items, parted = self.items(both=OPEN[opened] == "{")
        self.bars = bars
        self.cells = cells
        closed = self.take().text
        if closed not in CLOSE or (opened in "{" and closed != "}"):
            raise Unreadable("a bracket that is not closed")
        self.depth -= 1
        return bracketed(OPEN[opened], items, parted, CLOSE[closed], group=opened == "{")

    def between(self, opened: str):
        """Reads |x|, and floor and ceiling brackets."""
        self.deeper()
        self.bars += opened == "|"
        value = scalar(self.sum())
        self.need(PAIRED[opened])
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
