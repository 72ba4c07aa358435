"""Lists the families, and makes the model of an architecture."""

from atgrpo_jax.models.config import Architecture, Compute
from atgrpo_jax.models.families import gemma3, llama, mistral, qwen3_moe, smollm3
from atgrpo_jax.models.family import Family
from atgrpo_jax.models.transformer import Transformer

FAMILIES = {
    "qwen3": llama.QWEN3,
    "qwen2": llama.QWEN2,
    "llama": llama.LLAMA,
    "gemma3_text": gemma3.GEMMA3,
    "qwen3_moe": qwen3_moe.QWEN3_MOE,
    "mistral": mistral.MISTRAL,
    "ministral": mistral.MINISTRAL,
    "smollm3": smollm3.SMOLLM3,
}
_COMPUTE = Compute()


def family_of(architecture: Architecture) -> Family:
    """Returns the family of an architecture.

    Raises ValueError if there is none of that name, or if it has no such architecture.
    """
    family = FAMILIES.get(architecture.family)
    if family is None:
        names = ", ".join(FAMILIES)
        raise ValueError(f"Architecture.family = {architecture.family!r}: expected one of {names}")
    family.check(architecture)
    return family


def parameters(architecture: Architecture) -> int:
    """Returns the number of all parameters. Needs ``vocab_size``."""
    return family_of(architecture).parameters(architecture)


def transformer(
    architecture: Architecture, vocab_size: int, compute: Compute = _COMPUTE, joined: bool = False
) -> Transformer:
    """Returns the model of an architecture, computed as ``compute`` says."""
    return Transformer(family_of(architecture), architecture, vocab_size, compute, joined)
