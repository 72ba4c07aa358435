"""Losses over whole answers, and losses of one's own: against plain rows, one answer each."""

import dataclasses
import re
import sys
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from fakes import PARITY
from shared_learner import MODEL, OPTIMIZER, assert_same, items, learner, packed

from atgrpo_jax.models.attention import masked_attention
from atgrpo_jax.models.transformer import apply, logits
from atgrpo_jax.run.gin_config import load
from atgrpo_jax.update.batch import BatchConfig, answers
from atgrpo_jax.update.learner import UpdateInputs
from atgrpo_jax.update.loss import sequence_log_ratio
from atgrpo_jax.update.objectives import GSPOLossConfig, LossConfig

DOCS = Path(__file__).parents[1] / "docs" / "your-loss.md"


def source_of(name: str) -> str:
    """The file that docs/your-loss.md shows for a class."""
    blocks = re.findall(r"^```python\n(.*?)^```", DOCS.read_text(), re.DOTALL | re.MULTILINE)
    (source,) = (block for block in blocks if f"class {name}" in block)
    return source


def documented(name: str) -> type:
    module = types.ModuleType(name.lower())
    sys.modules[module.__name__] = module  # where dataclasses look for it
    exec(source_of(name), module.__dict__)
    del sys.modules[module.__name__]
    return getattr(module, name)


def test_an_answers_ratio_is_the_mean_over_its_tokens():
    new = jnp.array([[1.0, 2.0, 5.0, 9.0], [4.0, 0.0, 0.0, np.nan]])
    answers_BT = jnp.array([[1, 1, 2, 0], [1, 1, 1, 0]])
    found = sequence_log_ratio(new, jnp.zeros((2, 4)), answers_BT)
    np.testing.assert_allclose(found, [[1.5, 1.5, 5, 0], [4 / 3, 4 / 3, 4 / 3, 0]], rtol=1e-6)


def test_answers_are_numbered_in_each_row():
    micro = jax.tree.map(lambda x: x[0], packed(items(), BatchConfig(row_tokens=48, rows=2)))
    lengths = [[len(c.sample.tokens) for c in item.group.candidates] for item in items()]
    rows = {tuple(np.bincount(row)[1:].tolist()) for row in np.asarray(answers(micro))}
    assert rows == {(*lengths[2], *lengths[1]), tuple(lengths[0])}  # the longest first


LONGEST = 24


@jax.jit
def next_logprobs(params, tokens_NT):
    """Logprobs [N, T - 1] of each token after the ones before it; padding at the end changes nothing."""
    N, T = tokens_NT.shape
    mask_NTT = jnp.broadcast_to(jnp.tril(jnp.ones((T, T), bool)), (N, T, T))
    hidden_NTD, _ = apply(
        MODEL, params, None, tokens_NT, jnp.broadcast_to(jnp.arange(T), (N, T)),
        lambda q, k, v, *_: (masked_attention(q, k, v, mask_NTT), None),
        scale_BJ=jnp.ones((N, 1)),
    )  # fmt: skip
    logprobs_NTV = jax.nn.log_softmax(logits(params, hidden_NTD)[:, :-1])
    return jnp.take_along_axis(logprobs_NTV, tokens_NT[:, 1:, None], axis=2)[..., 0]


def plain_logprobs(params, groups):
    """Logprobs of the tokens of every answer, each in a row of its own behind its prompt."""
    rows, places = [], []
    for item in groups:
        prompt = item.group.origin.prompt_ids
        for candidate in item.group.candidates:
            row = (*prompt, *candidate.sample.tokens)
            rows.append(row + (0,) * (LONGEST - len(row)))
            places.append(slice(len(prompt) - 1, len(row) - 1))
    found = next_logprobs(params, jnp.array(rows))
    return [row[place] for row, place in zip(found, places, strict=True)]


def mean_over_answers(groups, term):
    """Parameters -> minus the mean over groups and answers of ``term(log ratio, advantage, logprobs)``."""
    answers_ = []
    for item in groups:
        for candidate, advantage in zip(item.group.candidates, item.advantages_K, strict=True):
            share = 1 / len(item.group.candidates) / len(groups)
            answers_.append((np.array(candidate.sample.logprobs), advantage, share))

    def loss(params):
        total = jnp.float32(0)
        for logprobs, (old, advantage, share) in zip(plain_logprobs(params, groups), answers_, strict=True):
            total -= share * term(logprobs - old, advantage, logprobs)
        return total

    return jax.value_and_grad(loss)


def near(groups, params, scale):
    """The groups with old logprobs near the policy's own, so that ratios lie around the bounds."""
    rng = np.random.default_rng(1)
    own = iter(plain_logprobs(params, groups))
    found = []
    for item in groups:
        candidates = []
        for candidate in item.group.candidates:
            logprobs = np.asarray(next(own))
            old = tuple((logprobs + scale * rng.standard_normal(len(logprobs))).tolist())
            sample = dataclasses.replace(candidate.sample, logprobs=old)
            candidates.append(dataclasses.replace(candidate, sample=sample))
        group = dataclasses.replace(item.group, candidates=tuple(candidates))
        found.append(dataclasses.replace(item, group=group))
    return found


def check_against_plain_rows(loss, term, scale):
    """An update's loss and new parameters, against the optimizer's on the plain gradient; returns metrics."""
    ours = learner(loss)
    params = jax.device_get(ours.init(jax.random.key(0)).params)
    groups = near(items(), params, scale)
    value, gradient = mean_over_answers(groups, term)(params)
    assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(gradient)) > 1e-2
    optimizer = OPTIMIZER.build()
    step, _ = optimizer.update(gradient, optimizer.init(params), params)
    state, metrics = ours.update(ours.init(jax.random.key(0)), UpdateInputs(packed(groups)))
    np.testing.assert_allclose(metrics["loss"], value, **PARITY)
    assert_same(state.params, optax.apply_updates(params, step))
    return metrics


@pytest.mark.thorough
def test_gspos_loss_and_gradient_are_those_of_separate_rows():
    loss = GSPOLossConfig(clip_low=0.02, clip_high=0.03)

    def term(log_ratio, advantage, _):
        s = jnp.exp(log_ratio.mean())
        return jnp.minimum(s * advantage, jnp.clip(s, 0.98, 1.03) * advantage)

    metrics = check_against_plain_rows(loss, term, 0.1)
    assert 0.1 < metrics["clip_fraction"] < 0.9  # some answers are clipped, some are not


@pytest.mark.thorough
def test_the_documented_losses_are_those_of_separate_rows():
    def sure(log_ratio, advantage, _):
        ratio = jnp.exp(log_ratio)
        clipped = jnp.minimum(ratio * advantage, jnp.clip(ratio, 0.8, 1.2) * advantage)
        term = jnp.where(advantage < 0, jnp.maximum(clipped, 3 * advantage), clipped)
        return jnp.where(log_ratio.mean() >= jnp.log(0.9), term.mean(), 0.0)

    def cispo(log_ratio, advantage, logprobs):
        ratio = jax.lax.stop_gradient(jnp.minimum(jnp.exp(log_ratio), 1.1))
        return (ratio * advantage * logprobs).mean()

    sure_loss, cispo_loss = documented("OnPolicyAnswers")(least=0.9), documented("CISPO")(most=1.1)
    metrics = check_against_plain_rows(sure_loss, sure, 0.3)
    check_against_plain_rows(cispo_loss, cispo, 0.3)
    assert metrics["logprob_gap"] > 0.3  # of the sampler's own logprobs, whatever prepare has made of them


def test_a_loss_of_ones_own_is_taken_from_a_file(tmp_path, monkeypatch):
    (tmp_path / "cispo.py").write_text(source_of("CISPO"))
    (gin,) = re.findall(r"^```\n(import cispo.*?)^```", DOCS.read_text(), re.DOTALL | re.MULTILINE)
    (tmp_path / "cispo.gin").write_text(gin)
    monkeypatch.syspath_prepend(str(tmp_path))
    loss = load(str(tmp_path / "cispo.gin")).loss
    assert (type(loss).__name__, loss.most, loss.minibatches) == ("CISPO", 4.0, 2)
    assert isinstance(loss, LossConfig) and loss.objective().prepare is None
