"""The in-process JAX engine: prefill once a group, K branches on the prompt's cache, one jitted decode loop.

Requests of all instances that wait at the same moment are drawn together, in waves of one fixed shape: a
wave holds ``groups`` requests of the same parameters, K and length buckets, padded with empty ones. Policies
that are adapters on the same parameters share waves. A request's shapes thus depend on itself and the team
alone, and so do its tokens, bit for bit.
"""

import asyncio
import dataclasses
import functools
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from atgrpo_jax.checks import check_types, require
from atgrpo_jax.engines.base import Request
from atgrpo_jax.errors import RunError
from atgrpo_jax.mesh import group_sharding
from atgrpo_jax.models.attention import Cache, branch_attention, masked_attention
from atgrpo_jax.models.lora import stack
from atgrpo_jax.models.sampling import pick, uniforms
from atgrpo_jax.models.transformer import Transformer, Weights, logits, run
from atgrpo_jax.types import Sample


@dataclasses.dataclass(frozen=True)
class LocalEngineConfig:
    groups: int = 16  # a wave's groups; empty places are computed and thrown away
    prompt_bucket: int = 32  # prompt lengths are rounded up to a multiple of it (tokens)
    max_prompt: int = 1024  # tokens

    def __post_init__(self):
        check_types(self)
        for name in ("groups", "prompt_bucket", "max_prompt"):
            require(self, name, getattr(self, name) >= 1, "must be at least 1")


class Family(NamedTuple):
    """Policies that are drawn together: the same parameters, an adapter each (stacked in this order)."""

    policies: tuple[str, ...]
    params: Any
    adapters: Any


class LocalEngine:
    """See the module. Not thread-safe: all calls come from one event loop."""

    def __init__(
        self,
        models: Transformer | Mapping[str, Transformer],
        stop_ids: Sequence[int],
        config: LocalEngineConfig,
        meshes: Mesh | Mapping[str, Mesh] | None = None,
    ):
        """
        Args:
          models: one for all policies, or that of each.
          meshes: that of all policies' weights, or of each, over whose data and fsdp axes the groups of a
            wave are spread; they must divide ``config.groups``. One device if not given.
        """
        self._meshes = meshes
        self._models = models
        self._stop_ids = np.asarray(stop_ids, np.int32)
        self._config = config
        self._weights: dict[str, tuple[Weights, int]] = {}
        self._families: dict[str, Family] = {}
        self._waiting: list[tuple[Request, asyncio.Future]] = []
        self.seconds = 0.0  # spent drawing
        self.tokens = 0  # drawn

    def push_weights(self, policy: str, weights: Weights, version: int) -> None:
        """Shares the arrays with the caller, who must push again before it donates them."""
        self._weights[policy] = (weights, version)
        self._families.clear()

    def version(self, policy: str) -> int:
        return self._weights[policy][1]

    async def sample(self, request: Request) -> Sequence[Sample]:
        self._check(request)
        loop = asyncio.get_running_loop()
        if not self._waiting:
            # Everybody who is ready to run gets to ask before the wave starts.
            loop.call_soon(self._draw_all)
        future = loop.create_future()
        self._waiting.append((request, future))
        return await future

    def _check(self, request: Request) -> None:
        if request.policy not in self._weights:
            raise RunError(f"no weights were pushed for policy {request.policy!r}")
        length = len(request.prompt_ids)
        if not 1 <= length <= self._config.max_prompt:
            raise RunError(
                f"a prompt of {length} tokens at {request.addresses[0].group.path()}: must be 1 to "
                f"LocalEngineConfig.max_prompt = {self._config.max_prompt}"
            )
        size = self._model(request.policy).vocab_size
        worst = max(request.prompt_ids), min(request.prompt_ids)
        if worst[0] >= size or worst[1] < 0:
            raise RunError(
                f"token id {worst[0] if worst[0] >= size else worst[1]} at "
                f"{request.addresses[0].group.path()}: the vocabulary has {size}"
            )

    def _model(self, policy: str) -> Transformer:
        return self._models[policy] if isinstance(self._models, Mapping) else self._models

    def _sharding(self, policy: str) -> NamedSharding | None:
        mesh = self._meshes[policy] if isinstance(self._meshes, Mapping) else self._meshes
        return None if mesh is None else group_sharding(mesh)

    def _draw_all(self) -> None:
        waiting, self._waiting = self._waiting, []
        waves: dict[tuple, list[tuple[Request, asyncio.Future]]] = {}
        for request, future in waiting:
            waves.setdefault(self._shape(request), []).append((request, future))
        groups = self._config.groups
        for shape, members in waves.items():
            for start in range(0, len(members), groups):
                self._answer(shape, members[start : start + groups])

    def _answer(self, shape: tuple, wave: list[tuple[Request, asyncio.Future]]) -> None:
        requests, futures = zip(*wave, strict=True)
        try:
            drawn = self._draw(shape, requests)
        except Exception as error:  # whoever waits must hear of it, or would wait for ever
            for future in futures:
                if not future.done():
                    future.set_exception(error)
            return
        for future, samples in zip(futures, drawn, strict=True):
            if not future.done():
                future.set_result(samples)

    def _family(self, policy: str) -> "Family":
        if policy not in self._families:
            params, adapter, _ = self._weights[policy][0]
            members = [policy]
            if adapter is not None:
                pushed = {name: weights for name, (weights, _) in sorted(self._weights.items())}
                members = [n for n, w in pushed.items() if w.params is params and w.adapter is not None]
                adapter = stack([pushed[name].adapter for name in members])
            self._families |= dict.fromkeys(members, Family(tuple(members), params, adapter))
        return self._families[policy]

    def _shape(self, request: Request) -> tuple[tuple[str, ...], int, int, int]:
        """(policies, P, K, C) of the wave that a request belongs to."""
        prompt = _round_up(len(request.prompt_ids), self._config.prompt_bucket)
        branch = 1 << (request.sampling.max_tokens - 1).bit_length()
        return self._family(request.policy).policies, prompt, len(request.addresses), branch

    def _draw(
        self, shape: tuple[tuple[str, ...], int, int, int], wave: Sequence[Request]
    ) -> list[list[Sample]]:
        began = time.monotonic()
        _, prompt_size, k, branch_size = shape
        family = self._family(wave[0].policy)
        groups = self._config.groups
        prompts_GP = np.zeros((groups, prompt_size), np.int32)
        lengths_G = np.ones(groups, np.int32)
        keys_GK = np.zeros((groups, k, 2), np.uint32)
        temperature_G = np.ones(groups, np.float32)
        limit_G = np.zeros(groups, np.int32)  # an empty place draws nothing
        scale_GJ = np.zeros((groups, len(family.policies)), np.float32)
        for g, request in enumerate(wave):
            lengths_G[g] = len(request.prompt_ids)
            prompts_GP[g, : lengths_G[g]] = request.prompt_ids
            keys_GK[g] = [address.key_words() for address in request.addresses]
            temperature_G[g] = request.sampling.temperature
            limit_G[g] = request.sampling.max_tokens
            scale_GJ[g, family.policies.index(request.policy)] = self._weights[request.policy][0].scale
        by_group = prompts_GP, lengths_G, keys_GK, temperature_G, limit_G, scale_GJ
        drawn = _generate(
            self._model(wave[0].policy),
            branch_size,
            family.params,
            family.adapters,
            *jax.device_put(by_group, self._sharding(wave[0].policy)),
            self._stop_ids,
        )
        tokens_GKC, logprobs_GKC, count_GK, stopped_GK = map(np.asarray, drawn)
        self.seconds += time.monotonic() - began
        self.tokens += int(count_GK.sum())
        return [
            [
                Sample(
                    tokens=tuple(tokens_GKC[g, i, : count_GK[g, i]].tolist()),
                    logprobs=tuple(logprobs_GKC[g, i, : count_GK[g, i]].tolist()),
                    finish="stop" if stopped_GK[g, i] else "length",
                    version=self.version(request.policy),
                )
                for i in range(k)
            ]
            for g, request in enumerate(wave)
        ]


def _round_up(length: int, multiple: int) -> int:
    return -(-length // multiple) * multiple


@functools.partial(jax.jit, static_argnums=(0, 1))
def _generate(
    model,
    branch_size,
    params,
    adapters,
    prompts_GP,
    lengths_G,
    keys_GK,
    temperature_G,
    limit_G,
    scale_GJ,
    stop_ids,
):
    """Draws until every branch has stopped or reached its group's limit.

    Returns tokens_GKC, logprobs_GKC, count_GK and stopped_GK. The stop id is among the tokens.
    """
    (G, P), K, C = prompts_GP.shape, keys_GK.shape[1], branch_size
    c = model.config
    prompt_mask_GP = jnp.arange(P) < lengths_G[:, None]

    def attend_prompt(q, k, v, _):
        mask_GPP = jnp.tril(jnp.ones((P, P), bool)) & prompt_mask_GP[:, None, :]
        return masked_attention(q, k, v, mask_GPP), Cache.of(k, v)

    positions_GP = jnp.broadcast_to(jnp.arange(P), (G, P))
    hidden_GPD, prompt_caches = run(
        model, params, adapters, prompts_GP, positions_GP, attend_prompt, scale_BJ=scale_GJ
    )
    scale_BJ = jnp.repeat(scale_GJ, K, axis=0)
    last_GD = jnp.take_along_axis(hidden_GPD, (lengths_G - 1)[:, None, None], axis=1)[:, 0]
    logits_GKV = jnp.broadcast_to(logits(params, last_GD)[:, None], (G, K, params["embedding"].shape[0]))

    def body(state):
        i, logits_GKV, live_GK, tokens_GKC, logprobs_GKC, count_GK, stopped_GK, caches = state
        noise_R2 = uniforms(keys_GK.reshape(-1, 2), jnp.full(G * K, i))
        drawn = pick(logits_GKV.reshape(G * K, -1), noise_R2, jnp.repeat(temperature_G, K))
        token_GK, logprob_GK = (x.reshape(G, K) for x in drawn)
        stop_GK = jnp.isin(token_GK, stop_ids)
        tokens_GKC = tokens_GKC.at[:, :, i].set(token_GK)
        logprobs_GKC = logprobs_GKC.at[:, :, i].set(logprob_GK)
        count_GK += live_GK.astype(jnp.int32)
        stopped_GK |= live_GK & stop_GK
        live_GK &= ~stop_GK & (i + 1 < limit_G)[:, None]

        def attend_branch(q_BTNH, k_BTMH, v_BTMH, cache):
            prompt, own = cache
            own = own.put(i, *(x.reshape(G, K, c.kv_heads, c.head_size) for x in (k_BTMH, v_BTMH)))
            q_GKNH = q_BTNH.reshape(G, K, c.heads, c.head_size)
            own_GKC = jnp.broadcast_to(jnp.arange(C) <= i, (G, K, C))
            out = branch_attention(q_GKNH, prompt, own, prompt_mask_GP, own_GKC)
            return out.reshape(q_BTNH.shape), (prompt, own)

        positions = jnp.broadcast_to((lengths_G + i)[:, None], (G, K)).reshape(-1, 1)
        pairs = list(zip(prompt_caches, caches, strict=True))
        inputs = token_GK.reshape(-1, 1), positions, attend_branch, pairs
        hidden, pairs = run(model, params, adapters, *inputs, scale_BJ=scale_BJ, limit=P + C)
        logits_GKV = logits(params, hidden.reshape(G, K, -1))
        caches = [branch for _, branch in pairs]
        return i + 1, logits_GKV, live_GK, tokens_GKC, logprobs_GKC, count_GK, stopped_GK, caches

    empty = Cache.zeros((G, K, c.kv_heads, c.head_size), C, jnp.dtype(c.dtype))
    start = (
        jnp.int32(0),
        logits_GKV,
        jnp.broadcast_to((limit_G > 0)[:, None], (G, K)),
        jnp.zeros((G, K, C), jnp.int32),
        jnp.zeros((G, K, C), jnp.float32),
        jnp.zeros((G, K), jnp.int32),
        jnp.zeros((G, K), bool),
        [empty] * c.layers,
    )
    end = jax.lax.while_loop(lambda state: jnp.any(state[2]), body, start)
    return end[3], end[4], end[5], end[6]
