"""What the optimizers make of gradients, by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fakes import PARITY

from atgrpo_jax.update.optimizer import OptimizerConfig


def test_the_rate_warms_up_and_stays():
    rate = OptimizerConfig(learning_rate=0.4, warmup=3).rate()
    np.testing.assert_allclose([rate(i) for i in (0, 1, 2, 3, 99)], [0.1, 0.2, 0.3, 0.4, 0.4], rtol=1e-6)


def test_the_rate_falls_as_half_a_cosine_after_the_warm_up():
    rate = OptimizerConfig(learning_rate=0.4, warmup=3, decay=10, final=0.25).rate()
    np.testing.assert_allclose([rate(i) for i in (0, 3, 8, 13, 99)], [0.1, 0.4, 0.25, 0.1, 0.1], rtol=1e-6)


def stepped(config, gradients, params=None):
    """Parameters after updates with these gradients, each a tree of arrays."""
    params = params or jax.tree.map(jnp.ones_like, gradients[0])
    optimizer = config.build()
    state = optimizer.init(params)
    for gradient in gradients:
        updates, state = optimizer.update(gradient, state, params)
        params = jax.tree.map(jnp.add, params, updates)
    return params


GRADIENTS = [
    {"layer": {"kernel": jnp.array([[3.0, 0.5], [-1.0, 2.0]])}, "scale": jnp.array([4.0, -0.1])},
    {"layer": {"kernel": jnp.array([[-1.0, 0.2], [0.3, 0.1]])}, "scale": jnp.array([0.5, 0.2])},
    {"layer": {"kernel": jnp.array([[0.1, -0.2], [0.3, 0.4]])}, "scale": jnp.array([-0.3, 0.6])},
]


@pytest.mark.parametrize(
    "change",
    [
        {"learning_rate": 0.2},
        {"b1": 0.5},
        {"b2": 0.5},
        {"epsilon": 0.1},
        {"weight_decay": 0.3},
        {"clip_norm": 0.5},
        {"warmup": 2},
        {"decay": 2},
        {"decay": 2, "final": 0.7},
        {"algorithm": "muon"},
        {"algorithm": "muon", "momentum": 0.2},
    ],
    ids=str,
)
def test_every_option_of_the_optimizer_changes_the_update(change):
    base = OptimizerConfig(learning_rate=0.1)
    other = {"momentum": {"algorithm": "muon"}, "final": {"decay": 2}}
    for name, needed in other.items():
        if name in change:
            base = dataclasses.replace(base, **needed)
    one, changed = (stepped(x, GRADIENTS) for x in (base, dataclasses.replace(base, **change)))
    gaps = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), one, changed)
    assert max(jax.tree.leaves(gaps)) > 1e-4


def test_adamw_by_hand():
    """Moments, their correction, epsilon outside the root, decay of the parameters and not of the moments."""
    config = OptimizerConfig(
        learning_rate=0.1, b1=0.8, b2=0.9, epsilon=0.3, weight_decay=0.05, clip_norm=100.0
    )
    found = stepped(config, [{"x": jnp.array(2.0)}, {"x": jnp.array(-1.0)}])["x"]
    x, mean, square = 1.0, 0.0, 0.0
    for count, gradient in enumerate((2.0, -1.0), start=1):
        mean, square = 0.8 * mean + 0.2 * gradient, 0.9 * square + 0.1 * gradient**2
        step = (mean / (1 - 0.8**count)) / ((square / (1 - 0.9**count)) ** 0.5 + 0.3)
        x -= 0.1 * (step + 0.05 * x)
    np.testing.assert_allclose(found, x, rtol=1e-6)


@pytest.mark.parametrize(("norm", "left"), [(10.0, 5.0), (1.0, 1.0), (None, 5.0)])
def test_gradients_are_clipped_by_the_norm_of_all_of_them(norm, left):
    """Of norm 5. Adam's first step is g / (|g| + 1) with an epsilon of one."""
    config = OptimizerConfig(learning_rate=1.0, epsilon=1.0, weight_decay=0.0, clip_norm=norm)
    moved = stepped(config, [{"a": jnp.array(3.0), "b": jnp.array([0.0, -4.0])}])
    a, b = 3.0 * left / 5, 4.0 * left / 5
    np.testing.assert_allclose(moved["a"], 1 - a / (a + 1), **PARITY)
    np.testing.assert_allclose(moved["b"], [1, 1 + b / (b + 1)], **PARITY)


@pytest.mark.parametrize("algorithm", ["adamw", "muon"])
def test_without_a_gradient_parameters_shrink_by_rate_times_decay(algorithm):
    config = OptimizerConfig(algorithm, learning_rate=0.1, weight_decay=0.2)
    still = jax.tree.map(jnp.zeros_like, GRADIENTS[0])
    params = {"layer": {"kernel": jnp.array([[1.0, 2.0], [3.0, -4.0]])}, "scale": jnp.array([5.0, -6.0])}
    found = stepped(config, [still], params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, 0.98 * b, rtol=1e-6), found, params)


def test_muon_moves_kernels_along_orthogonal_matrices():
    left, _, right = np.linalg.svd(np.random.default_rng(0).normal(size=(8, 32)), full_matrices=False)
    uneven = (left * np.linspace(0.05, 1, 8)) @ right
    gradient = {"layer": {"kernel": jnp.asarray(uneven)}, "embedding": jnp.asarray(uneven)}
    params = jax.tree.map(jnp.zeros_like, gradient)
    optimizer = OptimizerConfig("muon", learning_rate=0.1, weight_decay=0.0).build()
    moved, _ = optimizer.update(gradient, optimizer.init(params), params)
    kernel = np.asarray(moved["layer"]["kernel"])
    # Newton-Schulz brings singular values near to 1, between 0.68 and 1.13 for these coefficients; a
    # matrix of 8 of them has the root mean square 1 / sqrt(32), which is scaled to 0.2.
    sizes = np.linalg.svd(kernel, compute_uv=False) / (0.1 * 0.2 * np.sqrt(32))
    assert 0.6 < sizes.min() < sizes.max() < 1.2
    steps = np.asarray(moved["embedding"]) * -np.sign(uneven)  # Adam's first one: of one size, whatever
    np.testing.assert_allclose(steps, steps[0, 0], rtol=1e-3)  # the gradient's
    assert 0.1 <= steps[0, 0] < 0.15


@pytest.mark.parametrize(
    "wrong",
    [{"learning_rate": 0.0}, {"b2": 1.0}, {"warmup": -1}, {"decay": -1}, {"final": 1.5}, {"clip_norm": 0.0}],
)
def test_optimizer_config_refuses(wrong):
    with pytest.raises(ValueError, match=f"OptimizerConfig.{next(iter(wrong))}"):
        OptimizerConfig(**wrong)
