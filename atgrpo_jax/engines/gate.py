"""Pushes new weights to an engine, and checks that it draws from them and from nothing else.

After a push, the engine draws one token many times after each of a few fixed prompts and of one new
prompt. The learner computes the whole distribution at the same places. The engine must report the
learner's logprobs, and its draws must be spread like that distribution (verdict.py). If not, an
error says what is wrong.

Axis letters: P prompts, V vocabulary, B rows of a program, J adapters.
"""

import asyncio
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from atgrpo_jax.arrays.mesh import replicated
from atgrpo_jax.arrays.spread import mesh_of
from atgrpo_jax.common import coroutines
from atgrpo_jax.common.errors import RunError
from atgrpo_jax.common.finite import LOWER, NotFinite
from atgrpo_jax.common.hosts import ALONE, Hosts
from atgrpo_jax.common.metric_names import of_policy
from atgrpo_jax.common.types import Address, GroupKey, Sampling, seed_of
from atgrpo_jax.engines.protocol import Engine, Request
from atgrpo_jax.engines.verdict import UNKNOWN, Draws, judge
from atgrpo_jax.models.attention import causal_mask, masked_attention, narrower
from atgrpo_jax.models.lora import stack
from atgrpo_jax.models.transformer import PolicyWeights, Transformer, apply, exact_products, logits

PROMPTS = 8  # fixed prompts, asked after every push: they show whether a cache outlives a push
LENGTH = 16  # tokens of each prompt
DRAWS = 64  # tokens drawn after each prompt
LAST = "the weights before the push"
# How the metric of several hosts follows from theirs: the worst one counts.
WORST: Mapping[str, Callable] = {
    "gate_gap": max,
    "gate_margin": min,
    "gate_spread": min,
    "gate_corrected": max,
}


def push(engine: Engine, weights: Mapping[str, Any], version: int) -> None:
    """Pushes all policies to the engine under one version.

    Raises RunError if the engine reports another version afterwards.
    """
    for policy, own in weights.items():
        engine.push_weights(policy, own, version)
        if engine.version(policy) != version:
            raise RunError(
                f"the engine reports version {engine.version(policy)} of policy {policy} "
                f"after a push of version {version}"
            )


def check_gap(policy: str, gap: float, limit: float) -> None:
    """Raises RunError if ``gap`` is above ``limit``.

    ``gap`` is the largest |learner - sampler| logprob (nats) of the tokens in the step's first
    minibatch. No update has been made yet there, so both must have the same weights.
    """
    if not gap <= limit:
        raise RunError(
            f"policy {policy}: sampler and learner logprobs of the same tokens differ by {gap:.3g}, "
            f"more than Experiment.max_logprob_gap = {limit:.3g}; the engine does not hold "
            "the learner's weights, or computes at a lower precision"
        )


class Gate:
    """Checks an engine after every push. Remembers the logprobs that the previous weights gave.

    Policies are given by name and may have different models.
    """

    def __init__(
        self,
        models: Mapping[str, Transformer],
        stop_ids: Sequence[int],
        temperature: float,
        limit: float,
        seed: int,
        hosts: Hosts = ALONE,
    ):
        """
        Args:
          temperature: temperature of the draws; the same as in training.
          limit: largest |learner - engine| logprob that passes, nats.
          hosts: each of them has an engine, and checks its own.
        """
        self._models = models
        self._temperature = temperature
        self._limit = limit
        self._seed = seed
        self._hosts = hosts
        common = min(model.vocab_size for model in models.values())
        self._ids = np.setdiff1d(np.arange(common), stop_ids)
        self._last: dict[str, np.ndarray] = {}

    def learned(self, weights: Mapping[str, PolicyWeights], version: int) -> dict[str, np.ndarray]:
        """Returns each policy's own logprobs [P, V] after the prompts of ``version``.

        Raises NotFinite, naming the policy, if they are not finite. Then the weights are at fault,
        not the engine.
        """
        prompts_PT = self._prompts(version)
        learned = {name: self._learned(name, own, prompts_PT) for name, own in weights.items()}
        for name, logprobs_PV in learned.items():
            if not np.isfinite(logprobs_PV).all():
                what = "the policy's own weights give logprobs that are not finite"
                raise NotFinite(f"policy {name}, version {version}", what, LOWER)
        return learned

    def check(
        self,
        engine: Engine,
        weights: Mapping[str, PolicyWeights],
        version: int,
        correct: bool = False,
        learned: Mapping[str, np.ndarray] | None = None,
    ) -> dict[str, float]:
        """Checks every policy after a push of ``version``, and returns metrics of each.

        With several hosts they are those of the worst one.

        Args:
          correct: whether a gap without a known cause passes, because importance weights
            (``Learner.corrected``) correct it.
          learned: what ``self.learned`` returned for the same weights and version, if known.

        Raises RunError that names the policy and says what is wrong.
        """
        prompts_PT = self._prompts(version)
        learned = learned or self.learned(weights, version)
        bases: dict[str, np.ndarray] = {}
        for name, own in weights.items():
            if own.adapter is not None:
                bases[name] = self._learned(name, PolicyWeights(own.params), prompts_PT)

        def work() -> bytes:
            drawn = coroutines.run(self._draw(engine, list(weights), prompts_PT, version))
            return json.dumps(self._judged(drawn, learned, bases, version, correct)).encode()

        found = [json.loads(own) for own in self._hosts.meet(f"gate of version {version}", work)]
        self._last = {name: logprobs_PV[:PROMPTS] for name, logprobs_PV in learned.items()}
        metrics: dict[str, float] = {}
        for name in weights:
            worst = {key: pick(own[name][key] for own in found) for key, pick in WORST.items()}
            metrics |= of_policy(name, worst)
        return metrics

    def _judged(
        self,
        drawn: Mapping[str, Draws],
        learned: Mapping[str, np.ndarray],
        bases: Mapping[str, np.ndarray],
        version: int,
        correct: bool,
    ) -> dict[str, dict[str, float]]:
        """Returns metrics of every policy's draws. Raises RunError as ``check`` does."""
        metrics = {}
        for name in learned:
            others = {f"the weights of {other}": learned[other] for other in learned if other != name}
            if name in bases:
                others["its base, without the adapter"] = bases[name]
            if name in self._last:
                others[LAST] = self._last[name]
            verdict = judge(drawn[name], learned[name], others, self._limit, self._seed)
            corrected = correct and verdict.cause == UNKNOWN
            if verdict.cause and not corrected:
                raise RunError(
                    f"policy {name}, version {version}: the engine fails the gate after the push: "
                    f"{verdict.cause}. The largest |learner - engine| logprob is {verdict.gap:.3g} "
                    f"(Experiment.max_logprob_gap = {self._limit:.3g}); see docs/sglang.md"
                )
            metrics[name] = {
                "gate_gap": verdict.gap,
                "gate_margin": verdict.margin,
                "gate_spread": verdict.spread,
                "gate_corrected": float(corrected),
            }
        return metrics

    def _prompts(self, version: int) -> np.ndarray:
        """Returns prompts [P, T]. All but the last are the same for every version."""
        rows = [seed_of("gate", self._seed, i) for i in range(PROMPTS)]
        rows.append(seed_of("gate", self._seed, "new", version))
        return np.stack([np.random.default_rng(seed).choice(self._ids, LENGTH) for seed in rows])

    async def _draw(
        self, engine: Engine, policies: Sequence[str], prompts_PT: np.ndarray, version: int
    ) -> dict[str, Draws]:
        sampling = Sampling(self._temperature, max_tokens=1)

        async def one(policy: str, i: int) -> tuple[list[int], list[float]]:
            key = GroupKey(version, "gate", i, 0, 0, policy)
            addresses = tuple(Address(self._seed, key, k) for k in range(DRAWS))
            prompt_ids = tuple(prompts_PT[i].tolist())
            samples = await engine.sample(Request(policy, prompt_ids, addresses, sampling))
            if not all(sample.drawn for sample in samples):
                raise RunError(f"policy {policy}, version {version}: the engine draws nothing for the gate")
            return [s.tokens[0] for s in samples], [s.logprobs[0] for s in samples]

        async def all_of(policy: str) -> Draws:
            rows = await asyncio.gather(*(one(policy, i) for i in range(len(prompts_PT))))
            return Draws(*(np.array(column) for column in zip(*rows, strict=True)))

        return dict(zip(policies, await asyncio.gather(*map(all_of, policies)), strict=True))

    def _learned(self, name: str, weights: PolicyWeights, prompts_PT: np.ndarray) -> np.ndarray:
        mesh = mesh_of(weights.params) if self._hosts.count > 1 else None
        return np.asarray(next_logprobs(self._models[name], weights, prompts_PT, self._temperature, mesh))


@functools.partial(jax.jit, static_argnums=(0, 4))
def next_logprobs(
    model: Transformer,
    weights: PolicyWeights,
    tokens_BT: jax.Array,
    temperature: jax.Array,
    mesh: Mesh | None = None,
) -> jax.Array:
    """Returns logprobs [B, V] float32 of the token after each row, at ``temperature``.

    Temperature 0 gives the same as 1. All devices of ``mesh``, that of the weights, get the whole
    result; it is where XLA leaves it if the mesh is not given.
    """
    B, T = tokens_BT.shape

    def attend(q, k, v, _, size):
        mask_BTT = jnp.broadcast_to(causal_mask(jnp.arange(T), narrower(size, T)), (B, T, T))
        return masked_attention(q, k, v, mask_BTT), None

    with exact_products(model.compute):
        hidden_BTD, _ = apply(
            model,
            weights.params,
            None if weights.adapter is None else stack([weights.adapter]),
            tokens_BT,
            jnp.broadcast_to(jnp.arange(T), (B, T)),
            attend,
            scale_BJ=jnp.full((B, 1), weights.scale, jnp.float32),
        )
        scores_BV = logits(weights.params, hidden_BTD[:, -1])
    logprobs_BV = jax.nn.log_softmax(scores_BV / jnp.where(temperature > 0, temperature, 1.0))
    return logprobs_BV if mesh is None else jax.lax.with_sharding_constraint(logprobs_BV, replicated(mesh))
