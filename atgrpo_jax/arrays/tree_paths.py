"""Names the leaves of trees of arrays."""

import jax


def path_text(path: tuple) -> str:
    """Returns the text of a leaf's path, for example "layer_3/q/kernel"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")
