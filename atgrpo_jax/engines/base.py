"""What the rollout asks of anything that samples."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

from atgrpo_jax.types import Address, Sample, Sampling


@dataclasses.dataclass(frozen=True)
class Request:
    """K samples of one prompt: one address each."""

    policy: str
    prompt_ids: tuple[int, ...]
    addresses: tuple[Address, ...]
    sampling: Sampling


class Engine(Protocol):
    async def sample(self, request: Request) -> Sequence[Sample]:
        """One sample an address, in their order, depending on weights, prompt, sampling and address
        only. Raises RunError for a request it cannot serve."""
        ...

    def push_weights(self, policy: str, weights: Any, version: int) -> None:
        """Later samples of ``policy`` come from ``weights`` and carry ``version``."""
        ...

    def version(self, policy: str) -> int: ...
