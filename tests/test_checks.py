import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal

import pytest

from atgrpo_jax.common.checks import check_types


@dataclasses.dataclass(frozen=True)
class Everything:
    number: int = 1
    real: float = 1.0
    maybe: float | None = None
    word: Literal["x", "y"] = "x"
    names: tuple[str, ...] = ()
    pair: tuple[int, str] = (1, "a")
    table: Mapping[str, int] = dataclasses.field(default_factory=dict)
    rates: Mapping[str, float] = dataclasses.field(default_factory=dict)
    either: Literal["x"] | Mapping[str, str] = "x"
    free: Any = None

    def __post_init__(self):
        check_types(self)


@pytest.mark.parametrize(
    "good",
    [
        {"real": 1},
        {"maybe": 2},
        {"names": ("a", "b")},
        {"names": ["a"]},
        {"table": {"a": 1}},
        {"either": {"a": "b"}},
        {"free": object()},
    ],
)
def test_accepts(good):
    Everything(**good)


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("number", "three", "expected int"),
        ("number", 1.0, "expected int"),
        ("number", True, "expected int"),
        ("real", "1", "expected float"),
        ("real", False, "expected float"),
        ("real", math.inf, "must be a finite number"),
        ("real", math.nan, "must be a finite number"),
        ("real", 10**400, "must be a finite number"),
        ("maybe", -math.inf, "must be a finite number"),
        ("rates", {"a": math.nan}, "expected collections.abc.Mapping"),
        ("maybe", "x", r"expected float \| None"),
        ("word", "z", "expected one of 'x', 'y'"),
        ("names", ("a", 1), r"expected tuple\[str, ...\]"),
        ("names", "ab", "expected tuple"),
        ("pair", (1, "a", 2), "expected tuple"),
        ("table", {"a": "b"}, "expected collections.abc.Mapping"),
        ("either", "y", "expected"),
    ],
)
def test_refuses_naming_class_field_and_value(field, value, says):
    with pytest.raises(ValueError, match=rf"^Everything\.{field} = .*: {says}"):
        Everything(**{field: value})
