"""One training step in plain NumPy, float64: what the trainer must do, written from the formulas.

Nothing of the package is imported and nothing here is fast: every answer is a row of its own, and derivatives
come from a tape of single operations (tape.py), which tests compare with central differences.

The formulas: groups, rewards and loss of arXiv 2510.11062 (equations 1, 3, 4); other advantages 2402.14740
and 2602.02710; dual clip 1912.09729; the estimate of KL that is never negative (exp(d) - 1 - d); truncated
importance sampling 2110.00641; a divisor shared by all answers 2503.20783; AdamW 1711.05101; Muon (Jordan
2024, scaled as in 2502.16982, equation 4); adapters 2106.09685; rotary positions 2104.09864; RMSNorm
1910.07467; SwiGLU 2002.05202.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from tape import Node, gradients, joined, least, node

# The model


@dataclasses.dataclass(frozen=True)
class Shape:
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    theta: float = 10_000.0
    epsilon: float = 1e-6
    llama3: tuple[float, float, float, float] | None = None  # factor, low, high, original positions


def turns(shape: Shape) -> np.ndarray:
    """Radians a position of each pair."""
    half = shape.head_size // 2
    plain = np.array([shape.theta ** (-i / half) for i in range(half)])
    if shape.llama3 is None:
        return plain
    factor, low, high, original = shape.llama3
    result = []
    for turn in plain:
        wavelength = 2 * math.pi / turn
        smooth = (original / wavelength - low) / (high - low)
        smooth = min(max(smooth, 0.0), 1.0)
        result.append((1 - smooth) * turn / factor + smooth * turn)
    return np.array(result)


def normed(x: Node, scale: Node, epsilon: float) -> Node:
    return (
        x
        * ((x * x).sum(-1) * (1 / x.value.shape[-1]) + epsilon).reshape(*x.value.shape[:-1], 1) ** -0.5
        * scale
    )


def rotated(x: Node, shape: Shape) -> Node:
    """[heads, T, head_size]: the pair (i, i + half) turned by its angle at each position."""
    half = shape.head_size // 2
    angles = np.arange(x.value.shape[1])[:, None] * turns(shape)
    cos, sin = np.cos(angles), np.sin(angles)
    first, second = x[:, :, :half], x[:, :, half:]
    return joined([first * cos - second * sin, second * cos + first * sin], 2)


def logprobs(
    p: Mapping[str, Node], shape: Shape, prompt: Sequence[int], answer: Sequence[int], temperature: float,
    scale: float = 0.0,
) -> tuple[Node, Node]:  # fmt: skip
    """Of each token of an answer after its prompt, and the entropy of what it was drawn from.

    ``p`` by path, as "layer_0/q/kernel". Adapters in it (".../a", ".../b") count times ``scale``.
    """
    ids = [*prompt, *answer]
    T = len(ids)

    def dense(name, x):
        y = x @ p[f"{name}/kernel"]
        if f"{name}/bias" in p:
            y = y + p[f"{name}/bias"]
        if f"{name}/a" in p:
            y = y + x @ p[f"{name}/a"] @ p[f"{name}/b"] * scale
        return y

    def by_head(x, count):
        return x.reshape(T, count, shape.head_size).swap(0, 1)

    x = p["embedding"][np.array(ids)]
    later = np.triu(np.full((T, T), -1e30), 1)
    for i in range(shape.layers):
        layer = f"layer_{i}"
        h = normed(x, p[f"{layer}/attention_norm/scale"], shape.epsilon)
        q = by_head(dense(f"{layer}/q", h), shape.heads)
        k = by_head(dense(f"{layer}/k", h), shape.kv_heads)
        v = by_head(dense(f"{layer}/v", h), shape.kv_heads)
        if f"{layer}/q_norm/scale" in p:
            q = normed(q, p[f"{layer}/q_norm/scale"], shape.epsilon)
            k = normed(k, p[f"{layer}/k_norm/scale"], shape.epsilon)
        q, k = rotated(q, shape), rotated(k, shape)
        of = np.arange(shape.heads) // (shape.heads // shape.kv_heads)  # which key head a query head reads
        k, v = k[of], v[of]
        scores = q @ k.swap(1, 2) * shape.head_size**-0.5 + later
        mixed = log_softmax(scores).exp() @ v
        x = x + dense(f"{layer}/o", mixed.swap(0, 1).reshape(T, -1))
        h = normed(x, p[f"{layer}/mlp_norm/scale"], shape.epsilon)
        gate = dense(f"{layer}/gate", h)
        x = x + dense(f"{layer}/down", gate * ((-gate).exp() + 1.0) ** -1 * dense(f"{layer}/up", h))
    x = normed(x, p["norm/scale"], shape.epsilon)[len(prompt) - 1 : T - 1]
    logits = x @ (p["head"] if "head" in p else p["embedding"].swap(0, 1))
    all_ = log_softmax(logits * (1 / temperature))
    return all_[np.arange(len(answer)), np.array(answer)], -(all_.exp() * all_).sum(-1)


def log_softmax(x: Node) -> Node:
    x = x - x.value.max(-1, keepdims=True)
    return x - x.exp().sum(-1).log().reshape(*x.value.shape[:-1], 1)


# The step


@dataclasses.dataclass(frozen=True)
class Answer:
    tokens: tuple[int, ...]
    sampled: tuple[float, ...]  # logprobs, of the sampler
    advantage: float


@dataclasses.dataclass(frozen=True)
class Prompt:
    """One of the groups that give a gradient."""

    tokens: tuple[int, ...]
    answers: tuple[Answer, ...]


def advantages(
    rewards: Sequence[float | None], normalise: str, leave_one_out: bool = False
) -> list[float | None]:
    """None where there is no reward; all None where no two rewards differ.

    With ``leave_one_out`` every reward is compared with the mean of the others.
    """
    present = [r for r in rewards if r is not None]
    if len(present) < 2 or min(present) == max(present):
        return [None] * len(rewards)
    mean = sum(present) / len(present)
    divisor = 1.0
    if normalise == "std":
        divisor = math.sqrt(sum((r - mean) ** 2 for r in present) / len(present)) + 1e-6
    if normalise == "rate":
        divisor = mean

    def baseline(r: float) -> float:
        return (sum(present) - r) / (len(present) - 1) if leave_one_out else mean

    return [None if r is None else (r - baseline(r)) / divisor for r in rewards]


def share_of_starts_that_differ(rewards: Sequence[float | None], first: int) -> float:
    """Of all choices of ``first`` answers of a group, the share that have two different rewards."""
    starts = list(itertools.combinations(rewards, first))
    return sum(len(set(start) - {None}) > 1 for start in starts) / len(starts)


@dataclasses.dataclass(frozen=True)
class Loss:
    clip_low: float = 0.2
    clip_high: float = 0.2
    dual_clip: float | None = 3.0
    aggregate: str = "candidate"
    constant: int = 1
    entropy: float = 0.0
    kl: float = 0.0
    correction: float | None = None
    temperature: float = 1.0


def weight(loss: Loss, groups: Sequence[Prompt], group: Prompt, answer: Answer) -> float:
    """Of each of the answer's tokens in the loss of these groups."""
    if loss.aggregate == "token":
        return 1 / sum(len(a.tokens) for g in groups for a in g.answers)
    divisor = len(answer.tokens) if loss.aggregate == "candidate" else loss.constant
    return 1 / len(groups) / len(group.answers) / divisor


def objective(
    loss: Loss, groups: Sequence[Prompt], speak: Callable[[Prompt, Answer], tuple[Node, Node]],
    old: Callable[[Answer], np.ndarray], reference: Callable[[Answer], np.ndarray],
) -> tuple[Node, dict[str, float]]:  # fmt: skip
    """The loss of a minibatch, and weighted means over its tokens.

    Args:
      speak: logprobs and entropies by the policy as it is.
      old, reference: logprobs when it sampled, and where training started.
    """
    total, everything = node(0.0), 0.0
    sums = dict.fromkeys(("ratio", "clip_fraction", "kl_old", "entropy", "kl_start"), 0.0)
    for group in groups:
        for answer in group.answers:
            w = weight(loss, groups, group, answer)
            now, entropy = speak(group, answer)
            before = old(answer)
            A = np.full(len(answer.tokens), answer.advantage)
            if loss.correction is not None:
                A = A * np.minimum(np.exp(before - np.array(answer.sampled)), loss.correction)
            ratio = (now - before).exp()
            inside = least(least(ratio, node(1 - loss.clip_low), True), node(1 + loss.clip_high))
            term = least(ratio * A, inside * A)
            if loss.dual_clip is not None:
                floored = least(term, node(loss.dual_clip * A), True)
                term = floored * (A < 0) + term * (A >= 0)
            d = node(reference(answer)) - now
            distance = d.exp() - 1.0 - d
            total = total - term.sum() * w - entropy.sum() * (loss.entropy * w)
            if loss.kl:
                total = total + distance.sum() * (loss.kl * w)
            everything += w * len(A)
            sums["ratio"] += w * ratio.value.sum()
            sums["clip_fraction"] += w * ((inside.value - ratio.value) * A < 0).sum()
            sums["kl_old"] += w * (ratio.value - 1 - np.log(ratio.value)).sum()
            sums["entropy"] += w * entropy.value.sum()
            sums["kl_start"] += w * distance.value.sum()
    return total, {name: value / everything for name, value in sums.items()}


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """Steps are rate x ``schedule`` of the update's number, from 0."""

    rate: float
    schedule: Callable[[int], float] = lambda update: 1.0
    b1: float = 0.9
    b2: float = 0.99
    epsilon: float = 1e-8
    weight_decay: float = 0.0
    clip_norm: float = math.inf
    # Which matrices Muon moves, if it is not AdamW alone. What is left then gets AdamW's step with Nesterov's
    # momentum: that is how optax has them together.
    muon: Callable[[str], bool] | None = None
    momentum: float = 0.95  # of Muon


def orthogonal(matrix: np.ndarray, epsilon: float) -> np.ndarray:
    """Five rounds of Newton and Schulz: singular values come near to one."""
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    x = wide / (np.linalg.norm(wide) + epsilon)
    for _ in range(5):
        square = x @ x.T
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x if matrix.shape[0] <= matrix.shape[1] else x.T


def stepped(optimizer: Optimizer, params, grads, moments, update: int):
    """Parameters and (first, second) moments after update number ``update``, counted from 0."""
    norm = math.sqrt(sum(float((g * g).sum()) for g in grads.values()))
    after, kept = {}, {}
    rate, count = optimizer.rate * optimizer.schedule(update), update + 1
    for path, x in params.items():
        g = grads[path] * min(1.0, optimizer.clip_norm / norm)
        matrix = optimizer.muon is not None and optimizer.muon(path)
        b1 = optimizer.momentum if matrix else optimizer.b1
        first, second = moments.get(path, (0.0, 0.0))
        first = b1 * first + (1 - b1) * g
        second = optimizer.b2 * second + (1 - optimizer.b2) * g * g
        kept[path] = first, second
        step = first / (1 - b1**count)
        if optimizer.muon is not None:
            step = b1 * first / (1 - b1 ** (count + 1)) + (1 - b1) * g / (1 - b1**count)
        if matrix:
            step = 0.2 * math.sqrt(max(g.shape)) * orthogonal(step, optimizer.epsilon)
        else:
            step = step / (np.sqrt(second / (1 - optimizer.b2**count)) + optimizer.epsilon)
        after[path] = x - rate * (step + optimizer.weight_decay * x)
    return after, kept, norm


def trained(
    shape: Shape, params: Mapping[str, np.ndarray], batches: Sequence[Sequence[Prompt]], loss: Loss,
    optimizer: Optimizer, base: Mapping[str, np.ndarray] | None = None, scale: float = 0.0,
) -> tuple[dict[str, np.ndarray], dict[str, float]]:  # fmt: skip
    """Parameters after an update on each batch in turn, and the step's metrics.

    ``params`` is what is trained: everything, or adapters, on a ``base`` that stays as it is.
    """

    def speaker(values):
        p = {path: node(x) for path, x in {**(base or {}), **values}.items()}
        return p, lambda g, a: logprobs(p, shape, g.tokens, a.tokens, loss.temperature, scale)

    def known(speak):
        return {id(a): speak(g, a)[0].value for groups in batches for g in groups for a in g.answers}

    own = known(speaker(params)[1])
    sampled = {id(a): np.array(a.sampled) for groups in batches for g in groups for a in g.answers}
    old = sampled if loss.correction is None else own
    records: list[dict[str, float]] = []
    moments: Any = {}
    after = dict(params)
    for update, groups in enumerate(batches):
        p, speak = speaker(after)
        value, means = objective(loss, groups, speak, lambda a: old[id(a)], lambda a: own[id(a)])
        paths = list(after)
        grads = dict(zip(paths, gradients(value, [p[path] for path in paths]), strict=True))
        after, moments, norm = stepped(optimizer, after, grads, moments, update)
        records.append(means | {"loss": float(value.value), "grad_norm": norm})
        if loss.correction is not None:
            pairs = [(weight(loss, groups, g, a), a) for g in groups for a in g.answers]
            factors = [np.minimum(np.exp(own[id(a)] - sampled[id(a)]), loss.correction) for _, a in pairs]
            total = sum(w * len(a.tokens) for w, a in pairs)
            records[-1]["correction"] = (
                sum(w * f.sum() for (w, _), f in zip(pairs, factors, strict=True)) / total
            )
    metrics = {name: float(np.mean([r[name] for r in records])) for name in records[0]}
    first = [a for g in batches[0] for a in g.answers]
    metrics["logprob_gap"] = max(float(np.abs(own[id(a)] - sampled[id(a)]).max()) for a in first)
    metrics["updates"] = float(len(batches))
    if not loss.kl:
        del metrics["kl_start"]
    return after, metrics
