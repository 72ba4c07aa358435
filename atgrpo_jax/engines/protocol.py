"""Defines what an engine must offer: what the rollout asks of anything that draws samples."""

import dataclasses
from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from atgrpo_jax.arrays.mesh import MeshConfig
from atgrpo_jax.common.errors import RunError
from atgrpo_jax.common.hosts import ALONE, Hosts
from atgrpo_jax.common.types import Address, Sample, Sampling


@dataclasses.dataclass(frozen=True)
class Request:
    """Asks an engine for K samples of one prompt, one for each address."""

    policy: str
    prompt_ids: tuple[int, ...]
    addresses: tuple[Address, ...]
    sampling: Sampling


@dataclasses.dataclass(frozen=True)
class Served:
    """Tells an engine about the run that it draws for. The keys of all mappings are policies."""

    models: Mapping[str, Any]  # Transformer
    meshes: Mapping[str, Any]  # Mesh on which the pushed weights are
    # The model folder that the policy started from, or the content of its config.json. ``hf.save``
    # needs it.
    sources: Mapping[str, str | dict[str, Any]]
    stop_ids: tuple[int, ...]
    decode: Callable[[Sequence[int]], str]
    initial_names: Mapping[str, str]  # the policy's own name; for an adapter, the name of its base
    lora: Any  # LoraConfig of the policies that are adapters
    longest_answer: int  # tokens; no sample is longer
    candidates: int  # how many samples most requests ask for
    hosts: Hosts = ALONE  # each of them has an engine of its own


class Planned(NamedTuple):
    """Tells an engine's config about a run that is planned. The keys of all mappings are policies."""

    models: Mapping[str, Any]  # Transformer
    params: Mapping[str, Any]  # shapes of the parameters that are pushed; for an adapter, its base's
    adapted: Container[str]  # the policies that are adapters
    mesh: MeshConfig  # the learner's
    longest_answer: int  # tokens


class Drawing(NamedTuple):
    """Says how an engine draws on the devices of the run's own hosts."""

    mesh: MeshConfig  # of all hosts
    copied: bool  # whether each push copies the weights to it
    slots: int  # samples that are drawn at the same time, on all hosts
    chunk: int  # most tokens of a sample before a host looks which samples have ended


@dataclasses.dataclass(frozen=True)
class EngineConfig:
    """Says which engine draws a run's samples, and how.

    Each engine has a subclass: a frozen dataclass with ``build``. Nothing else names the engine.
    docs/your-engine.md shows one.
    """

    def build(self, served: Served) -> "Engine":
        """Builds the engine. It has no weights yet."""
        raise NotImplementedError(f"{type(self).__name__} has no method build")

    def check(self, mesh: MeshConfig) -> None:
        """Raises ValueError if the engine cannot draw for policies that are on ``mesh``."""

    def devices_needed(self, mesh: MeshConfig) -> int:
        """Returns how many devices this process needs in all, if the learner's are those of ``mesh``."""
        return mesh.devices

    def apart(self, mesh: MeshConfig) -> bool:
        """Returns whether the engine has none of the devices of the learner's ``mesh``."""
        return False

    def check_ahead(self, mesh: MeshConfig) -> None:
        """Raises ValueError if the engine cannot draw while policies on ``mesh`` are updated.

        An engine that can overrides this. It keeps the arrays that it was given last until the next push:
        the update does not free them.
        """
        raise ValueError(
            f"Experiment.max_lag: {type(self).__name__} does not say that it can draw during an update; set "
            "it to 0, or write check_ahead (docs/your-engine.md)"
        )

    def bytes_on_device(self, planned: Planned) -> dict[str, float]:
        """Returns the bytes that the engine takes on each of its devices, by what they hold.

        Raises ConfigError if it does not know.
        """
        return {}

    def check_hosts(self, mesh: MeshConfig, hosts: int) -> None:
        """Raises ConfigError if several hosts, whose learner has ``mesh``, cannot each draw."""

    def drawing(self, mesh: MeshConfig) -> Drawing | None:
        """Returns how samples are drawn on this run's devices; None if others draw them."""
        return None

    def same_samples(self) -> "EngineConfig":
        """Returns the config without what changes no sample. Runs may go on with another one of that."""
        return self

    @property
    def at_once(self) -> int | None:
        """Returns how many samples are drawn at the same time; None if that is not fixed."""
        return None

    def longest_prompt(self, answer: int) -> int | None:
        """Returns the most tokens of a prompt whose answer may have ``answer`` tokens.

        Returns None if the config sets no limit.
        """
        return None


@dataclasses.dataclass(frozen=True)
class Usage:
    """Counts what drawing has cost so far."""

    prefill_s: float = 0.0  # seconds on our own devices; 0 if unknown
    decode_s: float = 0.0  # seconds on our own devices; 0 if unknown
    tokens: int = 0  # tokens drawn
    # Slots computed, summed over decoding steps; 0 if unknown. Those beyond ``tokens`` were empty
    # or had ended.
    slot_steps: int = 0
    prompt_tokens: int = 0
    known_tokens: int = 0  # prompt tokens whose keys and values were already cached
    push_s: float = 0.0  # seconds to give weights to servers
    push_bytes: int = 0  # bytes of weights written for servers
    programs: int = 0  # programs issued on our own devices

    def _with(self, other: "Usage", sign: int) -> "Usage":
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
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
        """Returns one sample for each address, in the same order.

        A sample depends only on weights, prompt, sampling settings and address. Raises RunError
        for a request that the engine cannot serve.
        """
        ...

    def push_weights(self, policy: str, weights: Any, version: int) -> None:
        """Makes later samples of ``policy`` come from ``weights`` and carry ``version``."""
        ...

    def version(self, policy: str) -> int: ...

    def release(self) -> None:
        """Gives up the pushed arrays, which the learner is about to free.

        An engine with copies of its own does nothing. One that shares the learner's arrays raises
        RunError if it is drawing, and draws nothing until the next push.
        """
        ...

    def close(self) -> None:
        """Ends all that the engine started. Nothing can be drawn afterwards."""
        ...


def check_pushed(request: Request, pushed: Container[str]) -> None:
    """Raises RunError if ``pushed``, the policies that have weights, lacks the request's."""
    if request.policy not in pushed:
        raise RunError(f"no weights were pushed for policy {request.policy!r}")


def check_prompt_ids(request: Request, vocab_size: int) -> None:
    """Raises RunError if the prompt is empty, or has an id that is not in the vocabulary."""
    place = request.addresses[0].group.path()
    for token in (min(request.prompt_ids, default=-1), max(request.prompt_ids, default=-1)):
        if not 0 <= token < vocab_size:
            raise RunError(f"token id {token} at {place}: the vocabulary has {vocab_size}")


def stopped_length(
    tokens: Sequence[int], stops: Sequence[str], decode: Callable[[Sequence[int]], str]
) -> int | None:
    """Returns how many tokens there are up to the first whose text completes a stop string.

    It returns None if the text holds no stop string.
    """

    def holds_stop(length: int) -> bool:
        text = decode(tokens[:length])
        return any(stop in text for stop in stops)

    if not stops or not holds_stop(len(tokens)):
        return None
    return next(length for length in range(1, len(tokens) + 1) if holds_stop(length))
