"""Prints what it does to the gradient, and what it saves, to draw the candidates of a group in two parts.

    python benchmarks/branching.py
    python benchmarks/branching.py RUN_DIR 29 33     what it would have done in these steps of a run

Rewards are 1 with probability p, else 0. All is exact: every outcome of K candidates is visited. Only the
last column of the first table is drawn, with a fixed seed. The tables are those of docs/branching.md.

A gradient is that of a policy with one logit: d log p(success) = 1 - p, d log p(failure) = -p. That of
the expected reward is p (1 - p). Rules: "once" draws K candidates at once, "differ" goes on after K1 if two
rewards differ, as the package does, "equal" goes on if they do not.
"""

import functools
import itertools
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from atgrpo_jax.credit.branching import goes_on, share_that_goes_on
from atgrpo_jax.run.folder import RunFolder

PS = (0.02, 0.05, 0.1, 0.2, 0.5)
DEAD = (0.0, 0.5, 0.8)  # shares of prompts on which all answers earn the same
CASES = ((8, 4), (8, 2))  # K, K1
DRAWN = 200_000  # groups


def others(rewards: Sequence[float]) -> np.ndarray:
    """Returns the advantages to the mean of the other candidates (RLOO)."""
    found = np.asarray(rewards, float)
    return (found - found.mean()) * (len(found) / (len(found) - 1))


def std(rewards: Sequence[float]) -> np.ndarray:
    """Returns the advantages in standard deviations; 0 where rewards are equal."""
    found = np.asarray(rewards, float)
    return (found - found.mean()) / (found.std() or 1.0)


def groups(rule: str, K: int, K1: int, p: float) -> Iterator[tuple[float, tuple[int, ...]]]:
    """Yields the probability of each outcome of K draws, and the rewards of those that the rule draws."""
    for outcome in itertools.product((0, 1), repeat=K):
        probability = math.prod(p if reward else 1 - p for reward in outcome)
        stops = rule != "once" and goes_on(outcome[:K1]) != (rule == "differ")
        yield probability, outcome[:K1] if stops else outcome


def factor(rule: str, rewards: Sequence[int], K: int, K1: int) -> float:
    """Returns what the package multiplies advantages with; for "equal" what the same thought gives.

    A group of "equal" that stopped keeps the gradient of its K1 candidates, which is exact. One that went on
    gets the mean of that over its starts that go on: nothing, as these have equal rewards.
    """
    if rule == "once":
        return 1.0
    if len(rewards) == K:
        return 1 / share_that_goes_on(rewards, K1) if rule == "differ" else 0.0
    return float(rule == "equal")


def gradient(rule: str, K: int, K1: int, p: float, advantages=others, corrects: bool = True) -> float:
    """Returns the expected gradient of a group."""
    total = 0.0
    for probability, rewards in groups(rule, K, K1, p):
        scores = np.asarray(rewards, float) - p
        weight = factor(rule, rewards, K, K1) if corrects else 1.0
        total += probability * weight * float(advantages(rewards) @ scores) / len(rewards)
    return total


def missed(K: int, K1: int, p: float, advantages=others) -> float:
    """Returns the part of the gradient of K candidates from groups whose first K1 rewards are equal.

    Rule "differ" misses it, and "equal" has it on top, if nothing is corrected. The sums are over how many of
    the K - K1 others differ from the first ones.
    """
    K2 = K - K1
    total = 0.0
    for rare in (p, 1 - p):
        for c in range(K2 + 1):
            chance = (1 - rare) ** K1 * math.comb(K2, c) * rare**c * (1 - rare) ** (K2 - c)
            size = c * (K - c) / (K * (K - 1)) if advantages is others else math.sqrt(c * (K - c)) / K
            total += chance * size
    return total


def drawn(K: int, K1: int, p: float, seed: int = 0) -> tuple[float, float]:
    """Returns the mean gradient of ``DRAWN`` groups of rule "differ", corrected, and its standard error."""
    rewards = (np.random.default_rng(seed).random((DRAWN, K)) < p).astype(int)
    first, count = rewards[:, :K1].sum(1), rewards.sum(1)
    weights = [0.0] + [factor("differ", [1] * c + [0] * (K - c), K, K1) for c in range(1, K)] + [0.0]
    found = count * (K - count) / (K * (K - 1)) * np.array(weights)[count]
    found = np.where((first > 0) & (first < K1), found, 0.0)
    return float(found.mean()), float(found.std() / math.sqrt(DRAWN))


def useful(K: int, p: float) -> float:
    """Returns the probability that the rewards of K candidates are not all equal."""
    return 1 - p**K - (1 - p) ** K


def cost(rule: str, K: int, K1: int, p: float) -> float:
    """Returns the expected number of candidates of a group."""
    more = {"once": 1.0, "differ": useful(K1, p), "equal": 1 - useful(K1, p)}[rule]
    return K if rule == "once" else K1 + more * (K - K1)


def answers_a_useful_group(rule: str, K: int, K1: int, p: float, dead: float = 0.0) -> float:
    """Returns the expected answers that are drawn for each group with signal.

    ``dead`` is the share of prompts whose answers all earn the same; those of the others succeed with p.
    """
    all_ = dead * cost(rule, K, K1, 0.0) + (1 - dead) * cost(rule, K, K1, p)
    return all_ / ((1 - dead) * useful(K1 if rule == "differ" else K, p))


@functools.cache
def noise(rule: str, K: int, K1: int, p: float, advantages=others) -> float:
    """Returns the variance of a group's gradient by its expected gradient squared.

    The scores of single answers are taken for noise of size 1, so the variance is the expected sum of squares
    of advantages over n. "equal" is not corrected, or nothing would be left of its second part.
    """
    corrects = rule == "differ"
    variance = 0.0
    for probability, rewards in groups(rule, K, K1, p):
        weight = factor(rule, rewards, K, K1) if corrects else 1.0
        variance += probability * float(((weight * advantages(rewards) / len(rewards)) ** 2).sum())
    return variance / gradient(rule, K, K1, p, advantages, corrects) ** 2


def answers_for_precision(
    rule: str, K: int, K1: int, p: float, dead: float = 0.0, advantages=others
) -> float:
    """Returns the answers for the same signal to noise, as a multiple of those of K drawn at once."""
    drawn = dead * cost(rule, K, K1, 0.0) + (1 - dead) * cost(rule, K, K1, p)
    return drawn * noise(rule, K, K1, p, advantages) / (K * noise("once", K, K1, p, advantages))


def break_even(K: int, K1: int, p: float, advantages=others) -> float:
    """Returns the share of dead prompts from which on "differ" needs fewer answers for the same precision.

    It is above 1 if there is no such share.
    """
    allowed = K * noise("once", K, K1, p, advantages) / noise("differ", K, K1, p, advantages)
    alive = cost("differ", K, K1, p)
    return (alive - allowed) / (alive - K1)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def of_bias() -> str:
    """Returns expected gradients as multiples of what they should be."""
    rows = []
    for K, K1 in CASES:
        for p in PS:
            right, right_std = p * (1 - p), gradient("once", K, K1, p, std)
            plain = [gradient(rule, K, K1, p, corrects=False) / right for rule in ("differ", "equal")]
            plain_std = gradient("differ", K, K1, p, std, corrects=False) / right_std
            exact = [gradient("differ", K, K1, p) / right, gradient("differ", K, K1, p, std) / right_std]
            mean, error = (x / right for x in drawn(K, K1, p))
            rows.append([f"{K1} of {K}", f"{p:g}", *(f"{x:.3f}" for x in (*plain, plain_std, *exact)),
                         f"{mean:.3f} ± {error:.3f}"])  # fmt: skip
    head = ("K1 of K", "p", "differ", "equal", "differ, std", "corrected", "corrected, std", "drawn")
    return table(head, rows)


def of_cost() -> str:
    """Returns answers for each useful group, and for the same precision."""
    rows = []
    for K, K1 in CASES:
        for dead in DEAD:
            for p in (0.05, 0.2, 0.5):
                each = [answers_a_useful_group(rule, K, K1, p, dead) for rule in ("once", "differ", "equal")]
                alone = answers_a_useful_group("once", K1, K1, p, dead)
                same = [answers_for_precision("differ", K, K1, p, dead, how) for how in (others, std)]
                same.append(answers_for_precision("equal", K, K1, p, dead))
                rows.append([f"{K1} of {K}", f"{dead:.0%}", f"{p:g}", *(f"{x:.1f}" for x in (*each, alone)),
                             *(f"{x:.2f}" for x in same)])  # fmt: skip
    head = ("K1 of K", "dead", "p", "K at once", "differ", "equal", "K1 at once", "differ, mean",
            "differ, std", "equal, mean")  # fmt: skip
    return table(head, rows)


def of_break_even() -> str:
    """Returns the shares of dead prompts from which on drawing in two parts pays."""
    rows = []
    for K, K1 in ((8, 5), (8, 4), (8, 2), (6, 3), (4, 2)):
        row = [f"{K1} of {K}"]
        for how in (others, std):
            found = (break_even(K, K1, p, how) for p in (0.05, 0.2, 0.5))
            row += [f"{share:.0%}" if share < 1 else "never" for share in found]
        rows.append(row)
    ps = ("p = 0.05", "p = 0.2", "p = 0.5")
    return table(("K1 of K", *(f"mean, {p}" for p in ps), *(f"std, {p}" for p in ps)), rows)


def recorded(path: str, steps: Sequence[int]) -> list[Mapping[str, Any]]:
    """Returns the groups that policies drew in some steps of a run, which draws all candidates at once."""
    folder = RunFolder(path)
    episodes = (episode for step in steps for episode in folder.read_episodes(step))
    return [group for episode in episodes for group in episode["groups"] if group["policy"]]


def of_run(groups: Sequence[Mapping[str, Any]]) -> str:
    """Returns what each K1 would have drawn of these groups, and how precise the gradient would be.

    A group that goes on has the same candidates. So this is exact for the groups as they were played, and
    with the advantages that they were trained with.
    """
    K = min(len(group["candidates"]) for group in groups)
    rows = []
    tokens_at_once = variance_at_once = 0.0
    for K1 in range(K, 1, -1):
        tokens = variance = useful = factors = 0.0
        for group in groups:
            rewards = [one["mixed"] for one in group["candidates"]]
            advantages = np.array([one["advantage"] for one in group["candidates"]])
            goes = goes_on(rewards[:K1])
            lengths = [len(one["tokens"]) for one in group["candidates"]]
            tokens += sum(lengths if goes else lengths[:K1])
            if goes:
                weight = 1 / share_that_goes_on(rewards, K1)
                variance += float(((weight * advantages / len(rewards)) ** 2).sum())
                useful += 1
                factors += weight
        if K1 == K:
            tokens_at_once, variance_at_once = tokens, variance
        share = tokens / tokens_at_once
        rows.append([str(K1), f"{useful / len(groups):.1%}", f"{share:.2f}", f"{tokens / useful:.1f}",
                     f"{share * variance / variance_at_once:.2f}", f"{factors / useful:.2f}"])  # fmt: skip
    return table(
        ("K1", "go on", "tokens", "tokens a useful group", "tokens, same precision", "mean factor"), rows
    )


if __name__ == "__main__":
    if sys.argv[1:]:
        run, first, last = sys.argv[1:]
        print(of_run(recorded(run, range(int(first), int(last) + 1))))
    else:
        print(of_bias(), of_cost(), of_break_even(), sep="\n\n")
