"""Numbers of a run must be finite: one wording for wherever it takes them in, and before it writes them down.

``arrays/finite_trees.py`` looks at arrays on devices and says it the same way.
"""

import math
from collections.abc import Mapping
from typing import Any

from atgrpo_jax.common.errors import RunError

# What to do. Nothing may be pushed, recorded or saved between a number's birth and its check.
UNTOUCHED = "nothing of this step was recorded or saved, and the last checkpoint is as it was"
LOWER = f"{UNTOUCHED}; a lower learning_rate or clip_norm may help"


class NotFinite(RunError):
    """A number is infinite or no number: where, which one, and what to do."""

    def __init__(self, where: str, what: str, do: str):
        super().__init__(f"{where}: {what}; {do}")


def check_finite(values: Mapping[str, Any], where: str, do: str) -> None:
    """Raises NotFinite for the first of the named numbers that is not finite."""
    for name, value in values.items():
        if not math.isfinite(value):
            raise NotFinite(where, f"{name} is {float(value)}, which is not a finite number", do)
