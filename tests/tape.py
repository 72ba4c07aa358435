"""Derivatives of a computation in NumPy, float64: a tape of single operations (``Node``), for the oracle.

Tests compare them with central differences.
"""

from collections.abc import Callable, Sequence

import numpy as np


class Node:
    """A value, and how its derivative is handed to what it was made from."""

    def __init__(self, value, *sources: tuple["Node", Callable[[np.ndarray], np.ndarray]]):
        self.value, self.sources = np.asarray(value, np.float64), sources

    def __add__(self, other):
        other = node(other)
        return Node(self.value + other.value, (self, lambda g: g), (other, lambda g: g))

    def __mul__(self, other):
        other = node(other)
        return Node(
            self.value * other.value, (self, lambda g: g * other.value), (other, lambda g: g * self.value)
        )

    def __neg__(self):
        return self * -1.0

    def __sub__(self, other):
        return self + -node(other)

    def __pow__(self, n):
        return Node(self.value**n, (self, lambda g: g * n * self.value ** (n - 1)))

    def __matmul__(self, other):
        def flip(x):
            return np.swapaxes(x, -1, -2)

        return Node(
            self.value @ other.value,
            (self, lambda g: g @ flip(other.value)),
            (other, lambda g: flip(self.value) @ g),
        )

    def __getitem__(self, index):
        def spread(g):
            full = np.zeros_like(self.value)
            np.add.at(full, index, g)
            return full

        return Node(self.value[index], (self, spread))

    def exp(self):
        value = np.exp(self.value)
        return Node(value, (self, lambda g: g * value))

    def log(self):
        return Node(np.log(self.value), (self, lambda g: g / self.value))

    def sum(self, axis=None):
        def spread(g):
            return np.broadcast_to(g if axis is None else np.expand_dims(g, axis), self.value.shape)

        return Node(self.value.sum(axis), (self, spread))

    def reshape(self, *shape):
        return Node(self.value.reshape(shape), (self, lambda g: g.reshape(self.value.shape)))

    def swap(self, one, other):
        return Node(self.value.swapaxes(one, other), (self, lambda g: g.swapaxes(one, other)))


def node(value) -> Node:
    return value if isinstance(value, Node) else Node(value)


def least(one: Node, other: Node, largest: bool = False) -> Node:
    """The smaller, or larger, of each pair."""
    first = one.value > other.value if largest else one.value < other.value
    value = np.where(first, one.value, other.value)
    return Node(value, (one, lambda g: g * first), (other, lambda g: g * ~first))


def joined(parts: Sequence[Node], axis: int) -> Node:
    ends = np.cumsum([p.value.shape[axis] for p in parts])

    def part(i):
        return lambda g: np.split(g, ends[:-1], axis)[i]

    return Node(np.concatenate([p.value for p in parts], axis), *((p, part(i)) for i, p in enumerate(parts)))


def gradients(value: Node, of: Sequence[Node]) -> list[np.ndarray]:
    order: list[Node] = []
    seen: set[int] = set()
    waiting = [(value, False)]
    while waiting:
        here, visited = waiting.pop()
        if visited:
            order.append(here)
        elif id(here) not in seen:
            seen.add(id(here))
            waiting += [(here, True), *((source, False) for source, _ in here.sources)]
    found = {id(value): np.ones_like(value.value)}
    for here in reversed(order):
        g = found.get(id(here))
        if g is None:
            continue
        for source, pull in here.sources:
            given = pull(g)
            extra = given.ndim - source.value.ndim  # what was broadcast is added up
            given = given.sum(tuple(range(extra))) if extra else given
            thin = tuple(i for i, n in enumerate(source.value.shape) if n == 1 and given.shape[i] > 1)
            given = given.sum(thin, keepdims=True) if thin else given
            found[id(source)] = found.get(id(source), 0.0) + given
    return [found.get(id(x), np.zeros_like(x.value)) for x in of]
