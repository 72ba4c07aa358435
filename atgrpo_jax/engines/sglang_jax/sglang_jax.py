"""Draws samples with sglang-jax's ``Engine`` in this process: its TPU kernels on our arrays.

Each policy has one Engine. It starts on dummy weights, from a config.json that we write.
``push_weights`` puts the policy's arrays in their place, with no file in between. See session.py
and docs/sglang.md.
"""

import asyncio
import dataclasses
import signal
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from atgrpo_jax.common.checks import check_types, require
from atgrpo_jax.common.errors import ConfigError, PromptTooLong, RunError
from atgrpo_jax.common.rounding import round_up
from atgrpo_jax.common.types import Sample, receipts
from atgrpo_jax.engines.protocol import (
    EngineConfig,
    Planned,
    Request,
    Served,
    Usage,
    check_prompt_ids,
    check_pushed,
)
from atgrpo_jax.engines.sglang_jax.release import check_installed
from atgrpo_jax.engines.sglang_jax.samples import check_sampling, cut, parameters, sample_of
from atgrpo_jax.engines.sglang_jax.session import Session
from atgrpo_jax.models.lora import merge
from atgrpo_jax.models.transformer import PolicyWeights, Transformer

# Lanes of a TPU. Without a TPU, sglang-jax also pads heads to a multiple of these, but then fails.
LANES = 128
SERVED = ("qwen3", "qwen2", "llama")  # families that it was seen to serve as we compute them


@dataclasses.dataclass(frozen=True)
class SGLangJaxConfig(EngineConfig):
    """Says how sglang-jax draws. Each policy's Engine has these sizes for itself."""

    context_length: int = 2048  # tokens of a prompt and its answer
    max_running_requests: int = 64  # samples that are drawn at the same time
    max_total_tokens: int = 65536  # tokens whose keys and values are kept
    page: int = 1  # tokens that are kept, shared and evicted together
    prefill: int = 4096  # tokens of prompts that are computed at once
    memory: float = 0.88  # share of the free memory at the start, for weights and cache
    tensor: int = 1  # devices that each layer is split over; there is no data parallelism
    # Indices in jax.devices() of these devices; () for the first devices of the policy's mesh.
    devices: tuple[int, ...] = ()
    # Batch sizes to compile programs for, besides max_running_requests; () for all powers of 2.
    batches: tuple[int, ...] = ()
    precompile: bool = False  # compiles all shapes at the start, not each when it first comes
    folder: str = ""  # here each policy's config.json is left; if empty, a temporary folder
    # Seconds for a group; if it is not complete by then, all its samples are errors. 0: no limit.
    deadline_s: float = 0.0

    def __post_init__(self):
        check_types(self)
        for name in ("devices", "batches"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for name in ("context_length", "max_running_requests", "page", "prefill", "tensor"):
            require(self, name, getattr(self, name) >= 1, "must be at least 1")
        rule = f"must hold a context of {self.context_length} tokens"
        require(self, "max_total_tokens", self.max_total_tokens >= self.context_length, rule)
        require(self, "prefill", self.prefill >= self.page, f"must hold a page of {self.page} tokens")
        require(self, "memory", 0 < self.memory < 1, "must be between 0 and 1")
        require(self, "deadline_s", self.deadline_s >= 0, "must not be negative")
        require(self, "batches", all(size >= 1 for size in self.batches), "must be at least 1")
        distinct = len(set(self.devices)) == len(self.devices) and all(i >= 0 for i in self.devices)
        exact = not self.devices or len(self.devices) == self.tensor
        rule = f"must be () or as many different indices as tensor = {self.tensor}"
        require(self, "devices", distinct and exact, rule)

    def bytes_on_device(self, planned: Planned) -> dict[str, float]:
        """Returns the bytes of each policy's cache and, unless the Engine can have ours, of its weights.

        They are those of the sizes that are set. What sglang-jax takes beside them is not known.
        """
        lines = {}
        for name, model in planned.models.items():
            c, itemsize = model.architecture, jnp.dtype(model.compute.dtype).itemsize
            head = round_up(c.head_size, LANES)
            numbers = 2 * c.layers * max(c.kv_heads // self.tensor, 1) * head
            lines[f"cache of sglang-jax, {name}"] = float(self.max_total_tokens * numbers * itemsize)
            same = model.compute.dtype == model.compute.param_dtype and planned.mesh.side == self.tensor == 1
            if name in planned.adapted or not same:
                count = sum(leaf.size for leaf in jax.tree.leaves(planned.params[name]))
                lines[f"parameters copied for sglang-jax, {name}"] = count * itemsize / self.tensor
        return lines

    def longest_prompt(self, answer: int) -> int:
        return self.context_length - answer

    def build(self, served: Served) -> "SGLangJaxEngine":
        """Starts an Engine for each policy.

        Only the main thread may call it, because only that one gets the signal of a failed Engine.

        Raises RunError if sglang-jax is not installed, cannot serve a model, or does not start, and
        ConfigError on several hosts.
        """
        check_installed()
        if served.hosts.count > 1:
            raise ConfigError(
                "SGLangJaxConfig: its Engines are for a run on one host; draw with LocalEngineConfig, or "
                "from servers with SGLangConfig.urls"
            )
        for policy, model in served.models.items():
            check_model(policy, model, self, served.meshes[policy])
        return SGLangJaxEngine(served, self)


def check_model(policy: str, model: Transformer, config: SGLangJaxConfig, mesh: Mesh) -> None:
    """Raises RunError, naming the field, if sglang-jax would fail later on the model or devices."""
    family = model.family.name
    if family not in SERVED:
        raise RunError(
            f"policy {policy}: Architecture.family = {family!r}: with sglang-jax only "
            f"{', '.join(SERVED)} are tried; use another engine"
        )
    size = model.architecture.head_size
    kv_heads = model.architecture.kv_heads
    if mesh.devices.flat[0].platform != "tpu" and size % LANES:
        raise RunError(
            f"policy {policy}: Architecture.head_size = {size}: without a TPU, sglang-jax needs a multiple "
            f"of {LANES}"
        )
    if kv_heads % config.tensor:
        raise RunError(
            f"policy {policy}: SGLangJaxConfig.tensor = {config.tensor} must divide Architecture.kv_heads = "
            f"{kv_heads}"
        )
    there = len(jax.devices())
    if config.tensor > mesh.size or any(i >= there for i in config.devices):
        raise RunError(
            f"policy {policy}: SGLangJaxConfig.tensor = {config.tensor}, devices = {config.devices}: there "
            f"are {there} devices, {mesh.size} in the policy's mesh"
        )


class SGLangJaxEngine:
    """Draws with one Engine for each policy.

    Each Engine has threads of its own, so callers may use one event loop after another.
    """

    def __init__(self, served: Served, config: SGLangJaxConfig):
        if threading.current_thread() is not threading.main_thread():
            raise RunError("SGLangJaxConfig: its Engines must be started from the main thread")
        self._served = served
        self._config = config
        self._versions: dict[str, int] = {}
        self._sessions: dict[str, Session] = {}
        self._drawing: set[Future] = set()
        self._failed = False
        self.usage = Usage()
        # sglang-jax sends this signal to its own process when one of its threads fails.
        self._before = signal.signal(signal.SIGQUIT, self._fail)
        try:
            for policy, model in served.models.items():
                indices = config.devices or _first(served.meshes[policy], config.tensor)
                self._sessions[policy] = Session(policy, model, served.stop_ids, indices, config)
        except BaseException:
            self.close()
            raise

    def push_weights(self, policy: str, weights: PolicyWeights, version: int) -> None:
        """Gives the Engine the weights, and empties its cache of prompts.

        Arrays that already have the Engine's dtype and sharding are not copied. So the caller must
        push again before it donates them.

        Raises RunError while samples of the policy are being drawn. Raises RunError if the Engine's
        parameters have other names or shapes, and names the first. Then nothing has changed.
        """
        params, adapter, scale = weights
        self._session(policy).swap(params if adapter is None else merge(params, adapter, scale))
        self._versions[policy] = version

    def version(self, policy: str) -> int:
        return self._versions[policy]

    def release(self) -> None:
        if self._drawing:
            raise RunError("an update would free weights that sglang-jax is drawing from")
        self._versions.clear()

    def close(self) -> None:
        for session in self._sessions.values():
            session.close()
        self._sessions = {}
        signal.signal(signal.SIGQUIT, self._before)

    async def sample(self, request: Request) -> Sequence[Sample]:
        session = self._session(request.policy)
        self._check(request)
        drawing = session.submit(self._draw(session, request))
        self._drawing.add(drawing)
        try:
            return await asyncio.wrap_future(drawing)
        except asyncio.CancelledError:
            self._check_alive()
            raise
        finally:
            self._drawing.discard(drawing)

    def _session(self, policy: str) -> Session:
        self._check_alive()
        if policy not in self._sessions:
            raise RunError(f"this engine has no policy {policy!r}")
        return self._sessions[policy]

    def _fail(self, *_: Any) -> None:
        self._failed = True
        for drawing in tuple(self._drawing):
            drawing.cancel()

    def _check_alive(self) -> None:
        if self._failed:
            raise RunError("a thread of sglang-jax has failed; it wrote on stderr why")

    def _check(self, request: Request) -> None:
        check_pushed(request, self._versions)
        check_sampling(request.sampling)
        place = request.addresses[0].group.path()
        length = len(request.prompt_ids)
        most = self._config.context_length - request.sampling.max_tokens
        if not 1 <= length <= most:
            kind = PromptTooLong if length else RunError
            raise kind(
                f"a prompt of {length} tokens at {place}: must be 1 to {most}, "
                f"SGLangJaxConfig.context_length less max_tokens"
            )
        # sglang-jax itself does not check it.
        check_prompt_ids(request, self._served.models[request.policy].vocab_size)

    async def _draw(self, session: Session, request: Request) -> list[Sample]:
        """Draws a group. Runs on the session's loop."""
        version = self._versions[request.policy]
        prompt = list(request.prompt_ids)
        late = time.monotonic() + self._config.deadline_s if self._config.deadline_s else None
        first = None
        if len(request.addresses) > 1:
            # Computes the prompt once. If all samples were sent at once, each would compute it.
            first = await session.generate(prompt, {"max_new_tokens": 1}, late)
        asked = [
            parameters(request.sampling, address, self._served.stop_ids) for address in request.addresses
        ]
        answers = await asyncio.gather(*(session.generate(prompt, one, late) for one in asked))
        self.usage += Usage(
            tokens=sum(len(answer.tokens) for answer in answers),
            prompt_tokens=len(prompt),
            known_tokens=(first or answers[0]).known_tokens,
        )
        stops = request.sampling.stop
        decode = self._served.decode
        if any(answer.finish == "error" for answer in answers):
            # Long samples are the last to be complete, so the others alone would be too short.
            return [Sample((), (), "error", version)] * len(answers)
        sent = receipts(request.policy, prompt, request.sampling, request.addresses)
        return [
            cut(sample_of(answer, version, receipt), stops, decode)
            for answer, receipt in zip(answers, sent, strict=True)
        ]


def _first(mesh: Mesh, count: int) -> tuple[int, ...]:
    """Returns the indices in ``jax.devices()`` of a mesh's first ``count`` devices."""
    everywhere = jax.devices()
    return tuple(everywhere.index(device) for device in mesh.devices.flat[:count])
