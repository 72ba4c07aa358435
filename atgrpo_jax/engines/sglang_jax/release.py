"""Knows one release of sglang-jax, and checks that it is installed."""

import sys
from importlib import metadata

from atgrpo_jax.common.errors import RunError

RELEASE = "0.1.0rc0"
INSTALL = 'pip install "atgrpo_jax[sglang-tpu]"'


def check_installed() -> None:
    """Raises RunError, which says what to do, unless the release ``RELEASE`` is installed."""
    if sys.version_info < (3, 12):
        here = ".".join(map(str, sys.version_info[:2]))
        raise RunError(
            f"SGLangJaxConfig needs Python >= 3.12 for sglang-jax, and this is {here}; there: {INSTALL}"
        )
    try:
        found = metadata.version("sglang-jax")
    except metadata.PackageNotFoundError:
        raise RunError(f"SGLangJaxConfig needs sglang-jax (and Python >= 3.12): {INSTALL}") from None
    if found != RELEASE:
        raise RunError(f"SGLangJaxConfig knows sglang-jax {RELEASE}, and {found} is installed: {INSTALL}")
