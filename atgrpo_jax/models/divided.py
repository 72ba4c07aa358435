"""Names what a mesh must divide evenly: the heads and the parameters of models."""

from collections.abc import Iterator, Mapping

from atgrpo_jax.arrays.mesh import Divided, divided_parameters
from atgrpo_jax.models.transformer import Transformer, shapes_of


def divided(models: Mapping[str, Transformer]) -> Iterator[Divided]:
    """Yields the sizes of all models, which are given by name."""
    for name, model in models.items():
        yield f"Architecture.heads of {name}", model.architecture.heads, "tensor"
        yield from divided_parameters(shapes_of(model), model.family.axes)
