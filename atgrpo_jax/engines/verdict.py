"""Judges draws of an engine: whether it holds the weights that were pushed, and if not, what is wrong.

Axis letters: P prompts, K draws after each, V vocabulary.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

# Probability that a correct engine fails the test of its draws' spread after a push.
FALSE_ALARM = 1e-8
# An engine fails if it is nearer to other weights by more than so many standard errors.
WRONG_WEIGHTS_Z = 6.0
NO_NUMBERS = "it reports logprobs that are not finite, and the policy's own weights give finite ones"
UNKNOWN = "it holds other weights than any of the learner's, or computes at a lower precision"
# If a cache was kept, the errors after every fixed prompt are more than this many times those after
# the new one. Rounding errors differ between prompts too, but fixed ones are not always the larger.
KEPT_RATIO = 5.0
KEPT = "it has kept what it computed of prompts with the weights before the push"
CHOSEN = "its draws are not spread like the distribution: top-p, top-k, min-p or another temperature"


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
