import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from atgrpo_jax.update.loss import bounded_exp, cloning_loss, kl_penalty, policy_loss

MODES = pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["eager", "jitted"])


def terms(ratios, advantages, transform=lambda f: f, **options):
    """-loss for tokens of weight 1, and the metrics."""
    settings = {"clip_low": 0.2, "clip_high": 0.2, "dual_clip": None} | options
    old_BT = jnp.full((1, len(ratios)), -1.0)
    logprobs_BT = old_BT + jnp.log(jnp.array([ratios]))
    ones_BT = jnp.ones_like(old_BT)

    def call(logprobs_BT):
        return policy_loss(logprobs_BT, old_BT, jnp.array([advantages]), ones_BT, **settings)

    loss, metrics = transform(call)(logprobs_BT)
    return -loss, metrics


@MODES
@pytest.mark.parametrize(
    ("ratio", "advantage", "term"),
    [
        (1.0, 2.0, 2.0),
        (1.5, 2.0, 2.4),  # clipped at 1.2
        (0.5, 2.0, 1.0),  # a gain lost is not clipped
        (1.5, -2.0, -3.0),  # a loss made worse is not clipped
        (0.5, -2.0, -1.6),  # clipped at 0.8
    ],
)
def test_clipped_surrogate_by_hand(transform, ratio, advantage, term):
    value, _ = terms([ratio], [advantage], transform)
    np.testing.assert_allclose(value, term, rtol=1e-5)


@pytest.mark.parametrize(
    ("bound", "ratio", "advantage", "term"),
    [
        ({"clip_high": 0.28}, 1.5, 1.0, 1.28),
        ({"clip_high": 0.28}, 0.5, -1.0, -0.8),  # as it was
        ({"clip_low": 0.1}, 1.5, 1.0, 1.2),  # as it was
        ({"clip_low": 0.1}, 0.5, -1.0, -0.9),
    ],
    ids=str,
)
def test_each_bound_clips_its_own_side(bound, ratio, advantage, term):
    """One ratio at a time: two terms in one sum can hide each other."""
    value, _ = terms([ratio], [advantage], **bound)
    np.testing.assert_allclose(value, term, rtol=1e-5)


def test_dual_clip_bounds_negative_advantages_only():
    value, _ = terms([5.0], [-2.0], dual_clip=3.0)
    np.testing.assert_allclose(value, -6.0, rtol=1e-5)
    value, _ = terms([5.0], [2.0], dual_clip=3.0)
    np.testing.assert_allclose(value, 2.4, rtol=1e-5)


def test_gradient_at_ratio_one_is_the_policy_gradient():
    advantages_BT = jnp.array([[2.0, -1.0, 3.0]])
    weights_BT = jnp.array([[0.5, 0.25, 0.0]])
    old_BT = jnp.array([[-1.0, -2.0, -jnp.inf]])  # garbage where nothing is trained

    def loss(logprobs_BT):
        return policy_loss(
            logprobs_BT, old_BT, advantages_BT, weights_BT,
            clip_low=0.2, clip_high=0.2, dual_clip=3.0,
        )[0]  # fmt: skip

    gradient_BT = jax.grad(loss)(jnp.array([[-1.0, -2.0, -5.0]]))
    np.testing.assert_allclose(gradient_BT, [[-1.0, 0.25, 0.0]], rtol=1e-6)


def test_the_loss_pulls_at_the_policys_logprobs_alone():
    """Old logprobs, advantages and weights are data, wherever they were computed."""
    given = [jnp.array([[value, value - 0.5]]) for value in (-1.1, 2.0, 0.5)]

    def loss(old_BT, advantages_BT, weights_BT):
        return policy_loss(
            jnp.array([[-1.0, -1.5]]), old_BT, advantages_BT, weights_BT,
            clip_low=0.2, clip_high=0.2, dual_clip=3.0,
        )[0]  # fmt: skip

    assert loss(*given) != 0
    for gradient_BT in jax.grad(loss, argnums=(0, 1, 2))(*given):
        np.testing.assert_array_equal(gradient_BT, 0.0)


def test_metrics_by_hand():
    ratios = 1.5, 1.4, 0.5, 1.1
    _, metrics = terms(ratios, [1.0, 1.0, 1.0, -1.0])
    np.testing.assert_allclose(metrics["clip_fraction"], 2.0)  # of four tokens of weight one
    np.testing.assert_allclose(metrics["ratio"], 4.5, rtol=1e-6)
    np.testing.assert_allclose(metrics["kl_old"], sum(r - 1 - np.log(r) for r in ratios), rtol=1e-5)


@MODES
def test_kl_penalty_by_hand(transform):
    logprobs_BT, reference_BT = jnp.array([[-1.0, -1.0]]), jnp.array([[-2.0, -9.0]])
    value = transform(kl_penalty)(logprobs_BT, reference_BT, jnp.array([[0.5, 0.0]]))
    np.testing.assert_allclose(value, 0.5 * (np.exp(-1.0) - 1 + 1.0), rtol=1e-6)
    assert kl_penalty(logprobs_BT, logprobs_BT, jnp.ones((1, 2))) == 0.0


@MODES
def test_cloning_loss_by_hand(transform):
    value = transform(cloning_loss)(jnp.array([[-1.0, -3.0]]), jnp.array([[0.5, 0.25]]))
    np.testing.assert_allclose(value, 1.25)


def gradient(old, logprob, advantage, dual_clip=None):
    """Loss and its gradient in one token's logprob."""

    def loss(logprobs_BT):
        ones_BT = jnp.ones((1, 1))
        return policy_loss(
            logprobs_BT, old * ones_BT, advantage * ones_BT, ones_BT,
            clip_low=0.2, clip_high=0.2, dual_clip=dual_clip,
        )  # fmt: skip

    (value, metrics), found_BT = jax.value_and_grad(loss, has_aux=True)(jnp.full((1, 1), logprob))
    return float(value), float(found_BT[0, 0]), metrics


@pytest.mark.parametrize("old", [-2.0, -88.0, -95.0, -1e4, -3e38])
def test_a_branch_that_is_not_taken_gives_a_gradient_of_zero_however_large_it_is(old):
    for advantage, dual, expected in (
        (1.0, None, -1.2),
        (1.0, 3.0, -1.2),
        (-1.0, 3.0, 3.0),
        (0.0, None, 0.0),
    ):
        value, slope, metrics = gradient(old, -0.1, advantage, dual)
        np.testing.assert_allclose(value, expected, rtol=1e-6)
        assert slope == 0.0 and all(np.isfinite(metric) for metric in metrics.values())


def test_a_branch_that_is_taken_and_overflows_has_a_gradient_whose_norm_is_not_finite():
    """So the update is refused, and not made without that token."""
    value, slope, _ = gradient(-95.0, -0.1, -1.0)
    assert value > 1e38 and slope > 1e38
    assert not np.isfinite(optax.tree.norm(jnp.float32(slope)))


@pytest.mark.parametrize("gap", [-200.0, -1.0, 0.0, 1.0, 20.0, 90.0, 1e4])
def test_kl_penalty_is_finite_and_as_written_where_it_can_be(gap):
    def penalty(logprobs_BT):
        return kl_penalty(logprobs_BT, logprobs_BT[:, ::-1] * 0 + gap - 1.0, jnp.array([[1.0, 0.0]]))

    value, slopes_BT = jax.value_and_grad(penalty)(jnp.array([[-1.0, -3e38]]))
    assert np.isfinite(value) and np.isfinite(slopes_BT).all() and slopes_BT[0, 1] == 0
    if gap < 80:
        np.testing.assert_allclose(value, np.exp(gap) - 1 - gap, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(slopes_BT[0, 0], 1 - np.exp(gap), rtol=1e-6)


def test_the_bounded_exponential_is_the_plain_one_bit_for_bit():
    x = jnp.linspace(-100.0, 87.0, 10001)
    np.testing.assert_array_equal(bounded_exp(x), jnp.exp(x))
    slope = jax.vmap(jax.grad(bounded_exp))(x)
    np.testing.assert_array_equal(slope, jax.vmap(jax.grad(jnp.exp))(x))
    assert np.isfinite(bounded_exp(jnp.float32([89.0, 1e30, np.inf]))).all()
    assert np.isnan(bounded_exp(jnp.float32(np.nan)))


def test_tokens_that_are_not_trained_may_hold_anything():
    nothing_BT, weights_BT = jnp.array([[-1.0, jnp.nan]]), jnp.array([[1.0, 0.0]])

    def losses(logprobs_BT):
        settings = {"clip_low": 0.2, "clip_high": 0.2, "dual_clip": 3.0}
        garbage = nothing_BT, nothing_BT, weights_BT
        return (
            policy_loss(logprobs_BT, *garbage, **settings)[0]
            + kl_penalty(logprobs_BT, nothing_BT, weights_BT)
            + cloning_loss(logprobs_BT, weights_BT)
        )

    value, slopes_BT = jax.value_and_grad(losses)(jnp.array([[-1.0, -jnp.inf]]))
    # 1 (advantage -1) + 0 + 1; slopes 1 + 0 - 1 and 0.
    np.testing.assert_allclose((value, *slopes_BT[0]), (2.0, 0.0, 0.0), atol=1e-6)
