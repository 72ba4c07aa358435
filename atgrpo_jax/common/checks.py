"""Checks the fields of config dataclasses. Errors name the class, the field and the value."""

import dataclasses
import math
import re
import types
import typing
from collections.abc import Mapping
from typing import Any


def require(config: Any, field: str, ok: bool, rule: str) -> None:
    """Raises ValueError with the message ``Class.field = value: rule`` unless ``ok``."""
    if not ok:
        value = getattr(config, field)
        raise ValueError(f"{type(config).__name__}.{field} = {value!r}: {rule}")


def check_types(config: Any) -> None:
    """Raises ValueError for the first field whose value does not fit its annotation.

    gin checks no types, so every config dataclass calls this from ``__post_init__``. An int fits a
    float field. A bool does not fit an int or float field. Numbers must be finite.
    """
    hints = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        hint = hints[field.name]
        number = isinstance(value, (int, float))
        require(config, field.name, not number or _finite(value), "must be a finite number")
        require(config, field.name, _fits(value, hint), expected(hint))


def _finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer larger than any float
        return False


def _fits(value: Any, hint: Any) -> bool:
    origin = typing.get_origin(hint)
    args = typing.get_args(hint)
    if hint is Any:
        return True
    if origin is typing.Literal:
        return value in args
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, arg) for arg in args)
    if origin is tuple:
        if not isinstance(value, (tuple, list)):
            return False
        if len(args) == 2 and args[1] is Ellipsis:
            return all(_fits(item, args[0]) for item in value)
        return len(value) == len(args) and all(map(_fits, value, args))
    if origin is not None and isinstance(origin, type) and issubclass(origin, Mapping):
        return isinstance(value, Mapping) and all(
            _fits(k, args[0]) and _fits(v, args[1]) for k, v in value.items()
        )
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and _finite(value)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint is None:
        return value is None
    return isinstance(value, origin or hint)


def expected(hint: Any) -> str:
    """Returns what a field of this type may be, in words."""
    if typing.get_origin(hint) is typing.Literal:
        return "expected one of " + ", ".join(map(repr, typing.get_args(hint)))
    name = str(hint)
    if isinstance(hint, type) and not typing.get_args(hint):
        module = "" if hint.__module__ == "builtins" else f"{hint.__module__}."
        name = module + hint.__qualname__
    name = re.sub(r"\batgrpo_jax\.(?:\w+\.)*(?=\w+\.\w)", "", name)  # gin's form: file and class
    return f"expected {name.replace('typing.', '')}"
