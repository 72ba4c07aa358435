"""Says what rounding takes from weights that training moved a little."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def rounding(before: Any, after: Any, dtype: str) -> str:
    """Returns how many numbers training changed, and how many still are once rounded to ``dtype``, in words.

    Both trees have the same shapes. They are compared leaf by leaf, on the host.
    """
    total = exact = written = lost = 0
    for own, other in zip(jax.tree.leaves(after), jax.tree.leaves(before), strict=True):
        now, then = np.asarray(jax.device_get(own)), np.asarray(other)
        with np.errstate(over="ignore"):  # what is too large for it was refused before
            rounded = now.astype(jnp.dtype(dtype))
            written += int((rounded != then.astype(jnp.dtype(dtype))).sum())
        total += now.size
        exact += int((now != then).sum())
        lost += int((rounded.astype(now.dtype) != now).sum())
    line = f"{exact / total:.1%} of its numbers were changed by training"
    if not lost:
        return f"{line}; as {dtype}, nothing is rounded"
    undone = "the rest" if written < exact else "none"
    still = f"as {dtype}, {written / total:.1%} still are"
    return f"{line}; {still} (rounding undid {undone}; --dtype=float32 keeps all)"
