"""When a warm start is made, and when it comes from the cache. Each is two updates of a tiny model."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from fakes import CharTokenizer, Longest

from atgrpo_jax.arrays.mesh import MeshConfig
from atgrpo_jax.credit.groups import CreditConfig
from atgrpo_jax.models.config import Architecture
from atgrpo_jax.models.families.table import transformer
from atgrpo_jax.models.transformer import init_params
from atgrpo_jax.rollout.rollout import RolloutConfig
from atgrpo_jax.rollout.team import Team
from atgrpo_jax.run.experiment import Experiment
from atgrpo_jax.run.warming import _source
from atgrpo_jax.tasks.math.math import Math
from atgrpo_jax.tasks.workflow import Workflow
from atgrpo_jax.update import warm_start as made_by
from atgrpo_jax.update.batch import BatchConfig
from atgrpo_jax.update.optimizer import OptimizerConfig
from atgrpo_jax.update.warm_start import WarmStartConfig, warm_start

MODEL = Architecture(layers=1, width=8, mlp_width=8, heads=2, kv_heads=1, head_size=4)
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

    def __repr__(self):
        return "OtherTokenizer()"  # a test's name is the same in all processes

    def digest(self):
        return "other"


@pytest.fixture(scope="module")
def mesh():
    return MeshConfig().build()


class Trained(Exception):
    """The warm start is not in the cache."""


@pytest.fixture(scope="module")
def make(mesh, tmp_path_factory):
    """Makes a warm start with changes; or only raises Trained if it is not in the cache of this module."""
    cache = str(tmp_path_factory.mktemp("cache"))

    def made(config=CONFIG, model=MODEL, names=("shared",), train=True, **changes):
        shape = transformer(model, 128)

        def fresh():
            if not train:
                raise Trained
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
        } | changes
        given.setdefault("source", repr(given["task"]))
        config = dataclasses.replace(config, cache_dir=cache)
        return jax.device_get(warm_start(config, fresh=dict.fromkeys(names, fresh), **given))

    return made


@pytest.fixture(scope="module")
def first(make):
    return make()


@pytest.fixture(scope="module")
def own(make):
    """A policy a role."""
    return make(team=Team({"scout": "full:a", "mover": "full:b"}), names=("a", "b"))


@pytest.mark.thorough
def test_the_same_is_trained_once(make, first):
    jax.tree.map(np.testing.assert_array_equal, first, make(train=False))
    start = init_params(transformer(MODEL, 128), jax.random.key(7))
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
        {"config": dataclasses.replace(CONFIG, turns=1)},
        {"team": Team("full"), "names": ("scout", "mover")},
        {"team": Team({"scout": "full:b", "mover": "full:a"}), "names": ("a", "b")},
    ],
    ids=str,
)
def test_what_is_made_from_anything_else_is_trained(make, first, own, change):
    with pytest.raises(Trained):
        make(train=False, **change)


def test_the_first_turns_alone_are_cloned(make, first):
    """Of a longer workflow these are what a shorter one has."""
    longer = Words(workflow=Workflow(order=("scout", "mover"), turns=2))
    one = make(task=longer, config=dataclasses.replace(CONFIG, turns=1))
    jax.tree.map(np.testing.assert_array_equal, first, one)
    both = make(task=longer)
    assert np.abs(both["shared"]["embedding"] - first["shared"]["embedding"]).max() > 1e-4


def test_the_next_demonstrations_are_played_before_an_update_is_waited_for(make, monkeypatch):
    done = []

    def noted(word, call):
        return lambda *args, **kwargs: (done.append(word), call(*args, **kwargs))[1]

    monkeypatch.setattr(made_by, "play_all", noted("play", made_by.play_all))
    monkeypatch.setattr(jax, "device_get", noted("wait", jax.device_get))
    make(config=dataclasses.replace(CONFIG, steps=3), seed=5)
    assert done[:6] == ["play", "play", "wait", "play", "wait", "wait"]
    assert done.count("play") == 3


@pytest.mark.parametrize(
    "change", [{"team": Team(alpha=3.0)}, {"optimizer": OptimizerConfig(learning_rate=1.0)}], ids=str
)
def test_what_it_does_not_depend_on_is_not_in_its_name(make, first, change):
    """Rewards do not matter to cloning, nor does the rate of the training after it."""
    jax.tree.map(np.testing.assert_array_equal, first, make(train=False, **change))


@pytest.mark.parametrize(("warmup", "moved"), [(0, 1e-2), (9, 1e-3)])
def test_its_first_step_is_as_long_as_the_rate_by_then(make, warmup, moved):
    """Adam's first step is the rate, and a warm-up of nine updates begins with a tenth of it."""
    config = dataclasses.replace(CONFIG, steps=1, warmup=warmup)
    params = make(config=config, optimizer=OptimizerConfig(weight_decay=0.0))
    start = init_params(transformer(MODEL, 128), jax.random.key(7))
    found = np.abs(params["shared"]["embedding"] - start["embedding"]).max()
    assert found == pytest.approx(moved, rel=1e-3)


def test_every_policy_learns_what_its_own_roles_are_shown(own):
    assert np.abs(own["a"]["embedding"] - own["b"]["embedding"]).max() > 1e-4


def test_what_a_run_reads_counts_by_its_content(tmp_path):
    """The worst: a run that silently starts from another model's weights."""

    def source(place, weight=0, sum_="1 + 1"):
        (place / "model").mkdir(parents=True, exist_ok=True)
        (place / "model" / "model.safetensors").write_bytes(bytes(1 << 17) + bytes([weight]))
        (place / "model" / "config.json").write_text("{}")
        problem = {"id": "1", "question": sum_, "answer": "2"}
        (place / "own.jsonl").write_text(json.dumps(problem))
        task = Math(files={"train": str(place / "own.jsonl")})
        return _source(Experiment(task=task, pretrained=str(place / "model")))

    first = source(tmp_path / "one")
    assert source(tmp_path / "one") == source(tmp_path / "elsewhere") == first
    assert len({first, source(tmp_path / "one", weight=1), source(tmp_path / "one", sum_="1 + 2")}) == 3


def test_what_a_run_does_later_does_not_count():
    """Arms of a study that begin alike share their warm start; policies here start at random."""
    x = Experiment(task=Math())
    later = dataclasses.replace(x, steps=7, rollout=RolloutConfig(candidates=2), credit=CreditConfig("role"))
    assert _source(x) == _source(later) != _source(dataclasses.replace(x, task=Math(terms=5)))
