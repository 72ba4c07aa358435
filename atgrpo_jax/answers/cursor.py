"""Reads tokens one after the other."""

from atgrpo_jax.answers.parts import Unreadable
from atgrpo_jax.answers.tokens import END, Token


class Cursor:
    """A place in a list of tokens."""

    def __init__(self, tokens: list[Token]):
        self.tokens = tokens
        self.position = 0

    @property
    def next(self) -> Token:
        return self.tokens[self.position] if self.position < len(self.tokens) else END

    def take(self) -> Token:
        token = self.next
        self.position += 1
        return token

    def took(self, *texts: str) -> bool:
        if self.next.text in texts and self.next.kind in ("sign", "command", "row"):
            self.position += 1
            return True
        return False

    def need(self, *texts: str) -> None:
        if not self.took(*texts):
            raise Unreadable(f"expected {texts}, found {self.next.text!r}")
