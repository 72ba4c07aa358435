"""Raises one error wherever a run reads or writes a number that is not finite.

``arrays/finite_trees.py`` checks arrays on devices and raises the same error.
"""

import math
from collections.abc import Mapping
from typing import Any

from atgrpo_jax.common.errors import RunError
from atgrpo_jax.common.types import Sample

# What the error tells a person. It is true only if nothing is pushed, recorded or saved between the
# computation of a number and its check.
UNTOUCHED = "nothing of this step was recorded or saved, and the last checkpoint is as it was"
LOWER = f"{UNTOUCHED}; a lower learning_rate or clip_norm may help"


class NotFinite(RunError):
    """Raised for a number that is infinite or NaN. It says where, which one, and what to do."""

    def __init__(self, where: str, what: str, do: str):
        super().__init__(f"{where}: {what}; {do}")


def check_finite(values: Mapping[str, Any], where: str, do: str) -> None:
    """Raises NotFinite for the first of the named numbers that is not finite."""
    for name, value in values.items():
        if not math.isfinite(value):
            raise NotFinite(where, f"{name} is {float(value)}, which is not a finite number", do)


def check_logprobs(sample: Sample, where: str) -> None:
    """Raises NotFinite, naming the first token whose logprob is not finite."""
    for logprobs in (sample.logprobs, sample.drawn_logprobs or ()):
        if not all(map(math.isfinite, logprobs)):
            named = {f"the logprob of token {i}": logprob for i, logprob in enumerate(logprobs)}
            check_finite(named, where, "the policy's own weights, or the engine's computing, overflow")
