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
from atgrpo_jax.models.sampling import Rules, pick, uniforms
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


@dataclasses.dataclass(frozen=True)
class Usage:
    """What drawing took so far."""

    seconds: float = 0.0
    tokens: int = 0
    places: int = 0  # rows computed, each step; those beyond ``tokens`` were empty or had ended

    def __sub__(self, other: "Usage") -> "Usage":
        return Usage(self.seconds - other.seconds, self.tokens - other.tokens, self.places - other.places)


class Wave(NamedTuple):
    """What the groups of a wave ask for: arrays whose first axis is theirs. An empty place draws nothing."""

    prompts_GP: Any  # token ids, the prompt first
    lengths_G: Any  # of the prompts
    keys_GK2: Any  # words of each sample's address
    limit_G: Any  # most tokens of a sample
    least_G: Any  # tokens before one that stops
    scale_GJ: Any  # of each adapter
    rules_G: Rules

    @classmethod
    def empty(cls, groups: int, shape: "Shape") -> "Wave":
        def zeros(dtype, *sizes):
            return np.zeros((groups, *sizes), dtype)

        never = np.full((groups, shape.bans), -1, np.int32)
        ones, plain = np.ones(groups, np.float32), zeros(np.float32)
        return cls(
            prompts_GP=zeros(np.int32, shape.prompt),
            lengths_G=np.ones(groups, np.int32),
            keys_GK2=zeros(np.uint32, shape.candidates, 2),
            limit_G=zeros(np.int32),
            least_G=zeros(np.int32),
            scale_GJ=zeros(np.float32, len(shape.policies)),
            rules_G=Rules(ones, zeros(np.int32), ones.copy(), plain, never),
        )

    def fill(self, g: int, request: Request, adapter: int, scale: float) -> None:
        sampling, rules, length = request.sampling, self.rules_G, len(request.prompt_ids)
        self.lengths_G[g], self.prompts_GP[g, :length] = length, request.prompt_ids
        self.keys_GK2[g] = [address.key_words() for address in request.addresses]
        self.limit_G[g], self.least_G[g] = sampling.max_tokens, sampling.min_tokens
        self.scale_GJ[g, adapter] = scale
        rules.temperature[g], rules.top_k[g] = sampling.temperature, sampling.top_k
        rules.top_p[g], rules.min_p[g] = sampling.top_p, sampling.min_p
        rules.never[g, : len(sampling.banned)] = sampling.banned


class Shape(NamedTuple):
    """Of the wave that a request belongs to: a function of the request and the team alone."""

    policies: tuple[str, ...]
    prompt: int  # tokens
    candidates: int
    branch: int  # tokens
    bans: int


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
        self.usage = Usage()

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
        if any(token >= size for token in request.sampling.banned):
            raise RunError(f"Sampling.banned = {request.sampling.banned}: the vocabulary has {size} ids")
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
        waves: dict[Shape, list[tuple[Request, asyncio.Future]]] = {}
        for request, future in waiting:
            waves.setdefault(self._shape(request), []).append((request, future))
        groups = self._config.groups
        for shape, members in waves.items():
            for start in range(0, len(members), groups):
                self._answer(shape, members[start : start + groups])

    def _answer(self, shape: Shape, wave: list[tuple[Request, asyncio.Future]]) -> None:
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

    def _shape(self, request: Request) -> Shape:
        return Shape(
            policies=self._family(request.policy).policies,
            prompt=_round_up(len(request.prompt_ids), self._config.prompt_bucket),
            candidates=len(request.addresses),
            branch=_power_of_two(request.sampling.max_tokens),
            bans=_power_of_two(len(request.sampling.banned)),
        )

    def _draw(self, shape: Shape, requests: Sequence[Request]) -> list[list[Sample]]:
        began = time.monotonic()
        family = self._family(requests[0].policy)
        wave = Wave.empty(self._config.groups, shape)
        for g, request in enumerate(requests):
            scale = self._weights[request.policy][0].scale
            wave.fill(g, request, family.policies.index(request.policy), scale)
        drawn = _generate(
            self._model(requests[0].policy),
            shape.branch,
            family.params,
            family.adapters,
            jax.device_put(wave, self._sharding(requests[0].policy)),
            self._stop_ids,
        )
        tokens_GKC, *logprobs, count_GK, stopped_GK, steps = map(np.asarray, drawn)
        self.usage = Usage(
            self.usage.seconds + time.monotonic() - began,
            self.usage.tokens + int(count_GK.sum()),
            self.usage.places + int(steps) * count_GK.size,
        )

        def sample(g: int, k: int, request: Request) -> Sample:
            mine = g, k, slice(count_GK[g, k])
            logprobs_C, drawn_logprobs_C = (tuple(x[mine].tolist()) for x in logprobs)
            return Sample(
                tokens=tuple(tokens_GKC[mine].tolist()),
                logprobs=logprobs_C,
                finish="stop" if stopped_GK[g, k] else "length",
                version=self.version(request.policy),
                drawn_logprobs=drawn_logprobs_C if request.sampling.restricted else None,
            )

        return [[sample(g, k, r) for k in range(shape.candidates)] for g, r in enumerate(requests)]


def _round_up(length: int, multiple: int) -> int:
    return -(-length // multiple) * multiple


def _power_of_two(least: int) -> int:
    return 1 << (least - 1).bit_length() if least else 0


@functools.partial(jax.jit, static_argnums=(0, 1))
def _generate(model, branch_size, params, adapters, wave, stop_ids):
    """Draws until every branch has stopped or reached its group's limit.

    Returns tokens_GKC, their logprobs and drawn logprobs, count_GK, stopped_GK and the number of steps. The
    stop id is among the tokens.
    """
    (G, P), K, C = wave.prompts_GP.shape, wave.keys_GK2.shape[1], branch_size
    c = model.config
    prompt_mask_GP = jnp.arange(P) < wave.lengths_G[:, None]
    keys_R2 = wave.keys_GK2.reshape(-1, 2)
    by_row = functools.partial(jnp.repeat, repeats=K, axis=0)
    rules_R, least_R1, scale_RJ = jax.tree.map(by_row, (wave.rules_G, wave.least_G[:, None], wave.scale_GJ))

    def attend_prompt(q, k, v, _):
        mask_GPP = jnp.tril(jnp.ones((P, P), bool)) & prompt_mask_GP[:, None, :]
        return masked_attention(q, k, v, mask_GPP), Cache.of(k, v)

    positions_GP = jnp.broadcast_to(jnp.arange(P), (G, P))
    hidden_GPD, prompt_caches = run(
        model, params, adapters, wave.prompts_GP, positions_GP, attend_prompt, scale_BJ=wave.scale_GJ
    )
    last_GD = jnp.take_along_axis(hidden_GPD, (wave.lengths_G - 1)[:, None, None], axis=1)[:, 0]
    logits_RV = by_row(logits(params, last_GD))

    def body(state):
        i, logits_RV, live_GK, (tokens, logprobs, drawn_logprobs), count_GK, stopped_GK, caches = state
        held_RZ = jnp.where(i < least_R1, stop_ids, -1)
        rules = rules_R._replace(never=jnp.concatenate([rules_R.never, held_RZ], axis=-1))
        drawn = pick(logits_RV, uniforms(keys_R2, jnp.full(G * K, i)), rules)
        sampled = tuple(
            x_GKC.at[:, :, i].set(x_R.reshape(G, K))
            for x_GKC, x_R in zip((tokens, logprobs, drawn_logprobs), drawn, strict=True)
        )
        stop_GK = jnp.isin(drawn.tokens, stop_ids).reshape(G, K)
        count_GK += live_GK.astype(jnp.int32)
        stopped_GK |= live_GK & stop_GK
        live_GK &= ~stop_GK & (i + 1 < wave.limit_G)[:, None]

        def attend_branch(q_BTNH, k_BTMH, v_BTMH, cache):
            prompt, own = cache
            own = own.put(i, *(x.reshape(G, K, c.kv_heads, c.head_size) for x in (k_BTMH, v_BTMH)))
            q_GKNH = q_BTNH.reshape(G, K, c.heads, c.head_size)
            own_GKC = jnp.broadcast_to(jnp.arange(C) <= i, (G, K, C))
            out = branch_attention(q_GKNH, prompt, own, prompt_mask_GP, own_GKC)
            return out.reshape(q_BTNH.shape), (prompt, own)

        positions_R1 = by_row(wave.lengths_G + i)[:, None]
        pairs = list(zip(prompt_caches, caches, strict=True))
        inputs = drawn.tokens[:, None], positions_R1, attend_branch, pairs
        hidden_R1D, pairs = run(model, params, adapters, *inputs, scale_BJ=scale_RJ, limit=P + C)
        logits_RV = logits(params, hidden_R1D[:, 0])
        return i + 1, logits_RV, live_GK, sampled, count_GK, stopped_GK, [own for _, own in pairs]

    empty = Cache.zeros((G, K, c.kv_heads, c.head_size), C, jnp.dtype(c.dtype))
    start = (
        jnp.int32(0),
        logits_RV,
        jnp.broadcast_to((wave.limit_G > 0)[:, None], (G, K)),
        tuple(jnp.zeros((G, K, C), dtype) for dtype in (jnp.int32, jnp.float32, jnp.float32)),
        jnp.zeros((G, K), jnp.int32),
        jnp.zeros((G, K), bool),
        [empty] * c.layers,
    )
    end = jax.lax.while_loop(lambda state: jnp.any(state[2]), body, start)
    return *end[3], end[4], end[5], end[0]
