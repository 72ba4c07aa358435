"""What the rollout asks of anything that samples."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from atgrpo_jax.common.types import Address, Sample, Sampling


@dataclasses.dataclass(frozen=True)
class Request:
    """K samples of one prompt: one address each."""

    policy: str
    prompt_ids: tuple[int, ...]
    addresses: tuple[Address, ...]
    sampling: Sampling


@dataclasses.dataclass(frozen=True)
class Served:
    """What an engine is told of the run that it samples for. Mappings are by policy."""

    models: Mapping[str, Any]  # Transformer
    meshes: Mapping[str, Any]  # Mesh, of the weights that are pushed
    # The model folder it started from, or what its config.json would say: what ``hf.save`` wants to know.
    sources: Mapping[str, str | dict[str, Any]]
    stop_ids: tuple[int, ...]
    decode: Callable[[Sequence[int]], str]
    starts: Mapping[str, str]  # the weights it began as: its own name, or what it is an adapter on
    lora: Any  # LoraConfig, of the policies that are adapters
    longest_answer: int  # tokens
    candidates: int  # samples of most requests


@dataclasses.dataclass(frozen=True)
class Usage:
    """What drawing took so far."""

    prefill_s: float = 0.0  # of devices of ours, where that is known
    decode_s: float = 0.0
    tokens: int = 0  # drawn
    # Rows computed, each step; those beyond ``tokens`` were empty or had ended. 0 where nobody knows.
    places: int = 0
    prompt_tokens: int = 0
    known_tokens: int = 0  # of them, those whose keys and values were there
    push_s: float = 0.0  # giving weights to servers
    push_bytes: int = 0

    def _with(self, other: "Usage", sign: int) -> "Usage":
        pairs = zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)
        return Usage(*(one + sign * two for one, two in pairs))

    def __add__(self, other: "Usage") -> "Usage":
        return self._with(other, 1)

    def __sub__(self, other: "Usage") -> "Usage":
        return self._with(other, -1)

    @property
    def seconds(self) -> float:
        return self.prefill_s + self.decode_s


class Engine(Protocol):
    usage: Usage

    async def sample(self, request: Request) -> Sequence[Sample]:
        """One sample an address, in their order, depending on weights, prompt, sampling and address
        only. Raises RunError for a request it cannot serve."""
        ...

    def push_weights(self, policy: str, weights: Any, version: int) -> None:
        """Later samples of ``policy`` come from ``weights`` and carry ``version``."""
        ...

    def version(self, policy: str) -> int: ...

    def close(self) -> None:
        """Ends what the engine started. Nothing can be sampled afterwards."""
        ...
