"""When a warm start is made, and when it comes from the cache. Each is two updates of a tiny model."""

import dataclasses

import jax
import numpy as np
import pytest
from fakes import CharTokenizer, Longest, quickly_compiled  # noqa: F401

from atgrpo_jax.batch import BatchConfig
from atgrpo_jax.learner import OptimizerConfig
from atgrpo_jax.mesh import MeshConfig
from atgrpo_jax.models.config import ModelConfig
from atgrpo_jax.models.transformer import Transformer, init_params
from atgrpo_jax.tasks.base import Workflow
from atgrpo_jax.team import Team
from atgrpo_jax.warm_start import WarmStartConfig, warm_start

MODEL = ModelConfig(layers=1, width=8, mlp_width=8, heads=2, kv_heads=1, head_size=4)
CONFIG = WarmStartConfig(steps=2, instances=1, candidates=2, learning_rate=1e-2, warmup=1)


@dataclasses.dataclass(frozen=True)
class Words(Longest):
    """Shown how to say a word."""

    word: str = "yes"
    workflow: Workflow = Workflow(order=("scout", "mover"), turns=1)

    def demonstration(self, state, role, rng):
        return self.word + rng.choice("!?")


class OtherTokenizer(CharTokenizer):
    """The same ids under another name."""

    def digest(self):
        return "other"


@pytest.fixture(scope="module")
def mesh():
    return MeshConfig().build()


@pytest.fixture
def make(mesh, tmp_path):
    """Makes a warm start, with changes, and says what it gave and whether it was trained for it."""

    def made(config=CONFIG, model=MODEL, names=("shared",), **changes):
        asked = []
        shape = Transformer(model, 128)

        def fresh(name):
            asked.append(name)
            return jax.device_put(init_params(shape, jax.random.key(7)))

        given = {
            "optimizer": OptimizerConfig(),
            "models": dict.fromkeys(names, shape),
            "meshes": dict.fromkeys(names, mesh),
            "task": Words(),
            "team": Team(),
            "tokenizer": CharTokenizer(),
            "batch": BatchConfig(row_tokens=64, rows=2),
            "seed": 0,
            "source": "None",
        } | changes
        config = dataclasses.replace(config, cache_dir=str(tmp_path))
        makers = {name: lambda name=name: fresh(name) for name in names}
        params = warm_start(config, fresh=makers, **given)
        return jax.device_get(params), sorted(asked) == sorted(names)

    return made


def test_the_same_is_trained_once(make):
    first, trained = make()
    again, trained_again = make()
    assert trained and not trained_again
    jax.tree.map(np.testing.assert_array_equal, first, again)
    start = init_params(Transformer(MODEL, 128), jax.random.key(7))
    assert np.abs(first["shared"]["embedding"] - start["embedding"]).max() > 1e-3


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"source": "'another/folder'"},  # the worst: a run that silently starts from another model's weights
        {"batch": BatchConfig(row_tokens=64, rows=4)},
        {"optimizer": OptimizerConfig(b1=0.8)},
        {"optimizer": OptimizerConfig(weight_decay=0.3)},
        {"tokenizer": OtherTokenizer()},
        {"task": Words(word="no")},
        {"task": Words(workflow=Workflow(order=("mover", "scout"), turns=1))},
        {"model": dataclasses.replace(MODEL, rope_theta=5_000.0)},
        {"config": dataclasses.replace(CONFIG, steps=1)},
        {"config": dataclasses.replace(CONFIG, instances=2)},
        {"config": dataclasses.replace(CONFIG, candidates=3)},
        {"config": dataclasses.replace(CONFIG, learning_rate=2e-2)},
        {"config": dataclasses.replace(CONFIG, warmup=0)},
        {"team": Team("full"), "names": ("scout", "mover")},
        {"team": Team({"scout": "full:a", "mover": "full:b"}), "names": ("a", "b")},
        {"team": Team({"scout": "full:b", "mover": "full:a"}), "names": ("a", "b")},
    ],
    ids=str,
)
def test_what_is_made_from_anything_else_is_trained(make, change):
    make()
    make(team=Team({"scout": "full:b", "mover": "full:a"}, 1.0), names=("a", "b"), seed=99)
    _, trained = make(**change)
    assert trained
    _, again = make(**change)
    assert not again


@pytest.mark.parametrize(
    "change", [{"team": Team(alpha=3.0)}, {"optimizer": OptimizerConfig(learning_rate=1.0)}]
)
def test_what_it_does_not_depend_on_is_not_in_its_name(make, change):
    """Rewards do not matter to cloning, nor does the rate of the training after it."""
    make()
    _, trained = make(**change)
    assert not trained


def test_the_rate_warms_up_and_decays_over_the_warm_start(make):
    """One step at a rate of zero is none: a warm-up of many updates hardly moves the first."""
    start = init_params(Transformer(MODEL, 128), jax.random.key(7))

    def moved(**settings):
        config = dataclasses.replace(CONFIG, steps=1, learning_rate=1e-2, **settings)
        params, _ = make(config=config, optimizer=OptimizerConfig(weight_decay=0.0))
        return np.abs(params["shared"]["embedding"] - start["embedding"]).max()

    assert moved(warmup=0) == pytest.approx(1e-2, rel=1e-3)  # Adam's first step is the rate
    assert moved(warmup=9) == pytest.approx(1e-3, rel=1e-3)


def test_every_role_learns_what_its_policy_is_shown(make):
    """With a policy a role both are trained, and from their own prompts."""
    params, _ = make(team=Team("full"), names=("mover", "scout"))
    assert np.abs(params["mover"]["embedding"] - params["scout"]["embedding"]).max() > 1e-4
