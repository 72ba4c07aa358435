"""The SGLang engine against a real server on this machine's CPU, which launch/serve_sglang.sh installs and
starts: what it draws, pushes, the gate and faults."""

import asyncio
import contextlib
import dataclasses
import json
import os
import signal
import socket
import subprocess
import time
import urllib.request
from pathlib import Path

import jax
import numpy as np
import pytest
from scripted_server import ScriptedServer

from atgrpo_jax.common.errors import RunError
from atgrpo_jax.common.types import Address, GroupKey, Sampling
from atgrpo_jax.engines.gate import Gate, push
from atgrpo_jax.engines.local.local import LocalEngineConfig
from atgrpo_jax.engines.protocol import Request, Served
from atgrpo_jax.engines.sglang import draws, servers, sglang
from atgrpo_jax.engines.sglang.processes import free_port
from atgrpo_jax.models.attention import masked_attention
from atgrpo_jax.models.config import Architecture
from atgrpo_jax.models.families.table import transformer
from atgrpo_jax.models.hf import hf
from atgrpo_jax.models.lora import LoraConfig, init_adapter, stack
from atgrpo_jax.models.transformer import PolicyWeights, apply, init_params, logits
from atgrpo_jax.tokens.tokens import TinyTokenizer

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]
TOKENIZER = TinyTokenizer()
# That of smoke.gin, so that one server does for all.
CONFIG = Architecture(layers=2, width=32, mlp_width=64, heads=2, kv_heads=1, head_size=16)
MODEL = transformer(CONFIG, TOKENIZER.vocab_size)
ABOUT = hf.description(CONFIG, TOKENIZER.vocab_size, TOKENIZER.stop_ids)
LORA = LoraConfig(rank=4)
AGREE = 1e-4  # nats


def params(seed):
    """Larger than fresh ones, so that some tokens are likelier than others."""
    return jax.tree.map(lambda x: 4 * x if x.ndim > 1 else x, init_params(MODEL, jax.random.key(seed)))


def adapter(base, seed):
    fresh = init_adapter(base, jax.random.key(seed), LORA.rank, MODEL.family.adapted)
    keys = iter(jax.random.split(jax.random.key(seed + 100), len(jax.tree.leaves(fresh))))
    moved = jax.tree.map(lambda x: x + 0.2 * jax.random.normal(next(keys), x.shape), fresh)
    return PolicyWeights(base, moved, LORA.scale)


BASE = params(0)
TEAM = {"a": adapter(BASE, 1), "b": adapter(BASE, 2)}


def served():
    return Served(
        models=dict.fromkeys(TEAM, MODEL),
        meshes=dict.fromkeys(TEAM),
        sources=dict.fromkeys(TEAM, ABOUT),
        stop_ids=TOKENIZER.stop_ids,
        decode=TOKENIZER.decode,
        initial_names=dict.fromkeys(TEAM, "base"),
        lora=LORA,
        longest_answer=64,
        candidates=4,
    )


@pytest.fixture(scope="module")
def live():
    config = sglang.SGLangConfig(
        command=f"bash {ROOT}/launch/serve_sglang.sh", start_timeout_s=900.0, deadline_s=300.0
    )
    engine = config.build(served())
    try:
        push(engine, TEAM, 0)
        yield engine
    finally:
        engine.close()


@pytest.fixture(scope="module")
def local():
    engine = LocalEngineConfig(slots=64, max_prompt=128).build(served())
    push(engine, TEAM, 0)
    return engine


@pytest.fixture(autouse=True)
def same_weights(request):
    """Whatever a test pushed, the next one finds the team's first weights."""
    yield
    if "live" in request.fixturenames:
        live = request.getfixturevalue("live")
        if live.version("a") != 0 and not live.closed:
            push(live, TEAM, 0)


def requests(policy, temperature, k=1, count=6, tokens=64, step=1):
    rng = np.random.default_rng(step)
    made = []
    for i in range(count):
        key = GroupKey(step, "train", i, 0, 0, policy)
        prompt = tuple(rng.integers(0, 256, 40).tolist())
        made.append(
            Request(
                policy, prompt, tuple(Address(0, key, j) for j in range(k)), Sampling(temperature, tokens)
            )
        )
    return made


def ask(engine, asked):
    async def everything():
        return await asyncio.gather(*(engine.sample(request) for request in asked))

    return asyncio.run(everything())


def server_of(engine):
    return engine.fleets["base"].servers[0]


def raw(engine, path, body=None):
    """What the server says to anybody."""
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"}
    asked = urllib.request.Request(server_of(engine).url + path, data, headers)
    with urllib.request.urlopen(asked, timeout=60) as answer:
        return json.load(answer)


def learned_logprobs(weights, prompt, tokens, temperature):
    """Of ``tokens`` after ``prompt``, by the model in one pass."""
    T = 104
    ids = np.zeros((1, T), int)
    ids[0, : len(prompt) + len(tokens)] = prompt + tokens
    mask = np.tril(np.ones((1, T, T), bool))
    hidden, _ = apply(
        MODEL, weights.params, stack([weights.adapter]), ids, np.arange(T)[None],
        lambda q, k, v, *_: (masked_attention(q, k, v, mask), None), scale_BJ=np.full((1, 1), weights.scale),
    )  # fmt: skip
    scores = np.asarray(jax.nn.log_softmax(logits(weights.params, hidden[0]) / (temperature or 1)))
    return scores[len(prompt) - 1 + np.arange(len(tokens)), list(tokens)]


@pytest.mark.parametrize("policy", TEAM)
def test_greedy_tokens_are_those_of_the_engine_in_this_process(live, local, policy):
    asked = requests(policy, 0.0)
    for theirs, ours in zip(ask(live, asked), ask(local, asked), strict=True):
        assert theirs[0].tokens == ours[0].tokens and theirs[0].finish == ours[0].finish
        np.testing.assert_allclose(theirs[0].logprobs, ours[0].logprobs, rtol=0, atol=AGREE)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("policy", TEAM)
def test_logprobs_are_the_learners_at_the_temperature_of_sampling(live, policy, temperature):
    asked = requests(policy, temperature, k=4, step=int(10 * temperature))
    lengths = set()
    for request, samples in zip(asked, ask(live, asked), strict=True):
        assert len({sample.tokens for sample in samples}) == 4  # siblings are not copies
        for sample in samples:
            expected = learned_logprobs(TEAM[policy], request.prompt_ids, sample.tokens, temperature)
            np.testing.assert_allclose(sample.logprobs, expected, rtol=0, atol=AGREE)
            lengths.add(len(sample.tokens))
            stopped = sample.tokens[-1] in TOKENIZER.stop_ids
            assert (sample.finish == "stop") == stopped
    assert max(lengths) > 50


def test_siblings_find_their_prompt_in_the_servers_cache(live):
    before = live.usage
    asked = requests("a", 1.0, k=4, step=77, tokens=2)
    ask(live, asked)
    first, again = live.usage - before, ask(live, asked)
    assert len(again) == 6 and first.prompt_tokens == 6 * 40 and first.known_tokens < 6 * 3
    assert (live.usage - before - first).known_tokens == 6 * 39  # all but the last, which is computed anew


def test_the_scripted_server_answers_as_the_real_one(live):
    (request,) = requests("a", 1.0, k=2, count=1, tokens=3)
    params = draws.sampling_params(request.sampling, TOKENIZER.stop_ids)
    body = {
        "input_ids": [list(request.prompt_ids)] * 2, "sampling_params": params,
        "return_logprob": True, "rid": "x",
    }  # fmt: skip
    real = raw(live, "/generate", body)
    script = ScriptedServer("nowhere", TOKENIZER.vocab_size)
    script.version = real[0]["meta_info"]["weight_version"]
    for k, answer in enumerate(real):
        made = script.answer(request.prompt_ids, f"x_{k}", 3)
        assert made["meta_info"]["id"] == answer["meta_info"]["id"]
        assert made.keys() == answer.keys()
        assert made["meta_info"].keys() <= answer["meta_info"].keys()
        for name, value in made["meta_info"].items():
            assert type(value) is type(answer["meta_info"][name]), name
        assert (
            made["meta_info"]["weight_versions"][0].keys() == answer["meta_info"]["weight_versions"][0].keys()
        )
    fleet = live.fleets["base"]
    assert not fleet.seeds and not fleet.texts and 32_000 < fleet.context < 32_768  # places of its cache
    for path in ("/model_info", "/server_info"):
        assert script.paths[path](None).keys() <= raw(live, path).keys()


def test_a_push_changes_the_draws_to_those_of_the_new_weights(live, local):
    other = {name: adapter(params(5), 6 + i) for i, name in enumerate(TEAM)}
    for engine in (live, local):
        push(engine, other, 3)
    asked = requests("a", 0.0, count=3, tokens=16)
    for theirs, ours in zip(ask(live, asked), ask(local, asked), strict=True):
        assert theirs[0].tokens == ours[0].tokens and theirs[0].version == 3
    push(local, TEAM, 0)
    assert ask(live, asked)[0][0].tokens != ask(local, asked)[0][0].tokens
    names = {name for name, _ in live.fleets["base"].adapters.values()}
    assert server_of(live).adapters == names and len(names) == 2


def wait_until_it_listens(port):
    """Within 60 s. An address of this host at which nobody listens is refused at once."""
    for _ in range(120):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.5)
    pytest.fail("the router does not listen")


def wait_until_idle(engine):
    """Within 20 s. A server flushes its cache only when it draws nothing, and answers in words."""
    for _ in range(40):
        try:
            raw(engine, "/flush_cache", {})
        except json.JSONDecodeError:
            return
        except urllib.error.HTTPError:
            time.sleep(0.5)
        else:
            return
    pytest.fail("something still runs")


def test_a_real_router_takes_the_requests(live, local):
    """Draws and aborts through it; weights past it. Its draws are those of the server."""
    url, ports = server_of(live).url, (free_port(), free_port())
    command = ["bash", f"{ROOT}/launch/serve_sglang.sh", "--router", "--worker-urls", url]
    command += ["--host", "127.0.0.1", "--port", str(ports[0]), "--prometheus-port", str(ports[1])]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as router:
        try:
            wait_until_it_listens(ports[0])
            behind = sglang.SGLangConfig(urls=(url,), router=f"http://127.0.0.1:{ports[0]}")
            engine = behind.build(served())
            push(engine, TEAM, 0)
            asked = requests("a", 0.0, k=2)
            for theirs, ours in zip(ask(engine, asked), ask(local, asked), strict=True):
                assert theirs[0].tokens == theirs[1].tokens == ours[0].tokens
            assert engine.retries == 0

            async def give_up():
                long = [dataclasses.replace(r, sampling=Sampling(1.0, 2000)) for r in requests("b", 1.0, k=4)]
                tasks = [asyncio.ensure_future(engine.sample(request)) for request in long]
                await asyncio.sleep(1.0)
                for task in tasks:
                    task.cancel()

            asyncio.run(give_up())
            engine.close()
            wait_until_idle(live)
        finally:
            router.terminate()
    server_of(live).state = None  # it has been given other weights
    push(live, TEAM, 0)


def test_who_is_cancelled_leaves_nothing_running(live):
    async def give_up():
        long = [dataclasses.replace(r, sampling=Sampling(1.0, 2000)) for r in requests("a", 1.0, k=4)]
        tasks = [asyncio.ensure_future(live.sample(request)) for request in long]
        await asyncio.sleep(1.5)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(give_up())
    wait_until_idle(live)


@pytest.fixture
def full(live):
    """One policy trained in full, on the same server, which for this engine runs already."""
    push(live, TEAM, 0)
    alone = dataclasses.replace(
        served(),
        models={"shared": MODEL},
        meshes={"shared": None},
        sources={"shared": ABOUT},
        initial_names={"shared": "shared"},
    )
    engine = sglang.SGLangConfig(urls=(server_of(live).url,)).build(alone)
    yield engine
    engine.close()
    server_of(live).state = None  # it has been given other weights meanwhile


def proof(*policies):
    return Gate(dict.fromkeys(policies, MODEL), TOKENIZER.stop_ids, 1.0, AGREE, seed=0)


OLD = {"shared": PolicyWeights(BASE)}
NEW = {
    "shared": PolicyWeights(
        jax.tree.map(lambda x: x + 0.02 * jax.random.normal(jax.random.key(9), x.shape), BASE)
    )
}
SAVE = hf.save


def test_an_honest_server_passes_the_gate(full, live):
    gate = proof("shared")
    for version, weights in ((1, OLD), (2, NEW)):
        push(full, weights, version)
        found = gate.check(full, weights, version)
        assert found["policy/shared/gate_gap"] < AGREE and (found["policy/shared/gate_margin"] > 100) == (
            version == 2
        )
    push(live, TEAM, 1)
    assert proof(*TEAM).check(live, TEAM, 1)["policy/b/gate_margin"] > 100


@pytest.mark.parametrize("fault", ["a skipped push", "a kept cache", "top-p", "other weights"])
def test_a_server_with_a_fault_is_caught_by_name(full, fault, monkeypatch):
    gate = proof("shared")
    push(full, OLD, 1)
    gate.check(full, OLD, 1)
    if fault == "a skipped push":
        monkeypatch.setattr(hf, "save", lambda f, _, *rest, whole: SAVE(f, BASE, *rest))
        says = "it draws from the weights before the push"
    elif fault == "other weights":
        monkeypatch.setattr(hf, "save", lambda f, _, *rest, whole: SAVE(f, params(3), *rest))
        says = "other weights than any of the learner's"
    elif fault == "a kept cache":
        post = servers.Server.post

        async def kept(self, path, body, *limits):
            if path == "/update_weights_from_disk":
                body = body | {"flush_cache": False}
            return await post(self, path, body, *limits)

        monkeypatch.setattr(servers.Server, "post", kept)
        says = "has kept what it computed"
    else:
        made = draws.sampling_params
        monkeypatch.setattr(draws, "sampling_params", lambda *args: made(*args) | {"top_p": 0.9})
        says = "not spread like the distribution"
    push(full, NEW, 2)
    with pytest.raises(RunError, match=says):
        gate.check(full, NEW, 2)


def test_swapped_adapters_are_caught_by_name(live):
    push(live, TEAM, 1)
    adapters = live.fleets["base"].adapters
    adapters["a"], adapters["b"] = adapters["b"], adapters["a"]
    with pytest.raises(RunError, match="policy a, version 1: .* it draws from the weights of b"):
        proof(*TEAM).check(live, TEAM, 1)


@pytest.mark.long
def test_a_killed_server_is_started_again_and_no_group_is_lost(live, local):
    async def draw_and_kill():
        asked = requests("a", 0.0, k=2, count=12)
        tasks = [asyncio.ensure_future(live.sample(request)) for request in asked]
        await asyncio.sleep(0.3)
        os.killpg(server_of(live).process.pid, signal.SIGKILL)
        return asked, await asyncio.gather(*tasks)

    before = live.retries
    asked, groups = asyncio.run(draw_and_kill())
    assert live.retries > before
    for theirs, ours in zip(groups, ask(local, asked), strict=True):
        assert [s.tokens for s in theirs] == [s.tokens for s in ours]


def test_an_id_outside_the_vocabulary_still_ends_a_server(live):
    """Which is why they are checked before anything is sent. Last, and the engine brings it back."""
    with pytest.raises(OSError):
        raw(live, "/generate", {"input_ids": [10_000], "sampling_params": {"max_new_tokens": 1}})
    process = server_of(live).process
    deadline = time.monotonic() + 30
    while process.alive:
        assert time.monotonic() < deadline, "this sglang survives a wrong id: say so in docs/sglang.md"
        time.sleep(0.2)
