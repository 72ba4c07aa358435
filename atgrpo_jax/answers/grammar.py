"""Parses answers in LaTeX, Python and sympy, since any role may write in any of them."""

import sympy
from sympy import Rational, Symbol

from atgrpo_jax.answers.brackets import CLOSE
from atgrpo_jax.answers.factors import OVER, Factors
from atgrpo_jax.answers.names import JOINS, RELATIONS
from atgrpo_jax.answers.parts import Items, Joined, Relation, Unreadable, scalar
from atgrpo_jax.answers.tokens import END, Token

_TIMES = ("*", "\\cdot", "\\times")


class Grammar(Factors):
    """A recursive descent parser of tokens. Raises Unreadable, or any error that sympy raises.

    Lists hold relations, these hold joins, sums, products and, at last, factors.
    """

    def __init__(self, tokens: list[Token]):
        super().__init__(tokens)
        self.either = False  # whether "or" is between the items

    def whole(self):
        items, _ = self.items(both=True)
        if self.next is not END:
            raise Unreadable(f"what follows {self.next.text!r}")
        if not items:
            raise Unreadable("nothing")
        unequal = [isinstance(item, Relation) and set(item.signs).isdisjoint("=≠") for item in items]
        if len(items) > 1 and all(unequal):
            return Joined("∪" if self.either else "∩", tuple(items))
        return items[0] if len(items) == 1 else Items("", tuple(items), "")

    def items(self, both: bool = False) -> tuple[list, bool]:
        """Reads items, and whether they have commas. With ``both``, an item with \\pm is two."""
        items = []
        parted = False
        while self.next is not END and self.next.text not in CLOSE:
            start = self.position
            outside = self.signed
            self.signed = False
            items.append(self.relation())
            if self.signed and both:
                end = self.position
                self.position = start
                self.sign = -1
                items.append(self.relation())
                assert self.position == end
                self.sign = 1
                self.signed = False
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
        sides = [left]
        signs = []
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

    def product(self):
        if self.next.text in ("+", "-", "\\pm", "\\mp"):
            return self.direction() * scalar(self.product())
        result = self.mixed()
        if result is None:
            result = self.power()
        while True:
            if self.took(*_TIMES):
                result = scalar(result) * scalar(self.signed_power())
            elif self.took(*OVER):
                result = scalar(result) / scalar(self.signed_power())
            elif self.beside(result):
                if self.next.kind == "number" and self.tokens[self.position - 1].kind == "number":
                    raise Unreadable("two numbers side by side")
                result = scalar(result) * scalar(self.power())
            else:
                return result

    def mixed(self):
        """Reads a mixed number, ``1 1/2`` or ``1\\frac12``; returns None if there is none."""
        start = self.position
        whole = self.take()
        if whole.kind == "number" and whole.text.isdigit():
            if self.next.text == "\\frac":
                fraction = self.power()
                if fraction.is_Rational and 0 < fraction < 1 and not self.took("^", "**"):
                    return sympy.Integer(whole.text) + fraction
            elif [t.kind for t in self.tokens[self.position : self.position + 3]] == [
                "number",
                "sign",
                "number",
            ]:
                top, over, bottom = (self.take() for _ in range(3))
                if (
                    over.text == "/"
                    and top.spaced
                    and (top.text + bottom.text).isdigit()
                    and int(top.text) < int(bottom.text)
                ):
                    return sympy.Integer(whole.text) + Rational(int(top.text), int(bottom.text))
        self.position = start
        return None
