"""What the tests of the SGLang engine against a scripted server share."""

import asyncio
import json
import time

import jax
import pytest
from fakes import SMALL, small_model
from scripted_server import ScriptedServer

from atgrpo_jax.common.hosts import ALONE
from atgrpo_jax.common.types import Address, GroupKey, Sampling
from atgrpo_jax.engines.protocol import Request, Served
from atgrpo_jax.engines.sglang.sglang import SGLangConfig
from atgrpo_jax.models.hf import hf
from atgrpo_jax.models.lora import LoraConfig, init_adapter
from atgrpo_jax.models.transformer import PolicyWeights, init_params

MODEL, STOP = small_model(), 3
ABOUT = hf.description(SMALL, 64, (STOP,))
PARAMS = init_params(MODEL, jax.random.key(0))
ADAPTERS = {
    n: PolicyWeights(PARAMS, init_adapter(PARAMS, jax.random.key(i), 2, MODEL.family.adapted))
    for i, n in enumerate("ab")
}
FOUR = Sampling(1.0, 4)


@pytest.fixture
def folder(tmp_path):
    """What a server was started on."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps(ABOUT))
    return tmp_path / "model"


@pytest.fixture
def server(folder):
    with ScriptedServer(folder) as server:
        yield server


@pytest.fixture
def make(tmp_path):
    """Builds engines, and closes them."""
    made = []

    def build(*servers, weights=None, initial_names=None, hosts=ALONE, **settings):
        initial_names = initial_names or {"shared": "shared"}
        defaults = {
            "urls": tuple(s.url for s in servers),
            "folder": str(tmp_path / "weights"),
            "start_timeout_s": 0.5,
            "deadline_s": 20.0,
        }
        served = Served(
            models=dict.fromkeys(initial_names, MODEL),
            meshes={},
            sources=dict.fromkeys(initial_names, ABOUT),
            stop_ids=(STOP,),
            decode=str,
            initial_names=initial_names,
            lora=LoraConfig(rank=2),
            longest_answer=4,
            candidates=3,
            hosts=hosts,
        )
        engine = SGLangConfig(**defaults | settings).build(served)
        made.append(engine)
        for policy, own in (weights or {"shared": PolicyWeights(PARAMS)}).items():
            engine.push_weights(policy, own, 7)
        return engine

    yield build
    for engine in made:
        engine.close()


def request(instance=0, k=3, policy="shared", prompt=(5, 6, 7), sampling=FOUR, turn=0):
    key = GroupKey(1, "train", instance, 0, turn, "a")
    return Request(policy, prompt, tuple(Address(0, key, i) for i in range(k)), sampling)


def groups_of(server):
    """The bodies of all requests for groups."""
    return [body for body in server.bodies("/generate") if isinstance(body["input_ids"][0], list)]


def ask(engine, *requests):
    async def everything():
        return await asyncio.gather(*(engine.sample(r) for r in requests))

    return asyncio.run(everything())


def wait(what, seconds=10):
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.05)
