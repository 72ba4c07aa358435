"""Pushes new weights to an engine, and checks that it draws from them and from nothing else.

After a push, the engine draws one token many times after each of a few fixed prompts and of one new
prompt. The learner computes the whole distribution at the same places. The engine must report the
learner's logprobs, and its draws must be spread like that distribution. If not, an error says what
is wrong.

Axis letters: P prompts, K draws after each, V vocabulary, B rows of a program, J adapters.
"""

import asyncio
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from atgrpo_jax.common import coroutines
from atgrpo_jax.common.errors import RunError
from atgrpo_jax.common.finite import LOWER, NotFinite
from atgrpo_jax.common.metric_names import of_policy
from atgrpo_jax.common.types import Address, GroupKey, Sampling, seed_of
from atgrpo_jax.engines.protocol import Engine, Request
from atgrpo_jax.models.attention import causal_mask, masked_attention, narrower
from atgrpo_jax.models.lora import stack
from atgrpo_jax.models.transformer import PolicyWeights, Transformer, apply, exact_products, logits

PROMPTS = 8  # fixed prompts, asked after every push: they show whether a cache outlives a push
LENGTH = 16  # tokens of each prompt
DRAWS = 64  # tokens drawn after each prompt
# Probability that a correct engine fails the test of its draws' spread after a push.
FALSE_ALARM = 1e-8
# An engine fails if it is nearer to other weights by more than so many standard errors.
WRONG_WEIGHTS_Z = 6.0


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


class Draws(NamedTuple):
    """Holds one policy's draws: K tokens after each of P prompts. The new prompt is the last."""

    tokens_PK: np.ndarray
    logprobs_PK: np.ndarray


class Verdict(NamedTuple):
    """Says what is wrong with one policy's draws, if anything is."""

    cause: str | None  # what is wrong, in words; None if nothing is
    gap: float  # largest |learner - engine| logprob of the draws, nats
    # Standard errors by which the engine is nearer to the pushed weights than to the closest wrong
    # ones. Weights that give the same logprobs as the pushed ones do not count; 0 if all do.
    margin: float
    spread: float  # probability that a correct engine's draws are spread as unevenly


NO_NUMBERS = "it reports logprobs that are not finite, and the policy's own weights give finite ones"
UNKNOWN = "it holds other weights than any of the learner's, or computes at a lower precision"
# If a cache was kept, the errors after every fixed prompt are more than this many times those after
# the new one. Rounding errors differ between prompts too, but fixed ones are not always the larger.
KEPT_RATIO = 5.0
KEPT = "it has kept what it computed of prompts with the weights before the push"
LAST = "the weights before the push"
CHOSEN = "its draws are not spread like the distribution: top-p, top-k, min-p or another temperature"


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
    ):
        """
        Args:
          temperature: temperature of the draws; the same as in training.
          limit: largest |learner - engine| logprob that passes, nats.
        """
        self._models = models
        self._temperature = temperature
        self._limit = limit
        self._seed = seed
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

        Args:
          correct: whether a gap without a known cause passes, because importance weights
            (``Learner.corrected``) correct it.
          learned: what ``self.learned`` returned for the same weights and version, if known.

        Raises RunError that names the policy and says what is wrong.
        """
        prompts_PT = self._prompts(version)
        learned = learned or self.learned(weights, version)
        drawn = coroutines.run(self._draw(engine, list(weights), prompts_PT, version))
        metrics: dict[str, float] = {}
        for name, own in weights.items():
            others = {f"the weights of {other}": learned[other] for other in weights if other != name}
            if own.adapter is not None:
                others["its base, without the adapter"] = self._learned(
                    name, PolicyWeights(own.params), prompts_PT
                )
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
            found = {
                "gate_gap": verdict.gap,
                "gate_margin": verdict.margin,
                "gate_spread": verdict.spread,
                "gate_corrected": float(corrected),
            }
            metrics |= of_policy(name, found)
        self._last = {name: logprobs_PV[:PROMPTS] for name, logprobs_PV in learned.items()}
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
            if any(sample.finish == "error" for sample in samples):
                raise RunError(f"policy {policy}, version {version}: the engine draws nothing for the gate")
            return [s.tokens[0] for s in samples], [s.logprobs[0] for s in samples]

        async def all_of(policy: str) -> Draws:
            rows = await asyncio.gather(*(one(policy, i) for i in range(len(prompts_PT))))
            return Draws(*(np.array(column) for column in zip(*rows, strict=True)))

        return dict(zip(policies, await asyncio.gather(*map(all_of, policies)), strict=True))

    def _learned(self, name: str, weights: PolicyWeights, prompts_PT: np.ndarray) -> np.ndarray:
        return np.asarray(next_logprobs(self._models[name], weights, prompts_PT, self._temperature))


@functools.partial(jax.jit, static_argnums=0)
def next_logprobs(
    model: Transformer, weights: PolicyWeights, tokens_BT: jax.Array, temperature: jax.Array
) -> jax.Array:
    """Returns logprobs [B, V] float32 of the token after each row, at ``temperature``.

    Temperature 0 gives the same as 1.
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
    return jax.nn.log_softmax(scores_BV / jnp.where(temperature > 0, temperature, 1.0))


def judge(
    drawn: Draws, learned_PV: np.ndarray, others: Mapping[str, np.ndarray], limit: float, seed: int
) -> Verdict:
    """Judges whether the engine that drew ``drawn`` holds the weights that give ``learned_PV``.

    Args:
      learned_PV: logprobs after the prompts, from the pushed weights.
      others: from a name of other weights to the logprobs that they give, [P, V]. The last prompts
        may be missing.
      limit: largest |learner - engine| logprob that passes, nats.
    """
    tokens_PK, logprobs_PK = drawn
    if not np.isfinite(logprobs_PK).all():
        return Verdict(NO_NUMBERS, math.nan, 0.0, 0.0)
    gap_PK = np.abs(logprobs_PK - np.take_along_axis(learned_PV, tokens_PK, 1))
    gap = float(gap_PK.max())
    spread = _spread(tokens_PK, learned_PV, seed)
    margins = {name: _margin(drawn, learned_PV, other) for name, other in others.items()}
    margin = min(filter(None, margins.values()), default=0.0)
    cause = None
    *known, new = np.sqrt(np.mean(gap_PK**2, axis=1))
    if gap_PK[-1].max() <= limit < gap and min(known) > KEPT_RATIO * new:
        cause = KEPT
    elif margins and min(margins.values()) < -WRONG_WEIGHTS_Z:
        cause = f"it draws from {min(margins, key=lambda name: margins[name])}"
    elif not gap <= limit:
        cause = UNKNOWN
    elif spread < FALSE_ALARM:
        cause = CHOSEN
    return Verdict(cause, gap, margin, spread)


def _margin(drawn: Draws, learned_PV: np.ndarray, other_PV: np.ndarray) -> float:
    """Returns by how many standard errors the engine is nearer to ``learned_PV`` than ``other_PV``.

    Negative if it is nearer to ``other_PV``, 0 if the two are equal. It compares logprobs.
    """
    prompts = min(len(other_PV), len(learned_PV))
    vocab = min(other_PV.shape[1], learned_PV.shape[1])
    found: dict[tuple[int, int], float] = {}
    for p in range(prompts):
        for token, logprob in zip(drawn.tokens_PK[p], drawn.logprobs_PK[p], strict=True):
            if token < vocab:
                found[p, int(token)] = float(logprob)
    rows, tokens = (np.array(x) for x in zip(*found, strict=True))
    engine = np.array(list(found.values()))
    to_learned = engine - learned_PV[rows, tokens]
    to_other = engine - other_PV[rows, tokens]
    apart = np.linalg.norm(to_learned - to_other)
    if apart == 0:
        return 0.0
    noise = max(min(np.linalg.norm(to_learned), np.linalg.norm(to_other)) / len(engine) ** 0.5, 1e-7)
    nearer = np.sum(to_other**2) - np.sum(to_learned**2)
    return float(nearer / (2 * noise * apart))


def _spread(tokens_PK: np.ndarray, learned_PV: np.ndarray, seed: int) -> float:
    """Returns the probability that draws from ``learned_PV`` are spread as unevenly as these.

    For each draw it adds the probability of all likelier tokens and a random share of the token's
    own. These sums are uniform in [0, 1] for a correct engine. Kolmogorov's test finds an uneven
    spread, and a test of the largest sum finds draws that avoid the tail. The smaller p-value
    counts, doubled for two tests.
    """
    order_PV = np.argsort(-learned_PV, axis=1, kind="stable")
    places_PV = np.argsort(order_PV, axis=1)
    sorted_PV = np.exp(np.take_along_axis(learned_PV, order_PV, 1).astype(np.float64))
    above_PV = np.cumsum(sorted_PV, axis=1) - sorted_PV
    places_PK = np.take_along_axis(places_PV, tokens_PK, 1)
    own_PK, above_PK = (np.take_along_axis(x, places_PK, 1) for x in (sorted_PV, above_PV))
    share_PK = np.random.default_rng(seed).random(tokens_PK.shape)
    uniform = np.sort((above_PK + share_PK * own_PK).ravel()).clip(0, 1)
    count = uniform.size
    steps = np.arange(count + 1) / count
    distance = max((steps[1:] - uniform).max(), (uniform - steps[:-1]).max())
    kolmogorov = min(2 * np.exp(-2 * count * distance**2), 1.0)
    return float(min(2 * min(kolmogorov, uniform[-1] ** count), 1.0))
