"""Says what rounding takes from weights that training moved a little."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def rounding(before: Any, after: Any, dtype: str) -> str:
    """Returns how many numbers differ between two trees, once they are rounded to ``dtype``, in words.

    Both have the same shapes. They are compared leaf by leaf, on the host.
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
    line = f"as {dtype}, {written / total:.1%} of the numbers differ"
    if not lost:
        return f"{line}; nothing was rounded"
    return f"{line}, and {exact / total:.1%} did before they were rounded; float32 keeps all"
