"""Names what a mesh must divide evenly: heads, experts and parameters of models."""

from collections.abc import Iterator, Mapping

from atgrpo_jax.arrays.mesh import Divided, divided_parameters
from atgrpo_jax.models.transformer import Transformer, shapes_of


def divided(models: Mapping[str, Transformer]) -> Iterator[Divided]:
    """Yields the sizes of all models, which are given by name."""
    for name, model in models.items():
        c = model.architecture
        yield f"Architecture.heads of {name}", c.heads, "tensor"
        yield from divided_parameters(shapes_of(model), model.family.axes)
        if c.experts is None:  # then no mesh has ``expert`` above 1
            yield f"{name}, a model without experts,", 1, "expert"
        else:  # the last name that a size is given counts
            yield f"Experts.count of {name}", c.experts.count, "expert"
